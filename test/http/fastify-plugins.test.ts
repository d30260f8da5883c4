// Together with the plugins that applications have, and with Fastify's own options.
import { gunzipSync, gzipSync } from 'node:zlib'
import compress from '@fastify/compress'
import cookie from '@fastify/cookie'
import cors from '@fastify/cors'
import etag from '@fastify/etag'
import formbody from '@fastify/formbody'
import rateLimit from '@fastify/rate-limit'
import type { FastifyInstance } from 'fastify'
import t, { test } from 'tap'
import {
  type Answer,
  begin,
  buildApp,
  collectEvents,
  latch,
  listen,
  newKey,
  recordOf,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { until } from '../fixtures/until.js'

const database = await anyDatabase(t)

/** Runs a test with another plugin registered before ours, and after it. */
function inBothOrders(
  name: string,
  register: (app: FastifyInstance) => unknown,
  run: (
    t: Parameters<typeof buildApp>[0] & typeof import('tap').t,
    build: (routes: (app: FastifyInstance) => unknown) => Promise<FastifyInstance>,
  ) => Promise<void>,
) {
  for (const order of ['before', 'after'] as const) {
    test(`${name}, registered ${order} the plugin`, async (t) => {
      await run(t as never, (routes) =>
        buildApp(t, database, {
          ...(order === 'before' && { before: register }),
          async routes(app) {
            if (order === 'after') await register(app)
            await routes(app)
          },
        }),
      )
    })
  }
}

const text = 'a text that is worth compressing. '.repeat(200)

function decoded(answer: Answer): string {
  return answer.headers['content-encoding'] === 'gzip'
    ? gunzipSync(answer.rawPayload).toString()
    : answer.body
}

inBothOrders(
  '@fastify/cors: its headers are made anew',
  (app) => app.register(cors, { origin: true, credentials: true }),
  async (t, build) => {
    const app = await build((app) => app.post('/things', () => ({ a: 1 })))
    const key = newKey()
    const first = await send(app, '/things', { key, headers: { origin: 'https://a.example' } })
    const retry = await send(app, '/things', { key, headers: { origin: 'https://b.example' } })
    t.equal(first.headers['access-control-allow-origin'], 'https://a.example')
    t.equal(retry.headers['access-control-allow-origin'], 'https://b.example')
    t.equal(retry.headers.vary, first.headers.vary)
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.equal(retry.body, first.body)
    const conflict = await send(app, '/things', {
      key,
      payload: [],
      headers: { origin: 'https://b.example' },
    })
    t.equal(conflict.statusCode, 422)
    t.equal(
      conflict.headers['access-control-allow-origin'],
      'https://b.example',
      'also on our own answers',
    )
  },
)

inBothOrders(
  '@fastify/compress: a replay is readable by whoever retries',
  (app) => app.register(compress, { threshold: 0 }),
  async (t, build) => {
    const { Readable } = await import('node:stream')
    const app = await build((app) => {
      app.post('/text', () => text)
      app.post('/json', () => ({ text }))
      app.post('/bytes', (_request, reply) => reply.type('text/plain').send(Buffer.from(text)))
      app.post('/stream', (_request, reply) => reply.type('text/plain').send(Readable.from([text])))
      app.post('/error', () => {
        throw Object.assign(new Error(text), { statusCode: 400 })
      })
    })
    for (const url of ['/text', '/json', '/bytes', '/stream', '/error']) {
      for (const [encoding, other] of [
        ['gzip', 'identity'],
        ['identity', 'gzip'],
      ] as const) {
        const key = newKey()
        const first = await send(app, url, { key, headers: { 'accept-encoding': encoding } })
        const same = await send(app, url, { key, headers: { 'accept-encoding': encoding } })
        const differs = await send(app, url, { key, headers: { 'accept-encoding': other } })
        t.equal(same.headers['idempotent-replayed'], 'true')
        t.equal(same.headers['content-encoding'], first.headers['content-encoding'])
        t.equal(decoded(same), decoded(first), `${url} ${encoding}, then the same`)
        t.match(decoded(first), 'worth compressing')
        t.equal(differs.headers['content-encoding'], other === 'gzip' ? 'gzip' : undefined)
        t.equal(decoded(differs), decoded(first), `${url} ${encoding}, then ${other}`)
        t.equal(first.headers['content-encoding'], encoding === 'gzip' ? 'gzip' : undefined)
      }
    }
  },
)

test('a body that the handler has encoded itself is replayed with its encoding', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', (_request, reply) =>
        reply.type('text/plain').header('content-encoding', 'gzip').send(gzipSync(text)),
      ),
  })
  const key = newKey()
  const first = await send(app, '/things', { key })
  const retry = await send(app, '/things', { key })
  t.equal(retry.headers['content-encoding'], 'gzip')
  t.ok(retry.rawPayload.equals(first.rawPayload))
  t.equal(decoded(retry), text)
})

