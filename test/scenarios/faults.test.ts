// What is around a process fails: Redis, its connections, its clock, or the process stands still.
import t, { type Test } from 'tap'
import { within } from '../../src/within.js'
import {
  bodyOf,
  client,
  type FaultsEnvironment,
  type FaultsProcess,
  faultsProcess,
  type Hold,
  untilAnswered,
} from '../fixtures/faults.js'
import { type PostgresDatabase, postgresDatabase } from '../fixtures/postgres.js'
import { type Answer, textPoster } from '../fixtures/processes.js'
import { missingRedisServer, redisServer } from '../fixtures/redis.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'
import { until } from '../fixtures/until.js'
import { eventOf, signedByStripe, stripeEvent } from '../fixtures/webhooks.js'

t.setTimeout(600_000)

const skip = await missing('postgres')
const noServer = skip || (await missingRedisServer())

async function scenario(t: Test) {
  const database = await postgresDatabase(t)
  const { prisma } = database
  return {
    database,
    ...client(t, 50),
    start: (env: Omit<FaultsEnvironment, 'DATABASE_URL'> = {}) =>
      faultsProcess(t, { DATABASE_URL: database.url, ...env }),
    effects: (operation: string) => prisma.payment.count({ where: { tenantId: operation } }),
  }
}

/** How long is left of a lease, by the database's clock. */
async function leaseLeftMs({ pool }: PostgresDatabase, key: string): Promise<number> {
  const { rows } = await pool.query(
    `SELECT extract(epoch FROM lease_until - (now() AT TIME ZONE 'UTC'))::float8 * 1000 AS left
       FROM idempotency_record WHERE key = $1`,
    [key],
  )
  return rows[0].left
}

// A process that stands still.

const PLACES = {
  inside: 'within its transaction',
  after: 'after its transaction',
  end: 'when all is done, before it answers',
}

t.test(
  'a process stands still past its lease: another takes over, and the late writes and answers are refused',
  { skip },
  async (t) => {
    const { database, start, pay, deliver } = await scenario(t)
    // Long enough for a busy machine to begin all of it before a lease is over.
    const times = { LEASE: '3s', STORE_TIMEOUT: '60s' }
    const [first, second] = await Promise.all([start(times), start(times)])
    const holds = Object.keys(PLACES) as (keyof typeof PLACES)[]
    const codes = new Map<unknown, unknown>()
    first.child.on('message', (message: { kind: string; operation?: string; code?: string }) => {
      if (message.kind === 'failed') codes.set(message.operation, message.code)
    })
    const runIn = (server: FaultsProcess, hold: Hold) =>
      server.tell({ do: 'run', operation: `run ${hold}`, hold })

    const holding = first.holds(3 * holds.length)
    const late = holds.map((hold) => ({
      request: pay(first, `request-${hold}`, hold),
      event: deliver(first, 'bank', `event-${hold}`, hold),
      run: runIn(first, hold),
    }))
    await holding
    first.child.kill('SIGSTOP')
    const answers = await Promise.all(
      holds.map(async (hold) => {
        await untilAnswered(() => deliver(second, 'bank', `event-${hold}`, hold))
        return untilAnswered(() => pay(second, `request-${hold}`, hold))
      }),
    )
    for (const hold of holds) {
      await until(async () => (await runIn(second, hold)).kind !== 'busy')
    }
    first.child.kill('SIGCONT')
    first.go()

    for (const [n, hold] of holds.entries()) {
      const { request, event, run } = late[n] as (typeof late)[0]
      const where = PLACES[hold]
      const refused = await request
      t.equal(refused.status, 409, where)
      t.equal(bodyOf(refused).code, 'IDEMPOTENCY_LEASE_LOST', where)
      const replay = await pay(first, `request-${hold}`, hold)
      t.equal(replay.headers['idempotent-replayed'], 'true')
      t.ok(answers[n] && replay.body.equals(answers[n].body), 'stored is what the other one said')
      t.equal((await event).status, 503, where)
      t.match(await eventOf(database, `event-${hold}`, '', 'bank'), {
        status: 'processed',
        fence: 2,
      })
      t.strictSame(await run, { kind: 'threw', code: 'IDEMPOTENCY_LEASE_LOST' }, where)
      t.match(await runIn(first, hold), { kind: 'replayed', value: { attempt: 2 } })
      for (const operation of [`request-${hold}`, `event-${hold}`, `run ${hold}`]) {
        // At its end it has nothing more to write: it is the answer that is refused.
        t.equal(
          codes.get(operation),
          hold === 'end' ? undefined : 'IDEMPOTENCY_LEASE_LOST',
          `what the handler of ${operation} is told`,
        )
        const payments = await database.prisma.payment.findMany({ where: { tenantId: operation } })
        t.strictSame(
          payments.map(({ amount }) => amount),
          // What was committed before it stood still stays; what was not is undone.
          [hold === 'inside' ? 2 : 1],
          `one effect of ${operation}`,
        )
      }
    }
  },
)

