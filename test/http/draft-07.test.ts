// draft-ietf-httpapi-idempotency-key-header-07, statement by statement. Quotes are the draft's.
import t, { test } from 'tap'
import { begin, buildApp, latch, newKey, recordOf, send, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

test('2.1 "Idempotency-Key is an Item Structured Header", and "its value MUST be a String"', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things', (request) => ({ key: request.idempotency.key })),
  })
  const key = newKey()
  const answer = await send(app, '/things', { key: `"${key}"` })
  t.equal(answer.statusCode, 200)
  t.same(answer.json(), { key }, 'the quotes are no part of the key')
  for (const value of ['"open', '"a" "b"', '"a", "b"', '"\\n"', '"a"b']) {
    const refused = await send(app, '/things', { key: value })
    t.equal(refused.statusCode, 400, `${value} is no String`)
    t.equal(refused.json().code, 'IDEMPOTENCY_KEY_MALFORMED')
  }
})

test('2.2 a key "MUST NOT be reused with another request with a different request payload"', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things', () => ({ run: ++runs })),
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key, payload: { amount: 1 } })).statusCode, 200)
  const reused = await send(app, '/things', { key, payload: { amount: 2 } })
  t.equal(reused.statusCode, 422)
  t.equal(reused.json().code, 'IDEMPOTENCY_KEY_REUSED')
  t.equal(runs, 1)
})

test('2.3 keys expire by a "SHOULD define such expiration policy": then the key is free again', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { retention: '2d' },
    routes: (app) => app.post('/things', () => ({ run: ++runs })),
  })
  const key = newKey()
  t.same((await send(app, '/things', { key })).json(), { run: 1 })
  const record = await recordOf(database, key)
  // In hours: PostgreSQL reads its clock for each of the two columns.
  const retention = record && record.expiresAt.getTime() - record.createdAt.getTime()
  t.equal(Math.round(Number(retention) / 3_600_000), 48)
  // In place of waiting: the time it was remembered until lies in the past.
  await database.prisma.idempotencyRecord.updateMany({
    where: { key },
    data: { expiresAt: new Date(Date.now() - 86_400_000 * 3) },
  })
  t.same((await send(app, '/things', { key })).json(), { run: 2 }, 'the key is free again')
  t.same((await send(app, '/things', { key, payload: { a: 1 } })).statusCode, 422)
})

test('2.4 a fingerprint serves "to determine the uniqueness of a request", whatever its white space', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things', () => ({ run: ++runs })),
  })
  const key = newKey()
  const json = { 'content-type': 'application/json' }
  const first = await send(app, '/things', {
    key,
    headers: json,
    payload: '{"a":1,"b":[{"c":2,"d":3}]}',
  })
  const same = await send(app, '/things', {
    key,
    headers: json,
    payload: '{ "b": [{"d":3, "c":2}], "a": 1 }',
  })
  const other = await send(app, '/things', {
    key,
    headers: json,
    payload: '{"a":1,"b":[{"c":2,"d":4}]}',
  })
  t.equal(same.body, first.body)
  t.equal(other.statusCode, 422)
  t.equal(runs, 1)
})

test('2.4 "Checksum of selected element(s) in the request payload" is what an application can choose', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post(
        '/things',
        {
          config: {
            idempotency: { fingerprint: ({ body }) => (body as { amount: number }).amount },
          },
        },
        () => ({ run: ++runs }),
      ),
  })
  const key = newKey()
  await send(app, '/things', { key, payload: { amount: 1, sentAt: 'now' } })
  t.same((await send(app, '/things', { key, payload: { amount: 1, sentAt: 'later' } })).json(), {
    run: 1,
  })
  t.equal((await send(app, '/things', { key, payload: { amount: 2 } })).statusCode, 422)
})

test('2.5 the server says which of its resources require the key', async (t) => {
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/free', () => 'ran')
      app.post('/strict', { config: { idempotency: { required: true } } }, () => 'ran')
    },
  })
  t.equal((await send(app, '/free')).statusCode, 200)
  t.equal((await send(app, '/strict')).statusCode, 400)
})

test('2.6 "First time request": the server does "process the request normally"', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', (request, reply) => {
        t.equal(request.idempotency.attempt, 1)
        t.equal(request.idempotency.resumed, false)
        return reply.code(201).header('location', '/things/1').send({ id: 1 })
      }),
  })
  const answer = await send(app, '/things', { key: newKey() })
  t.equal(answer.statusCode, 201)
  t.equal(answer.headers.location, '/things/1')
  t.same(answer.json(), { id: 1 })
  t.notOk('idempotent-replayed' in answer.headers)
})

test('2.6 "Retry": it gets "the result of the previously completed operation, success or an error"', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/success', (_request, reply) => reply.code(201).send({ run: ++runs }))
      app.post('/error', () => {
        throw Object.assign(new Error(`refused in run ${++runs}`), { statusCode: 402 })
      })
    },
  })
  for (const [url, status] of [
    ['/success', 201],
    ['/error', 402],
  ] as const) {
    runs = 0
    const key = newKey()
    const first = await send(app, url, { key })
    const retry = await send(app, url, { key })
    t.equal(first.statusCode, status)
    t.equal(retry.statusCode, status)
    t.equal(retry.body, first.body)
    t.equal(retry.headers['content-type'], first.headers['content-type'])
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.equal(runs, 1)
  }
})

