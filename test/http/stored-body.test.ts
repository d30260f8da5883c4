// What is stored of a response: nothing of its body, a part of it, or as much as the database takes.
import { Readable } from 'node:stream'
import type { RouteHandlerMethod } from 'fastify'
import t, { type Test, test } from 'tap'
import type { RouteOptions } from '../../src/index.js'
import {
  buildApp,
  collectEvents,
  exchangeBytes,
  latch,
  listen,
  newKey,
  postText,
  recordOf,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { mariadbDatabase } from '../fixtures/mariadb.js'
import { missing } from '../fixtures/services.js'

const database = await anyDatabase(t)

const ROUTES = { 'a protected route': {}, 'an atomic route': { atomic: true } } as const

interface Counted {
  readonly app: Awaited<ReturnType<typeof buildApp>>
  readonly runs: () => number
}

async function oneRoute(
  t: Test,
  config: RouteOptions,
  handler: RouteHandlerMethod,
  plugin: object = {},
): Promise<Counted> {
  let runs = 0
  const app = await buildApp(t, database, {
    plugin,
    routes: (app) =>
      app.post('/things', { config: { idempotency: config } }, function (request, reply) {
        runs += 1
        return handler.call(this, request, reply)
      }),
  })
  return { app, runs: () => runs }
}

const withToken: RouteHandlerMethod = (_request, reply) =>
  reply.code(201).header('location', '/?token=secret').send({ id: 7, token: 'secret' })

for (const [name, config] of Object.entries(ROUTES)) {
  test(`${name} with store: false keeps nothing of its response, and is not run again`, async (t) => {
    const events = collectEvents(t)
    const { app, runs } = await oneRoute(t, { ...config, store: false }, withToken)
    const key = newKey()
    const first = await send(app, '/things', { key })
    t.equal(first.statusCode, 201)
    t.same(first.json(), { id: 7, token: 'secret' })
    for (const turn of [1, 2]) {
      const retry = await send(app, '/things', { key })
      t.equal(retry.statusCode, 409, `retry ${turn}`)
      t.equal(retry.json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
    }
    t.equal((await send(app, '/things', { key, payload: { other: true } })).statusCode, 422)
    t.equal(runs(), 1)
    const record = await recordOf(database, key)
    t.match(record, { status: 'completed', statusCode: 201, headers: {}, body: null })
    t.notMatch(JSON.stringify(record), 'secret')
    t.notOk(events.kinds().includes('response_omitted'), 'as the route says, and no accident')
  })

  test(`${name} with store: false is free again when its handler fails`, async (t) => {
    const { app, runs } = await oneRoute(t, { ...config, store: false }, () => {
      throw new Error('broken')
    })
    const key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, 500)
    t.equal((await send(app, '/things', { key })).statusCode, 500)
    t.equal(runs(), 2)
  })

  test(`${name} stores what redact makes of its response, and its first client gets all of it`, async (t) => {
    const seen: unknown[] = []
    const { app, runs } = await oneRoute(
      t,
      {
        ...config,
        redact: ({ statusCode, headers, body }, { url }) => {
          seen.push([statusCode, headers.location, url])
          const { token: _, ...others } = JSON.parse(body.toString())
          return { headers: { ...headers, location: '/' }, body: JSON.stringify(others) }
        },
      },
      withToken,
    )
    const key = newKey()
    const first = await send(app, '/things', { key })
    t.same(first.json(), { id: 7, token: 'secret' })
    t.equal(first.headers.location, '/?token=secret')
    const retry = await send(app, '/things', { key })
    t.equal(retry.statusCode, 201)
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.equal(retry.headers['content-type'], first.headers['content-type'])
    t.same(retry.json(), { id: 7 })
    t.equal(retry.headers.location, '/')
    t.equal(runs(), 1)
    t.strictSame(seen, [[201, '/?token=secret', '/things']])
    t.notMatch(Buffer.from((await recordOf(database, key))?.body ?? []).toString(), 'secret')
  })

  test(`${name} whose redact leaves no body is not replayed`, async (t) => {
    const { app, runs } = await oneRoute(
      t,
      { ...config, redact: () => ({ body: null }) },
      withToken,
    )
    const key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, 201)
    t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
    t.equal(runs(), 1)
  })

  for (const [mistake, redact] of Object.entries<() => never>({
    'that throws': () => {
      throw new Error('Unexpected token in secret')
    },
    'that returns nothing': () => undefined as never,
    'that returns a promise': () => Promise.resolve({}) as never,
    'that returns an empty object': () => ({}) as never,
    'that returns no body': () => ({ headers: {} }) as never,
    'that returns an undefined body': () => ({ headers: {}, body: undefined }) as never,
    'that returns undefined headers': () => ({ headers: undefined, body: 'x' }) as never,
    'that returns a body of no kind': () => ({ body: { token: 'secret' } }) as never,
    'that returns headers of no kind': () =>
      ({ headers: { location: { a: 1 } }, body: 'x' }) as never,
    'that returns a header which cannot be sent': () =>
      ({ headers: { location: 'a\nb' }, body: 'x' }) as never,
    'that returns a cookie': () =>
      ({ headers: { 'Set-Cookie': 'session=secret' }, body: 'x' }) as never,
    'that returns a header of the connection': () =>
      ({ headers: { 'transfer-encoding': 'chunked' }, body: 'x' }) as never,
    'that returns a header whose name cannot be sent': () =>
      ({ headers: { 'bad name': '1' }, body: 'x' }) as never,
  })) {
    test(`${name}: a redact ${mistake} stores nothing of the response, and the handler is not run again`, async (t) => {
      const events = collectEvents(t)
      const { app, runs } = await oneRoute(t, { ...config, redact }, withToken)
      const key = newKey()
      const first = await send(app, '/things', { key })
      t.same(first.json(), { id: 7, token: 'secret' })
      t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
      t.equal(runs(), 1)
      const omitted = await events.first('response_omitted')
      t.match(omitted, { reason: 'redaction_failed', failure: { name: /Error/ } })
      t.notMatch(JSON.stringify(omitted), 'secret')
      t.notMatch(JSON.stringify(await recordOf(database, key)), 'secret')
    })
  }

  test(`${name}: a redact that leaves the headers out keeps them`, async (t) => {
    const { app } = await oneRoute(t, { ...config, redact: () => ({ body: '{}' }) }, withToken)
    const key = newKey()
    const first = await send(app, '/things', { key })
    const retry = await send(app, '/things', { key })
    t.equal(retry.body, '{}')
    t.equal(retry.headers.location, first.headers.location)
    t.equal(retry.headers['content-type'], first.headers['content-type'])
  })

  test(`${name}: the names of the headers that redact returns may be in any case`, async (t) => {
    const redact = () => ({ headers: { 'Content-Type': 'text/plain', LOCATION: '/' }, body: 'x' })
    const { app } = await oneRoute(t, { ...config, redact }, withToken)
    const key = newKey()
    await send(app, '/things', { key })
    const retry = await send(app, '/things', { key })
    t.equal(retry.headers['content-type'], 'text/plain')
    t.equal(retry.headers.location, '/')
  })

  test(`${name}: what redact changes in place does not reach the first client`, async (t) => {
    const constant = Buffer.from('of the application')
    const links = ['</a>; rel=a', '</b>; rel=b']
    const handlers: Record<string, RouteHandlerMethod> = {
      text: (_request, reply) => reply.headers({ link: links as never }).send('secret'),
      bytes: (_request, reply) => reply.headers({ link: links as never }).send(constant),
      ...(name === 'an atomic route'
        ? {}
        : {
            'a stream': (_request, reply) =>
              reply.headers({ link: links as never }).send(Readable.from([constant])),
          }),
    }
    for (const [kind, handler] of Object.entries(handlers)) {
      const { app } = await oneRoute(
        t,
        {
          ...config,
          redact: ({ headers, body }) => {
            body.fill('*')
            ;(headers.link as string[]).pop()
            return { headers, body }
          },
        },
        handler,
      )
      const key = newKey()
      const first = await send(app, '/things', { key })
      t.equal(first.body, kind === 'text' ? 'secret' : 'of the application', kind)
      t.strictSame(first.headers.link, links, kind)
      const retry = await send(app, '/things', { key })
      t.match(retry.body, /^\*+$/, kind)
      t.equal([retry.headers.link].flat().join(), '</a>; rel=a', kind)
      t.equal(constant.toString(), 'of the application')
    }
  })

  test(`${name}: what redact makes larger than maxBodyBytes is not kept`, async (t) => {
    const events = collectEvents(t)
    const { app } = await oneRoute(
      t,
      { ...config, maxBodyBytes: 100, redact: () => ({ body: 'x'.repeat(101) }) },
      withToken,
    )
    const key = newKey()
    await send(app, '/things', { key })
    t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
    t.match(await events.first('response_omitted'), { reason: 'too large' })
  })
}