inBothOrders(
  '@fastify/etag: the tag is made anew, and is the same',
  (app) => app.register(etag),
  async (t, build) => {
    const app = await build((app) => app.post('/things', () => ({ text })))
    const key = newKey()
    const first = await send(app, '/things', { key })
    const retry = await send(app, '/things', { key })
    t.ok(first.headers.etag)
    t.equal(retry.headers.etag, first.headers.etag)
    t.equal(retry.body, first.body)
    t.notOk('etag' in Object((await recordOf(database, key))?.headers))
  },
)

inBothOrders(
  '@fastify/cookie: a cookie is for the one who got it',
  (app) => app.register(cookie),
  async (t, build) => {
    const app = await build((app) =>
      app.post('/things', (_request, reply) => reply.setCookie('session', 'canary').send({ a: 1 })),
    )
    const key = newKey()
    const first = await send(app, '/things', { key })
    const retry = await send(app, '/things', { key })
    t.match(first.headers['set-cookie'], 'canary')
    t.notOk('set-cookie' in retry.headers)
    t.equal(retry.body, first.body)
    t.notMatch(JSON.stringify(await recordOf(database, key)), 'canary')
  },
)

inBothOrders(
  '@fastify/rate-limit: its headers are made anew, and its refusals are not stored',
  (app) => app.register(rateLimit, { max: 2, timeWindow: 60_000 }),
  async (t, build) => {
    let runs = 0
    const app = await build((app) => app.post('/things', () => ({ run: ++runs })))
    const key = newKey()
    const first = await send(app, '/things', { key })
    const retry = await send(app, '/things', { key })
    t.equal(first.headers['x-ratelimit-remaining'], '1')
    t.equal(retry.headers['x-ratelimit-remaining'], '0')
    t.equal(retry.headers['idempotent-replayed'], 'true')
    const refusedKey = newKey()
    const refused = await send(app, '/things', { key: refusedKey })
    t.equal(refused.statusCode, 429)
    t.equal(await recordOf(database, refusedKey), null)
    t.equal(runs, 1)
  },
)

inBothOrders(
  '@fastify/formbody: a form is compared field by field',
  (app) => app.register(formbody),
  async (t, build) => {
    let runs = 0
    const app = await build((app) => app.post('/things', ({ body }) => ({ run: ++runs, body })))
    const key = newKey()
    const headers = { 'content-type': 'application/x-www-form-urlencoded' }
    const first = await send(app, '/things', { key, headers, payload: 'a=1&b=2' })
    t.same(first.json(), { run: 1, body: { a: '1', b: '2' } })
    t.equal((await send(app, '/things', { key, headers, payload: 'b=2&a=1' })).body, first.body)
    t.equal((await send(app, '/things', { key, headers, payload: 'a=1&b=3' })).statusCode, 422)
    t.equal(runs, 1)
  },
)

