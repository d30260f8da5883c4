// Who gets an atomic operation when several want it, and what conflicts of the database do to it.
import type { FastifyReply, preHandlerAsyncHookHandler, RouteHandlerMethod } from 'fastify'
import { test } from 'tap'
import type { RouteOptions } from '../../src/index.js'
import { begin, buildApp, collectEvents, latch, newKey, recordOf, send } from '../fixtures/app.js'
import {
  anotherProcess,
  effectOf,
  effects,
  watchStatements,
  withStatements,
} from '../fixtures/atomic.js'
import type { Database } from '../fixtures/database.js'
import { pgliteDatabase } from '../fixtures/pglite.js'
import { type DatabaseOptions, postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'

const skip = await missing('postgres')

interface Setup extends RouteOptions {
  plugin?: object
  preHandler?: preHandlerAsyncHookHandler
}

function atomicApp(
  t: Parameters<typeof buildApp>[0],
  on: Database,
  handler: RouteHandlerMethod,
  { plugin = {}, preHandler, ...route }: Setup = {},
) {
  return buildApp(t, on, {
    plugin,
    routes: (app) =>
      app.post(
        '/things',
        {
          config: { idempotency: { atomic: true, ...route } },
          ...(preHandler && { preHandler }),
        },
        handler,
      ),
  })
}

/** A handler that takes effect and then waits, as often as it is run. */
function heldHandler() {
  const began = latch()
  const go = latch()
  let runs = 0
  const handler: RouteHandlerMethod = async ({ idempotency: { tx, key } }) => {
    runs += 1
    const run = runs
    await tx.payment.create(effectOf(key))
    began.open()
    await go.opened
    return { run }
  }
  return { handler, began: began.opened, go: () => go.open(), runs: () => runs }
}

test('a duplicate in another process is answered at once, though the pools have one connection each', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t, { max: 1 })
  const { handler, began, go, runs } = heldHandler()
  const one = await atomicApp(t, on, handler)
  const two = await atomicApp(t, anotherProcess(t, on, { max: 1 }), handler)
  const key = newKey()
  const first = begin(one, '/things', { key })
  await began
  const duplicate = await send(two, '/things', { key })
  t.equal(duplicate.json().code, 'IDEMPOTENCY_IN_PROGRESS')
  t.equal(duplicate.headers['retry-after'], '1')
  t.equal(
    (await send(two, '/things', { key, payload: { other: 1 } })).statusCode,
    409,
    'what the first has sent is not known here yet',
  )
  go()
  t.same((await first).json(), { run: 1 })
  t.same((await send(two, '/things', { key })).json(), { run: 1 })
  t.equal((await send(two, '/things', { key, payload: { other: 1 } })).statusCode, 422)
  t.equal(runs(), 1)
})

for (const [name, make] of Object.entries({
  ...(!skip && {
    'the only connection of the pool': (t: never) => postgresDatabase(t, { max: 1 }),
  }),
  'the only session of PGlite': pgliteDatabase,
})) {
  test(`a duplicate in the same process is answered at once, though the first has ${name}`, async (t) => {
    const on: Database = await make(t as never)
    const { handler, began, go, runs } = heldHandler()
    const one = await atomicApp(t, on, handler)
    const two = await atomicApp(t, on, handler)
    const key = newKey()
    const first = begin(one, '/things', { key })
    await began
    const statements = on.kind === 'postgres' ? watchStatements(t, on) : []
    for (const app of [one, two]) {
      t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_IN_PROGRESS')
      const other = await send(app, '/things', { key, payload: { other: 1 } })
      t.equal(other.json().code, 'IDEMPOTENCY_KEY_REUSED')
    }
    t.same(statements, [], 'and the database was not asked')
    go()
    t.same((await first).json(), { run: 1 })
    t.same((await send(two, '/things', { key })).json(), { run: 1 })
    t.equal(runs(), 1)
  })
}

