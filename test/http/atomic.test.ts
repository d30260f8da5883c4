// Routes whose claim, effects and stored response are one transaction.
import type { FastifyInstance, RouteHandlerMethod } from 'fastify'
import Fastify from 'fastify'
import t, { test } from 'tap'
import idempotency, { defineFlow, type PluginOptions, type RouteOptions } from '../../src/index.js'
import {
  buildApp,
  collectEvents,
  exchangeBytes,
  listen,
  newKey,
  postText,
  recordOf,
  send,
} from '../fixtures/app.js'
import { effectOf, effects, watchStatements } from '../fixtures/atomic.js'
import type { Database } from '../fixtures/database.js'
import { pgliteDatabase } from '../fixtures/pglite.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'
import { sqliteDatabase } from '../fixtures/sqlite.js'

const noPostgres = await missing('postgres')
const databases: Record<string, Database> = {
  ...(!noPostgres && { PostgreSQL: await postgresDatabase(t) }),
  PGlite: await pgliteDatabase(t),
}
const database = Object.values(databases)[0] as Database

type Teardown = Parameters<typeof buildApp>[0]

/** One route, `/things`, that is atomic. */
function atomicApp(
  t: Teardown,
  on: Database,
  handler: RouteHandlerMethod,
  { plugin = {}, ...route }: RouteOptions & { plugin?: object } = {},
): Promise<FastifyInstance> {
  return buildApp(t, on, {
    plugin,
    routes: (app) =>
      app.post('/things', { config: { idempotency: { atomic: true, ...route } } }, handler),
  })
}

/** A handler that takes effect, and then does something more. */
function withEffect(then: (runs: number, ...call: Parameters<RouteHandlerMethod>) => unknown) {
  let runs = 0
  const handler: RouteHandlerMethod = async (request, reply) => {
    runs += 1
    await request.idempotency.tx.payment.create(effectOf(request.idempotency.key))
    return then.call(undefined, runs, request, reply)
  }
  return handler
}

for (const [name, on] of Object.entries(databases)) {
  test(`${name}: the effect, the claim and the response are there together, and a retry replays it`, async (t) => {
    const events = collectEvents(t)
    const app = await atomicApp(
      t,
      on,
      withEffect((run, _, reply) =>
        reply.code(201).header('location', '/things/1').header('x-own', 'a').send({ run }),
      ),
    )
    const key = newKey()
    const first = await send(app, '/things', { key })
    t.equal(first.statusCode, 201)
    t.equal(first.body, '{"run":1}')
    t.match(await recordOf(on, key), { status: 'completed', attempt: 1, statusCode: 201 })
    const retry = await send(app, '/things', { key })
    t.equal(retry.statusCode, 201)
    t.equal(retry.body, first.body)
    t.equal(retry.headers.location, '/things/1')
    t.equal(retry.headers['content-type'], first.headers['content-type'])
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.equal(await effects(on, key), 1)
    t.match(events.all, [
      { kind: 'claimed', attempt: 1 },
      { kind: 'completed', attempt: 1, statusCode: 201, bytes: 9 },
      { kind: 'replayed', statusCode: 201 },
    ])
  })

  test(`${name}: bytes come back as they were, over a real connection`, async (t) => {
    const bytes = Buffer.from([0, 255, 254, 13, 10, 0])
    const app = await atomicApp(
      t,
      on,
      withEffect(() => bytes),
    )
    const port = await listen(app)
    const key = newKey()
    const ask = () => exchangeBytes(t, port, postText('/things', [`idempotency-key: ${key}`]))
    t.same((await ask()).body, bytes)
    t.same((await ask()).body, bytes)
    t.equal(await effects(on, key), 1)
  })

  test(`${name}: what the handler throws undoes the effect and the claim, whatever its status`, async (t) => {
    const events = collectEvents(t)
    const app = await atomicApp(
      t,
      on,
      withEffect((run) => {
        if (run < 3) throw Object.assign(new Error('no'), { statusCode: run === 1 ? 500 : 404 })
        return { run }
      }),
    )
    const key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, 500)
    t.equal(await effects(on, key), 0)
    t.equal(await recordOf(on, key), null)
    t.equal((await send(app, '/things', { key })).statusCode, 404)
    t.equal(await effects(on, key), 0)
    t.same((await send(app, '/things', { key })).json(), { run: 3 })
    t.same((await send(app, '/things', { key })).json(), { run: 3 }, 'and this one is kept')
    t.equal(await effects(on, key), 1)
    t.match(
      events.all.filter(({ kind }) => kind === 'rolled_back'),
      [
        { attempt: 1, why: 'its handler failed' },
        { attempt: 1, why: 'its handler failed' },
      ],
    )
  })

  test(`${name}: a status that is kept commits what was done, one that is not undoes it`, async (t) => {
    for (const [status, isKept] of [
      [201, true],
      [422, true],
      [409, true],
      [429, false],
      [500, false],
      [503, false],
    ] as const) {
      const app = await atomicApp(
        t,
        on,
        withEffect((run, _, reply) => reply.code(run === 1 ? status : 200).send({ run })),
      )
      const key = newKey()
      t.equal((await send(app, '/things', { key })).statusCode, status)
      t.equal(await effects(on, key), isKept ? 1 : 0, `${status}`)
      const retry = await send(app, '/things', { key })
      t.same(retry.json(), { run: isKept ? 1 : 2 }, `${status}`)
      t.equal(await effects(on, key), 1)
    }
  })

  test(`${name}: without the header the same handler runs in a transaction, and nothing is stored`, async (t) => {
    const events = collectEvents(t)
    const before = await effects(on, 'no key')
    const app = await atomicApp(
      t,
      on,
      withEffect((run, { idempotency }) => {
        if (run === 2) throw new Error('no')
        const { key, attempt, resumed } = idempotency
        return { run, key: key ?? null, attempt, resumed }
      }),
    )
    t.same((await send(app, '/things')).json(), {
      run: 1,
      key: null,
      attempt: 0,
      resumed: false,
    })
    t.equal((await send(app, '/things')).statusCode, 500)
    t.equal((await send(app, '/things')).json().run, 3)
    t.equal((await effects(on, 'no key')) - before, 2)
    t.same(events.kinds(), ['rolled_back'])
  })

  test(`${name}: another body under the same key is refused, and nothing is done`, async (t) => {
    const app = await atomicApp(
      t,
      on,
      withEffect((run) => ({ run })),
    )
    const key = newKey()
    await send(app, '/things', { key })
    const other = await send(app, '/things', { key, payload: { other: 1 } })
    t.equal(other.statusCode, 422)
    t.equal(other.json().code, 'IDEMPOTENCY_KEY_REUSED')
    t.equal(await effects(on, key), 1)
  })
}