test('a refusal by authentication is never stored, wherever it stands', async (t) => {
  const refuseWithout = async (
    request: { headers: Record<string, unknown> },
    reply: { code(n: number): { send(x: unknown): unknown } },
  ) => {
    if (request.headers.authorization === undefined)
      return reply.code(401).send({ error: 'who are you?' })
    return undefined
  }
  const throwWithout = async (request: { headers: Record<string, unknown> }) => {
    if (request.headers.authorization === undefined)
      throw Object.assign(new Error('no'), { statusCode: 403 })
  }
  let runs = 0
  const handler = () => ({ run: ++runs })
  const places: Record<
    string,
    { before?: (app: FastifyInstance) => unknown; routes: (app: FastifyInstance) => unknown }
  > = {
    'a preHandler hook before the plugin': {
      before: (app) => app.addHook('preHandler', refuseWithout as never),
      routes: (app) => app.post('/things', handler),
    },
    'a preHandler hook after the plugin': {
      routes(app) {
        app.addHook('preHandler', refuseWithout as never)
        app.post('/things', handler)
      },
    },
    'a preHandler hook that throws': {
      routes(app) {
        app.addHook('preHandler', throwWithout as never)
        app.post('/things', handler)
      },
    },
    "the route's own preHandler": {
      routes: (app) => app.post('/things', { preHandler: refuseWithout as never }, handler),
    },
    "the route's own preHandlers": {
      routes: (app) =>
        app.post('/things', { preHandler: [async () => {}, throwWithout as never] }, handler),
    },
    'a preHandler that another onRoute hook adds': {
      routes(app) {
        app.addHook('onRoute', (route) => {
          route.preHandler = [refuseWithout as never]
        })
        app.post('/things', handler)
      },
    },
    "the route's own preValidation": {
      routes: (app) => app.post('/things', { preValidation: refuseWithout as never }, handler),
    },
    'an onRequest hook': {
      routes(app) {
        app.addHook('onRequest', refuseWithout as never)
        app.post('/things', handler)
      },
    },
    'a preHandler of an encapsulated plugin': {
      routes: (app) =>
        app.register(async (inner) => {
          inner.addHook('preHandler', refuseWithout as never)
          inner.post('/things', handler)
        }),
    },
  }
  for (const [name, place] of Object.entries(places)) {
    await t.test(name, async (t) => {
      runs = 0
      const app = await buildApp(t, database, place)
      const key = newKey()
      const refused = await send(app, '/things', { key })
      t.ok(refused.statusCode === 401 || refused.statusCode === 403)
      t.equal(await recordOf(database, key), null, 'the key is free')
      const headers = { authorization: 'Bearer me' }
      t.same((await send(app, '/things', { key, headers })).json(), { run: 1 })
      const again = await send(app, '/things', { key })
      t.equal(again.statusCode, refused.statusCode, 'nothing is replayed to somebody unknown')
      t.equal((await send(app, '/things', { key, headers })).headers['idempotent-replayed'], 'true')
      t.equal(runs, 1)
    })
  }
})

test('a validation failure is not stored and leaves the key free', async (t) => {
  let runs = 0
  const schema = {
    body: { type: 'object', required: ['amount'], properties: { amount: { type: 'integer' } } },
  }
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things', { schema }, () => ({ run: ++runs })),
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key, payload: {} })).statusCode, 400)
  t.equal(await recordOf(database, key), null)
  t.same((await send(app, '/things', { key, payload: { amount: 1 } })).json(), { run: 1 })
})

test('attachValidation leaves the decision, and its answer, to the handler', async (t) => {
  const schema = { body: { type: 'object', required: ['amount'] } }
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', { schema, attachValidation: true }, (request, reply) =>
        request.validationError ? reply.code(422).send('by the handler') : 'fine',
      ),
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body, 'by the handler')
  const retry = await send(app, '/things', { key })
  t.equal(retry.body, 'by the handler')
  t.equal(retry.headers['idempotent-replayed'], 'true')
})

test('what validation does to a body does not change the fingerprint', async (t) => {
  const schema = {
    body: {
      type: 'object',
      additionalProperties: false,
      properties: { amount: { type: 'integer' }, currency: { type: 'string', default: 'EUR' } },
    },
  }
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things', { schema }, ({ body }) => body),
  })
  const key = newKey()
  const first = await send(app, '/things', { key, payload: { amount: '1', extra: true } })
  t.same(first.json(), { amount: 1, currency: 'EUR' })
  t.equal(
    (await send(app, '/things', { key, payload: { amount: '1', extra: true } })).statusCode,
    200,
  )
  t.equal(
    (await send(app, '/things', { key, payload: { amount: 1, currency: 'EUR' } })).statusCode,
    422,
  )
})

