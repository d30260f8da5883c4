import type pg from 'pg'
import t, { type Test } from 'tap'
import type { PrismaClient as SqliteClient } from '../../prisma/generated/sqlite/client.js'
import type { Provider } from '../../src/store/client.js'
import { databaseClock } from '../../src/store/clock.js'
import type { Arrival, EventStore, RunEnd } from '../../src/store/event-store.js'
import { onPool } from '../../src/store/pool.js'
import { postgresEventStore } from '../../src/store/postgres-events.js'
import { prismaEventStore } from '../../src/store/prisma-events.js'
import { onPrisma } from '../../src/store/statements.js'
import { eventStoreContract } from '../contracts/event-store.js'
import { mariadbDatabase } from '../fixtures/mariadb.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'
import { sqliteDatabase } from '../fixtures/sqlite.js'
import { type Client, WAYS } from '../fixtures/ways.js'

const portable = (prisma: Client, provider: Provider) =>
  prismaEventStore(prisma, databaseClock(prisma, provider))

for (const { name, skip, open } of WAYS) {
  t.test(name, { skip }, async (t) => {
    const way = await open(t)
    const { prisma, run, clock } = way
    const store = run ? postgresEventStore(run) : prismaEventStore(prisma, clock)
    await eventStoreContract(t, { ...way, store, events: prisma.webhookEvent })
  })
}

const noPostgres = await missing('postgres')
const noMariadb = await missing('mariadb')

const anArrival: Arrival = {
  ...{ id: 'e', tenantId: 'a', provider: 'p', eventId: 'n', endpoint: 'stripe', type: null },
  ...{ payload: new Uint8Array(0), headers: {}, bodyHash: 'h', lane: 'l' },
  ...{ status: 'processing', awaitsDelivery: false, dueInMs: 30_000, errors: [] },
}
const served = { names: ['stripe'], leasesMs: [30_000] }

// On SQLite, Prisma refuses more than 999 parameters in one condition (P2029).
async function takesThousands(t: Test, prisma: Client, provider: Provider): Promise<void> {
  const past = new Date('2001-01-01T00:00:00Z')
  const row = (id: string, over: object) => ({
    ...{ id, tenantId: 'a', provider: 'p', eventId: id, endpoint: 'stripe', status: 'received' },
    ...{ dueAt: past, deliveredAt: [], payload: new Uint8Array(0), headers: {}, bodyHash: id },
    ...{ steps: {}, errors: [], receivedAt: past, ...over },
  })
  const many = (count: number, make: (n: number) => object) =>
    prisma.webhookEvent.createMany({ data: Array.from({ length: count }, (_, n) => make(n)) })
  await many(1_200, (n) => row(`over ${n}`, { status: 'processed' }))
  await many(1_200, (n) => row(`lane ${n}`, { lane: `lane ${n % 600}` }))
  await many(3, (n) => row(`last ${n}`, { dueAt: new Date(past.getTime() + 1_000) }))
  const store = portable(prisma, provider)
  t.equal((await store.listDue(2_000, served)).length, 603, 'one of each lane, and the others')
  t.equal(await store.prune(1_001), 1_001, 'no more than asked')
  t.equal(await store.prune(10_000), 199, 'all that is left')
}

t.test('SQLite takes more than a thousand events at once', async (t) => {
  const { prisma } = await sqliteDatabase(t)
  await takesThousands(t, prisma, 'sqlite')
})

t.test('MariaDB takes more than a thousand events at once', { skip: noMariadb }, async (t) => {
  const { prisma } = await mariadbDatabase(t)
  await takesThousands(t, prisma, 'mysql')
})