test('an application is refused without the header where it is required', async (t) => {
  const app = await atomicApp(t, database, () => 'x', { required: true })
  t.equal((await send(app, '/things')).json().code, 'IDEMPOTENCY_KEY_MISSING')
})

test('a fresh request is one transaction with one commit, and nothing besides', {
  skip: noPostgres,
}, async (t) => {
  const on = await postgresDatabase(t)
  const app = await atomicApp(
    t,
    on,
    withEffect((run) => ({ run })),
  )
  await send(app, '/things', { key: newKey() })
  const statements = watchStatements(t, on)
  const key = newKey()
  await send(app, '/things', { key })
  t.same(statements.splice(0), ['BEGIN', 'WITH', 'INSERT', 'WITH', 'COMMIT'])
  await send(app, '/things', { key })
  t.same(statements.slice(0, 2), ['BEGIN', 'WITH'])
  t.notOk(statements.includes('COMMIT'), 'a replay commits nothing')
})

test('a handler knows its key and its attempt, and has no keys for other services', async (t) => {
  const seen: object[] = []
  const told: RouteHandlerMethod = ({ idempotency: { key, attempt, resumed, signal, keyFor } }) => {
    seen.push({ key, attempt, resumed, aborted: signal.aborted })
    t.throws(() => keyFor('charge'), { code: 'IDEMPOTENCY_NOT_IN_ATOMIC' })
    if (seen.length === 1) throw new Error('no')
    return 'x'
  }
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/things', { config: { idempotency: { atomic: true } } }, told)
    },
  })
  const key = newKey()
  await send(app, '/things', { key })
  await send(app, '/things', { key })
  await send(app, '/things', { key: newKey() })
  const [first, second] = seen
  t.match(first, { key, attempt: 1, resumed: false, aborted: false })
  t.same(second, first, 'nothing is left of the attempt that failed')
})

/** What another attempt of the past may have left, and who may take it over. */
const PAST = [
  { left: { status: 'released' }, becomes: { attempt: 5, resumed: true } },
  {
    left: { status: 'in_progress', leaseUntil: new Date(0) },
    becomes: { attempt: 5, resumed: true },
  },
  {
    left: { status: 'completed', statusCode: 200, expiresAt: new Date(0), fingerprint: 'other' },
    becomes: { attempt: 1, resumed: false },
  },
]

