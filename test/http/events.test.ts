// What happened is told to the log and to diagnostics_channel, and no secret with it.
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import t, { test } from 'tap'
import type {
  AtomicHappening,
  GuardHappening,
  Happening,
  InboxHappening,
  OperationHappening,
} from '../../src/events.js'
import type { PluginOptions, RedisLike } from '../../src/index.js'
import {
  begin,
  buildApp,
  collectEvents,
  exchangeBytes,
  latch,
  listen,
  newKey,
  openSocket,
  postText,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

type Teardown = Parameters<typeof buildApp>[0]
type App = Awaited<ReturnType<typeof buildApp>>

/** What must turn up nowhere. */
const CANARY = {
  key: 'canary-key',
  body: 'canary-body',
  token: 'canary-token',
  response: 'canary-response',
  query: 'canary-query',
  database: 'canary-database',
}

interface LogLine {
  level: number
  msg: string
  idempotency?: { kind: string; keyId?: string; tenantId?: string; route?: string }
}

const LEVELS = { debug: 20, info: 30, warn: 40, error: 50 } as const

/** An application with a log that is kept, a store that can be broken, and a handler for each need. */
async function loggedApp(t: Teardown, plugin: Partial<PluginOptions> = {}, level = 'trace') {
  const lines: string[] = []
  const pool = new WatchedPool(database)
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { pool, tenant: () => 'acme', lease: '1s', maxRun: '1m', ...plugin },
    server: { logger: { level, stream: { write: (line: string) => void lines.push(line) } } },
    routes(app) {
      app.addContentTypeParser('application/unparsed', (_request, _payload, done) => done(null))
      app.post('/things', (_request, reply) => reply.code(201).send({ made: CANARY.response }))
      app.post('/broken', () => {
        throw Object.assign(new Error('out of order'), { statusCode: 503 })
      })
      app.post('/large', () => CANARY.response.repeat(100))
      app.post('/held', async () => {
        began.open()
        await go.opened
        return CANARY.response
      })
      app.post('/hijacked', (_request, reply) => {
        reply.hijack()
        reply.raw.write('data')
      })
    },
  })
  const logged = () => lines.map((line) => JSON.parse(line) as LogLine)
  return { app, pool, lines, logged, began: began.opened, go: () => go.open() }
}

type Logged = Awaited<ReturnType<typeof loggedApp>>

interface Provoked {
  level: keyof typeof LEVELS
  plugin?: Partial<PluginOptions>
  /** Brings it about with a key; resolves once it has happened. */
  run: (
    context: Logged & {
      key: string
      call: (url: string, payload?: object) => Promise<unknown>
      t: Teardown
    },
  ) => Promise<unknown>
  /** What the event tells besides. */
  event: object
  /** Whether it is about one key. Default true. */
  hasKey?: boolean
  hasRoute?: boolean
}

function down(): never {
  throw Object.assign(new Error(`duplicate key (${CANARY.database}, ${CANARY.key})`), {
    code: 'ECONNREFUSED',
    detail: CANARY.database,
  })
}

const failure = { name: 'Error', code: 'ECONNREFUSED', hint: 'the database cannot be reached' }

// Those of webhooks are provoked in test/webhooks/events.test.ts, those of atomic routes in
// test/http/atomic-events.test.ts.
const EVENTS: Record<
  Exclude<
    Happening['kind'],
    (InboxHappening | GuardHappening | OperationHappening | AtomicHappening)['kind']
  >,
  Provoked