t.test(
  'PostgreSQL lists and claims more than it looks at once',
  { skip: noPostgres },
  async (t) => {
    const { pool } = await postgresDatabase(t)
    const store = postgresEventStore(onPool(pool, 30_000))
    const list = Array.from({ length: 1_000 }, (_, n) => ({
      ...anArrival,
      ...{ id: `${n}`, eventId: `${n}`, status: 'received' as const, dueInMs: 0 },
      lane: n % 2 ? `lane ${n % 7}` : null,
    }))
    await store.record(list)
    t.equal((await store.listDue(2_000, served)).length, 507)
    t.equal((await store.claimDue(400, served)).length, 400)
    t.equal((await store.claimDue(2_000, served)).length, 107)
    t.equal((await store.listDue(2_000, served)).length, 0)
  },
)

t.test('a claim is told even when the look for more fails', { skip: noPostgres }, async (t) => {
  const { pool } = await postgresDatabase(t)
  const run = onPool(pool, 30_000)
  let claims = 0
  const store = postgresEventStore(async (name, text, values) => {
    if (name === 'fi_event_claim_due') claims += 1
    if (claims === 2) throw new Error('cut')
    return run(name, text, values)
  })
  const one = { ...anArrival, status: 'received' as const, dueInMs: 0 }
  await store.record(
    Array.from({ length: 300 }, (_, n) => ({ ...one, id: `${n}`, eventId: `${n}` })),
  )
  t.equal((await store.claimDue(10, served)).length, 1)
  t.equal(claims, 2)
})

t.test('those who claim do not wait for each other', { skip: noPostgres }, async (t) => {
  const { pool } = await postgresDatabase(t)
  const store = postgresEventStore(onPool(pool, 30_000))
  const one = { ...anArrival, lane: null, status: 'received' as const, dueInMs: 0 }
  await store.record(['1', '2', '3'].map((id) => ({ ...one, id, eventId: id })))
  const other = await pool.connect()
  try {
    await other.query(`BEGIN; SELECT FROM webhook_event WHERE id = '2' FOR UPDATE`)
    const claimed = await store.claimDue(3, served)
    t.strictSame(claimed.map(({ id }) => id).sort(), ['1', '3'])
  } finally {
    await other.query('ROLLBACK')
    other.release()
  }
})

/** With Prisma alone a claim is a look and a write: `between` happens after the one, before the other. */
function interrupted(prisma: SqliteClient, between: () => Promise<unknown>): EventStore {
  const { webhookEvent } = prisma
  const client = {
    $queryRawUnsafe: (query: string) => prisma.$queryRawUnsafe(query),
    webhookEvent: {
      findUnique: (args: never) => webhookEvent.findUnique(args),
      findFirst: (args: never) => webhookEvent.findFirst(args),
      findMany: (args: never) => webhookEvent.findMany(args),
      async updateMany(args: never) {
        await between()
        return webhookEvent.updateMany(args)
      },
      async deleteMany(args: never) {
        await between()
        return webhookEvent.deleteMany(args)
      },
    },
  }
  return portable(client as unknown as Client, 'sqlite')
}

t.test('with Prisma alone, a run that came and went since the look is seen', async (t) => {
  const { prisma } = await sqliteDatabase(t)
  const store = portable(prisma, 'sqlite')
  await store.record([{ ...anArrival, status: 'received', dueInMs: 0 }])
  const retrying = {
    status: 'retrying',
    isAcknowledged: false,
    dueInMs: 0,
    attempts: 1,
    deferrals: 0,
    errors: [],
  } as const
  const late = interrupted(prisma, async () => {
    const fence = (await store.claim('e', 30_000))?.fence as number
    await store.end([{ id: 'e', fence, ...retrying, wakes: null }])
  })
  t.equal(await late.claim('e', 30_000), undefined, 'a fence is given once')
  t.strictSame(await late.claimDue(1, served), [])
  t.match(await store.find('e'), { status: 'retrying', fence: 2 })
})