for (const [n, { left, becomes }] of PAST.entries()) {
  test(`a record that is free is taken over: ${left.status}, ${n + 1}`, async (t) => {
    const app = await atomicApp(
      t,
      database,
      withEffect((run, { idempotency: { attempt, resumed } }) => ({ run, attempt, resumed })),
    )
    const key = newKey()
    await send(app, '/things', { key })
    await database.prisma.idempotencyRecord.updateMany({
      where: { key },
      data: { attempt: 4, steps: { a: 1 }, ...left },
    })
    const answer = await send(app, '/things', { key })
    t.same(answer.json(), { run: 2, ...becomes })
    t.match(await recordOf(database, key), {
      status: 'completed',
      attempt: becomes.attempt,
      steps: null,
    })
    t.ok(((await recordOf(database, key))?.expiresAt ?? 0) > new Date())
    t.equal((await send(app, '/things', { key })).body, answer.body)
  })
}

test('a lease that still runs, or an outcome that is uncertain, is not taken', async (t) => {
  const app = await atomicApp(t, database, () => 'x', { onLeaseExpired: 'uncertain' })
  const key = newKey()
  await send(app, '/things', { key })
  const leave = (leaseUntil: Date) =>
    database.prisma.idempotencyRecord.updateMany({
      where: { key },
      data: { status: 'in_progress', leaseUntil },
    })
  await leave(new Date(Date.now() + 60_000))
  const busy = await send(app, '/things', { key })
  t.equal(busy.json().code, 'IDEMPOTENCY_IN_PROGRESS')
  t.equal(busy.headers['retry-after'], '1')
  await leave(new Date(0))
  t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_UNCERTAIN')
})

test('a larger response than is kept is sent, committed, and not run again', async (t) => {
  const app = await atomicApp(
    t,
    database,
    withEffect(() => 'x'.repeat(101)),
    { maxBodyBytes: 100 },
  )
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body.length, 101)
  t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
  t.equal(await effects(database, key), 1)
})

test('new keys are counted, retries are not, and one too many leaves nothing', async (t) => {
  const app = await atomicApp(
    t,
    database,
    withEffect((run) => ({ run })),
    { plugin: { rateLimit: { max: 1, timeWindow: '1m' } } },
  )
  const [first, second] = [newKey(), newKey()]
  t.equal((await send(app, '/things', { key: first })).statusCode, 200)
  t.equal((await send(app, '/things', { key: first })).statusCode, 200)
  const refused = await send(app, '/things', { key: second })
  t.equal(refused.json().code, 'IDEMPOTENCY_TOO_MANY_KEYS')
  t.ok(Number(refused.headers['retry-after']) >= 1)
  t.equal(await recordOf(database, second), null)
  t.equal(await effects(database, second), 0)
})

test('steps, transactions and run are refused, and what was done is undone', async (t) => {
  const events = collectEvents(t)
  const forms: Record<string, RouteHandlerMethod> = {
    step: (request) => request.idempotency.step('charge', () => 1),
    transaction: (request) => request.idempotency.transaction(async () => 1),
    run: (request) => request.idempotency.run({} as never, undefined),
  }
  for (const [name, form] of Object.entries(forms)) {
    const app = await atomicApp(
      t,
      database,
      withEffect((_, ...call) => form.apply(app, call)),
    )
    const key = newKey()
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 500)
    t.match(answer.json(), {
      code: 'IDEMPOTENCY_NOT_IN_ATOMIC',
      detail: new RegExp(`^request.idempotency.${name} is not for atomic routes`),
    })
    t.equal(await effects(database, key), 0)
  }
  t.same(
    events.kinds().filter((kind) => kind === 'rolled_back'),
    ['rolled_back', 'rolled_back', 'rolled_back'],
  )
})

test('a step that is not awaited is refused like one that is', async (t) => {
  const app = await atomicApp(t, database, async (request) => {
    void request.idempotency.step('charge', () => 1)
    await new Promise((resolve) => setImmediate(resolve))
    return 'x'
  })
  const answer = await send(app, '/things', { key: newKey() })
  t.match(answer.json(), { code: 'IDEMPOTENCY_NOT_IN_ATOMIC' })
})

test('there is no tx anywhere else, and the error says what to write', async (t) => {
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/things', (request) => request.idempotency.tx.payment.count())
      app.post(
        '/atomic',
        {
          config: { idempotency: { atomic: true } },
          preHandler: async (request) => void request.idempotency.tx,
        },
        () => 'x',
      )
    },
  })
  for (const url of ['/things', '/atomic']) {
    for (const call of [{}, { key: newKey() }]) {
      t.match((await send(app, url, call)).json(), {
        code: 'IDEMPOTENCY_NOT_ATOMIC',
        detail: /request\.idempotency\.transaction\(\(tx\) => …\)/,
      })
    }
  }
})

