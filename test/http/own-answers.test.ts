// What the plugin answers itself is never mistaken for what an operation answered.
import { Readable } from 'node:stream'
import type { RouteHandlerMethod } from 'fastify'
import t, { test } from 'tap'
import { errors } from '../../src/index.js'
import { begin, buildApp, collectEvents, latch, newKey, recordOf, send } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { until } from '../fixtures/until.js'

const database = await anyDatabase(t)

/** Every column but the lease, which is renewed in the meantime. */
async function recorded(key: string) {
  const record = await recordOf(database, key)
  if (record === null) throw new Error('there is no record')
  const { leaseUntil: _, ...rest } = record
  return rest
}

test('a mismatch leaves the record as it is: the original request still replays', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', (_request, reply) => reply.code(201).send({ run: ++runs })),
  })
  const key = newKey()
  const first = await send(app, '/things', { key, payload: { a: 1 } })
  const before = await recorded(key)
  for (let turn = 0; turn < 3; turn += 1) {
    const mismatch = await send(app, '/things', { key, payload: { a: 2 } })
    t.equal(mismatch.statusCode, 422)
    t.same(await recorded(key), before)
    const retry = await send(app, '/things', { key, payload: { a: 1 } })
    t.equal(retry.statusCode, 201)
    t.equal(retry.body, first.body)
  }
  t.equal(runs, 1)
})

test('a conflict during the run leaves the record as it is: the result is stored', async (t) => {
  const began = latch()
  const go = latch()
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async (_request, reply) => {
        runs += 1
        began.open()
        await go.opened
        return reply.code(201).send({ run: runs })
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  const before = await recorded(key)
  const conflicts = await Promise.all(
    Array.from({ length: 5 }, () => send(app, '/things', { key })),
  )
  t.same(
    conflicts.map(({ statusCode }) => statusCode),
    [409, 409, 409, 409, 409],
  )
  t.equal((await send(app, '/things', { key, payload: { other: 1 } })).statusCode, 422)
  t.same(await recorded(key), before)
  go.open()
  t.equal((await first).statusCode, 201)
  const retry = await send(app, '/things', { key })
  t.equal(retry.statusCode, 201)
  t.equal(retry.body, '{"run":1}')
  t.equal(runs, 1)
})

test('"uncertain" leaves the record as it is, and runs nothing', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', { config: { idempotency: { onLeaseExpired: 'uncertain' } } }, () => ({
        run: ++runs,
      })),
  })
  const key = newKey()
  await send(app, '/things', { key })
  // As a process leaves it that died while it ran the handler.
  await database.prisma.idempotencyRecord.updateMany({
    where: { key },
    data: { status: 'in_progress', leaseUntil: new Date(0), statusCode: null, body: null },
  })
  const before = await recorded(key)
  for (let turn = 0; turn < 3; turn += 1) {
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 409)
    t.equal(answer.json().code, 'IDEMPOTENCY_UNCERTAIN')
    t.equal(answer.headers['content-type'], 'application/problem+json')
    t.notOk('retry-after' in answer.headers, 'repeating it helps nobody')
  }
  t.equal((await send(app, '/things', { key, payload: { b: 1 } })).statusCode, 422)
  t.same(await recorded(key), before)
  t.equal(runs, 1)
})

test('"not replayable" leaves the record as it is, and runs nothing', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { maxBodyBytes: 3 },
    routes: (app) =>
      app.post('/things', () => {
        runs += 1
        return 'four'
      }),
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body, 'four')
  const before = await recorded(key)
  t.equal(before.body, null)
  t.equal(before.status, 'completed')
  for (let turn = 0; turn < 3; turn += 1) {
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 409)
    t.equal(answer.json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
    t.notOk('retry-after' in answer.headers)
  }
  t.same(await recorded(key), before)
  t.equal(runs, 1)
})

test('a replay leaves the record as it is', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things', () => ({ a: 1 })),
  })
  const key = newKey()
  await send(app, '/things', { key })
  const before = await recordOf(database, key)
  await send(app, '/things', { key })
  t.same(await recordOf(database, key), before)
})

test('an application may answer 409 and 422 itself, and those are replayed', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things/:status', (request, reply) =>
        reply.code(Number((request.params as { status: string }).status)).send({ run: ++runs }),
      ),
  })
  for (const status of [409, 422]) {
    const key = newKey()
    const first = await send(app, `/things/${status}`, { key })
    const retry = await send(app, `/things/${status}`, { key })
    t.equal(first.statusCode, status)
    t.equal(retry.body, first.body)
    t.equal(retry.headers['idempotent-replayed'], 'true')
  }
})