test('a stream of a route with store: false is recorded before its first byte, and passes as it is', async (t) => {
  const pool = new WatchedPool(database)
  const storing = latch()
  const go = latch()
  const { app, runs } = await oneRoute(
    t,
    { store: false },
    (_request, reply) => reply.send(Readable.from(['a', 'b'])),
    { pool },
  )
  pool.before = async (name) => {
    if (name !== 'fi_finish') return
    storing.open()
    await go.opened
  }
  const port = await listen(app)
  const text = postText('/things', [`idempotency-key: ${newKey()}`])
  let hasAnswered = false
  const answering = exchangeBytes(t, port, text).then((answer) => {
    hasAnswered = true
    return answer
  })
  await storing.opened
  t.notOk(hasAnswered)
  go.open()
  t.match((await answering).body.toString(), /a\r\n1\r\nb/)
  t.match((await exchangeBytes(t, port, text)).body.toString(), 'IDEMPOTENCY_NOT_REPLAYABLE')
  t.equal(runs(), 1)
})

test('the stream of a route with redact is redacted as a whole', async (t) => {
  const { app } = await oneRoute(
    t,
    { redact: ({ body }) => ({ body: body.toString().replace('secret', '***') }) },
    (_request, reply) => reply.type('text/plain').send(Readable.from(['sec', 'ret ', 'and more'])),
  )
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body, 'secret and more')
  t.equal((await send(app, '/things', { key })).body, '*** and more')
})