// One connection.

t.test('a pool of one', { skip }, async (t) => {
  const { database, start, pay, deliver, effects } = await scenario(t)
  const [one, two] = await Promise.all([start({ POOL: '1' }), start({ POOL: '2' })])

  t.test(
    'a transaction that asks for a second connection ends with its own time, and frees its key',
    async (t) => {
      const refused = await pay(one, 'greedy', undefined, '/greedy-payments')
      t.equal(refused.status, 503)
      t.equal(await effects('greedy'), 0)
      t.equal((await pay(one, 'afterwards')).status, 201, 'the process goes on')
      const send = () => pay(two, 'greedy', undefined, '/greedy-payments')
      t.equal((await untilAnswered(send)).status, 201)
      t.equal(await effects('greedy'), 1)
    },
  )

  t.test(
    'a transaction that is longer than its lease keeps its heartbeat waiting, and commits',
    async (t) => {
      const holding = one.said('holding')
      const sent = pay(one, 'long', 'inside')
      await holding
      await until(async () => (await leaseLeftMs(database, 'long')) < 0)
      one.go()
      const { status, body } = await sent
      t.equal(status, 201)
      t.equal(await effects('long'), 1)
      t.ok((await pay(one, 'long', 'inside')).body.equals(body))
    },
  )

  t.test(
    'requests, events in and after their request, locks and recover() get on with it, heartbeats included',
    async (t) => {
      const holding = two.said('holding')
      two.tell({ do: 'run', operation: 'left', hold: 'before' }).catch(() => {})
      await holding
      await two.kill()

      const each = size({ full: 200, quick: 40 })
      const sends: ((n: number) => Promise<Answer>)[] = [
        (n) => pay(one, `request-${n}`),
        (n) => pay(one, `locked-${n}`, undefined, '/locked-payments'),
        (n) => pay(one, `atomic-${n}`, undefined, '/atomic-payments'),
        (n) => deliver(one, 'bank', `inline-${n}`),
        (n) => deliver(one, 'late', `deferred-${n}`),
      ]
      const startedAt = performance.now()
      const sent = sends.flatMap((send) =>
        Array.from({ length: each }, (_, n) => untilAnswered(() => send(n))),
      )
      await until(async () => {
        await one.tell({ do: 'recover' })
        return (await effects('left')) === 1
      })
      await Promise.all(sent)
      const where = { status: 'processed' }
      await until(async () => (await database.prisma.webhookEvent.count({ where })) === 2 * each)
      t.comment(`${sent.length} operations in ${Math.round(performance.now() - startedAt)} ms`)
      const counts = await database.prisma.payment.groupBy({ by: ['tenantId'], _count: true })
      // And the three of the other tests.
      t.equal(counts.length, sent.length + 1 + 3)
      t.ok(counts.every(({ _count }) => _count === 1))
    },
  )
})

// Redis.

/** Nobody waits that long for a Redis that does not answer. */
const ANSWERED_MS = 20_000

t.test(
  'Redis is paused, killed and started again while it counts new keys and keeps locks: each request is answered',
  { skip: noServer },
  async (t) => {
    const { database, start, pay } = await scenario(t)
    const redis = await redisServer(t)
    const server = await start({ REDIS_URL: redis.url, LEASE: '5s' })
    const each = size({ full: 50, quick: 8 })
    let slowest = 0
    let keys = 0
    async function round(name: string): Promise<void> {
      const sent = Array.from({ length: each }, async (_, n) => {
        const startedAt = performance.now()
        const path = n % 2 === 0 ? '/payments' : '/locked-payments'
        const answer = await within(pay(server, `${name}-${n}`, undefined, path), ANSWERED_MS)
        slowest = Math.max(slowest, performance.now() - startedAt)
        t.equal(answer.status, 201, `${name}, ${path}`)
      })
      keys += each
      await Promise.all(sent)
    }
    await round('there')
    await redis.pause()
    await round('paused')
    redis.resume()
    await round('resumed')
    await redis.kill()
    await round('killed')
    await redis.start()
    await round('back')
    const counts = await database.prisma.payment.groupBy({ by: ['tenantId'], _count: true })
    t.equal(counts.length, keys)
    t.ok(counts.every(({ _count }) => _count === 1))
    t.comment(`the slowest took ${Math.round(slowest)} ms`)
  },
)

