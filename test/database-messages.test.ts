// Messages of databases quote rows and arguments. None reaches a client, a log or an event, whichever
// public call it is that fails.
import { createHmac } from 'node:crypto'
import { inspect } from 'node:util'
import type { FastifyRequest } from 'fastify'
import t, { type Test, test } from 'tap'
import { databaseErrorOf, defineFlow } from '../src/index.js'
import { hmac } from '../src/webhooks/index.js'
import { buildApp, collectEvents, newKey, send, WatchedPool } from './fixtures/app.js'
import {
  type Breakable,
  type Broken,
  breakable,
  DATABASE_CANARY,
  DATABASE_CODE,
  databaseError,
} from './fixtures/breakable.js'
import { anyDatabase } from './fixtures/database.js'
import type { Client } from './fixtures/ways.js'

const database = await anyDatabase(t)

type App = Awaited<ReturnType<typeof buildApp>>
type Request = FastifyRequest

const flow = defineFlow({ levels: { pending: 0, paid: 1 }, terminal: ['paid'] })
const slots = { resource: 'venue', slots: 'friday', holder: 'ann' }
const provider = hmac({
  name: 'bank',
  secret: 'a',
  header: 'x-signature',
  eventId: (payload) => Object(payload).id,
})

interface PublicCall {
  /** The code of the error that it ends with. */
  code: string
  /** When the database fails. Default: at everything. */
  broken?: Broken
  run: (helpers: Request['idempotency'], prisma: Client, app: App) => Promise<unknown>
}

const FAILED = 'IDEMPOTENCY_DATABASE_FAILED'

/** What a request, and most of it the application as well, can call. */
const OF_REQUESTS: Record<string, PublicCall> = {
  lock: { code: 'IDEMPOTENCY_LOCK_UNAVAILABLE', run: (own) => own.lock('a', {}, () => 1) },
  reserve: { code: FAILED, run: (own) => own.reserve(slots) },
  'reserve with tx': {
    code: FAILED,
    broken: 'write',
    run: (own, prisma) =>
      prisma.$transaction((tx) => own.reserve({ ...slots, tx })) as Promise<unknown>,
  },
  confirm: { code: FAILED, run: (own) => own.confirm(slots) },
  cancel: { code: FAILED, run: (own) => own.cancel(slots) },
  availability: { code: FAILED, run: (own) => own.availability({ resource: 'venue' }) },
  advance: {
    code: FAILED,
    run: (own, prisma) =>
      own.advance(Reflect.get(prisma, 'payment'), { where: { id: 'a' }, flow, to: 'paid' }),
  },
  step: { code: FAILED, run: (own) => own.step('a', () => 1) },
  'transaction, at BEGIN': { code: FAILED, run: (own) => own.transaction(async () => 1) },
  'transaction, at its last write': {
    code: FAILED,
    broken: 'write',
    run: (own) => own.transaction(async () => 1),
  },
  'transaction, at COMMIT': {
    code: FAILED,
    broken: 'commit',
    run: (own) => own.transaction(async () => 1),
  },
  'a step after a step that failed': {
    code: FAILED,
    run: async (own) => {
      await own.step('a', () => 1).catch(() => {})
      await own.step('b', () => 2)
    },
  },
  run: {
    code: FAILED,
    run: (own, _prisma, app) =>
      own.run(
        app.idempotency.handler(`pay-${newKey()}`, async () => 1),
        undefined,
      ),
  },
  recordEvent: {
    code: 'IDEMPOTENCY_INBOX_UNAVAILABLE',
    run: (own) => own.recordEvent({ provider: 'bank', eventId: 'e1' }),
  },
}

const OF_THE_APPLICATION: Record<string, PublicCall> = {
  ...Object.fromEntries(
    ['lock', 'reserve', 'confirm', 'cancel', 'availability', 'advance'].map((name) => {
      const call = OF_REQUESTS[name] as PublicCall
      return [
        name,
        { ...call, run: (_own, prisma, app) => call.run(app.idempotency as never, prisma, app) },
      ]
    }),
  ),
  run: {
    code: 'IDEMPOTENCY_STORE_UNAVAILABLE',
    run: (_own, _prisma, app) => app.idempotency.run('a', () => 1),
  },
  resolve: {
    code: 'IDEMPOTENCY_STORE_UNAVAILABLE',
    run: (_own, _prisma, app) => app.idempotency.resolve('a', { release: true }),
  },
  recover: { code: FAILED, run: (_own, _prisma, app) => app.idempotency.recover() },
  prune: { code: FAILED, run: (_own, _prisma, app) => app.idempotency.prune() },
  ingest: {
    code: FAILED,
    run: (_own, _prisma, app) =>
      app.idempotency.ingest({ endpoint: '/hooks', payload: { id: 'e1' } }),
  },
  replay: {
    code: FAILED,
    run: (_own, _prisma, app) => app.idempotency.replay({ provider: 'bank', eventId: 'e1' }),
  },
}

