import { PrismaPg } from '@prisma/adapter-pg'
import Fastify from 'fastify'
import pg from 'pg'
import t, { test } from 'tap'
import { bullmq } from '../../src/dispatch/bullmq.js'
import idempotency, { inProcess, type PluginOptions } from '../../src/index.js'
import { DEFAULTS } from '../../src/options.js'
import { buildApp, latch, newKey, recordOf, send } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)
const { prisma } = database

/** Registers the plugin, and a route if a configuration is given. */
async function register(options: unknown, config?: unknown): Promise<void> {
  const app = Fastify()
  try {
    await app.register(idempotency, options as PluginOptions)
    if (config !== undefined) {
      app.post('/things', { config: { idempotency: config } } as never, () => 'x')
    }
    await app.ready()
  } finally {
    await app.close()
  }
}

async function errorOf(registered: Promise<void>): Promise<{ code?: string; message: string }> {
  return registered.then(
    () => ({ message: 'it was accepted' }),
    (error) => error,
  )
}

const complete = { prisma, tenant: false }

interface Checked {
  wrong: readonly unknown[]
  right: readonly unknown[]
  /** What the message says is allowed. */
  says: RegExp
}

const duration = (least: string, ...tooShort: unknown[]): Checked => ({
  wrong: [
    '',
    '5',
    '5 s',
    '-5s',
    's',
    '1w',
    '1e3s',
    -1,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    true,
    null,
    {},
    [],
    5n,
    ...tooShort,
  ],
  right: [],
  says: new RegExp(
    `must be a duration of at least ${least} ms, and at most \\d+ days: a number of milliseconds, or a string such as '\\d+\\w+'`,
  ),
})

const boolean: Checked = {
  wrong: ['true', 1, 0, null, {}],
  right: [true, false],
  says: /must be true or false/,
}

const limit: Checked = {
  wrong: [
    true,
    null,
    5,
    {},
    { max: 1 },
    { timeWindow: '1m' },
    { max: 0, timeWindow: '1m' },
    { max: 1.5, timeWindow: 1 },
    { max: '1', timeWindow: 1 },
    { max: 1, timeWindow: 0 },
    { max: 1, timeWindow: '1 minute' },
    { max: 1, timeWindow: 1, ban: 1 },
  ],
  right: [false, { max: 1, timeWindow: '1m' }, { max: 100, timeWindow: 1000 }],
  says: /must be \{ max, timeWindow \} such as \{ max: 100, timeWindow: '1m' \}, or false/,
}

/** Options of a route, which are the plugin's as well. */
const ROUTE: Record<string, Checked> = {
  required: boolean,
  wait: { ...duration('0'), right: [0, '0s', '5s', 250, '500ms', '1.5s'] },
  lease: { ...duration('1000', 0, 999, '999ms'), right: ['1s', 1000, '5m'] },
  maxRun: { ...duration('1000', 0, 999), right: ['30s', '1h'] },
  retention: { ...duration('1000', 0), right: ['16m', '24h', '7d', '30d', '365d'] },
  maxBodyBytes: {
    wrong: [-1, 1.5, '1', '1mb', Number.NaN, Number.POSITIVE_INFINITY, null, true],
    right: [0, 1, 1024 * 1024 * 16],
    says: /must be a whole number from 0 to \d+/,
  },
  store: boolean,
  redact: {
    wrong: [['token'], 'token', true, null, {}],
    right: [() => ({})],
    says: /must be a function/,
  },
  headers: {
    wrong: [
      'x-a',
      [''],
      ['x a'],
      ['x:a'],
      [null],
      [5],
      [undefined],
      [['x-a']],
      ['x-a', {}],
      {},
      null,
      true,
    ],
    right: [[], ['x-a'], ['X-Request-Cost', 'etag']],
    says: /must be a list of header names, such as \['x-request-cost'\]/,
  },
  keepStatus: {
    wrong: [200, [200], true, null, '2xx'],
    right: [() => true],
    says: /must be a function/,
  },
  fingerprint: {
    wrong: ['body', true, null, ['a']],
    right: [() => 'x'],
    says: /must be a function/,
  },
  onLeaseExpired: {
    wrong: ['', 'RERUN', 'fail', true, null, ['rerun']],
    right: ['rerun', 'uncertain'],
    says: /must be 'rerun' or 'uncertain'/,
  },
  onStoreError: {
    wrong: ['', 'allow', 'open', false, null],
    right: ['fail', 'bypass'],
    says: /must be 'fail' or 'bypass'/,
  },
  principal: {
    wrong: ['', 'userId', true, null, 0, {}],
    right: [false, () => 'x', async () => 'x'],
    says: /must be a function such as \(request\) => request\.user\?\.id, or false/,
  },
  onUnknownCaller: {
    wrong: ['', 'allow', 'ignore', false, null],
    right: ['reject', 'bypass'],
    says: /must be 'reject' or 'bypass'/,
  },
  atomic: {
    wrong: [
      'true',
      1,
      null,
      [],
      { timeout: 0 },
      { timeout: '61s' },
      { timeout: 'soon' },
      { maxWait: -1 },
      { maxWait: '2m' },
      { isolationLevel: 'SERIALIZABLE' },
      { isolationLevel: 4 },
      { tiemout: '5s' },
    ],
    right: [
      true,
      false,
      {},
      { timeout: '60s', maxWait: 100 },
      { timeout: undefined },
      { isolationLevel: 'Serializable' },
    ],
    says: /must be true, false, or \{ timeout, maxWait, isolationLevel \} such as \{ timeout: '5s' \}: durations of 1 ms to 60 s, and one of 'ReadUncommitted', /,
  },
}

