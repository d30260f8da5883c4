import t, { type Test } from 'tap'
import { databaseLock } from '../../src/locks/database.js'
import type { LockAsk } from '../../src/locks/lock.js'
import type { ModelDelegate, PrismaClientLike, Provider } from '../../src/store/client.js'
import { type DatabaseClock, databaseClock } from '../../src/store/clock.js'
import { heldOf } from '../contracts/lock.js'
import { anyDatabase } from '../fixtures/database.js'
import { mariadbDatabase } from '../fixtures/mariadb.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'
import { sqliteDatabase } from '../fixtures/sqlite.js'

const DAY_MS = 86_400_000
const ask = (...names: string[]): LockAsk => ({
  tenantId: 'acme',
  names,
  holder: 'the test',
  ttlMs: 30_000,
})

type Client = PrismaClientLike & { readonly namedLock: ModelDelegate }

function lockIn(prisma: Client, provider: Provider) {
  const clock = databaseClock(prisma, provider)
  const ageBy = async (ms: number, ...names: string[]) => {
    const heldUntil = new Date((await clock.ask()).getTime() - ms)
    await prisma.namedLock.updateMany({ where: { name: { in: names } }, data: { heldUntil } })
  }
  const names = async (): Promise<string[]> =>
    (await prisma.namedLock.findMany({ orderBy: { name: 'asc' } })).map(
      (row: { name: string }) => row.name,
    )
  return { clock, lock: databaseLock(prisma, clock, provider), ageBy, names }
}

async function prunes(t: Test, prisma: Client, provider: Provider): Promise<void> {
  const { lock, ageBy, names } = lockIn(prisma, provider)
  const old = Array.from({ length: 3 }, (_, n) => `old ${n}`)
  for (const name of [...old, 'given back', 'ran out', 'held']) {
    const held = heldOf(await lock.acquire(ask(name)))
    if (name !== 'ran out' && name !== 'held') await held.release()
  }
  await ageBy(DAY_MS + 1_000, ...old)
  await ageBy(DAY_MS - 60_000, 'given back', 'ran out')
  t.equal(await lock.prune(2), 2, 'no more than asked')
  t.equal(await lock.prune(10), 1)
  t.equal(await lock.prune(10), 0)
  t.strictSame(await names(), ['given back', 'held', 'ran out'])
  t.equal((await lock.acquire(ask('held'))).kind, 'busy')
}

t.test('prune deletes what nobody has held for a day, and nothing else', async (t) => {
  await t.test('PostgreSQL, or PGlite', async (t) => {
    await prunes(t, (await anyDatabase(t)).prisma, 'postgresql')
  })
  await t.test('MariaDB', { skip: await missing('mariadb') }, async (t) => {
    await prunes(t, (await mariadbDatabase(t)).prisma, 'mysql')
  })
  await t.test('SQLite', async (t) => {
    await prunes(t, (await sqliteDatabase(t)).prisma, 'sqlite')
  })
})

t.test('a fence rises over a row that was deleted', async (t) => {
  const { prisma } = await anyDatabase(t)
  const { lock, ageBy, names } = lockIn(prisma, 'postgresql')
  const first = heldOf(await lock.acquire(ask('a')))
  await first.release()
  await ageBy(DAY_MS + 1_000, 'a')
  t.equal(await lock.prune(1), 1)
  t.strictSame(await names(), [])
  t.ok((heldOf(await lock.acquire(ask('a'))).fence as number) > (first.fence as number))

  // A database whose clock was wrong for a while, and is right again.
  await prisma.namedLock.updateMany({ data: { fence: BigInt(Date.now()) + 10_000_000n } })
  await ageBy(DAY_MS + 1_000, 'a')
  t.equal(await lock.prune(1), 0, 'what the time would not rise over stays')
})

t.test('an extension that arrives late takes nothing back', async (t) => {
  const { prisma } = await anyDatabase(t)
  const { clock } = lockIn(prisma, 'postgresql')
  let behindMs = 0
  const late: DatabaseClock = {
    ...clock,
    ask: async () => new Date((await clock.ask()).getTime() - behindMs),
  }
  const lock = databaseLock(prisma, late, 'postgresql')
  const held = heldOf(await lock.acquire(ask('a')))
  const until = async () => (await prisma.namedLock.findFirst())?.heldUntil.getTime() as number
  const before = await until()
  behindMs = 10_000
  t.equal(await held.extend(), true)
  t.equal(await until(), before)
  behindMs = 0
  t.equal(await held.extend(), true)
  t.ok((await until()) >= before)
})