> = {
  claimed: { level: 'debug', run: ({ call }) => call('/things'), event: { attempt: 1 } },
  completed: {
    level: 'debug',
    run: ({ call }) => call('/things'),
    event: { attempt: 1, statusCode: 201, bytes: 26, tookMs: Number },
  },
  taken_over: {
    level: 'info',
    async run({ call }) {
      await call('/broken')
      await call('/broken')
    },
    event: { attempt: 2, resumed: true },
  },
  released: {
    level: 'info',
    run: ({ call }) => call('/broken'),
    event: { attempt: 1, why: 'status 503' },
  },
  replayed: {
    level: 'info',
    async run({ call }) {
      await call('/things')
      await call('/things')
    },
    event: { statusCode: 201, waitedMs: Number },
  },
  busy: {
    level: 'info',
    async run({ call, began, go }) {
      const first = call('/held')
      await began
      await call('/held')
      go()
      await first
    },
    event: { waitedMs: Number },
  },
  mismatch: {
    level: 'warn',
    async run({ call }) {
      await call('/things')
      await call('/things', { other: CANARY.body })
    },
    event: {},
  },
  uncertain: {
    level: 'warn',
    plugin: { onLeaseExpired: 'uncertain' },
    async run({ call, key }) {
      await call('/things')
      await database.prisma.idempotencyRecord.updateMany({
        where: { key },
        data: { status: 'in_progress', leaseUntil: new Date(0) },
      })
      await call('/things')
    },
    event: {},
  },
  not_replayable: {
    level: 'info',
    plugin: { maxBodyBytes: 100 },
    async run({ call }) {
      await call('/large')
      await call('/large')
    },
    event: {},
  },
  response_omitted: {
    level: 'warn',
    plugin: { maxBodyBytes: 100 },
    run: ({ call }) => call('/large'),
    event: { attempt: 1, reason: 'too large' },
  },
  keep_status_failed: {
    level: 'error',
    plugin: {
      keepStatus() {
        throw new TypeError(CANARY.body)
      },
    },
    run: ({ call }) => call('/things'),
    event: { attempt: 1, statusCode: 201, failure: { name: 'TypeError' } },
  },
  response_not_stored: {
    level: 'error',
    async run({ call, pool }) {
      pool.before = (name) => (name === 'fi_finish' ? down() : undefined)
      await call('/things')
      pool.before = () => {}
      await pool.untilAnswered('fi_finish', 1)
    },
    event: { attempt: 1, failure },
  },
  release_failed: {
    level: 'warn',
    async run({ call, pool }) {
      pool.before = (name) => (name === 'fi_finish' ? down() : undefined)
      await call('/broken')
    },
    event: { attempt: 1, failure },
  },
  heartbeat_failed: {
    level: 'warn',
    async run({ call, pool, began, go }) {
      const first = call('/held')
      await began
      const asked = latch()
      pool.before = (name) => {
        if (name !== 'fi_extend') return
        asked.open()
        down()
      }
      await asked.opened
      await new Promise((resolve) => setImmediate(resolve))
      pool.before = () => {}
      go()
      await first
    },
    event: { attempt: 1, failure },
  },
  lease_lost: {
    level: 'warn',
    async run({ call, began, go, key }) {
      const first = call('/held')
      await began
      await database.prisma.idempotencyRecord.updateMany({ where: { key }, data: { attempt: 7 } })
      go()
      await first
    },
    event: { attempt: 1, why: 'another attempt took over' },
  },
  abandoned: {
    level: 'warn',
    async run({ app, t, key }) {
      const socket = await openSocket(
        t,
        await listen(app),
        postText('/hijacked', [`idempotency-key: ${key}`]),
      )
      await once(socket, 'data')
      const events = collectEvents(t)
      socket.destroy()
      await events.first('abandoned')
    },
    event: { attempt: 1, why: /connection closed/ },
  },
  store_unavailable: {
    level: 'error',
    async run({ call, pool }) {
      pool.before = down
      await call('/things')
    },
    event: { bypassed: false, failure },
  },
  too_many_keys: {
    level: 'warn',
    plugin: { rateLimit: { max: 1, timeWindow: '1m' } },
    async run({ call, app }) {
      await send(app, '/things', { key: newKey() })
      await call('/things')
    },
    event: {},
  },
  limiter_failed: {
    level: 'warn',
    plugin: {
      rateLimit: { max: 1, timeWindow: '1m' },
      redis: {
        defineCommand() {},
        evalsha() {},
        rateLimit: (...call: unknown[]) => {
          try {
            down()
          } catch (error) {
            const done = call.at(-1) as (error: unknown) => void
            done(error)
          }
        },
      } as RedisLike,
    },
    run: ({ call }) => call('/things'),
    event: { failure },
  },
  body_not_compared: {
    level: 'warn',
    run: ({ app, key }) =>
      send(app, '/things', {
        key,
        payload: CANARY.body,
        headers: { 'content-type': 'application/unparsed' },
      }),
    event: {},
    hasKey: false,
  },
  key_rejected: {
    level: 'info',
    run: ({ app }) => send(app, '/things', { key: `"${CANARY.key}` }),
    event: { reason: 'its closing quote is missing' },
    hasKey: false,
  },
  key_ignored: {
    level: 'info',
    plugin: { tenant: () => undefined, onUnknownCaller: 'bypass' },
    run: ({ call }) => call('/things'),
    event: { reason: 'tenant_unknown' },
    hasKey: false,
  },
  caller_failed: {
    level: 'error',
    plugin: {
      principal: () => {
        throw new RangeError(CANARY.token)
      },
    },
    run: ({ call }) => call('/things'),
    event: { option: 'principal', failure: { name: 'RangeError' } },
    hasKey: false,
  },
  pruned: {
    level: 'debug',
    run: ({ app }) => app.idempotency.prune(),
    event: { count: Number, tookMs: Number },
    hasKey: false,
    hasRoute: false,
  },
  prune_failed: {
    level: 'warn',
    plugin: { pruneEvery: '1s' },
    async run({ app, pool, t }) {
      pool.before = down
      const events = collectEvents(t)
      await listen(app)
      await events.first('prune_failed')
    },
    event: { failure },
    hasKey: false,
    hasRoute: false,
  },
}

