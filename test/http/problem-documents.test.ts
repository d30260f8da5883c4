// Errors of the library's own that reach Fastify's error handling are answered as problem documents,
// unless the application answers them itself.
import Fastify, { type FastifyInstance } from 'fastify'
import t, { test } from 'tap'
import idempotency, { type PluginOptions, type RouteOptions } from '../../src/index.js'
import { buildApp, newKey, send } from '../fixtures/app.js'
import { breakable } from '../fixtures/breakable.js'
import { anyDatabase } from '../fixtures/database.js'
import type { Client } from '../fixtures/ways.js'

const database = await anyDatabase(t)

const docs = 'https://example.com/errors'

/** Routes that end with an error of the library's own, by its code and status. */
async function brokenApp(
  t: Parameters<typeof buildApp>[0],
  {
    plugin = {},
    route = {},
    before,
    after,
  }: {
    plugin?: Partial<PluginOptions>
    route?: RouteOptions
    before?: (app: FastifyInstance) => unknown
    after?: (app: FastifyInstance) => unknown
  } = {},
) {
  const client = breakable(database.prisma as Client)
  const lines: string[] = []
  const app = await buildApp(t, database, {
    plugin: {
      ...{ prisma: client.prisma, pool: undefined, locks: 'database', docs, storeTimeout: '1m' },
      ...plugin,
    },
    server: { logger: { level: 'error', stream: { write: (line) => void lines.push(line) } } },
    ...(before && { before }),
    routes(app) {
      after?.(app)
      const config = { config: { idempotency: route } }
      const broken = (url: string, run: (app: FastifyInstance) => unknown) =>
        app.post(url, config, async () => {
          client.broken = 'everything'
          try {
            return await run(app)
          } finally {
            client.broken = undefined
          }
        })
      broken('/lock', ({ idempotency }) => idempotency.lock('a', {}, () => 1))
      broken('/prune', ({ idempotency }) => idempotency.prune())
      broken('/reserve', ({ idempotency }) =>
        idempotency.reserve({ resource: 'a', slots: 'a', holder: 'a' }),
      )
      broken('/run', ({ idempotency }) => idempotency.run('a', () => 1))
      app.post('/record', config, async (request) => {
        client.broken = 'everything'
        const recorded = request.idempotency.recordEvent({ provider: 'a', eventId: 'a' })
        await recorded.finally(() => {
          client.broken = undefined
        })
      })
      app.post('/option', config, ({ idempotency }) => idempotency.lock('', {}, () => 1))
      app.post('/application', config, () => {
        throw Object.assign(new Error('mine'), { statusCode: 503, code: 'MINE' })
      })
    },
  })
  return { app, logged: () => lines.join('') }
}

const ERRORS = {
  '/lock': [503, 'IDEMPOTENCY_LOCK_UNAVAILABLE', 'Service Unavailable'],
  '/prune': [503, 'IDEMPOTENCY_DATABASE_FAILED', 'Service Unavailable'],
  '/reserve': [503, 'IDEMPOTENCY_DATABASE_FAILED', 'Service Unavailable'],
  '/run': [503, 'IDEMPOTENCY_STORE_UNAVAILABLE', 'Service Unavailable'],
  '/record': [503, 'IDEMPOTENCY_INBOX_UNAVAILABLE', 'Service Unavailable'],
  '/option': [500, 'IDEMPOTENCY_OPTION_INVALID', 'Internal Server Error'],
} as const

for (const [url, [status, code, title]] of Object.entries(ERRORS)) {
  test(`${code} thrown by ${url} is a problem document, with a key and without, and is logged`, async (t) => {
    const { app, logged } = await brokenApp(t)
    for (const call of [{}, { key: newKey() }]) {
      const answer = await send(app, url, call)
      t.equal(answer.statusCode, status)
      t.equal(answer.headers['content-type'], 'application/problem+json')
      t.equal(answer.headers['content-length'], String(answer.rawPayload.byteLength))
      const { detail, ...others } = answer.json()
      t.strictSame(others, { type: `${docs}#${code.toLowerCase()}`, title, status, code })
      t.match(detail, /\w+/)
      t.equal(answer.headers['retry-after'], status === 503 ? '5' : undefined)
    }
    t.match(logged(), `"code":"${code}"`)
  })
}

test('a route that was added before the plugin answers a problem document', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  app.post('/early', () => 'ran')
  await app.register(idempotency, { prisma: database.prisma, tenant: false, docs })
  const answer = await send(app, '/early', { key: newKey() })
  t.equal(answer.headers['content-type'], 'application/problem+json')
  t.match(answer.json(), {
    status: 500,
    code: 'IDEMPOTENCY_ROUTE_MISSED',
    detail: /await app\.register/,
  })
})

for (const [where, option] of [
  ['before', 'before'],
  ['after', 'after'],
] as const) {
  test(`an error handler that is set ${where} the plugin sees the error, and its answer stands`, async (t) => {
    const seen: string[] = []
    const { app } = await brokenApp(t, {
      [option]: (app: FastifyInstance) =>
        app.setErrorHandler((error: { code: string; statusCode: number }, _request, reply) => {
          seen.push(error.code)
          return reply.code(418).send({ own: error.code })
        }),
    })
    const answer = await send(app, '/lock', { key: newKey() })
    t.strictSame(seen, ['IDEMPOTENCY_LOCK_UNAVAILABLE'])
    t.equal(answer.statusCode, 418)
    t.strictSame(answer.json(), { own: 'IDEMPOTENCY_LOCK_UNAVAILABLE' })
  })
}

test('an error handler that passes the error on gets the problem document', async (t) => {
  const { app } = await brokenApp(t, {
    before: (app) => app.setErrorHandler((error, _request, reply) => reply.send(error)),
  })
  const answer = await send(app, '/lock', { key: newKey() })
  t.equal(answer.headers['content-type'], 'application/problem+json')
  t.equal(answer.json().code, 'IDEMPOTENCY_LOCK_UNAVAILABLE')
})

test('errors of the application are answered as ever', async (t) => {
  const { app } = await brokenApp(t)
  const answer = await send(app, '/application', { key: newKey() })
  t.strictSame(answer.json(), {
    statusCode: 503,
    code: 'MINE',
    error: 'Service Unavailable',
    message: 'mine',
  })
})

test('a schema for the error’s status says how it is answered', async (t) => {
  const client = breakable(database.prisma as Client)
  const app = await buildApp(t, database, {
    plugin: { prisma: client.prisma, pool: undefined, locks: 'database' },
    routes(app) {
      const own = { type: 'object', properties: { code: { type: 'string' } } }
      app.post('/lock', { schema: { response: { 503: own } } }, async () => {
        client.broken = 'everything'
        const locking = app.idempotency.lock('a', {}, () => 1)
        await locking.finally(() => {
          client.broken = undefined
        })
      })
    },
  })
  const answer = await send(app, '/lock')
  t.strictSame(answer.json(), { code: 'IDEMPOTENCY_LOCK_UNAVAILABLE' })
})

test('where the route stores every status, an error of the library’s own is not stored', async (t) => {
  const { app } = await brokenApp(t, { route: { keepStatus: () => true } })
  const key = newKey()
  for (const turn of ['first', 'retry']) {
    const answer = await send(app, '/lock', { key })
    t.equal(answer.headers['content-type'], 'application/problem+json', turn)
    t.notOk(answer.headers['idempotent-replayed'], turn)
  }
})
