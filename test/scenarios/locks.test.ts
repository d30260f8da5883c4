import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import type pg from 'pg'
import t, { type Test } from 'tap'
import type { Happening } from '../../src/events.js'
import { createLocks } from '../../src/locks/create-locks.js'
import type { Locks } from '../../src/locks/locks.js'
import { databaseClock } from '../../src/store/clock.js'
import { createStatementLimits } from '../../src/store/statement-limit.js'
import type { LockOrder } from '../fixtures/locks-process.js'
import { type PostgresDatabase, postgresDatabase } from '../fixtures/postgres.js'
import { type TestProcess, testProcess } from '../fixtures/processes.js'
import { missingRedisServer, redisClient, redisServer } from '../fixtures/redis.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'

t.setTimeout(600_000)

const noPostgres = await missing('postgres')
const noRedis = noPostgres || (await missing('redis'))
const noServer = noPostgres || (await missingRedisServer())

type Kind = 'auto' | 'redis' | 'database'

interface LocksProcess extends TestProcess {
  tell(order: LockOrder): void
}

async function locksProcess(t: Test, env: object): Promise<LocksProcess> {
  const started = testProcess(t, './locks-process.ts', env)
  await started.said('ready')
  return { ...started, tell: (order) => void started.child.send(order) }
}

function locksIn(
  { prisma }: Pick<PostgresDatabase, 'prisma'>,
  kind: Kind,
  redis: readonly Redis[],
  report: (happening: Happening) => void = () => {},
): Locks {
  const clock = databaseClock(prisma, 'postgresql')
  return createLocks({
    ...{ kind, redis, prisma, clock, provider: 'postgresql', patienceMs: 5_000, report },
    redisPrefix: 'fastify-idempotency:',
    limits: createStatementLimits(7, 5_000).besideKeys,
  })
}

/** Clients of the application, which looks for its Redis again soon. */
function connect(t: Test, urls: readonly string[]): Redis[] {
  return urls.map((url) => {
    const redis = new Redis(url, { retryStrategy: () => 20 })
    redis.on('error', () => {})
    t.teardown(() => redis.disconnect())
    return redis
  })
}

const CONTENDERS = 50

for (const KIND of ['auto', 'redis', 'database'] as const) {
  t.test(
    `${CONTENDERS} contenders over two processes: never two inside, all are served (${KIND})`,
    { skip: KIND === 'database' ? noPostgres : noRedis },
    async (t) => {
      const { pool, url } = await postgresDatabase(t)
      await pool.query('CREATE TABLE turnstile AS SELECT 0 AS inside')
      const env = { DATABASE_URL: url, KIND, ...(await redisOf(t, KIND)) }
      const processes = await Promise.all([locksProcess(t, env), locksProcess(t, env)])
      const ends = processes.map(({ said }) => said('contended'))
      // What is between the processes is the same in all of them.
      const ms = size({ full: 20_000, quick: KIND === 'auto' ? 2_500 : 1_000 })
      for (const { tell } of processes) tell({ do: 'contend', contenders: CONTENDERS / 2, ms })
      const results = await Promise.all(ends)
      t.strictSame(
        results.map(({ crowded }) => crowded),
        [0, 0],
      )
      const served = results.flatMap((result) => result.served as number[])
      t.equal(served.length, CONTENDERS)
      t.ok(Math.min(...served) > 0, 'all were served')
      t.comment(`${served.reduce((a, b) => a + b)} turns, ${Math.min(...served)} for the least`)
      t.match((await pool.query('SELECT inside FROM turnstile')).rows, [{ inside: 0 }])
    },
  )
}

async function redisOf(t: Test, kind: Kind): Promise<object> {
  if (kind === 'database') return {}
  const { url, prefix } = await redisClient(t)
  return { REDIS_URL: url, PREFIX: prefix }
}

t.test(
  'a holder that is killed is replaced after its ttl, and not before',
  { skip: noRedis },
  async (t) => {
    const database = await postgresDatabase(t)
    const { url, prefix } = await redisClient(t)
    const env = { DATABASE_URL: database.url, KIND: 'auto', REDIS_URL: url, PREFIX: prefix }
    const { child, said, tell } = await locksProcess(t, env)
    const holding = said('holding')
    tell({ do: 'hold', ttl: '1s' })
    const { fence } = await holding
    // It is renewed all the time.
    await sleep(1_500)
    const redis = new Redis(url, { keyPrefix: prefix })
    t.teardown(() => redis.disconnect())
    const locks = locksIn(database, 'auto', [redis])
    t.match(
      await locks.lock(
        '',
        () => {},
        'held',
        {},
        () => t.fail(),
      ),
      { kind: 'busy' },
    )
    const { held_until } = (await database.pool.query('SELECT held_until FROM named_lock')).rows[0]
    child.kill('SIGKILL')
    const result = await locks.lock(
      '',
      () => {},
      'held',
      { wait: '60s' },
      async (_, next) => {
        const { rows } = await database.pool.query(
          `SELECT (now() AT TIME ZONE 'UTC') >= $1::timestamp AS "isOver"`,
          [held_until],
        )
        return { fence: next as number, isOver: rows[0].isOver }
      },
    )
    t.match(result, { kind: 'done', value: { isOver: true } })
    if (result.kind === 'done') t.ok(result.value.fence > (fence as number))
  },
)