test('a duplicate that waits gets the response, in the same process and in another, and holds no connection meanwhile', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t, { max: 1 })
  const another = anotherProcess(t, on, { max: 1 })
  const { handler, began, go, runs } = heldHandler()
  const one = await atomicApp(t, on, handler, { wait: '5s' })
  const two = await atomicApp(t, another, handler, { wait: '5s' })
  const key = newKey()
  const first = begin(one, '/things', { key })
  await began
  const waiting = [one, one, two, two].map((app) => begin(app, '/things', { key }))
  // Served by the same pool of one: those who wait do not have it.
  for (let n = 0; n < 5; n += 1) await another.prisma.payment.count()
  go()
  t.same((await first).json(), { run: 1 })
  for (const answer of await Promise.all(waiting)) {
    t.same(answer.json(), { run: 1 })
    t.equal(answer.headers['idempotent-replayed'], 'true')
  }
  t.equal(runs(), 1)
})

test('a duplicate that waited for an attempt that failed runs it', { skip }, async (t) => {
  const on = await postgresDatabase(t)
  const began = latch()
  const go = latch()
  let runs = 0
  const app = await atomicApp(
    t,
    on,
    async ({ idempotency: { tx, key } }) => {
      runs += 1
      await tx.payment.create(effectOf(key))
      if (runs > 1) return { run: runs }
      began.open()
      await go.opened
      throw new Error('no')
    },
    { wait: '5s' },
  )
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  const second = begin(app, '/things', { key })
  go.open()
  t.equal((await first).statusCode, 500)
  t.same((await second).json(), { run: 2 })
  t.equal(await effects(on, key), 1)
})

test('a wait that is over without an answer is a 409', { skip }, async (t) => {
  const on = await postgresDatabase(t)
  const { handler, began, go } = heldHandler()
  const app = await atomicApp(t, on, handler, { wait: '30ms' })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  const answer = await send(app, '/things', { key })
  t.equal(answer.json().code, 'IDEMPOTENCY_IN_PROGRESS')
  go()
  await first
})

test('many who ask at once for what is done are all replayed', { skip }, async (t) => {
  const on = await postgresDatabase(t, { max: 3 })
  const app = await atomicApp(t, on, ({ idempotency: { tx, key } }) =>
    tx.payment.create(effectOf(key)),
  )
  const key = newKey()
  const first = await send(app, '/things', { key })
  const answers = await Promise.all(Array.from({ length: 30 }, () => send(app, '/things', { key })))
  for (const { body } of answers) t.equal(body, first.body)
})

test('of many at once with one key on two processes, one takes effect, and all retries get its response', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t)
  let runs = 0
  const handler: RouteHandlerMethod = async ({ idempotency: { tx, key } }) => {
    runs += 1
    await tx.payment.create(effectOf(key))
    return { run: runs }
  }
  const apps = [
    await atomicApp(t, on, handler),
    await atomicApp(t, anotherProcess(t, on), handler),
  ] as const
  for (let round = 0; round < size({ full: 50, quick: 5 }); round += 1) {
    const key = newKey()
    const answers = await Promise.all(
      Array.from({ length: 100 }, (_, n) => send(apps[n % 2 === 0 ? 0 : 1], '/things', { key })),
    )
    const bodies = new Set(
      answers.filter(({ statusCode }) => statusCode === 200).map(({ body }) => body),
    )
    t.equal(bodies.size, 1)
    t.ok(answers.every(({ statusCode }) => statusCode === 200 || statusCode === 409))
    t.equal(await effects(on, key), 1)
    for (const app of apps) t.ok(bodies.has((await send(app, '/things', { key })).body))
  }
})

/** Neither lock holds: what the constraint and the guard of the last write keep is left. */
const withoutLock = (text: string) =>
  text
    .replace('pg_try_advisory_xact_lock($3::int8)', '($3::int8 IS NOT NULL)')
    .replace('FOR NO KEY UPDATE SKIP LOCKED', '')