t.test('a clock that steps back loses no lock, and lets nobody in', async (t) => {
  for (const [name, provider, open] of [
    ['PostgreSQL, or PGlite', 'postgresql', anyDatabase],
    ['MariaDB', 'mysql', mariadbDatabase],
    ['SQLite', 'sqlite', sqliteDatabase],
  ] as const) {
    const skip = provider === 'mysql' && (await missing('mariadb'))
    await t.test(name, { skip }, async (t) => {
      const prisma: Client = (await open(t)).prisma
      let offMs = 0
      const stepped = (date: Date) => new Date(date.getTime() + offMs)
      const right = databaseClock(prisma, provider)
      const clock: DatabaseClock = {
        ...right,
        ask: async () => stepped(await right.ask()),
        estimate: async () => stepped(await right.estimate()),
      }
      const lock = databaseLock(prisma, clock, provider)
      const held = heldOf(await lock.acquire(ask('a', 'b')))
      const lost = heldOf(await lock.acquire(ask('c', 'd')))
      offMs = -3_600_000
      for (let turn = 0; turn < 3; turn += 1) {
        t.equal(await held.extend(), true, 'its holder keeps it')
        t.match(await lock.acquire(ask('b')), { kind: 'busy', holder: 'the test' })
      }
      await prisma.namedLock.updateMany({ where: { name: 'd' }, data: { owner: 'another' } })
      t.equal(await lost.extend(), false, 'one name of which is another owner’s is lost')
      t.equal(await held.release(), true)
      t.equal(await held.extend(), false, 'and so is one that was given back')
      const next = heldOf(await lock.acquire(ask('a')))
      t.ok((next.fence as number) > (held.fence as number))
    })
  }
})

t.test('a renewal that is faster than whoever saw it run out keeps the lock', async (t) => {
  const { prisma } = await anyDatabase(t)
  const { clock, lock, ageBy } = lockIn(prisma, 'postgresql')
  const held = heldOf(await lock.acquire(ask('a')))
  await ageBy(1_000, 'a')
  const { namedLock } = prisma
  const renewedSinceTheLook = {
    $queryRawUnsafe: prisma.$queryRawUnsafe.bind(prisma),
    namedLock: {
      findMany: async (args: object) => {
        const rows = await namedLock.findMany(args)
        await held.extend()
        return rows
      },
      updateMany: namedLock.updateMany.bind(namedLock),
    },
  } as never
  const other = databaseLock(renewedSinceTheLook, clock, 'postgresql')
  t.equal((await other.acquire(ask('a'))).kind, 'busy')
  t.equal(await held.extend(), true, 'still his')
})

t.test('nobody is let in early by an estimate that runs ahead', async (t) => {
  const { prisma } = await anyDatabase(t)
  const { clock, lock } = lockIn(prisma, 'postgresql')
  const ahead: DatabaseClock = {
    ...clock,
    estimate: async () => new Date((await clock.estimate()).getTime() + 60_000),
  }
  heldOf(await lock.acquire(ask('a')))
  t.equal((await databaseLock(prisma, ahead, 'postgresql').acquire(ask('a'))).kind, 'busy')
})

t.test(
  'a storm of contenders opens no connection, and hits no constraint',
  { skip: await missing('postgres') },
  async (t) => {
    const { pool, prisma } = await postgresDatabase(t, { max: 5 })
    let opened = 0
    pool.on('connect', () => {
      opened += 1
    })
    const { lock } = lockIn(prisma, 'postgresql')
    const sets = [['a'], ['b'], ['a', 'b'], ['b', 'c']]
    await Promise.all(
      Array.from({ length: 200 }, (_, n) => lock.acquire(ask(...(sets[n % 4] as string[])))),
    )
    t.ok(opened <= 5, `${opened} connections`)
  },
)

t.test('a client without the model is told how to get it', async (t) => {
  const clock = databaseClock({ $queryRawUnsafe: async () => t.fail() as never }, 'sqlite')
  t.throws(() => databaseLock({} as PrismaClientLike, clock, 'sqlite'), {
    code: 'IDEMPOTENCY_MODELS_MISSING',
    message: /model NamedLock/,
  })
})