test('a body that is changed on its way does not change the fingerprint', async (t) => {
  let count = 0
  const change = async ({ body }: { body: unknown }) => {
    Object.assign(body as object, { receivedAt: ++count, secret: count })
  }
  const places: Record<string, (app: FastifyInstance) => unknown> = {
    'by the handler': (app) =>
      app.post('/things', async (request) => {
        await change(request)
        return { body: request.body }
      }),
    "by the route's own preValidation": (app) =>
      app.post('/things', { preValidation: change }, ({ body }) => ({ body })),
    "by the route's own preHandler": (app) =>
      app.post('/things', { preHandler: change }, ({ body }) => ({ body })),
    'by a preHandler hook of the application': (app) => {
      app.addHook('preHandler', change)
      app.post('/things', ({ body }) => ({ body }))
    },
    'by a preValidation hook of the application': (app) => {
      app.addHook('preValidation', change)
      app.post('/things', ({ body }) => ({ body }))
    },
    'by a preValidation hook of an encapsulated plugin': (app) =>
      app.register(async (inner) => {
        inner.addHook('preValidation', change)
        inner.post('/things', ({ body }) => ({ body }))
      }),
    'by replacing it': (app) =>
      app.post(
        '/things',
        {
          preValidation: async (request) => {
            request.body = { replaced: ++count }
          },
        },
        ({ body }) => ({ body }),
      ),
  }
  for (const [name, routes] of Object.entries(places)) {
    await t.test(name, async (t) => {
      const app = await buildApp(t, database, { routes })
      const key = newKey()
      const first = await send(app, '/things', { key, payload: { a: 1 } })
      t.equal(first.statusCode, 200)
      const retry = await send(app, '/things', { key, payload: { a: 1 } })
      t.equal(retry.statusCode, 200)
      t.equal(retry.body, first.body)
      t.equal((await send(app, '/things', { key, payload: { a: 2 } })).statusCode, 422)
    })
  }
})

test('routes of encapsulated plugins are protected, and their prefix is part of the endpoint', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes(app) {
      const routes = async (inner: FastifyInstance) => {
        inner.post('/things', () => ({ run: ++runs }))
        inner.register(async (deep) => deep.post('/deep', () => ({ run: ++runs })), {
          prefix: '/more',
        })
      }
      app.register(routes, { prefix: '/v1' })
      app.register(routes, { prefix: '/v2' })
    },
  })
  const key = newKey()
  for (const url of ['/v1/things', '/v1/more/deep', '/v2/things']) {
    runs = 0
    const own = newKey()
    await send(app, url, { key: own })
    t.same((await send(app, url, { key: own })).json(), { run: 1 }, url)
  }
  await send(app, '/v1/things', { key })
  t.equal((await send(app, '/v2/things', { key })).statusCode, 422)
})

test('a plugin that is registered in a context of its own protects that context alone', async (t) => {
  const { default: Fastify } = await import('fastify')
  const { default: idempotency } = await import('../../src/index.js')
  const app = Fastify()
  t.teardown(() => app.close())
  let runs = 0
  await app.register(async (inner) => {
    await inner.register(idempotency, { prisma: database.prisma, tenant: false })
    inner.post('/inside', () => ({ run: ++runs }))
  })
  app.post('/outside', () => ({ run: ++runs }))
  for (const [url, count] of [
    ['/inside', 1],
    ['/outside', 2],
  ] as const) {
    runs = 0
    const key = newKey()
    await send(app, url, { key })
    await send(app, url, { key })
    t.equal(runs, count, url)
  }
})

test('config.idempotency says for each route whether it is protected', async (t) => {
  const cases = [
    { global: true, config: undefined, method: 'POST', isProtected: true },
    { global: true, config: undefined, method: 'PATCH', isProtected: true },
    { global: true, config: undefined, method: 'PUT', isProtected: false },
    { global: true, config: undefined, method: 'DELETE', isProtected: false },
    { global: true, config: false, method: 'POST', isProtected: false },
    { global: true, config: true, method: 'POST', isProtected: true },
    { global: true, config: {}, method: 'POST', isProtected: true },
    { global: true, config: true, method: 'PUT', isProtected: true },
    { global: true, config: {}, method: 'DELETE', isProtected: true },
    { global: false, config: undefined, method: 'POST', isProtected: false },
    { global: false, config: false, method: 'POST', isProtected: false },
    { global: false, config: true, method: 'POST', isProtected: true },
    { global: false, config: {}, method: 'PATCH', isProtected: true },
    { global: false, config: { required: true }, method: 'PUT', isProtected: true },
  ] as const
  for (const { global, config, method, isProtected } of cases) {
    let runs = 0
    const app = await buildApp(t, database, {
      plugin: { global },
      routes: (app) =>
        app.route({
          method,
          url: '/things',
          ...(config !== undefined && { config: { idempotency: config } }),
          handler: () => ({ run: ++runs }),
        }),
    })
    const key = newKey()
    await send(app, '/things', { method, key })
    await send(app, '/things', { method, key })
    t.equal(runs, isProtected ? 1 : 2, JSON.stringify({ global, config, method }))
  }
})