/** Two processes that both believe that they are alone, and whose handlers run side by side. */
async function twoAtOnce(t: Parameters<typeof postgresDatabase>[0], options: DatabaseOptions) {
  const on = await postgresDatabase(t, options)
  const both = latch()
  let inside = 0
  let runs = 0
  const handler: RouteHandlerMethod = async ({ idempotency: { tx, key } }) => {
    runs += 1
    const run = runs
    await tx.payment.create(effectOf(key))
    inside += 1
    if (inside === 2) both.open()
    await both.opened
    return { run }
  }
  const [one, two] = [
    await atomicApp(t, withStatements(on, withoutLock), handler),
    await atomicApp(t, withStatements(on, withoutLock), handler),
  ]
  return { on, one, two }
}

for (const [isolation, refusal] of [
  ['read committed', { status: 409, code: 'IDEMPOTENCY_LEASE_LOST', kind: 'lease_lost' }],
  ['repeatable read', { status: 503, code: 'IDEMPOTENCY_NOT_CONFIRMED', kind: 'not_confirmed' }],
  ['serializable', { status: 503, code: 'IDEMPOTENCY_NOT_CONFIRMED', kind: 'not_confirmed' }],
] as const) {
  test(`without the lock, two at once: one takes effect, the other is told to repeat it (${isolation})`, {
    skip,
  }, async (t) => {
    const events = collectEvents(t)
    const { on, one, two } = await twoAtOnce(t, { isolation })
    const key = newKey()
    const answers = await Promise.all([
      send(one, '/things', { key }),
      send(two, '/things', { key }),
    ])
    const winner = answers.find(({ statusCode }) => statusCode === 200)
    const loser = answers.find((answer) => answer !== winner)
    t.equal(loser?.statusCode, refusal.status)
    t.equal(loser?.json().code, refusal.code)
    t.equal(loser?.headers['retry-after'], '1')
    t.equal(loser?.headers['content-type'], 'application/problem+json')
    t.equal(await effects(on, key), 1)
    for (const app of [one, two]) {
      t.equal((await send(app, '/things', { key })).body, winner?.body)
    }
    t.ok(events.kinds().includes(refusal.kind))
  })

  test(`without the lock, two take over the same record: one has it (${isolation})`, {
    skip,
  }, async (t) => {
    const { on, one, two } = await twoAtOnce(t, { isolation })
    const key = newKey()
    const seed = await atomicApp(t, on, () => 'x')
    await send(seed, '/things', { key })
    await on.prisma.idempotencyRecord.updateMany({ where: { key }, data: { status: 'released' } })
    const answers = await Promise.all([
      send(one, '/things', { key }),
      send(two, '/things', { key }),
    ])
    t.same(answers.map(({ statusCode }) => statusCode).sort(), [200, refusal.status])
    t.equal(await effects(on, key), 1)
    t.match(await recordOf(on, key), { attempt: 2, status: 'completed' })
  })
}

test('an attempt of a route that was not atomic, which began meanwhile, keeps its claim', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t)
  const { handler, began, go } = heldHandler()
  const app = await atomicApp(t, on, handler)
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  const later = new Date(Date.now() + 60_000)
  await on.prisma.idempotencyRecord.create({
    data: {
      ...{ tenantId: '', key, fingerprint: 'x', status: 'in_progress', operationId: 'other' },
      ...{ leaseUntil: later, expiresAt: later },
    },
  })
  go()
  t.equal((await first).json().code, 'IDEMPOTENCY_LEASE_LOST')
  t.equal(await effects(on, key), 0)
  t.match(await recordOf(on, key), { fingerprint: 'x', status: 'in_progress' })
})