for (const [kind, { level, plugin, run, event, hasKey = true, hasRoute = true }] of Object.entries(
  EVENTS,
)) {
  test(`"${kind}" is told as ${level}, with its facts and without a secret`, async (t) => {
    const events = collectEvents(t)
    const context = await loggedApp(t, plugin)
    const key = `${CANARY.key}-${newKey()}`
    const answers: string[] = []
    const call = async (url: string, payload: object = { secret: CANARY.body }) => {
      const answer = await begin(context.app, `${url}?q=1`, {
        key,
        payload,
        headers: { authorization: `Bearer ${CANARY.token}`, cookie: CANARY.token },
      })
      answers.push(JSON.stringify(answer.headers))
      if (answer.statusCode >= 400) answers.push(answer.body)
      return answer
    }
    await run({ ...context, key, call, t })
    const told = events.all.find((event) => event.kind === kind)
    t.match(told, { kind, ...event })
    const keyId = createHash('sha256').update(`acme\0${key}`).digest('hex').slice(0, 12)
    t.equal(told?.keyId, hasKey ? keyId : undefined)
    t.equal(told?.tenantId, hasKey ? 'acme' : undefined)
    if (hasRoute) t.match(told?.route, /^POST \/\w+$/)
    else t.equal(told?.route, undefined)

    const line = context.logged().find(({ idempotency }) => idempotency?.kind === kind)
    t.equal(line?.level, LEVELS[level])
    t.match(line?.idempotency, JSON.parse(JSON.stringify(told)), 'the log has the same facts')
    t.ok(line?.msg)

    const everything = [...context.lines, ...answers, JSON.stringify(events.all)].join('\n')
    for (const secret of Object.values(CANARY)) t.notMatch(everything, secret)
  })
}

test('an event carries the request id that Fastify logs with', async (t) => {
  const { app, lines } = await loggedApp(t)
  await send(app, '/things', { key: newKey() })
  const own = lines
    .map((line) => JSON.parse(line))
    .find((line) => line.idempotency?.kind === 'completed')
  t.equal(typeof own.reqId, 'string')
})

test('nothing of an event is logged below the level of the log', async (t) => {
  const events = collectEvents(t)
  const { app, logged } = await loggedApp(t, {}, 'warn')
  const key = newKey()
  await send(app, '/things', { key })
  await send(app, '/things', { key })
  await send(app, '/things', { key, payload: [] })
  t.same(
    logged().map(({ idempotency }) => idempotency?.kind),
    ['mismatch'],
  )
  t.same(
    events.kinds(),
    ['claimed', 'completed', 'replayed', 'mismatch'],
    'the channel gets them all',
  )
})

test('two tenants with one key have two key ids', async (t) => {
  const events = collectEvents(t)
  const key = newKey()
  for (const tenant of ['a', 'b']) {
    const { app } = await loggedApp(t, { tenant: () => tenant })
    await send(app, '/things', { key })
  }
  const ids = new Set(events.all.map(({ keyId }) => keyId))
  t.equal(ids.size, 2)
})

test('a subscriber that throws does not disturb the request', async (t) => {
  const { subscribe, unsubscribe } = await import('node:diagnostics_channel')
  const { CHANNEL } = await import('../../src/index.js')
  const thrown: unknown[] = []
  const app: App = (await loggedApp(t)).app
  const broken = () => {
    throw new Error('of the subscriber')
  }
  const caught = (error: unknown) => void thrown.push(error)
  const previous = process.listeners('uncaughtException')
  process.removeAllListeners('uncaughtException')
  process.on('uncaughtException', caught)
  subscribe(CHANNEL, broken)
  const key = newKey()
  const first = await send(app, '/things', { key })
  const retry = await send(app, '/things', { key })
  unsubscribe(CHANNEL, broken)
  await new Promise((resolve) => setImmediate(resolve))
  process.off('uncaughtException', caught)
  for (const listener of previous) process.on('uncaughtException', listener)
  t.equal(first.statusCode, 201)
  t.equal(retry.body, first.body)
  t.ok(thrown.length > 0)
})

test('error answers tell neither the key nor anything of the request', async (t) => {
  const { app } = await loggedApp(t, { required: true })
  const port = await listen(app)
  const key = `${CANARY.key}-${newKey()}`
  const texts: string[] = []
  for (const [lines, body] of [
    [[], '{}'],
    [[`idempotency-key: "${key}`], '{}'],
    [[`idempotency-key: ${key}`, `idempotency-key: ${key}`], '{}'],
    [[`idempotency-key: ${key}${'x'.repeat(256)}`], '{}'],
    [[`idempotency-key: ${key}`], '{}'],
    [[`idempotency-key: ${key}`], `{"a":"${CANARY.body}"}`],
  ] as const) {
    const answer = await exchangeBytes(t, port, postText('/things', lines, body))
    if (answer.statusCode >= 400) texts.push(answer.head, answer.body.toString())
  }
  t.equal(texts.length, 10)
  for (const secret of Object.values(CANARY)) t.notMatch(texts.join('\n'), secret)
})