test('a route’s store goes over the plugin’s', async (t) => {
  const app = await buildApp(t, database, {
    plugin: { store: false },
    routes(app) {
      app.post('/one', () => 'x')
      app.post('/other', { config: { idempotency: { store: true } } }, () => 'x')
    },
  })
  for (const [url, statusCode] of [
    ['/one', 409],
    ['/other', 200],
  ] as const) {
    const key = newKey()
    await send(app, url, { key })
    t.equal((await send(app, url, { key })).statusCode, statusCode)
  }
})

test('a response that MariaDB does not take is recorded without its body', {
  skip: await missing('mariadb'),
}, async (t) => {
  const events = collectEvents(t)
  const mariadb = await mariadbDatabase(t)
  const [{ size }] = await mariadb.prisma.$queryRaw<[{ size: bigint }]>`
    SELECT @@max_allowed_packet AS size`
  const body = Buffer.alloc(Number(size) + 1, 'x')
  let runs = 0
  const app = await buildApp(t, mariadb as never, {
    plugin: { maxBodyBytes: 64 * 1024 * 1024, storeTimeout: '1m' },
    routes: (app) =>
      app.post('/things', (_request, reply) => {
        runs += 1
        return reply.header('location', '/things/1').send(body)
      }),
  })
  const key = newKey()
  const first = await send(app, '/things', { key })
  t.equal(first.statusCode, 200)
  t.equal(first.rawPayload.length, body.length)
  t.match(await events.first('response_omitted'), { attempt: 1, reason: 'database_limit' })
  t.notOk(events.kinds().includes('response_not_stored'))
  const retry = await send(app, '/things', { key })
  t.equal(retry.json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
  t.equal(runs, 1)
  t.match(await recordOf(mariadb as never, key), { status: 'completed', headers: {}, body: null })
})

const isLarge = ({ values }: { values: unknown[] }) =>
  values.flat().some((value) => String(value).length > 10_000)

test('a response that the database keeps failing to take is recorded without its body in the end', async (t) => {
  const events = collectEvents(t)
  const pool = new WatchedPool(database)
  let failures = 0
  // As a server that closes the connection: nothing says why.
  pool.before = (_name, statement) => {
    if (!isLarge(statement)) return
    failures += 1
    throw Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' })
  }
  const { app, runs } = await oneRoute(t, {}, () => 'x'.repeat(256 * 1024), { pool })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 200)
  await events.first('response_not_stored')
  t.match(await events.first('response_omitted'), { reason: 'database_limit' })
  t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
  t.equal(runs(), 1)
  t.equal(failures, 3)
})

test('a small response is stored with its body, however often the connection fails', async (t) => {
  const pool = new WatchedPool(database)
  let failures = 3
  pool.before = (name) => {
    if (name === 'fi_finish' && failures-- > 0) throw new Error('read ECONNRESET')
  }
  const { app } = await oneRoute(t, {}, () => 'done', { pool })
  const key = newKey()
  await send(app, '/things', { key })
  await pool.untilAnswered('fi_finish', 1)
  t.equal((await send(app, '/things', { key })).body, 'done')
})

test('the result of run() that the database does not take is run once, and says so', async (t) => {
  const pool = new WatchedPool(database)
  pool.before = (_name, statement) => {
    if (isLarge(statement)) throw Object.assign(new Error('too large'), { code: '54000' })
  }
  const { app } = await oneRoute(t, {}, () => 'x', { pool })
  const key = newKey()
  let runs = 0
  const work = async () => {
    runs += 1
    return 'x'.repeat(20_000)
  }
  t.match(await app.idempotency.run(key, work), { kind: 'ran', isStored: true })
  await t.rejects(app.idempotency.run(key, work), { code: 'IDEMPOTENCY_NOT_REPLAYABLE' })
  t.equal(runs, 1)
})