test('an attempt that came and went meanwhile is not passed over: what it did is for the next one to know', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t)
  const later = new Date(Date.now() + 60_000)
  for (const seen of ['nothing', 'a released record']) {
    const { handler, began, go } = heldHandler()
    const app = await atomicApp(t, withStatements(on, withoutLock), handler)
    const key = newKey()
    const record = { tenantId: '', key, status: 'released', leaseUntil: later, expiresAt: later }
    if (seen !== 'nothing') {
      const seed = await atomicApp(t, on, () => 'x')
      await send(seed, '/things', { key })
      await on.prisma.idempotencyRecord.updateMany({
        where: { key },
        data: { status: 'released' },
      })
    }
    const first = begin(app, '/things', { key })
    await began
    await on.prisma.idempotencyRecord.upsert({
      where: { tenantId_key: { tenantId: '', key } },
      create: { ...record, fingerprint: 'x', operationId: 'other' },
      update: { attempt: { increment: 1 } },
    })
    go()
    t.equal((await first).json().code, 'IDEMPOTENCY_LEASE_LOST', seen)
    t.equal(await effects(on, key), 0)
  }
})

test('another operation that came meanwhile is not replaced, though its attempt has the same number', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t)
  const { handler, began, go } = heldHandler()
  const app = await atomicApp(t, withStatements(on, withoutLock), handler)
  const key = newKey()
  const seed = await atomicApp(t, on, () => 'x')
  await send(seed, '/things', { key })
  const released = { where: { key }, data: { status: 'released' } }
  await on.prisma.idempotencyRecord.updateMany(released)
  const second = begin(app, '/things', { key })
  await began
  // It was pruned, and the key is that of another operation, which was released as well.
  const other = { operationId: newKey(), fingerprint: 'other' }
  await on.prisma.idempotencyRecord.updateMany({ where: { key }, data: other })
  go()
  t.equal((await second).json().code, 'IDEMPOTENCY_LEASE_LOST')
  t.equal(await effects(on, key), 0)
  t.match(await recordOf(on, key), { ...other, status: 'released', attempt: 1 })
})

test('a free record that another transaction has locked is held: the handler does not run', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t)
  for (const isolationLevel of ['ReadCommitted', 'RepeatableRead', 'Serializable'] as const) {
    let runs = 0
    const handler: RouteHandlerMethod = () => ({ run: ++runs })
    const app = await atomicApp(t, on, handler, { atomic: { isolationLevel } })
    const key = newKey()
    await send(app, '/things', { key })
    const released = { where: { key }, data: { status: 'released' } }
    await on.prisma.idempotencyRecord.updateMany(released)
    await on.prisma.$transaction(async (tx) => {
      await tx.idempotencyRecord.updateMany(released)
      const answer = await send(app, '/things', { key })
      t.equal(answer.statusCode, 409, isolationLevel)
      t.equal(answer.json().code, 'IDEMPOTENCY_IN_PROGRESS')
    })
    t.equal(runs, 1)
    t.same((await send(app, '/things', { key })).json(), { run: 2 })
  }
})

test('a holder that comes back to life while his record is taken over keeps it', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t)
  const began = latch()
  const go = latch()
  let runs = 0
  const app = await atomicApp(t, withStatements(on, withoutLock), async ({ idempotency }) => {
    const { tx, key } = idempotency
    runs += 1
    if (runs === 1) return 'x'
    await tx.payment.create(effectOf(key))
    began.open()
    await go.opened
    return 'y'
  })
  const key = newKey()
  await send(app, '/things', { key })
  const renew = (leaseUntil: Date) =>
    on.prisma.idempotencyRecord.updateMany({
      where: { key },
      data: { status: 'in_progress', leaseUntil },
    })
  await renew(new Date(0))
  const second = begin(app, '/things', { key })
  await began.opened
  await renew(new Date(Date.now() + 60_000))
  go.open()
  t.equal((await second).json().code, 'IDEMPOTENCY_LEASE_LOST')
  t.equal(await effects(on, key), 0)
})

for (const [isolationLevel, told] of [
  ['ReadCommitted', 'read committed'],
  ['RepeatableRead', 'repeatable read'],
  ['Serializable', 'serializable'],
] as const) {
  test(`the isolation level is that of the route: ${isolationLevel}`, { skip }, async (t) => {
    const on = await postgresDatabase(t)
    const app = await atomicApp(
      t,
      on,
      async ({ idempotency: { tx, key } }) => {
        await tx.payment.create(effectOf(key))
        return tx.$queryRawUnsafe('SHOW transaction_isolation')
      },
      { atomic: { isolationLevel } },
    )
    const key = newKey()
    const first = await send(app, '/things', { key })
    t.same(first.json(), [{ transaction_isolation: told }])
    t.equal((await send(app, '/things', { key })).body, first.body)
    t.equal(await effects(on, key), 1)
  })
}

