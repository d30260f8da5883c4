import t, { type Test } from 'tap'
import type { Provider } from '../../src/store/client.js'
import { databaseClock } from '../../src/store/clock.js'
import { onPool } from '../../src/store/pool.js'
import { postgresStore } from '../../src/store/postgres.js'
import { prismaStore } from '../../src/store/prisma.js'
import { onPrisma } from '../../src/store/statements.js'
import { storeContract } from '../contracts/store.js'
import { mariadbDatabase } from '../fixtures/mariadb.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'
import { sqliteDatabase } from '../fixtures/sqlite.js'
import { type Client, WAYS } from '../fixtures/ways.js'

const portable = (prisma: Client, provider: Provider) =>
  prismaStore(prisma, databaseClock(prisma, provider))

for (const { name, skip, open } of WAYS) {
  t.test(name, { skip }, async (t) => {
    const way = await open(t)
    const { prisma, run, clock } = way
    const store = run ? postgresStore(run) : prismaStore(prisma, clock)
    await storeContract(t, { ...way, store, records: prisma.idempotencyRecord })
  })
}

const noPostgres = await missing('postgres')
const noMariadb = await missing('mariadb')

// A delete that names each row by its two columns has a limit: on SQLite, Prisma refuses more than
// 999 parameters in one condition (P2029), and on MariaDB 12,000 rows at once took 18 s.
async function prunesThousands(t: Test, prisma: Client, provider: Provider): Promise<void> {
  const past = new Date('2001-01-01T00:00:00Z')
  const future = new Date('2101-01-01T00:00:00Z')
  const row = (n: number, expiresAt: Date) => ({
    ...{ tenantId: 'a', key: `${n}`, operationId: 'o', fingerprint: 'f', status: 'completed' },
    ...{ leaseUntil: past, expiresAt },
  })
  await prisma.idempotencyRecord.createMany({
    data: Array.from({ length: 2_500 }, (_, n) => row(n, n < 2_400 ? past : future)),
  })
  const store = portable(prisma, provider)
  t.equal(await store.prune(1_001), 1_001, 'no more than asked')
  t.equal(await store.prune(10_000), 1_399, 'all that is left')
  t.equal(await store.prune(10_000), 0)
  const left: { expiresAt: Date }[] = await prisma.idempotencyRecord.findMany({})
  t.equal(left.length, 100)
  t.ok(left.every(({ expiresAt }) => expiresAt > past))
}

t.test('SQLite prunes more than a thousand records at once', async (t) => {
  const { prisma } = await sqliteDatabase(t)
  await prunesThousands(t, prisma, 'sqlite')
})

t.test('MariaDB prunes more than a thousand records at once', { skip: noMariadb }, async (t) => {
  const { prisma } = await mariadbDatabase(t)
  await prunesThousands(t, prisma, 'mysql')
})

t.test('a renewal that was long on its way takes nothing back', async (t) => {
  const { prisma } = await sqliteDatabase(t)
  const clock = databaseClock(prisma, 'sqlite')
  const ask = {
    ...{ tenantId: 'a', key: 'k', operationId: 'o', fingerprint: 'f' },
    leaseMs: 30_000,
    retentionMs: 60_000,
  }
  const hold = { ...ask, attempt: 1 }
  const row = () =>
    prisma.idempotencyRecord.findUniqueOrThrow({
      where: { tenantId_key: { tenantId: 'a', key: 'k' } },
    })
  await prismaStore(prisma, clock).insert([ask])
  const { leaseUntil } = await row()
  const askedAt = new Date(leaseUntil.getTime() - 50_000)
  const late = prismaStore(prisma, { ...clock, ask: async () => askedAt })
  t.strictSame(await late.extend([hold]), [true], 'it has the lease')
  t.strictSame((await row()).leaseUntil, leaseUntil)
  t.strictSame(await late.extend([{ ...hold, attempt: 2 }]), [false])
})

t.test('a storm of duplicates opens no connection', { skip: noPostgres }, async (t) => {
  for (const path of ['pool', 'prisma'] as const) {
    const { pool, prisma } = await postgresDatabase(t, { max: 5 })
    let opened = 0
    pool.on('connect', () => {
      opened += 1
    })
    const store = postgresStore(path === 'pool' ? onPool(pool, 30_000) : onPrisma(prisma))
    const ask = { tenantId: 'a', key: 'k', fingerprint: 'f', leaseMs: 30_000, retentionMs: 60_000 }
    const insert = (_: unknown, n: number) => store.insert([{ ...ask, operationId: `${n}` }])
    await Promise.all(Array.from({ length: 500 }, insert))
    t.ok(opened <= 5, `${opened} connections through ${path}`)
  }
})

t.test(
  'every statement looks into the index, however small the table is',
  { skip: noPostgres },
  async (t) => {
    const { pool } = await postgresDatabase(t)
    const plans = new Map<string, string>()
    const explain = postgresStore(async (name, text, values) => {
      const { rows } = await pool.query(`EXPLAIN ${text}`, [...values])
      plans.set(name, rows.map((row) => row['QUERY PLAN']).join('\n'))
      return []
    })
    const hold = { tenantId: 'a', key: 'k', operationId: 'o', attempt: 1 }
    const ask = { ...hold, fingerprint: 'f', leaseMs: 1, retentionMs: 1 }
    for (const rows of [0, 10, 1_000]) {
      await pool.query(
        `INSERT INTO idempotency_record (tenant_id, key, operation_id, fingerprint, status, lease_until, expires_at)
       SELECT 'a', $1 || '-' || n, 'o', 'f', 'completed', now(), now() FROM generate_series(1, $1::int) n`,
        [rows],
      )
      // For 1 and for 64: the plan must not depend on how many travel together.
      for (const count of [1, 64]) {
        const list = <T>(item: T) => new Array<T>(count).fill(item)
        await t.rejects(explain.insert(list(ask)), 'nothing is found in a plan')
        await explain.takeOver(list({ ...ask, seen: hold, resumed: true }))
        await explain.finish(list({ ...hold, response: null }))
        await explain.extend(list({ ...hold, leaseMs: 1 }))
        await explain.forget(list(hold))
        await explain.readBodies(list({ ...hold, bytes: 1 }))
        await explain.prune(count)
        t.equal(plans.size, 7)
        t.match(
          plans.get('fi_prune'),
          /idempotency_record_expires_at_idx[^\n]*\n *Index Cond: /,
          'no more is read than has expired',
        )
        for (const [name, plan] of plans) {
          t.match(plan, /Index Scan using idempotency_record_pkey/, `${name}, ${rows} rows`)
          t.notMatch(plan, /Seq Scan/, `${name}, ${rows} rows`)
        }
        plans.clear()
      }
    }
  },
)
