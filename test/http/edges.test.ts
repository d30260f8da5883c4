// Where the plugin meets what others do at the same moment: each once went wrong.
import { createReadStream } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import Fastify from 'fastify'
import pg from 'pg'
import t, { test } from 'tap'
import idempotency from '../../src/index.js'
import {
  begin,
  buildApp,
  collectEvents,
  latch,
  listen,
  newKey,
  openSocket,
  postText,
  recordOf,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)
const { prisma } = database

test('a route that was added before the plugin was loaded runs nothing, and says why', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  let runs = 0
  const run = () => ({ runs: ++runs })
  app.register(idempotency, { prisma, tenant: false })
  app.post('/global', run)
  app.post('/required', { config: { idempotency: { required: true } } }, run)
  app.post('/off', { config: { idempotency: false } }, run)
  app.get('/read', run)

  for (const [url, key] of [['/global', newKey()], ['/required', newKey()], ['/required']]) {
    const answer = await send(app, url as string, key === undefined ? {} : { key })
    t.equal(answer.statusCode, 500)
    t.equal(answer.json().code, 'IDEMPOTENCY_ROUTE_MISSED')
    t.match(answer.json().detail, 'await app.register')
  }
  t.equal(runs, 0)
  t.equal((await send(app, '/global')).statusCode, 200, 'without a key there is nothing to protect')
  t.equal((await send(app, '/off', { key: newKey() })).statusCode, 200)
  t.equal((await send(app, '/read', { method: 'GET', key: newKey() })).statusCode, 200)
  t.equal((await send(app, '/nowhere', { key: newKey() })).statusCode, 404)
})

test('a route that was added too early is refused where every route needs a key', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  app.register(idempotency, { prisma, tenant: false, required: true })
  app.post('/things', () => 'ran')
  t.equal((await send(app, '/things')).json().code, 'IDEMPOTENCY_ROUTE_MISSED')
})

test('a stream that fails while its key is being released ends neither process nor server', async (t) => {
  const pool = new WatchedPool(database)
  const failed = latch()
  pool.before = (name) => (name === 'fi_finish' ? failed.opened : undefined)
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) =>
      app.post('/things', (_request, reply) => {
        const stream = createReadStream('/nonexistent')
        stream.on('error', () => failed.open())
        return reply.code(502).send(stream)
      }),
  })
  const key = newKey()
  const answer = await begin(app, '/things', { key }).catch((error: Error) => error)
  t.ok(answer instanceof Error || answer.statusCode >= 500)
  t.equal((await recordOf(database, key))?.status, 'released')
})

test('a fingerprint function never makes two routes one operation', async (t) => {
  const app = await buildApp(t, database, {
    plugin: { fingerprint: ({ body }) => body },
    routes(app) {
      app.post('/pay', () => 'paid')
      app.post('/refund', () => 'refunded')
      app.patch('/pay', () => 'changed')
    },
  })
  const key = newKey()
  t.equal((await send(app, '/pay', { key })).body, 'paid')
  t.equal((await send(app, '/refund', { key })).statusCode, 422)
  t.equal((await send(app, '/pay', { key, method: 'PATCH' })).statusCode, 422)
  t.equal((await send(app, '/pay', { key })).body, 'paid')
})

test('a fingerprint function that returns nothing protects nothing, so nothing runs', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { fingerprint: () => undefined },
    routes: (app) => app.post('/things', () => ({ runs: ++runs })),
  })
  const answer = await send(app, '/things', { key: newKey() })
  t.match(answer.json(), {
    status: 500,
    code: 'IDEMPOTENCY_OPTION_INVALID',
    detail: /fingerprint function of POST \/things returned nothing.*return/,
  })
  t.equal(runs, 0)
})

test('bodies that a parser made a URLSearchParams of are compared', async (t) => {
  const app = await buildApp(t, database, {
    before: (app) =>
      app.addContentTypeParser('text/form', { parseAs: 'string' }, (_request, body, done) =>
        done(null, new URLSearchParams(body as string)),
      ),
    routes: (app) => app.post('/things', ({ body }) => String(body)),
  })
  const key = newKey()
  const headers = { 'content-type': 'text/form' }
  t.equal((await send(app, '/things', { key, headers, payload: 'amount=1' })).body, 'amount=1')
  t.equal((await send(app, '/things', { key, headers, payload: 'amount=9' })).statusCode, 422)
})

test('a hook in front of the plugin that changes every payload changes a replay once', async (t) => {
  const app = await buildApp(t, database, {
    before: (app) =>
      app.addHook('onSend', async (_request, reply, payload) => {
        reply.header('content-type', 'application/json')
        return `{"data":${payload}}`
      }),
    routes: (app) => app.post('/things', () => ({ x: 1 })),
  })
  const key = newKey()
  const first = await send(app, '/things', { key })
  const retry = await send(app, '/things', { key })
  t.equal(first.body, '{"data":{"x":1}}')
  t.equal(retry.body, first.body)
  t.equal(retry.headers['idempotent-replayed'], 'true')
})