t.test(
  'with Prisma alone, an acknowledged delivery makes due what has failed since the look',
  async (t) => {
    const { prisma } = await sqliteDatabase(t)
    const store = portable(prisma, 'sqlite')
    await store.record([{ ...anArrival, awaitsDelivery: true }])
    let isEnded = false
    const late = interrupted(prisma, async () => {
      if (isEnded) return
      isEnded = true
      const failed = { status: 'retrying', isAcknowledged: false, dueInMs: 0, attempts: 1 } as const
      await store.end([{ id: 'e', fence: 1, ...failed, deferrals: 0, errors: [], wakes: null }])
      t.match(await prisma.webhookEvent.findMany(), [{ status: 'retrying', dueAt: null }])
    })
    await late.record([{ ...anArrival, id: 'f' }])
    t.match(await prisma.webhookEvent.findMany(), [{ awaitsDelivery: false, dueAt: Date }])
  },
)

t.test(
  'with Prisma alone, a delivery leaves alone what was acknowledged since the look',
  async (t) => {
    const { prisma } = await sqliteDatabase(t)
    const store = portable(prisma, 'sqlite')
    await store.record([{ ...anArrival, awaitsDelivery: true }])
    const postponed = { status: 'retrying', isAcknowledged: true, dueInMs: 0, attempts: 0 } as const
    const late = interrupted(prisma, async () => {
      await store.end([{ id: 'e', fence: 1, ...postponed, deferrals: 1, errors: [], wakes: null }])
    })
    await late.record([{ ...anArrival, id: 'f', awaitsDelivery: true }])
    const rows = await prisma.webhookEvent.findMany()
    t.match(rows, [{ awaitsDelivery: false, deliveries: 2, dueAt: Date }])
  },
)

t.test(
  'with Prisma alone, a run that fails sees a delivery that was acknowledged meanwhile',
  async (t) => {
    const { prisma } = await sqliteDatabase(t)
    const store = portable(prisma, 'sqlite')
    await store.record([{ ...anArrival, awaitsDelivery: true }])
    const late = interrupted(prisma, async () => {
      await store.record([{ ...anArrival, id: 'f' }])
    })
    const failed = { status: 'retrying', isAcknowledged: false, dueInMs: 0, attempts: 1 } as const
    const end = { id: 'e', fence: 1, ...failed, deferrals: 0, errors: [], wakes: null }
    t.strictSame(await late.end([end]), [true])
    t.match(await prisma.webhookEvent.findMany(), [{ status: 'retrying', dueAt: Date }])
  },
)

t.test('with Prisma alone, a lease that was renewed since the look is seen', async (t) => {
  const { prisma } = await sqliteDatabase(t)
  const store = portable(prisma, 'sqlite')
  await store.record([{ ...anArrival, dueInMs: -1_000 }])
  const hold = { id: 'e', fence: 1, leaseMs: 30_000 }
  const past = new Date('2001-01-01T00:00:00Z')
  const runOut = () => prisma.webhookEvent.updateMany({ where: { id: 'e' }, data: { dueAt: past } })
  const late = interrupted(prisma, () => store.extend([hold]))
  t.strictSame(await late.claimDue(1, served), [])
  await runOut()
  t.equal(await late.reopen('e', true, null), false)
  t.match(await store.find('e'), { status: 'processing', fence: 1 })
  await runOut()
  t.equal((await store.claimDue(1, served)).length, 1, 'it would have been claimed')
})

t.test('with Prisma alone, a renewal that is late does not shorten a lease', async (t) => {
  const { prisma } = await sqliteDatabase(t)
  const store = portable(prisma, 'sqlite')
  await store.record([anArrival])
  const hold = { id: 'e', fence: 1, leaseMs: 60_000 }
  const late = interrupted(prisma, () => store.extend([{ ...hold, leaseMs: 600_000 }]))
  t.strictSame(await late.extend([hold]), [true], 'the run holds the event')
  const event = await prisma.webhookEvent.findUnique({ where: { id: 'e' } })
  t.ok(Number(event?.dueAt) > Date.now() + 300_000)
})

t.test('with Prisma alone, an event that was reopened since the look is not pruned', async (t) => {
  const { prisma } = await sqliteDatabase(t)
  const store = portable(prisma, 'sqlite')
  await store.record([{ ...anArrival, status: 'processed', dueInMs: 0 }])
  t.equal(await interrupted(prisma, () => store.reopen('e', true, null)).prune(10), 0)
  t.match(await store.find('e'), { status: 'received' })
})