test('a conflict that the handler meets runs it again in a new transaction, on a reply as it was', {
  skip,
}, async (t) => {
  const events = collectEvents(t)
  const on = await postgresDatabase(t)
  let runs = 0
  const app = await atomicApp(
    t,
    on,
    async ({ idempotency: { tx, key = '', attempt } }, reply) => {
      runs += 1
      const payment = await tx.payment.findFirst({ where: { tenantId: 'contended' } })
      await tx.payment.create(effectOf(key))
      if (runs < 3) {
        reply.code(202).header('x-run', String(runs)).header('location', '/first')
        await on.prisma.payment.updateMany({
          where: { tenantId: 'contended' },
          data: { amount: { increment: 1 } },
        })
      }
      await tx.payment.update({ where: { id: payment?.id ?? '' }, data: { amount: 0 } })
      return { run: runs, attempt }
    },
    {
      atomic: { isolationLevel: 'RepeatableRead' },
      plugin: { rateLimit: { max: 1, timeWindow: '1m' } },
      preHandler: async (_: unknown, reply: FastifyReply) => {
        reply.header('set-cookie', 'session=1')
      },
    },
  )
  await on.prisma.payment.create(effectOf('contended'))
  const key = newKey()
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 200)
  t.same(answer.json(), { run: 3, attempt: 1 })
  t.equal(answer.headers['x-run'], undefined)
  t.equal(answer.headers['set-cookie'], 'session=1', 'what hooks have set is there, and once')
  t.equal(answer.headers.location, undefined)
  t.equal(await effects(on, key), 1)
  t.same(events.kinds(), [
    ...['claimed', 'rolled_back', 'claimed', 'rolled_back', 'claimed', 'completed'],
  ])
})

test('a conflict that does not end is the handler’s error, and nothing is kept', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t)
  let runs = 0
  const app = await atomicApp(t, on, async ({ idempotency: { tx, key } }) => {
    runs += 1
    await tx.payment.create(effectOf(key))
    throw Object.assign(new Error('of the database'), { code: 'P2034' })
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 500)
  t.equal(runs, 10)
  t.equal(await effects(on, key), 0)
  t.equal(await recordOf(on, key), null)
})

test('a conflict without a key runs the handler again as well', { skip }, async (t) => {
  const on = await postgresDatabase(t)
  let runs = 0
  const app = await atomicApp(t, on, async ({ idempotency: { tx } }) => {
    runs += 1
    await tx.payment.create(effectOf('keyless'))
    if (runs === 1) throw Object.assign(new Error('of the database'), { code: 'P2034' })
    return { run: runs }
  })
  t.same((await send(app, '/things')).json(), { run: 2 })
  t.equal(await effects(on, 'keyless'), 1)
})

test('two tenants with one key have an operation each', { skip }, async (t) => {
  const on = await postgresDatabase(t)
  const { handler, began, go } = heldHandler()
  let tenant = 'a'
  const app = await atomicApp(t, on, handler, { plugin: { tenant: () => tenant } })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  tenant = 'b'
  const second = begin(app, '/things', { key })
  go()
  t.equal((await first).statusCode, 200)
  t.equal((await second).statusCode, 200)
  t.equal(await effects(on, key), 2)
})

test('a closing server lets those who wait go', { skip }, async (t) => {
  const on = await postgresDatabase(t)
  const { handler, began, go } = heldHandler()
  const one = await atomicApp(t, on, handler)
  const two = await atomicApp(t, anotherProcess(t, on), handler, { wait: '1m' })
  const key = newKey()
  const first = begin(one, '/things', { key })
  await began
  const waiting = begin(two, '/things', { key })
  await two.close()
  t.equal((await waiting).statusCode, 409)
  go()
  await first
})