const PLUGIN: Record<string, Checked> = {
  ...ROUTE,
  prisma: {
    wrong: [undefined, null, 'prisma', 5, {}, [], () => {}],
    right: [],
    says: /must be the application's PrismaClient: \{ prisma: new PrismaClient\(\{ adapter \}\) \}/,
  },
  pool: {
    wrong: [null, {}, 'pool', 'postgres://localhost', true],
    right: [],
    says: /must be a pg.Pool, or be left out/,
  },
  redis: {
    wrong: [null, {}, 'redis://localhost', true, [], [{}]],
    right: [],
    says: /must be an ioredis client, such as .*, several independent ones, or be left out/,
  },
  redisPrefix: {
    wrong: ['', 'x'.repeat(101), 'a\0', 'a\ud800', 5, true, null, {}],
    right: ['shop:', 'shop:idempotency:', 'x'.repeat(100)],
    says: /must be text of 1 to 100 characters, such as 'shop:idempotency:'/,
  },
  tenant: {
    wrong: [undefined, null, true, '', 'orgId', {}, 0],
    right: [false, () => 'x', async () => 'x'],
    says: /must be a function such as \(request\) => request.user\?.orgId, or false in an application with one tenant/,
  },
  global: boolean,
  rateLimit: limit,
  failedSignatures: limit,
  dispatch: {
    wrong: [null, true, 'bullmq', {}, bullmq, { ...inProcess(), stop: undefined }],
    right: [inProcess(), inProcess({ concurrency: 1 })],
    says: /must be inProcess\(\{ … \}\), bullmq\(\{ … \}\), or another object/,
  },
  locks: {
    wrong: ['', 'postgres', true, null, ['auto']],
    right: ['auto', 'database', 'memory'],
    says: /must be 'auto' or 'redis' or 'database' or 'memory'/,
  },
  worker: boolean,
  drain: { ...duration('0'), right: [0, '10s'] },
  storeTimeout: { ...duration('1', 0), right: [1, '5s'] },
  holder: {
    wrong: ['', 'a\0b', '\ud800', 'x'.repeat(256), 7, null, false],
    right: ['worker-1', 'x'.repeat(255)],
    says: /must be text of 1 to 255 characters, such as 'payments-api-7f9c'/,
  },
  maxConnections: {
    wrong: [1, 0, -2, 2.5, '7', null, {}],
    right: [2, 70],
    says: /must be a whole number from 2 to 10000/,
  },
  maxWaiters: {
    wrong: [-1, 2.5, '7', null, {}],
    right: [0, 10_000],
    says: /must be a whole number from 0 to/,
  },
  pruneEvery: { ...duration('1000', 0, 999), right: [false, '1s', '1h'] },
  recoverEvery: { ...duration('1000', 0, 999), right: [false, '1s', '1h'] },
  docs: {
    wrong: ['', '/errors', 'example.com/errors', 5, null, false],
    right: ['https://example.com/errors', 'urn:example:errors'],
    says: /must be an absolute URL such as 'https:\/\/example.com\/docs\/errors'/,
  },
}

test('every option of the plugin is checked at registration: what, where, and the allowed values', async (t) => {
  for (const [name, { wrong, right, says }] of Object.entries(PLUGIN)) {
    await t.test(name, async (t) => {
      for (const value of wrong) {
        const error = await errorOf(register({ ...complete, [name]: value }))
        t.equal(
          error.code,
          'IDEMPOTENCY_OPTION_INVALID',
          `${name}: ${typeof value} ${String(value)}`,
        )
        t.match(error.message, says)
        t.match(error.message, new RegExp(`^fastify-idempotency: option "${name}" must`))
      }
      for (const value of right) {
        const others = name === 'lease' ? { maxRun: '10m' } : {}
        await t.resolves(
          register({ ...complete, ...others, [name]: value }),
          `${name}: ${String(value)}`,
        )
      }
    })
  }
})