t.test('a storm of duplicates opens no connection', { skip: noPostgres }, async (t) => {
  for (const path of ['pool', 'prisma', 'portable'] as const) {
    const { pool, prisma } = await postgresDatabase(t, { max: 5 })
    const store =
      path === 'portable'
        ? portable(prisma, 'postgresql')
        : postgresEventStore(path === 'pool' ? onPool(pool, 30_000) : onPrisma(prisma))
    // With Prisma alone, those that meet the first one may run into the constraint.
    if (path === 'portable') await store.record([anArrival])
    let opened = 0
    pool.on('connect', () => {
      opened += 1
    })
    const arrivals = Array.from({ length: 100 }, (_, n) => ({ ...anArrival, id: `e ${n}` }))
    await Promise.all(arrivals.map((arrival) => store.record([arrival])))
    t.ok(opened <= 5, `${opened} connections through ${path}`)
  }
})

t.test(
  'names that MySQL takes for the same by their case are refused, not mixed up',
  { skip: noMariadb },
  async (t) => {
    const { prisma } = await mariadbDatabase(t)
    await prisma.$executeRawUnsafe(
      'ALTER TABLE webhook_event MODIFY event_id VARCHAR(255) COLLATE utf8mb4_unicode_ci NULL',
    )
    const store = portable(prisma, 'mysql')
    t.match(await store.record([{ ...anArrival, eventId: 'Name' }]), [{ isNew: true }])
    const other = { ...anArrival, id: 'f', eventId: 'NAME', bodyHash: 'other' }
    await t.rejects(store.record([other]), { message: /binary collation/ })
    await t.rejects(store.find({ ...other }), { message: /binary collation/ })
    t.match(await prisma.webhookEvent.findMany({}), [{ deliveries: 1 }])
  },
)

for (const isolation of ['repeatable read', 'serializable'] as const) {
  t.test(
    `at ${isolation}, lists that meet in any order are all answered`,
    { skip: noPostgres },
    async (t) => {
      const { pool } = await postgresDatabase(t, { isolation })
      const store = postgresEventStore(onPool(pool, 30_000))
      for (let round = 0; round < 3; round += 1) {
        const list = Array.from({ length: 20 }, (_, n) => ({
          ...{ ...anArrival, id: `${round} ${n}`, eventId: `${round} ${n}` },
          lane: n % 2 ? `lane ${n % 5}` : null,
        }))
        const orders = Array.from({ length: 6 }, (_, n) =>
          (n % 2 ? list : [...list].reverse()).map((a) => ({ ...a, id: `${a.id} ${n}` })),
        )
        const recorded = (
          await Promise.all(orders.map((arrivals) => store.record(arrivals)))
        ).flat()
        const made = recorded.filter(({ isNew }) => isNew)
        t.equal(made.length, list.length)
        const started = made.filter(({ status }) => status === 'processing')
        t.equal(started.length, 15, 'ten without a lane, and one of each lane')
        const ends = started.map(({ id }) => ({
          ...{ id, fence: 1, status: 'processed' as const, dueInMs: 0, attempts: 1, deferrals: 0 },
          ...{ isAcknowledged: false, errors: [], wakes: null },
        }))
        const ended = await Promise.all([store.end(ends), store.end([...ends].reverse())])
        t.ok(ended.flat().every(Boolean))
        const claims = await Promise.all(made.map(({ id }) => store.claim(id, 30_000)))
        t.equal(claims.filter((claim) => claim !== undefined).length, 5, 'one of each lane')
        await pool.query('DELETE FROM webhook_event')
      }
    },
  )
}