t.test(
  'a holder that stood still past its ttl is told, and what it writes is refused',
  { skip: noPostgres },
  async (t) => {
    const database = await postgresDatabase(t)
    await database.pool.query(`CREATE TABLE guarded AS SELECT 0::bigint AS fence, '' AS writer`)
    const env = { DATABASE_URL: database.url, KIND: 'database' }
    const { child, said, tell } = await locksProcess(t, env)
    const holding = said('holding')
    tell({ do: 'hold', ttl: '1s' })
    await holding
    child.kill('SIGSTOP')
    const locks = locksIn(database, 'database', [])
    const second = await locks.lock(
      '',
      () => {},
      'held',
      { wait: '60s' },
      (_, fence) => writeGuarded(database.pool, fence as number),
    )
    t.match(second, { kind: 'done', value: 1, kept: true })
    const ended = said('ended')
    child.kill('SIGCONT')
    t.match(await ended, { value: 0, kept: false })
    t.match((await database.pool.query('SELECT writer FROM guarded')).rows, [
      { writer: 'the second' },
    ])
  },
)

async function writeGuarded(pool: pg.Pool, fence: number): Promise<number | null> {
  const { rowCount } = await pool.query(
    `UPDATE guarded SET fence = $1, writer = 'the second' WHERE fence <= $1`,
    [fence],
  )
  return rowCount
}

for (const outage of ['paused', 'killed'] as const) {
  t.test(
    `Redis is ${outage} and comes back while a lock is held: the holder keeps it, nobody else gets in`,
    { skip: noServer },
    async (t) => {
      const database = await postgresDatabase(t)
      const server = await redisServer(t)
      const happened: Happening['kind'][] = []
      const report = ({ kind }: Happening) => void happened.push(kind)
      const here = locksIn(database, 'auto', connect(t, [server.url]), report)
      const there = locksIn(database, 'auto', connect(t, [server.url]), report)
      const tryThere = () =>
        there.lock(
          '',
          () => {},
          'a',
          {},
          () => 'in',
        )

      const result = await here.lock(
        '',
        () => {},
        'a',
        { ttl: '1s' },
        async () => {
          t.match(await tryThere(), { kind: 'busy', holder: undefined }, 'Redis says so')
          if (outage === 'paused') await server.pause()
          else await server.kill()
          // Longer than its ttl: only its row can have kept it.
          const until = performance.now() + 1_500
          while (performance.now() < until) {
            t.match(await tryThere(), { kind: 'busy', holder: String }, 'its row says so')
            await sleep(100)
          }
          if (outage === 'paused') server.resume()
          else await server.start()
          await connect(t, [server.url])[0]?.ping()
          while (!happened.includes('lock_redis_back')) {
            t.match(await tryThere(), { kind: 'busy' })
            await sleep(100)
          }
          t.match(await tryThere(), { kind: 'busy' })
        },
      )
      t.match(result, { kind: 'done', kept: true })
      t.match(
        await there.lock(
          '',
          () => {},
          'a',
          { wait: '10s' },
          () => 'in',
        ),
        { value: 'in' },
      )
      t.ok(happened.includes('lock_redis_lost'))
    },
  )
}

t.test(
  'of three Redis servers one may be lost; without two, nobody can say, or the database does',
  { skip: noServer },
  async (t) => {
    const database = await postgresDatabase(t)
    const servers = await Promise.all([redisServer(t), redisServer(t), redisServer(t)])
    const urls = servers.map(({ url }) => url)
    const redis = locksIn(database, 'redis', connect(t, urls))
    const happened: Happening['kind'][] = []
    const auto = locksIn(database, 'auto', connect(t, urls), ({ kind }) => happened.push(kind))
    const lockIn = (locks: Locks) =>
      locks.lock(
        '',
        () => {},
        'a',
        { wait: '5s' },
        () => 'in',
      )

    await servers[0]?.kill()
    t.match(await lockIn(redis), { value: 'in', kept: true })
    t.match(await lockIn(auto), { value: 'in', kept: true })
    t.strictSame(happened, [])

    await servers[1]?.kill()
    await t.rejects(lockIn(redis), { code: 'IDEMPOTENCY_LOCK_UNAVAILABLE' })
    t.match(await lockIn(auto), { value: 'in', kept: true })
    t.strictSame(happened, ['lock_redis_lost'])
  },
)