test('every option of a route is checked when the route is added, and the route is named', async (t) => {
  for (const [name, { wrong, right, says }] of Object.entries(ROUTE)) {
    await t.test(name, async (t) => {
      for (const value of wrong) {
        const error = await errorOf(register(complete, { [name]: value }))
        t.equal(
          error.code,
          'IDEMPOTENCY_OPTION_INVALID',
          `${name}: ${typeof value} ${String(value)}`,
        )
        t.match(error.message, says)
        t.match(
          error.message,
          new RegExp(`^fastify-idempotency: option "${name}" of route POST /things must`),
        )
      }
      for (const value of right) {
        await t.resolves(
          register({ ...complete, maxRun: '10m' }, { [name]: value }),
          `${name}: ${String(value)}`,
        )
      }
    })
  }
})

test('the list of checked options is the list of options', async (t) => {
  const known = await register({ ...complete, nonsense: 1 }).catch((error: Error) => error.message)
  const names = String(known).split('the options are ')[1]?.split(', ')
  t.same([...(names ?? [])].sort(), Object.keys(PLUGIN).sort())
  const ofRoutes = await register(complete, { nonsense: 1 }).catch((error: Error) => error.message)
  t.same(
    String(ofRoutes).split('the options are ')[1]?.split(', ').sort(),
    Object.keys(ROUTE).sort(),
  )
  for (const name of Object.keys(DEFAULTS)) t.ok(name in PLUGIN, name)
})

test('an option that is misspelled is refused with the one that is meant', async (t) => {
  for (const [name, meant] of [
    ['tenent', 'tenant'],
    ['tennant', 'tenant'],
    ['Pool', 'pool'],
    ['storeTimout', 'storeTimeout'],
    ['maxbodybytes', 'maxBodyBytes'],
    ['hedaers', 'headers'],
  ]) {
    const { message } = await errorOf(register({ ...complete, [name as string]: 1 }))
    t.match(message, `option "${name}" is not known; did you mean "${meant}"? The options are `)
  }
  for (const name of ['ttl', 'key', 'timeout', '', '__proto__x']) {
    const { message } = await errorOf(register({ ...complete, [name]: 1 }))
    t.match(message, `option "${name}" is not known; the options are `, 'nothing is close')
  }
  const { message } = await errorOf(register(complete, { wiat: '5s' }))
  t.match(message, 'option "wiat" of route POST /things is not known; did you mean "wait"?')
})

test('a duration with a unit that there is not is refused with those that there are', async (t) => {
  const { message } = await errorOf(register({ ...complete, lease: '5 min' }))
  t.match(message, "such as '30s'; the units are ms, s, m (minutes, as in '5m'), h and d")
})

test('an option that is not known is refused, and the known ones are named', async (t) => {
  await t.rejects(register({ ...complete, ttl: 5 }), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message: /option "ttl" is not known; the options are required, wait, lease/,
  })
  await t.rejects(register(complete, { tenant: false }), {
    message: /option "tenant" of route POST \/things is not known/,
  })
})

test('an option that is undefined is left out', async (t) => {
  await t.resolves(
    register({ ...complete, wait: undefined, pool: undefined, rateLimit: undefined }),
  )
  await t.resolves(register(complete, { wait: undefined, headers: undefined }))
})

test('options of a route that are no object are refused', async (t) => {
  for (const config of ['yes', 5, null, 0, '']) {
    await t.rejects(register(complete, config), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      message: /the options of route POST \/things must be an object/,
    })
  }
})

test('options of a route that contradict each other are refused, those of the plugin give way', async (t) => {
  const redact = () => ({})
  for (const [config, says] of [
    [{ store: false, redact }, /"redact" of route POST \/things has no effect beside store: false/],
    [{ redact: async () => ({}) }, /"redact" of route POST \/things must not be async/],
  ] as const) {
    const error = await errorOf(register(complete, config))
    t.equal(error.code, 'IDEMPOTENCY_OPTION_INVALID')
    t.match(error.message, says)
  }
  await t.resolves(register({ ...complete, redact }, { store: false }))
  await t.resolves(register({ ...complete, onLeaseExpired: 'uncertain' }, { onStoreError: 'fail' }))
  if (database.kind === 'postgres') {
    await t.resolves(register({ ...complete, onLeaseExpired: 'uncertain' }, { atomic: true }))
  }
})