// The clock.

const HOUR_MS = 3_600_000

t.test('a clock that is an hour ahead, and one that is an hour behind', { skip }, async (t) => {
  const { database, start, pay, deliver, effects } = await scenario(t)
  const { pool } = database
  const shifted = (shiftMs: number) => start({ CLOCK_SHIFT_MS: String(shiftMs) })
  const [ahead, behind] = await Promise.all([shifted(HOUR_MS), shifted(-HOUR_MS)])

  t.test('nobody takes over what is held, key or lock', async (t) => {
    for (const [server, name] of [
      [ahead, 'of-ahead'],
      [behind, 'of-behind'],
    ] as const) {
      const holding = server.holds(2)
      // Their processes will be killed.
      pay(server, name, 'before').catch(() => {})
      t.strictSame(await server.tell({ do: 'lock', name }), { kind: 'held' })
      await holding
    }
    const heldFrom = performance.now()
    const statuses = new Set<number>()
    // Two leases: each is renewed.
    while (performance.now() - heldFrom < 2_000) {
      for (const server of [ahead, behind]) {
        for (const name of ['of-ahead', 'of-behind']) {
          statuses.add((await pay(server, name, 'before')).status)
          t.match(await server.tell({ do: 'lock', name }), { kind: 'busy' })
        }
      }
    }
    t.strictSame([...statuses], [409])
  })

  t.test('what is done stays done, whoever looks and prunes; what is due is run', async (t) => {
    for (const [doer, asker, key] of [
      [ahead, behind, 'done-ahead'],
      [behind, ahead, 'done-behind'],
    ] as const) {
      const first = await pay(doer, key)
      t.strictSame(await asker.tell({ do: 'prune' }), { pruned: 0 })
      const replay = await pay(asker, key)
      t.equal(replay.headers['idempotent-replayed'], 'true')
      t.ok(replay.body.equals(first.body))
      t.equal((await deliver(doer, 'late', key)).status, 200)
      await until(async () => (await eventOf(database, key, '', 'late'))?.status === 'processed')
      t.equal(bodyOf(await deliver(asker, 'late', key)).outcome, 'duplicate')
    }
    const { rows } = await pool.query(
      `SELECT extract(epoch FROM expires_at - (now() AT TIME ZONE 'UTC'))::float8 / 60 AS minutes
         FROM idempotency_record`,
    )
    t.ok(
      rows.every(({ minutes }) => minutes > 20 && minutes <= 30),
      'they are kept for half an hour, as the database counts it',
    )
  })

  t.test(
    'a signature with a time in it needs a clock that is right: of the host, or as the option "clock"',
    async (t) => {
      const post = textPoster(t, 1)
      for (const { url } of [ahead, behind]) {
        const event = stripeEvent()
        const text = JSON.stringify(event)
        const send = (endpoint: string) =>
          post(`${url}/webhooks/${endpoint}`, text, signedByStripe(text))
        t.equal((await send('stripe')).status, 401)
        t.equal(await effects(event.id), 0)
        t.equal((await send('stripe-right')).status, 200)
        t.equal(await effects(event.id), 1)
      }
    },
  )

  t.test('after a crash a key is taken over when its lease is over, and not before', async (t) => {
    const takenOver = async (name: string, dead: FaultsProcess, other: FaultsProcess) => {
      await dead.kill()
      const { rows } = await pool.query(
        `SELECT extract(epoch FROM lease_until AT TIME ZONE 'UTC')::float8 * 1000 AS "leaseUntil"
           FROM idempotency_record WHERE key = $1`,
        [name],
      )
      const answer = await untilAnswered(() => pay(other, name, 'before'))
      const lateMs = bodyOf(answer).payment.at - rows[0].leaseUntil
      t.ok(lateMs >= 0 && lateMs < 10_000, `${Math.round(lateMs)} ms after its lease`)
      t.equal(await effects(name), 1)
    }
    await takenOver('of-ahead', ahead, behind)
    await takenOver('of-behind', behind, await shifted(HOUR_MS))
  })
})