test('advance and once take the models of tx, and belong to the transaction', async (t) => {
  const flow = defineFlow({ transitions: { pending: ['paid'] }, terminal: ['paid'] })
  let isFailing = true
  const app = await atomicApp(t, database, async ({ idempotency }) => {
    const { tx, advance, key = '' } = idempotency
    const { id } = await tx.payment.create(effectOf(key))
    const advanced = await advance(tx.payment, { where: { id }, flow, to: 'paid' })
    if (isFailing) throw new Error('no')
    return advanced
  })
  const key = newKey()
  const audits = () => database.prisma.statusChange.count({ where: { to: 'paid' } })
  const before = await audits()
  t.equal((await send(app, '/things', { key })).statusCode, 500)
  t.equal((await audits()) - before, 0, 'the audit is undone with it')
  isFailing = false
  t.match((await send(app, '/things', { key })).json(), { kind: 'advanced', to: 'paid' })
  t.equal((await audits()) - before, 1)
})

test('all forms of a query work in the transaction of a handler', async (t) => {
  const app = await atomicApp(t, database, async ({ idempotency: { tx, key = '' } }) => {
    await tx.payment.create(effectOf(key))
    const found = await tx.payment.findMany({ where: { tenantId: key } })
    const [raw] = await tx.$queryRaw<
      { n: number }[]
    >`SELECT count(*)::int4 AS n FROM payment WHERE tenant_id = ${key}`
    const many = await Promise.all([1, 2, 3].map(() => tx.payment.create(effectOf(key))))
    const caught = await tx.payment.findUniqueOrThrow({ where: { id: '?' } }).catch(() => 'caught')
    let isOver = false
    await tx.payment.count().finally(() => {
      isOver = true
    })
    return {
      found: found.length,
      raw: raw?.n,
      many: many.length,
      changed: await tx.$executeRawUnsafe(
        'UPDATE payment SET amount = 2 WHERE tenant_id = $1',
        key,
      ),
      caught,
      isOver,
      isSame: [tx.payment].includes(tx.payment),
      hasIn: 'payment' in tx,
    }
  })
  const answer = await send(app, '/things', { key: newKey() })
  t.same(answer.json(), {
    ...{ found: 1, raw: 1, many: 3, changed: 4, caught: 'caught' },
    ...{ isOver: true, isSame: true, hasIn: true },
  })
})

/** Registers the plugin and a route; what is wrong with them is the error. */
async function register(options: unknown, config?: unknown): Promise<void> {
  const app = Fastify()
  try {
    await app.register(idempotency, options as PluginOptions)
    app.post('/things', { config: { idempotency: config } } as never, () => 'x')
    await app.ready()
  } finally {
    await app.close()
  }
}

test('it is refused where it cannot be: on another database, and with bypass', async (t) => {
  const sqlite = await sqliteDatabase(t)
  const invalid = (message: RegExp) => ({ code: 'IDEMPOTENCY_OPTION_INVALID', message })
  const elsewhere = { prisma: sqlite.prisma, tenant: false }
  await t.rejects(
    register(elsewhere, { atomic: true }),
    invalid(/"atomic" of route POST \/things needs PostgreSQL/),
  )
  await t.rejects(
    register({ ...elsewhere, atomic: true }, {}),
    invalid(/"atomic" needs PostgreSQL, and the database of option "prisma" is sqlite/),
  )
  await t.resolves(register(elsewhere, { atomic: false }))

  const here = { prisma: database.prisma, tenant: false }
  const bypass = invalid(/"atomic".* does not go with onStoreError: 'bypass'.*onStoreError: 'fail'/)
  await t.rejects(register(here, { atomic: true, onStoreError: 'bypass' }), bypass)
  await t.rejects(register({ ...here, onStoreError: 'bypass' }, { atomic: true }), bypass)
  await t.rejects(register({ ...here, onStoreError: 'bypass', atomic: true }, {}), bypass)
  await t.resolves(
    register({ ...here, onStoreError: 'bypass' }, { atomic: true, onStoreError: 'fail' }),
  )
})

test('as an option of the plugin it is for all routes, and a route can be left out', async (t) => {
  const app = await buildApp(t, database, {
    plugin: { atomic: { timeout: '2s' } },
    routes(app) {
      app.post('/things', ({ idempotency }) => idempotency.tx.payment.count())
      const config = { idempotency: { atomic: false } }
      app.post('/others', { config }, ({ idempotency }) => idempotency.tx.payment.count())
    },
  })
  t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
  t.equal((await send(app, '/others', { key: newKey() })).json().code, 'IDEMPOTENCY_NOT_ATOMIC')
})