/** The lines that should not be there, short enough for a report. */
function linesWith(canary: string, texts: readonly string[]): string[] {
  const lines = texts.join('\n').split('\n')
  return lines.filter((line) => line.includes(canary)).map((line) => line.slice(0, 300))
}

async function breakableApp(t: Test, routes: (app: App, client: Breakable) => void) {
  const client = breakable(database.prisma as Client)
  const lines: string[] = []
  // A machine that is slow must not look like a database that is away.
  const storeTimeout = '1m'
  const plugin = { prisma: client.prisma, locks: 'database', storeTimeout } as const
  const app = await buildApp(t, database, {
    plugin: { ...plugin, pool: undefined },
    server: { logger: { level: 'trace', stream: { write: (line) => void lines.push(line) } } },
    routes(app) {
      app.webhook('/hooks', { provider }, () => {})
      routes(app, client)
    },
  })
  return { app, client, logged: () => lines.join('') }
}

for (const [name, { code, broken = 'everything', run }] of Object.entries(OF_REQUESTS)) {
  test(`${name} of a request: a database’s message reaches neither client, log nor event`, async (t) => {
    const events = collectEvents(t)
    const { app, logged } = await breakableApp(t, (app, client) =>
      app.post('/things', async (request) => {
        client.broken = broken
        try {
          return await run(request.idempotency, client.prisma, app)
        } finally {
          client.broken = undefined
        }
      }),
    )
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, 503)
    t.equal(answer.json().code, code)
    t.match(logged(), `"code":"${DATABASE_CODE}"`, 'the log has the code of the database')
    const everything = [
      JSON.stringify(answer.headers),
      answer.body,
      logged(),
      JSON.stringify(events.all),
    ]
    t.strictSame(linesWith(DATABASE_CANARY, everything), [])
  })
}

const needsPool = database.kind === 'postgres' ? false : 'needs a pool'

for (const failing of [
  ...['fi_insert', 'fi_take_over', 'fi_keep_steps', 'fi_finish'],
  ...['fi_event_record', 'fi_event_keep_steps', 'fi_event_end'],
]) {
  test(`${failing} on a pool: a database’s message reaches neither client, log nor event`, {
    skip: needsPool,
  }, async (t) => {
    const events = collectEvents(t)
    const lines: string[] = []
    const pool = new WatchedPool(database)
    const app = await buildApp(t, database, {
      plugin: { pool, storeTimeout: '1m' },
      server: { logger: { level: 'trace', stream: { write: (line) => void lines.push(line) } } },
      routes(app) {
        app.webhook('/hooks', { provider }, (event) => event.step('a', () => 1))
        app.post('/things', async ({ idempotency }, reply) => {
          await idempotency.step('a', () => 1)
          return reply
            .code(idempotency.attempt === 1 && failing === 'fi_take_over' ? 500 : 201)
            .send()
        })
      },
    })
    const key = newKey()
    if (failing === 'fi_take_over') await send(app, '/things', { key })
    pool.before = (name) => {
      if (name === failing) throw databaseError()
    }
    const body = JSON.stringify({ id: key })
    const signature = createHmac('sha256', 'a').update(body).digest('hex')
    const answer = failing.startsWith('fi_event')
      ? await send(app, '/hooks', {
          payload: body,
          headers: { 'x-signature': signature, 'content-type': 'application/json' },
        })
      : await send(app, '/things', { key })
    // What goes on in the background can end.
    pool.before = () => {}
    t.ok(pool.asked.includes(failing))
    t.match(lines.join(''), `"code":"${DATABASE_CODE}"`, 'the log has the code of the database')
    const told = [JSON.stringify(answer.headers), answer.body, ...lines, JSON.stringify(events.all)]
    t.strictSame(linesWith(DATABASE_CANARY, told), [])
  })
}