test("a route's options go over the plugin's", async (t) => {
  const app = await buildApp(t, database, {
    plugin: { required: true, headers: ['x-a'] },
    routes(app) {
      const handler = (
        _request: unknown,
        reply: { headers(h: object): { send(x: unknown): unknown } },
      ) => reply.headers({ 'x-a': '1', 'x-b': '2' }).send('x')
      app.post('/default', handler as never)
      app.post(
        '/own',
        { config: { idempotency: { required: false, headers: ['x-b'] } } },
        handler as never,
      )
      app.post(
        '/undefined',
        { config: { idempotency: { required: undefined } as never } },
        handler as never,
      )
    },
  })
  t.equal((await send(app, '/default')).statusCode, 400)
  t.equal((await send(app, '/own')).statusCode, 200)
  t.equal((await send(app, '/undefined')).statusCode, 400)
  const key = newKey()
  await send(app, '/own', { key })
  const retry = await send(app, '/own', { key })
  t.equal(retry.headers['x-b'], '2')
  t.notOk('x-a' in retry.headers)
})

test('GET and OPTIONS with config.idempotency are refused at registration', async (t) => {
  for (const method of ['GET', 'OPTIONS'] as const) {
    for (const config of [true, {}, { required: true }]) {
      await t.rejects(
        buildApp(t, database, {
          routes: (app) =>
            app.route({
              method,
              url: '/things',
              config: { idempotency: config },
              handler: () => 'x',
            }),
        }),
        {
          code: 'IDEMPOTENCY_OPTION_INVALID',
          message: new RegExp(`route ${method} /things has config.idempotency`),
        },
      )
    }
  }
  await t.resolves(
    buildApp(t, database, {
      routes: (app) => app.get('/things', { config: { idempotency: false } }, () => 'x'),
    }),
  )
})

test('a route with several methods protects those whose repetition is not harmless', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes(app) {
      const handler = () => ({ run: ++runs })
      app.route({ method: ['GET', 'POST', 'PUT'], url: '/global', handler })
      app.route({
        method: ['GET', 'POST', 'PUT'],
        url: '/config',
        config: { idempotency: { required: true } },
        handler,
      })
    },
  })
  for (const [url, method, count] of [
    ['/global', 'GET', 2],
    ['/global', 'POST', 1],
    ['/global', 'PUT', 2],
    ['/config', 'GET', 2],
    ['/config', 'POST', 1],
    ['/config', 'PUT', 1],
  ] as const) {
    runs = 0
    const key = newKey()
    await send(app, url, { method, key })
    await send(app, url, { method, key })
    t.equal(runs, count, `${method} ${url}`)
  }
  t.equal((await send(app, '/config', { method: 'GET' })).statusCode, 200)
  t.equal((await send(app, '/config', { method: 'PUT' })).statusCode, 400)
  const key = newKey()
  await send(app, '/config', { method: 'POST', key })
  t.equal((await send(app, '/config', { method: 'PUT', key })).statusCode, 422)
})

test('a handler that times out: 503, and nobody else may run while it goes on', async (t) => {
  const go = latch()
  let runs = 0
  const ended = latch()
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', { handlerTimeout: 50 }, async () => {
        runs += 1
        if (runs > 1) return { run: runs }
        await go.opened
        ended.open()
        return { run: runs }
      }),
  })
  const key = newKey()
  const first = await send(app, '/things', { key })
  t.equal(first.statusCode, 503)
  for (let turn = 0; turn < 3; turn += 1) {
    const retry = await send(app, '/things', { key })
    t.equal(retry.statusCode, 409)
    t.equal(retry.json().code, 'IDEMPOTENCY_IN_PROGRESS')
  }
  t.equal((await recordOf(database, key))?.status, 'in_progress')
  t.equal(runs, 1)
  const events = collectEvents(t)
  go.open()
  await ended.opened
  await Promise.race([events.first('released'), events.first('completed')])
  t.not((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_IN_PROGRESS')
})