t.test(
  'every statement looks into an index, however small the table is',
  { skip: noPostgres },
  async (t) => {
    const { pool } = await postgresDatabase(t)
    const { plans, explain } = explaining(pool, 'EXPLAIN')
    const hold = { id: 'e', fence: 1 }
    const end: RunEnd = {
      ...{ ...hold, status: 'retrying', dueInMs: 1, attempts: 1, deferrals: 1 },
      ...{ isAcknowledged: false, errors: [], wakes: 'l' },
    }
    for (const rows of [0, 10, 1_000]) {
      await fill(pool, rows)
      // For 1 and for 64: the plan must not depend on how many travel together.
      for (const count of [1, 64]) {
        const list = <T>(make: (n: number) => T) => Array.from({ length: count }, (_, n) => make(n))
        await explain.record(list((n) => ({ ...anArrival, id: `${n}`, eventId: `${n}` })))
        await explain.claimDue(count, served)
        await explain.listDue(count, served)
        await explain.claim('e', 30_000)
        await explain.end(list(() => end))
        await explain.extend(list(() => ({ ...hold, leaseMs: 1 })))
        await explain.find('e')
        await explain.find(anArrival as Arrival & { eventId: string })
        await explain.reopen('e', true, null)
        await explain.prune(count)
        t.equal(plans.size, 10)
        for (const [name, plan] of plans) {
          t.match(plan, /Index (Only )?Scan using webhook_event_/, `${name}, ${rows} rows`)
          t.notMatch(plan, /Seq Scan/, `${name}, ${rows} rows`)
          // By its first two columns it would give every event of a provider.
          for (const [, condition] of plan.matchAll(/event_id_key[^\n]*\n *Index Cond: (.*)/g)) {
            t.match(condition, /event_id = /, `${name} searches the name as a whole`)
          }
        }
        const record = plans.get('fi_event_record') ?? ''
        t.match(record, /body_hash_idx[^\n]*\n *Index Cond: \(+body_hash\)?(::text)? = /)
        plans.clear()
      }
    }
  },
)

t.test('a backlog is worked off without being read', { skip: noPostgres }, async (t) => {
  const { pool } = await postgresDatabase(t)
  // Old statistics are as bad as none: a backlog comes faster than the next ones.
  await pool.query('ALTER TABLE webhook_event SET (autovacuum_enabled = false)')
  for (const [knownBefore, backlog] of [
    [undefined, 20_000],
    [0, 20_000],
    [200, 20_000],
    [20_000, 200],
  ] as const) {
    for (const status of ['received', 'processed'] as const) {
      await pool.query('TRUNCATE webhook_event')
      if (knownBefore !== undefined) {
        await fill(pool, knownBefore, status)
        await pool.query('ANALYZE webhook_event')
      }
      await fill(pool, backlog, status)
      const { plans, explain } = explaining(pool, 'EXPLAIN (ANALYZE, BUFFERS)')
      if (status === 'received') {
        await explain.claimDue(10, served)
        await explain.listDue(250, served)
      } else await explain.prune(10)
      for (const [name, plan] of plans) {
        const [, pages] = /Buffers: shared hit=(\d+)/.exec(plan) ?? []
        t.ok(Number(pages) < 1_000, `${name}, ${knownBefore} rows were analysed: ${pages} pages`)
      }
    }
  }
})

function explaining(pool: pg.Pool, how: string) {
  const plans = new Map<string, string>()
  const explain = postgresEventStore(async (name, text, values) => {
    const { rows } = await pool.query(`${how} ${text}`, [...values])
    plans.set(name, rows.map((row) => row['QUERY PLAN']).join('\n'))
    return []
  })
  return { plans, explain }
}

async function fill(pool: pg.Pool, rows: number, status = 'received'): Promise<void> {
  await pool.query(
    `INSERT INTO webhook_event
       (id, tenant_id, provider, event_id, endpoint, status, due_at, delivered_at, payload,
        headers, body_hash, lane, steps, errors, received_at)
     SELECT $1 || '-' || n, 'a', 'p', $1 || '-' || n, 'stripe', $2, now(), '[]', '', '{}',
       'h', 'l', '{}', '[]', now()
     FROM generate_series(1, $1::int) n`,
    [rows, status],
  )
}