test('a handler that was answered for and then fails by itself frees the key', async (t) => {
  const go = latch()
  let runs = 0
  const events = collectEvents(t)
  const routes = (handlerTimeout: number) => (app: FastifyInstance) =>
    app.post('/things', { handlerTimeout }, async (_request, reply) => {
      runs += 1
      if (runs > 1) return 'done'
      await go.opened
      return reply.code(502).send('no')
    })
  const app = await buildApp(t, database, { routes: routes(50) })
  const patient = await buildApp(t, database, { routes: routes(60_000) })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 503)
  go.open()
  await events.first('released')
  t.equal((await send(patient, '/things', { key })).body, 'done')
})

test('a reply that is hijacked after its client has left does not keep the key for long', async (t) => {
  const began = latch()
  const left = latch()
  const events = collectEvents(t)
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async (_request, reply) => {
        reply.raw.once('close', () => left.open())
        began.open()
        await left.opened
        await sleep(0)
        reply.hijack()
      }),
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', [`idempotency-key: ${key}`]))
  await began.opened
  socket.destroy()
  t.match(await events.first('abandoned'), { attempt: 1 })
})

test('a buffer that the handler uses again does not change what is sent or stored', async (t) => {
  const pool = new WatchedPool(database)
  const go = latch()
  const buffer = Buffer.from('correct')
  pool.before = (name) => {
    if (name !== 'fi_finish') return undefined
    buffer.fill('X')
    go.open()
    return undefined
  }
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) => app.post('/things', (_request, reply) => reply.send(buffer)),
  })
  const key = newKey()
  const first = await send(app, '/things', { key })
  await go.opened
  t.equal(first.body, 'correct')
  t.equal((await send(app, '/things', { key })).body, 'correct')
})

test('the signal of an unprotected request collects no listeners of others', async (t) => {
  const signals = new Set<AbortSignal>()
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', (request) => {
        signals.add(request.idempotency.signal)
        return 'x'
      }),
  })
  await send(app, '/things')
  await send(app, '/things')
  t.equal(signals.size, 2)
})

test('two tenants that differ by half a character are refused, not merged', async (t) => {
  const app = await buildApp(t, database, {
    plugin: { tenant: ({ headers }) => (headers['x-half'] === '1' ? 'a\ud800' : 'a\ud801') },
    routes: (app) => app.post('/things', () => 'x'),
  })
  for (const half of ['1', '2']) {
    const answer = await send(app, '/things', { key: newKey(), headers: { 'x-half': half } })
    t.equal(answer.statusCode, 500)
    t.equal(answer.json().code, 'IDEMPOTENCY_TENANT_FAILED')
  }
})

test('a pool is refused beside a client of another database', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  const call = async () => null
  const idempotencyRecord = {
    create: call,
    createMany: call,
    findFirst: call,
    findUnique: call,
    findMany: call,
    updateMany: call,
    deleteMany: call,
  }
  const mysql = {
    idempotencyRecord,
    $transaction: () => Promise.resolve(),
    $queryRawUnsafe: call as never,
    _activeProvider: 'mysql',
  }
  const pool = { connect: () => Promise.reject(new Error('not used')) }
  await t.rejects(
    Promise.resolve(app.register(idempotency, { prisma: mysql, pool, tenant: false })),
    { code: 'IDEMPOTENCY_OPTION_INVALID', message: /"pool" is for PostgreSQL.*mysql/ },
  )
})

test('what the application lets pg make of numbers, booleans and JSON does not matter', {
  skip: database.kind === 'postgres' ? false : 'needs a pool',
}, async (t) => {
  if (database.kind !== 'postgres') return
  const pool = new pg.Pool({
    connectionString: database.url,
    types: {
      getTypeParser: (oid: number) =>
        oid === pg.types.builtins.BYTEA ? pg.types.getTypeParser(oid) : (value: unknown) => value,
    } as never,
  })
  t.teardown(() => pool.end())
  // Everything but bytes arrives as text.
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) => app.post('/things', () => ({ x: 1 })),
  })
  const key = newKey()
  const first = await send(app, '/things', { key })
  const retry = await send(app, '/things', { key })
  t.equal(retry.body, first.body)
  t.equal(retry.headers['content-type'], first.headers['content-type'])
})

test('a database that hangs does not keep a server that prunes from closing', async (t) => {
  const pool = new WatchedPool(database)
  const pruning = latch()
  pool.before = (name) => {
    if (name !== 'fi_prune') return undefined
    pruning.open()
    return new Promise(() => {})
  }
  const app = await buildApp(t, database, {
    plugin: { pool, pruneEvery: '1s', storeTimeout: 100 },
    routes: () => {},
  })
  await listen(app)
  await pruning.opened
  await app.close()
  t.pass('closed')
})

test('a handler that answers nothing to a client that has left has answered', async (t) => {
  const began = latch()
  const left = latch()
  const events = collectEvents(t)
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async (_request, reply) => {
        runs += 1
        reply.code(204).raw.once('close', () => left.open())
        began.open()
        await left.opened
      }),
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', [`idempotency-key: ${key}`]))
  await began.opened
  socket.destroy()
  await events.first('completed')
  const retry = await send(app, '/things', { key })
  t.equal(retry.statusCode, 204)
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.equal(runs, 1)
})