test('2.6, 2.7 "while the original request is still being processed", a retry gets "409"', async (t) => {
  const began = latch()
  const go = latch()
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async () => {
        runs += 1
        began.open()
        await go.opened
        return { run: runs }
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  const second = await send(app, '/things', { key })
  t.equal(second.statusCode, 409)
  t.equal(second.json().code, 'IDEMPOTENCY_IN_PROGRESS')
  t.ok(Number(second.headers['retry-after']) >= 1)
  go.open()
  t.same((await first).json(), { run: 1 })
  t.equal(runs, 1)
})

test('2.7 "missing for a documented idempotent operation requiring this header" is answered by "400"', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { required: true },
    routes: (app) => app.post('/things', () => ({ run: ++runs })),
  })
  const answer = await send(app, '/things')
  t.equal(answer.statusCode, 400)
  t.equal(answer.json().code, 'IDEMPOTENCY_KEY_MISSING')
  t.equal(runs, 0)
})

test('2.7 "an attempt to reuse an idempotency key with a different request payload" gets "422"', async (t) => {
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async () => {
        began.open()
        await go.opened
        return {}
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key, payload: { a: 1 } })
  await began.opened
  t.equal((await send(app, '/things', { key, payload: { a: 2 } })).statusCode, 422, 'while it runs')
  go.open()
  t.equal((await first).statusCode, 200)
  t.equal(
    (await send(app, '/things', { key, payload: { a: 2 } })).statusCode,
    422,
    'and afterwards',
  )
})

test('2.7 errors come "with body containing a link pointing to relevant documentation": type, title, detail', async (t) => {
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { required: true, docs: 'https://example.com/errors' },
    routes: (app) =>
      app.post('/things', async () => {
        began.open()
        await go.opened
        return {}
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  const answers = [
    { answer: await send(app, '/things'), status: 400, title: 'Bad Request' },
    { answer: await send(app, '/things', { key: '"' }), status: 400, title: 'Bad Request' },
    { answer: await send(app, '/things', { key }), status: 409, title: 'Conflict' },
    {
      answer: await send(app, '/things', { key, payload: [] }),
      status: 422,
      title: 'Unprocessable Entity',
    },
  ]
  go.open()
  await first
  for (const { answer, status, title } of answers) {
    t.equal(answer.statusCode, status)
    t.equal(answer.headers['content-type'], 'application/problem+json')
    const document = answer.json()
    t.same(Object.keys(document).sort(), ['code', 'detail', 'status', 'title', 'type'])
    t.equal(document.status, status)
    t.equal(document.title, title)
    t.equal(document.type, `https://example.com/errors#${document.code.toLowerCase()}`)
    t.equal(new URL(document.type).hash, `#${document.code.toLowerCase()}`)
    t.match(document.detail, /\w+ \w+/)
  }
})

test('5 "Always validate the key [...] before processing any request": none is looked up before', async (t) => {
  const pool = new WatchedPool(database)
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) => app.post('/things', () => ({ run: ++runs })),
  })
  for (const key of [
    '',
    '"',
    `"${'a'.repeat(256)}"`,
    'a b',
    'a,b',
    'ключ',
    '"a\u0000b"',
    "' OR 1=1",
  ]) {
    t.equal((await send(app, '/things', { key })).statusCode, 400, JSON.stringify(key))
  }
  t.same(pool.asked, [], 'the store was not touched')
  t.equal(runs, 0)
  await send(app, '/things', { key: newKey() })
  t.same(pool.asked, ['fi_insert', 'fi_finish'], 'as it is for a valid one')
})

test('5 "a unique composite key as the idempotent cache lookup key": no tenant meets another', async (t) => {
  const app = await buildApp(t, database, {
    plugin: { tenant: (request) => String(request.headers.authorization) },
    routes: (app) => app.post('/things', (request) => ({ made: request.headers.authorization })),
  })
  const key = newKey()
  const alice = await send(app, '/things', { key, headers: { authorization: 'alice' } })
  const mallory = await send(app, '/things', { key, headers: { authorization: 'mallory' } })
  t.same(alice.json(), { made: 'alice' })
  t.same(mallory.json(), { made: 'mallory' })
  t.notOk('idempotent-replayed' in mallory.headers)
  t.equal(
    (await send(app, '/things', { key, headers: { authorization: 'alice' } })).body,
    alice.body,
  )
})

test('1 "non-idempotent HTTP methods such as POST or PATCH": GET, PUT and DELETE are left alone', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.route({
        method: ['GET', 'PUT', 'DELETE', 'POST', 'PATCH'],
        url: '/things',
        handler: () => ({ run: ++runs }),
      }),
  })
  for (const [method, count] of [
    ['GET', 2],
    ['PUT', 2],
    ['DELETE', 2],
    ['POST', 1],
    ['PATCH', 1],
  ] as const) {
    runs = 0
    const key = newKey()
    await send(app, '/things', { method, key })
    await send(app, '/things', { method, key })
    t.equal(runs, count, method)
  }
})

test('2.2 uniqueness is not shared between resources: a key works on one of them', async (t) => {
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/payments/:id', () => 'payment')
      app.post('/refunds/:id', () => 'refund')
      app.patch('/payments/:id', () => 'change')
    },
  })
  const key = newKey()
  t.equal((await send(app, '/payments/1', { key })).body, 'payment')
  for (const call of [
    send(app, '/refunds/1', { key }),
    send(app, '/payments/2', { key }),
    send(app, '/payments/1?really=1', { key }),
    send(app, '/payments/1', { key, method: 'PATCH' }),
  ]) {
    const answer = await call
    t.equal(answer.statusCode, 422)
    t.notMatch(answer.body, 'payment"')
  }
  t.equal((await send(app, '/payments/1', { key })).body, 'payment')
})

test('2.7 "the exception of 409 where no correction is required": the same request succeeds later', async (t) => {
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async () => {
        began.open()
        await go.opened
        return 'done'
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  t.equal((await send(app, '/things', { key })).statusCode, 409)
  go.open()
  await first
  t.equal((await send(app, '/things', { key })).body, 'done')
})