test('a handler that took effect after its timeout does not take effect again', async (t) => {
  const go = latch()
  let effects = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', { handlerTimeout: 50 }, async () => {
        await go.opened
        effects += 1
        return { made: effects }
      }),
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 503)
  const events = collectEvents(t)
  go.open()
  await Promise.race([events.first('released'), events.first('completed')])
  await send(app, '/things', { key })
  t.equal(effects, 1)
})

test('a handler that answers by reply.send and times out keeps its key as long as it runs', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things', { handlerTimeout: 50 }, () => {}),
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 503)
  t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_IN_PROGRESS')
})

test('a request that was answered by the timeout while it waited runs nothing afterwards', async (t) => {
  const began = latch()
  const go = latch()
  let runs = 0
  const events = collectEvents(t)
  const routes = (handlerTimeout: number) => (app: FastifyInstance) =>
    app.post('/things', { handlerTimeout }, async () => {
      runs += 1
      began.open()
      await go.opened
      throw new Error('broken')
    })
  const app = await buildApp(t, database, { routes: routes(60_000) })
  const impatient = await buildApp(t, database, { plugin: { wait: '1m' }, routes: routes(50) })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  t.equal((await send(impatient, '/things', { key })).statusCode, 503)
  await events.first('busy')
  go.open()
  t.equal((await first).statusCode, 500)
  t.equal(runs, 1)
  t.match(await recordOf(database, key), { status: 'released', attempt: 1 })
})

test('a key that is granted after the timeout has answered is given back, and nothing runs', async (t) => {
  const pool = new WatchedPool(database)
  const events = collectEvents(t)
  const go = latch()
  let runs = 0
  const routes = (handlerTimeout: number) => (app: FastifyInstance) =>
    app.post('/things', { handlerTimeout }, () => ({ run: ++runs }))
  const app = await buildApp(t, database, { plugin: { pool }, routes: routes(50) })
  const patient = await buildApp(t, database, { routes: routes(60_000) })
  pool.after = (name) => (name === 'fi_insert' ? go.opened : undefined)
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 503)
  go.open()
  await events.first('released')
  t.equal(runs, 0)
  t.same((await send(patient, '/things', { key })).json(), { run: 1 })
})

test('a handler that aborts by request.signal after its timeout frees the key', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', { handlerTimeout: 300 }, (request) => {
        runs += 1
        return new Promise((_resolve, reject) => {
          request.signal.addEventListener('abort', () => reject(new Error('given up')))
        })
      }),
  })
  const patient = await buildApp(t, database, {
    routes: (app) => app.post('/things', () => 'second'),
  })
  let key: string
  // On a busy machine, the time can be over before the handler has begun.
  do {
    key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, 503)
  } while (runs === 0)
  await until(
    () => recordOf(database, key),
    (record) => record?.status === 'released',
  )
  t.ok(events.kinds().includes('released'))
  t.equal((await send(patient, '/things', { key })).body, 'second')
})

test('over a real connection, a replay is what the first client got', async (t) => {
  const app = await buildApp(t, database, {
    async routes(app) {
      await app.register(cors, { origin: true })
      await app.register(compress, { threshold: 0 })
      await app.register(etag)
      app.post('/things', (_request, reply) => reply.code(201).send({ text }))
    },
  })
  const url = `http://127.0.0.1:${await listen(app)}/things`
  const call = {
    method: 'POST',
    headers: { 'idempotency-key': newKey(), origin: 'https://a.example' },
  }
  const [first, retry] = [await fetch(url, call), await fetch(url, call)]
  t.equal(retry.status, 201)
  t.equal(retry.headers.get('idempotent-replayed'), 'true')
  t.equal(await retry.text(), await first.text())
  for (const name of [
    'etag',
    'content-encoding',
    'content-type',
    'access-control-allow-origin',
    'vary',
  ]) {
    t.equal(retry.headers.get(name), first.headers.get(name), name)
  }
})