test('a method that can be repeated as it is is refused, HEAD as GET', async (t) => {
  for (const method of ['GET', 'HEAD', 'OPTIONS']) {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(idempotency, { prisma, tenant: false })
    const route = { method, url: '/things', config: { idempotency: {} }, handler: () => 'x' }
    t.throws(() => app.route(route), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      message: new RegExp(`route ${method} /things has config.idempotency`),
    })
  }
})

test('a GET beside a POST, and the HEAD that Fastify adds to it, have the config of the POST', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.route({
        method: ['GET', 'POST'],
        url: '/things',
        config: { idempotency: { required: true } },
        handler: () => 'x',
      }),
  })
  t.equal((await send(app, '/things', { method: 'HEAD' })).statusCode, 200)
  t.equal((await send(app, '/things')).statusCode, 400)
})

test('options that are not in config are refused: the route would run unprotected', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(idempotency, { prisma, tenant: false, global: false })
  const misplaced = { idempotency: { required: true } }
  t.throws(() => app.post('/things', misplaced as object, () => 'x'), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message:
      /route POST \/things has "idempotency" beside "config".*config: \{ idempotency: \{ … \} \}/,
  })
})

test('without tenant there is no registration: its absence would share keys', async (t) => {
  await t.rejects(register({ prisma }), { message: /option "tenant" must be a function/ })
})

test('maxRun is not shorter than lease', async (t) => {
  await t.rejects(register({ ...complete, lease: '2m', maxRun: '1m' }), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message: /option "maxRun" must not be shorter than "lease"/,
  })
  await t.rejects(register({ ...complete, maxRun: '1m' }, { lease: '2m' }), {
    message: /option "maxRun" of route POST \/things must not be shorter/,
  })
})

test('a key is remembered at least as long as its first request may run', async (t) => {
  await t.rejects(register({ ...complete, lease: '1m', maxRun: '10m', retention: '10m' }), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message: /option "retention" must not be shorter than "maxRun" and "lease" together/,
  })
  await t.resolves(register({ ...complete, lease: '1m', maxRun: '10m', retention: '11m' }))
  await t.rejects(
    buildApp(t, database, {
      plugin: { lease: '1s', maxRun: '1s', retention: '2s' },
      routes: (app) =>
        app.post('/a', { config: { idempotency: { atomic: { timeout: '5s' } } } }, () => 'x'),
    }),
    {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      message: /"retention" of route POST \/a must not be shorter than the "timeout" of "atomic"/,
    },
  )
})

test('a duration that a timer cannot hold is refused', async (t) => {
  // Node fires a timer of more than 2^31 - 1 ms at once.
  for (const [name, value] of [
    ['storeTimeout', '25d'],
    ['storeTimeout', Number.MAX_SAFE_INTEGER],
    ['pruneEvery', '25d'],
  ] as const) {
    await t.rejects(
      register({ ...complete, [name]: value }),
      { code: 'IDEMPOTENCY_OPTION_INVALID' },
      name,
    )
  }
  await t.rejects(register({ ...complete, lease: '80d', maxRun: '80d', retention: '365d' }), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
  })
})

test('a duration that the database cannot add to its time is refused', async (t) => {
  await t.rejects(register({ ...complete, retention: Number.MAX_VALUE }), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
  })
})

test('a Prisma client without the model: the message names it and the command', async (t) => {
  const client = { $queryRawUnsafe: async () => [], payment: {}, _activeProvider: 'postgresql' }
  await t.rejects(register({ prisma: client, tenant: false }), {
    code: 'IDEMPOTENCY_MODELS_MISSING',
    message:
      /the Prisma client lacks model IdempotencyRecord\. .*`npx fastify-idempotency init`.*`npx prisma migrate dev`.*`npx prisma generate`/,
  })
})

test('a Prisma client with an old model: the message names the fields that it lacks', async (t) => {
  const fields = { ...Object(prisma.idempotencyRecord.fields) } as Record<string, unknown>
  const kept = Object.fromEntries(
    [
      'tenantId',
      'key',
      'operationId',
      'holder',
      'claimedAt',
      'fingerprint',
      'status',
      'leaseUntil',
      'expiresAt',
      'statusCode',
      'body',
      'steps',
      'handler',
      'input',
      'createdAt',
    ].map((name) => [name, fields[name] ?? {}]),
  )
  const client = {
    $queryRawUnsafe: async () => [],
    idempotencyRecord: { fields: kept },
    _activeProvider: 'postgresql',
  }
  await t.rejects(register({ prisma: client, tenant: false }), {
    code: 'IDEMPOTENCY_MODELS_MISSING',
    message:
      /lacks field IdempotencyRecord.attempt, field IdempotencyRecord.headers\. .*init.*prints the lines.*model that is there/,
  })
})