test('a key that is used on another endpoint is refused and never replays the wrong response', async (t) => {
  const runs: string[] = []
  const handler = (name: string) => () => {
    runs.push(name)
    return { from: name }
  }
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/payments', handler('payments'))
      app.post('/refunds', handler('refunds'))
      app.patch('/payments', handler('patch'))
      app.post('/payments/:id', handler('payment'))
      app.post('/files/*', handler('files'))
      app.register(async (inner) => inner.post('/payments', handler('v2')), { prefix: '/v2' })
    },
  })
  const calls = [
    { url: '/payments', method: 'POST' },
    { url: '/refunds', method: 'POST' },
    { url: '/payments', method: 'PATCH' },
    { url: '/payments/1', method: 'POST' },
    { url: '/payments/2', method: 'POST' },
    { url: '/files/a', method: 'POST' },
    { url: '/files/a/b', method: 'POST' },
    { url: '/v2/payments', method: 'POST' },
  ] as const
  for (const owner of calls) {
    const key = newKey()
    const { url, method } = owner
    const first = await send(app, url, { method, key })
    t.equal(first.statusCode, 200)
    const ran = runs.length
    for (const other of calls) {
      const answer = await send(app, other.url, { method: other.method, key })
      if (other === owner) t.equal(answer.body, first.body)
      else t.equal(answer.statusCode, 422, `${method} ${url}, then ${other.method} ${other.url}`)
    }
    t.equal(runs.length, ran)
  }
})

test('routes that share a pattern and differ by a constraint are two endpoints', async (t) => {
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/payments', { constraints: { host: 'a.example' } }, () => 'a')
      app.post('/payments', { constraints: { host: 'b.example' } }, () => 'b')
      app.post('/refunds', { constraints: { version: '1.0.0' } }, () => 'one')
      app.post('/refunds', { constraints: { version: '2.0.0' } }, () => 'two')
    },
  })
  const key = newKey()
  t.equal((await send(app, '/payments', { key, headers: { host: 'a.example' } })).body, 'a')
  t.equal((await send(app, '/payments', { key, headers: { host: 'b.example' } })).statusCode, 422)
  const other = newKey()
  t.equal(
    (await send(app, '/refunds', { key: other, headers: { 'accept-version': '1.0.0' } })).body,
    'one',
  )
  t.equal(
    (await send(app, '/refunds', { key: other, headers: { 'accept-version': '2.0.0' } }))
      .statusCode,
    422,
  )
})

test('the order of keys and the white space of JSON do not matter; everything else does', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things/:id', () => ({ run: ++runs })),
  })
  const key = newKey()
  const headers = { 'content-type': 'application/json' }
  const call = (payload: string, url = '/things/1?a=1&b=2') =>
    send(app, url, { key, headers, payload })
  const first = await call('{"a":1,"b":{"c":[1,2],"d":null}}')
  t.equal(first.statusCode, 200)
  for (const same of [
    '{"b":{"d":null,"c":[1,2]},"a":1}',
    ' {\n"a" : 1.0, "b":{"c":[1,\t2],"d":null}}\r\n',
    '{"\\u0061":1,"b":{"c":[1,2],"d":null}}',
  ]) {
    t.equal((await call(same)).body, first.body, same)
  }
  t.equal((await call('{"a":1,"b":{"c":[1,2],"d":null}}', '/things/1?b=2&a=1')).body, first.body)
  for (const other of [
    '{"a":"1","b":{"c":[1,2],"d":null}}',
    '{"a":1,"b":{"c":[2,1],"d":null}}',
    '{"a":1,"b":{"c":[1,2]}}',
    '{"a":1,"b":{"c":[1,2],"d":0}}',
    '{"a":1,"b":{"c":[1,2],"d":null},"e":1}',
    '[]',
    '{}',
    'null',
    '"a"',
  ]) {
    t.equal((await call(other)).statusCode, 422, other)
  }
  for (const url of [
    '/things/2?a=1&b=2',
    '/things/1?a=1&b=3',
    '/things/1?a=1',
    '/things/1',
    '/things/1?a=1&b=2&b=2',
  ]) {
    t.equal((await call('{"a":1,"b":{"c":[1,2],"d":null}}', url)).statusCode, 422, url)
  }
  t.equal(runs, 1)
})

test('text, bytes, JSON and nothing are different bodies', async (t) => {
  const app = await buildApp(t, database, {
    routes(app) {
      app.addContentTypeParser(
        'application/octet-stream',
        { parseAs: 'buffer' },
        (_request, body, done) => done(null, body),
      )
      app.post('/things', () => 'ran')
    },
  })
  const bodies = [
    { headers: { 'content-type': 'application/json' }, payload: '"a"' },
    { headers: { 'content-type': 'application/json' }, payload: '{"0":97}' },
    { headers: { 'content-type': 'application/json' }, payload: '["a"]' },
    { headers: { 'content-type': 'text/plain' }, payload: '["a"]' },
    { headers: { 'content-type': 'text/plain' }, payload: '{"0":97}' },
    { headers: { 'content-type': 'application/octet-stream' }, payload: 'b' },
    { headers: { 'content-type': 'application/octet-stream' }, payload: 'c' },
    { headers: {}, payload: '' },
  ]
  for (const [i, owner] of bodies.entries()) {
    const key = newKey()
    t.equal((await send(app, '/things', { key, ...owner })).statusCode, 200)
    for (const [j, other] of bodies.entries()) {
      const answer = await send(app, '/things', { key, ...other })
      t.equal(answer.statusCode, i === j ? 200 : 422, `${i} ${j}`)
    }
  }
})