for (const [name, { code, broken = 'everything', run }] of Object.entries(OF_THE_APPLICATION)) {
  test(`${name} of the application: its error can be logged and printed as it is`, async (t) => {
    const events = collectEvents(t)
    const { app, client, logged } = await breakableApp(t, () => {})
    client.broken = broken
    const error = await run(undefined as never, client.prisma, app).catch((thrown) => thrown)
    client.broken = undefined
    t.match(error, { code, cause: { code: DATABASE_CODE } })
    app.log.error(error)
    app.log.error({ err: error, failed: error }, 'as an application logs it')
    const printed = [logged(), inspect(error, { depth: 20 }), JSON.stringify(error), String(error)]
    t.strictSame(linesWith(DATABASE_CANARY, [...printed, JSON.stringify(events.all)]), [])
    t.match(
      (databaseErrorOf(error) as Error).message,
      DATABASE_CANARY,
      'it is there for who wants it',
    )
    t.match(logged(), `"code":"${DATABASE_CODE}"`)
  })
}

test('what the application’s own function throws is thrown on as it is', async (t) => {
  const { app } = await breakableApp(t, () => {})
  const own = new Error('mine')
  const raise = () => Promise.reject(own)
  const { idempotency } = app
  for (const call of [
    () => idempotency.lock('a', {}, raise),
    () => idempotency.run(newKey(), raise),
    () => idempotency.run(newKey(), (operation) => operation.step('a', raise)),
    () => idempotency.run(newKey(), (operation) => operation.transaction(raise)),
  ]) {
    t.equal(await call().catch((error: unknown) => error), own)
  }
})

test('an error that says itself what to answer is thrown on as it is', async (t) => {
  const refused = Object.assign(new Error('of an extension'), { statusCode: 403 })
  const extended = database.prisma.$extends({
    query: { payment: { findMany: () => Promise.reject(refused) } },
  })
  const app = await buildApp(t, database, {
    plugin: { prisma: extended as never, pool: undefined },
    routes: () => {},
  })
  const advancing = app.idempotency.advance(extended.payment, {
    where: { id: 'a' },
    flow,
    to: 'paid',
  })
  t.equal(await advancing.catch((error: unknown) => error), refused)
})

test('arguments that Prisma refuses are an invalid option, and are not quoted', async (t) => {
  const { app, client } = await breakableApp(t, () => {})
  const payment = Reflect.get(client.prisma, 'payment')
  for (const where of [{ id: 5 }, { nonsense: DATABASE_CANARY }]) {
    const error: unknown = await app.idempotency
      .advance(payment, { where, flow, to: 'paid' })
      .catch((thrown: unknown) => thrown)
    t.match(error, { code: 'IDEMPOTENCY_OPTION_INVALID', message: /arguments of advance\(\)/ })
    t.notMatch(inspect(error, { depth: 20 }), DATABASE_CANARY)
    t.match(databaseErrorOf(error), { name: 'PrismaClientValidationError' })
  }
})

test('a conflict within the application’s own transaction keeps its meaning: it is repeated', async (t) => {
  const { app, client } = await breakableApp(t, () => {})
  client.code = '40001'
  let runs = 0
  const value = await app.idempotency.run(newKey(), (operation) =>
    operation.transaction(async (tx) => {
      runs += 1
      client.broken = runs === 1 ? 'write' : undefined
      const reserving = app.idempotency.reserve({ ...slots, resource: newKey(), tx })
      return (
        await reserving.finally(() => {
          client.broken = undefined
        })
      ).kind
    }),
  )
  t.match(value, { kind: 'ran', value: 'reserved' })
  t.equal(runs, 2)

  client.broken = 'write'
  const conflict = client.prisma.$transaction((tx) => app.idempotency.reserve({ ...slots, tx }))
  await t.rejects(Promise.resolve(conflict), { name: 'WriteConflict', code: 'P2034' })
  client.broken = undefined
})

test('a value that the database does not take is told from a database that fails', async (t) => {
  if (database.kind !== 'postgres') return t.pass('other databases take it')
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/advance', { config: { idempotency: false } }, ({ body, idempotency }) => {
        const where = body as { id: string }
        return idempotency.advance(database.prisma.payment, { where, flow, to: 'paid' })
      })
    },
  })
  const answer = await send(app, '/advance', { payload: { id: 'a\0b' } })
  t.equal(answer.statusCode, 500)
  t.equal(answer.json().code, 'IDEMPOTENCY_DATA_REFUSED')
  t.notOk(answer.headers['retry-after'], 'a client that repeats it gets the same')
  t.notMatch(answer.body, /22021|invalid byte/)
})