test('a client of a database that is not known is refused', async (t) => {
  const { idempotencyRecord } = prisma
  for (const provider of ['mongodb', 'sqlserver', undefined]) {
    const client = { $queryRawUnsafe: async () => [], idempotencyRecord, _activeProvider: provider }
    await t.rejects(register({ prisma: client, tenant: false }), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      message: /none of PostgreSQL, MySQL, MariaDB and SQLite/,
    })
  }
})

test('an extended Prisma client is taken as it is', async (t) => {
  const extended = prisma.$extends({ client: { hello: () => 'x' } })
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { prisma: extended as never, pool: undefined },
    routes: (app) => app.post('/things', () => ({ run: ++runs })),
  })
  const key = newKey()
  await send(app, '/things', { key })
  t.same((await send(app, '/things', { key })).json(), { run: 1 })
})

test('nothing is asked of the database at registration', async (t) => {
  const asked: string[] = []
  const client = {
    idempotencyRecord: prisma.idempotencyRecord,
    _activeProvider: 'postgresql',
    async $queryRawUnsafe(text: string) {
      asked.push(text)
      return []
    },
  }
  await register({ prisma: client, tenant: false })
  t.same(asked, [])
})

test('options are read once: changing them afterwards changes nothing', async (t) => {
  const headers = ['x-a']
  const config = { required: false, headers }
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', { config: { idempotency: config } }, (_request, reply) =>
        reply.headers({ 'x-a': '1', 'x-b': '2' }).send('x'),
      ),
  })
  config.required = true
  headers.push('x-b')
  t.equal((await send(app, '/things')).statusCode, 200)
  const key = newKey()
  await send(app, '/things', { key })
  t.notOk('x-b' in (await send(app, '/things', { key })).headers)
})

test('a key is remembered for 24 hours, and run with a lease of 30 seconds, unless it is said otherwise', async (t) => {
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/default', async () => {
        began.open()
        await go.opened
        return 'x'
      })
      app.post('/own', { config: { idempotency: { retention: '7d', lease: '10s' } } }, () => 'x')
    },
  })
  for (const [url, retentionMs, leaseMs] of [
    ['/default', 86_400_000, 30_000],
    ['/own', 604_800_000, 10_000],
  ] as const) {
    const key = newKey()
    const answer = send(app, url, { key }).then((answer) => answer)
    if (url === '/default') {
      await began.opened
      go.open()
    }
    await answer
    const record = await recordOf(database, key)
    if (record === null) throw new Error('there is no record')
    const since = record.createdAt.getTime()
    t.ok(Math.abs(record.expiresAt.getTime() - since - retentionMs) <= 5)
    t.ok(Math.abs(record.leaseUntil.getTime() - since - leaseMs) <= 5)
  }
})

test("Prisma's adapter and a single client are no pool, for the compiler and at registration", async (t) => {
  const url = 'postgresql://127.0.0.1:1/none'
  const wrong: [unknown, RegExp][] = [
    [
      new PrismaPg({ connectionString: url }),
      /must be the pg\.Pool of Prisma's adapter, not the ad/,
    ],
    [
      new pg.Client(url),
      /must be a pg\.Pool, not a single pg\.Client: write const pool = new pg\.Pool/,
    ],
  ]
  for (const [pool, says] of wrong) {
    const error = await errorOf(register({ ...complete, pool } as PluginOptions))
    t.equal(error.code, 'IDEMPOTENCY_OPTION_INVALID')
    t.match(error.message, says)
  }
  // @ts-expect-error: its connections have no query.
  const options: PluginOptions = { prisma, tenant: false, pool: new PrismaPg({}) }
  t.ok(options)
})

test('a pool is no Redis, for the compiler and at registration', async (t) => {
  const pool = { connect: async () => ({ query: async () => ({ rows: [] }) }) }
  // @ts-expect-error: it has no defineCommand.
  const options: PluginOptions = { prisma, tenant: false, redis: pool }
  t.match((await errorOf(register(options))).message, /option "redis" must be an ioredis client/)
})

test('locks in Redis alone need a Redis', async (t) => {
  const error = await errorOf(register({ ...complete, locks: 'redis' }))
  t.equal(error.code, 'IDEMPOTENCY_OPTION_INVALID')
  t.match(error.message, /option "locks" is 'redis', which needs option "redis" as well/)
})