test('an error of the library’s own is no result of the handler: a retry goes on', async (t) => {
  const events = collectEvents(t)
  const steps: string[] = []
  let isSlow = true
  const app = await buildApp(t, database, {
    plugin: { lease: '1s', maxRun: '1s' },
    routes: (app) =>
      app.post('/things', async ({ idempotency }) => {
        await idempotency.step('reserve', () => steps.push('reserve'))
        if (isSlow) {
          // Longer than it may run, and than the lease that is left then.
          await until(async () => (await leaseLeftMs()) < 0)
        }
        await idempotency.step('charge', () => steps.push('charge'))
        return 'charged'
      }),
  })
  const key = newKey()
  const leaseLeftMs = async () => {
    const leaseUntil = (await recordOf(database, key))?.leaseUntil ?? new Date()
    return leaseUntil.getTime() - Date.now()
  }
  const first = await send(app, '/things', { key })
  t.equal(first.statusCode, 409)
  t.equal(first.json().code, 'IDEMPOTENCY_LEASE_LOST')
  t.ok(events.kinds().includes('released'))
  isSlow = false
  const retry = await send(app, '/things', { key })
  t.equal(retry.statusCode, 200)
  t.equal(retry.body, 'charged')
  t.strictSame(steps, ['reserve', 'charge'])
  t.equal((await send(app, '/things', { key })).body, 'charged')
})

test('whatever an error handler and keepStatus make of such an error, it is not stored', async (t) => {
  const ways: Record<string, RouteHandlerMethod> = {
    'it is thrown': async ({ server }) => server.idempotency.run('', () => 1),
    'a stream fails with it': (_request, reply) => {
      const read = () => stream.destroy(new errors.EventMissing('it'))
      const stream = new Readable({ read })
      void reply.send(stream)
    },
    'it is sent': (_request, reply) => {
      void reply.send(new errors.EventMissing('it'))
    },
  }
  for (const [way, handler] of Object.entries(ways)) {
    for (const hasErrorHandler of [false, true]) {
      let runs = 0
      const app = await buildApp(t, database, {
        plugin: { keepStatus: () => true },
        routes(app) {
          if (hasErrorHandler) {
            app.setErrorHandler((_error, _request, reply) => {
              void reply.code(409).send({ mine: true })
            })
          }
          app.post('/things', function (request, reply) {
            runs += 1
            return handler.call(this, request, reply)
          })
        },
      })
      const key = newKey()
      await send(app, '/things', { key })
      const retry = await send(app, '/things', { key })
      t.notOk(retry.headers['idempotent-replayed'], way)
      t.equal(runs, 2, way)
    }
  }
})

test('where a person is to decide, a lease that ran out leaves the operation uncertain', async (t) => {
  const began = latch()
  const isTold = latch()
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { lease: '1s', maxRun: '1s', onLeaseExpired: 'uncertain' },
    routes: (app) =>
      app.post('/things', async ({ idempotency }) => {
        runs += 1
        began.open()
        await isTold.opened
        await idempotency.step('charge', () => 'charged')
        return 'charged'
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  const isUncertain = ({ json }: Awaited<typeof first>) => json().code === 'IDEMPOTENCY_UNCERTAIN'
  await until(() => send(app, '/things', { key }), isUncertain)
  isTold.open()
  t.equal((await first).json().code, 'IDEMPOTENCY_LEASE_LOST')
  t.ok(isUncertain(await send(app, '/things', { key })))
  t.equal(runs, 1)
})

test('an event that a handler recorded is not processed when the library has refused the handler', async (t) => {
  for (const config of [{}, { atomic: true }]) {
    if ('atomic' in config && database.kind !== 'postgres') continue
    let isRefused = true
    const eventId = newKey()
    const app = await buildApp(t, database, {
      routes(app) {
        app.setErrorHandler((_error, _request, reply) => {
          void reply.code(200).send({ received: true })
        })
        app.post('/events', { config: { idempotency: config } }, async ({ idempotency }) => {
          const recorded = await idempotency.recordEvent({ provider: 'own', eventId })
          if (isRefused) throw new errors.EventMissing('it')
          return recorded.duplicate
        })
      },
    })
    const key = newKey()
    await send(app, '/events', { key })
    isRefused = false
    t.equal((await send(app, '/events', { key })).body, 'false', 'it is not processed yet')
  }
})

test('a success that was sent before such an error stays one, and so does its event', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/events', async ({ idempotency }, reply) => {
        const event = { provider: 'own', eventId: 'sent before it threw' }
        const { duplicate } = await idempotency.recordEvent(event)
        if (duplicate) return 'duplicate'
        runs += 1
        void reply.send('done')
        throw new errors.EventMissing('it')
      }),
  })
  const key = newKey()
  t.equal((await send(app, '/events', { key })).body, 'done')
  t.equal((await send(app, '/events', { key })).headers['idempotent-replayed'], 'true')
  t.equal((await send(app, '/events', { key: newKey() })).body, 'duplicate')
  t.equal(runs, 1)
})
