import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { PassThrough, Readable } from 'node:stream'
import type {
  FastifyInstance,
  FastifyReply,
  RouteHandlerMethod,
  RouteShorthandOptions,
} from 'fastify'
import t, { type Test, test } from 'tap'
import type { RouteOptions } from '../../src/index.js'
import {
  type Answer,
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

interface Counted {
  app: FastifyInstance
  runs: () => number
}

/** One route, `/things`, whose handler's runs are counted. */
async function oneRoute(
  t: Test,
  handler: RouteHandlerMethod,
  { config, ...route }: Omit<RouteShorthandOptions, 'config'> & { config?: RouteOptions } = {},
  more: (app: FastifyInstance) => unknown = () => {},
): Promise<Counted> {
  let runs = 0
  const app = await buildApp(t, database, {
    async routes(app) {
      await more(app)
      const options = { ...route, ...(config && { config: { idempotency: config } }) }
      app.post('/things', options, function (request, reply) {
        runs += 1
        return handler.call(this, request, reply)
      })
    },
  })
  return { app, runs: () => runs }
}

// What the connection and the clock put there, and what a replay adds.
const NOT_OF_THE_RESPONSE = [
  'date',
  'connection',
  'keep-alive',
  'idempotent-replayed',
  'transfer-encoding',
  'content-length',
]

function headersOf(answer: Answer) {
  return Object.fromEntries(
    Object.entries(answer.headers).filter(([name]) => !NOT_OF_THE_RESPONSE.includes(name)),
  )
}

/** Sends a request twice and holds the second answer against the first. */
async function replays(t: Test, { app, runs }: Counted): Promise<Answer> {
  const key = newKey()
  const first = await send(app, '/things', { key })
  const before = runs()
  const retry = await send(app, '/things', { key })
  t.equal(runs(), before, 'the handler did not run again')
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.notOk('idempotent-replayed' in first.headers)
  t.equal(retry.statusCode, first.statusCode)
  t.ok(retry.rawPayload.equals(first.rawPayload), 'the same bytes')
  t.same(headersOf(retry), headersOf(first), 'the same headers')
  return first
}

const someBytes = randomBytes(70_000)

test('a response is replayed byte for byte', async (t) => {
  const handlers: Record<string, RouteHandlerMethod> = {
    'a string': () => 'héllo → 世界 \u{1f600}',
    'an empty string': (_request, reply) => void reply.send(''),
    JSON: () => ({ number: 1.5, text: 'ü', list: [null, true], nested: { empty: {} } }),
    'a number as JSON': (_request, reply) => reply.type('application/json').send('1'),
    null: (_request, reply) => reply.send(null),
    nothing: (_request, reply) => reply.send(),
    'a list': () => [1, 2, 3],
    HTML: (_request, reply) => reply.type('text/html').send('<p>hi</p>'),
    'a buffer': (_request, reply) => reply.send(someBytes),
    'a buffer with a type': (_request, reply) => reply.type('image/png').send(someBytes),
    'an empty buffer': (_request, reply) => reply.send(Buffer.alloc(0)),
    'a typed array that is part of a buffer': (_request, reply) =>
      reply.send(new Uint8Array(someBytes.buffer, someBytes.byteOffset + 7, 1000)),
    'a status': (_request, reply) => reply.code(202).send({ queued: true }),
    '204': (_request, reply) => reply.code(204).send(),
    '204 with a payload that is not sent': (_request, reply) => reply.code(204).send({ a: 1 }),
    '204 with a stream that is not sent': (_request, reply) =>
      reply.code(204).send(Readable.from(['a'])),
    '205': (_request, reply) => reply.code(205).send(),
    '304': (_request, reply) => reply.code(304).send(),
    'a redirect': (_request, reply) => reply.redirect('/elsewhere', 303),
    'several links': (_request, reply) =>
      reply.header('link', ['</a>; rel="a"', '</b>; rel="b"']).send('x'),
    'a fetch Response': () => new Response('hello', { status: 203, headers: { location: '/l' } }),
    'a fetch Response with JSON': () => Response.json({ a: 1 }, { status: 201 }),
    'a fetch Response without a body': () => new Response(null, { status: 204 }),
    'a fetch Response with bytes': () => new Response(someBytes),
    'a fetch Response that redirects': () => Response.redirect('http://localhost/l', 303),
    'a Readable': (_request, reply) =>
      reply.send(Readable.from([someBytes.subarray(0, 9), someBytes.subarray(9)])),
    'a Readable of strings': (_request, reply) =>
      reply.type('text/plain').send(Readable.from(['ü', '→'])),
    'an empty Readable': (_request, reply) => reply.send(Readable.from([])),
    'a Readable that is returned': () => Readable.from([someBytes]),
    'a ReadableStream': (_request, reply) => reply.send(new Blob([someBytes]).stream()),
    callNotFound: (_request, reply) => void reply.callNotFound(),
  }
  for (const [name, handler] of Object.entries(handlers)) {
    await t.test(name, async (t) => {
      await replays(t, await oneRoute(t, handler))
      // The answer of a bare application: protection changes nothing about the first response.
      const bare = await oneRoute(t, handler, {}, (app) => app.addHook('onRoute', () => {}))
      const without = await send(bare.app, '/things')
      const withKey = await send(bare.app, '/things', { key: newKey() })
      t.equal(withKey.statusCode, without.statusCode)
      t.ok(withKey.rawPayload.equals(without.rawPayload))
      t.same(headersOf(withKey), headersOf(without))
    })
  }
})

test('every way to answer that Fastify knows is replayed', async (t) => {
  const later = () => new Promise((resolve) => setImmediate(resolve))
  const handlers: Record<string, RouteHandlerMethod> = {
    'a sync handler that calls reply.send': (_request, reply) => {
      reply.send({ a: 1 })
    },
    'a sync handler that returns reply': (_request, reply) => reply.send({ a: 1 }),
    'a sync handler that returns a value': () => ({ a: 1 }),
    'a sync handler that answers later': (_request, reply) => {
      setImmediate(() => reply.send({ a: 1 }))
    },
    'an async handler that returns a value': async () => ({ a: 1 }),
    'an async handler that calls reply.send and returns nothing': async (_request, reply) => {
      await later()
      reply.send({ a: 1 })
    },
    'an async handler that returns reply': async (_request, reply) => {
      await later()
      return reply.send({ a: 1 })
    },
    'an async handler that returns reply and answers later': async (_request, reply) => {
      setImmediate(() => reply.send({ a: 1 }))
      return reply
    },
    'an async handler that goes on after reply.send': async (_request, reply) => {
      reply.send({ a: 1 })
      await later()
    },
  }
  for (const [name, handler] of Object.entries(handlers)) {
    await t.test(name, async (t) => {
      const first = await replays(t, await oneRoute(t, handler))
      t.equal(first.body, '{"a":1}')
    })
  }
  await t.test('an async handler that returns nothing', async (t) => {
    const first = await replays(t, await oneRoute(t, async () => {}))
    t.equal(first.body, '')
  })
})

test('what an async handler sent counts, not what it returned after that', async (t) => {
  // As without the plugin: Fastify warns of the second and ignores it.
  const first = await replays(
    t,
    await oneRoute(t, async (_request, reply) => {
      reply.send({ sent: true })
      return { returned: true }
    }),
  )
  t.equal(first.body, '{"sent":true}')
})

test('an async handler that sends and then fails has answered', async (t) => {
  const first = await replays(
    t,
    await oneRoute(t, async (_request, reply) => {
      reply.send({ sent: true })
      throw new Error('afterwards')
    }),
  )
  t.equal(first.body, '{"sent":true}')
})

test('hooks that take their time on the way out change nothing', async (t) => {
  const slow = async (_request: unknown, _reply: unknown, payload: unknown) => {
    await new Promise((resolve) => setImmediate(resolve))
    return payload
  }
  const handlers: Record<string, RouteHandlerMethod> = {
    'a value': async () => ({ a: 1 }),
    'reply.send': async (_request, reply) => reply.send({ a: 1 }),
    'a sync reply.send': (_request, reply) => {
      reply.send({ a: 1 })
    },
  }
  for (const [name, handler] of Object.entries(handlers)) {
    await t.test(name, async (t) => {
      const route = await oneRoute(t, handler, {}, (app) => {
        app.addHook('preSerialization', slow)
        app.addHook('onSend', slow)
      })
      const first = await replays(t, route)
      t.equal(first.body, '{"a":1}')
    })
  }
})

test('an error with a status below 500 is the answer, and is replayed', async (t) => {
  const route = await oneRoute(t, () => {
    throw Object.assign(new Error('no funds'), { statusCode: 402, code: 'NO_FUNDS' })
  })
  const first = await replays(t, route)
  t.equal(first.statusCode, 402)
  t.match(first.json(), { code: 'NO_FUNDS', message: 'no funds' })
})

test('an error of 500 and above frees the key, and a retry runs the handler', async (t) => {
  for (const statusCode of [500, 502, 503, 504]) {
    let attempt = 0
    const { app } = await oneRoute(t, (request) => {
      attempt = request.idempotency.attempt
      t.equal(request.idempotency.resumed, attempt > 1)
      if (attempt < 3) throw Object.assign(new Error('broken'), { statusCode })
      return { attempt }
    })
    const key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, statusCode)
    t.equal((await recordOf(database, key))?.status, 'released')
    t.equal((await send(app, '/things', { key })).statusCode, statusCode)
    t.same((await send(app, '/things', { key })).json(), { attempt: 3 })
    t.equal((await send(app, '/things', { key })).headers['idempotent-replayed'], 'true')
  }
})

test('a key that an error freed still belongs to its request', async (t) => {
  const { app, runs } = await oneRoute(t, () => {
    throw new Error('broken')
  })
  const key = newKey()
  await send(app, '/things', { key, payload: { a: 1 } })
  t.equal((await send(app, '/things', { key, payload: { a: 2 } })).statusCode, 422)
  t.equal(runs(), 1)
})

test('a refusal by the handler is not replayed to a caller who may', async (t) => {
  for (const statusCode of [401, 403]) {
    const { app } = await oneRoute(t, ({ headers }, reply) =>
      headers['x-may'] === 'yes' ? 'done' : reply.code(statusCode).send('no'),
    )
    const key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, statusCode)
    const allowed = await send(app, '/things', { key, headers: { 'x-may': 'yes' } })
    t.strictSame([allowed.statusCode, allowed.body], [200, 'done'])
  }
})

test('401, 403, 408, 425 and 429 free the key by default', async (t) => {
  for (const statusCode of [401, 403, 408, 425, 429]) {
    const { app, runs } = await oneRoute(t, (_request, reply) =>
      reply.code(statusCode).send('later'),
    )
    const key = newKey()
    await send(app, '/things', { key })
    await send(app, '/things', { key })
    t.equal(runs(), 2, String(statusCode))
  }
})

test('keepStatus says which answers are kept', async (t) => {
  const route = { config: { keepStatus: (status: number) => status === 503 } }
  const kept = await oneRoute(t, (_request, reply) => reply.code(503).send('kept'), route)
  await replays(t, kept)
  const { app, runs } = await oneRoute(
    t,
    (_request, reply) => reply.code(201).send('not kept'),
    route,
  )
  const key = newKey()
  await send(app, '/things', { key })
  await send(app, '/things', { key })
  t.equal(runs(), 2)
})

const MISTAKES: Record<string, () => unknown> = {
  throws() {
    throw new Error('a mistake')
  },
  'returns a promise': async () => false,
  'returns text': () => 'yes',
  'returns nothing': () => undefined,
}

for (const [name, keepStatus] of Object.entries(MISTAKES)) {
  test(`a keepStatus that ${name} undoes nothing: the default rule decides`, async (t) => {
    const events = collectEvents(t)
    const config = { keepStatus: keepStatus as never }
    await replays(t, await oneRoute(t, () => 'x', { config }))
    t.match(await events.first('keep_status_failed'), {
      attempt: 1,
      statusCode: 200,
      failure: { name: /Error$/ },
    })
    const failing = await oneRoute(t, (_request, reply) => reply.code(500).send('x'), { config })
    const key = newKey()
    for (let turn = 1; turn <= 2; turn += 1) {
      t.equal((await send(failing.app, '/things', { key })).statusCode, 500)
      t.equal(failing.runs(), turn)
    }
  })
}

test('the answer of a custom error handler is replayed', async (t) => {
  const route = await oneRoute(
    t,
    () => {
      throw new Error('teapot')
    },
    {},
    (app) =>
      app.setErrorHandler((error: Error, _request, reply) =>
        reply
          .code(418)
          .header('location', '/tea')
          .type('text/plain')
          .send(`sorry: ${error.message}`),
      ),
  )
  const first = await replays(t, route)
  t.equal(first.statusCode, 418)
  t.equal(first.body, 'sorry: teapot')
})

test("the answer of a route's own error handler is replayed", async (t) => {
  const route = await oneRoute(
    t,
    async () => {
      throw new Error('x')
    },
    {
      errorHandler: (_error, _request, reply) =>
        reply.code(409).send({ conflict: 'of the application' }),
    },
  )
  const first = await replays(t, route)
  t.same(first.json(), { conflict: 'of the application' })
})

test('an error handler that fails itself frees the key', async (t) => {
  const { app, runs } = await oneRoute(
    t,
    () => {
      throw new Error('first')
    },
    {},
    (app) =>
      app.setErrorHandler(() => {
        throw new Error('second')
      }),
  )
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 500)
  t.equal((await send(app, '/things', { key })).statusCode, 500)
  t.equal(runs(), 2)
})

test('what a response schema and a custom serializer made of a payload is replayed', async (t) => {
  const schema = { response: { 200: { type: 'object', properties: { a: { type: 'string' } } } } }
  const first = await replays(t, await oneRoute(t, () => ({ a: 1, secret: 2 }), { schema }))
  t.equal(first.body, '{"a":"1"}')
  const second = await replays(
    t,
    await oneRoute(t, (_request, reply) =>
      reply
        .type('application/x-thing')
        .serializer((value) => `<${JSON.stringify(value)}>`)
        .send({ a: 1 }),
    ),
  )
  t.equal(second.body, '<{"a":1}>')
  const third = await replays(
    t,
    await oneRoute(
      t,
      () => ({ a: 1 }),
      {},
      (app) => app.setReplySerializer((payload) => `all: ${JSON.stringify(payload)}`),
    ),
  )
  t.equal(third.body, 'all: {"a":1}')
})

test('a payload that cannot be serialized frees the key', async (t) => {
  const { app, runs } = await oneRoute(t, () => ({ a: 1n }))
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 500)
  t.equal((await send(app, '/things', { key })).statusCode, 500)
  t.equal(runs(), 2)
})

test('a payload that Fastify cannot send is a 500 that frees the key', async (t) => {
  const used = new Response('x')
  await used.text()
  const locked = new Blob(['x']).stream()
  locked.getReader()
  const handlers: Record<string, RouteHandlerMethod> = {
    'an object as text': (_request, reply) => reply.type('text/plain').send({ a: 1 }),
    'a Response that was read': () => used,
    'a stream that is locked': (_request, reply) => reply.send(locked),
  }
  for (const [name, handler] of Object.entries(handlers)) {
    await t.test(name, async (t) => {
      const { app, runs } = await oneRoute(t, handler)
      const key = newKey()
      t.equal((await send(app, '/things', { key })).statusCode, 500)
      t.equal((await send(app, '/things', { key })).statusCode, 500, 'a retry is told the same')
      t.equal(runs(), 2)
      t.equal((await recordOf(database, key))?.status, 'released')
    })
  }
})

test('only listed headers are stored', async (t) => {
  const { app } = await oneRoute(
    t,
    (_request, reply) =>
      reply
        .code(201)
        .headers({
          location: '/things/1',
          link: '</things/1>; rel="self"',
          'retry-after': '3',
          'x-request-cost': '7',
          'x-secret': 'of the first',
          etag: '"1"',
          vary: 'origin',
          'cache-control': 'no-store',
          'access-control-allow-origin': 'https://first.example',
        })
        .send('made'),
    { config: { headers: ['X-Request-Cost'] } },
  )
  const key = newKey()
  await send(app, '/things', { key })
  t.same((await recordOf(database, key))?.headers, {
    ':payload': 'text',
    'content-type': 'text/plain; charset=utf-8',
    location: '/things/1',
    link: '</things/1>; rel="self"',
    'retry-after': '3',
    'x-request-cost': '7',
  })
  const retry = await send(app, '/things', { key })
  t.equal(retry.headers['x-request-cost'], '7')
  t.equal(retry.headers.location, '/things/1')
  for (const name of ['x-secret', 'etag', 'vary', 'cache-control', 'access-control-allow-origin']) {
    t.notOk(name in retry.headers, name)
  }
})

test('set-cookie is never stored and never replayed', async (t) => {
  const handlers: RouteHandlerMethod[] = [
    (_request, reply) => reply.header('set-cookie', 'session=secret').send('x'),
    (_request, reply) => reply.header('Set-Cookie', ['a=secret', 'b=secret']).send('x'),
    () =>
      new Response('x', {
        headers: [
          ['set-cookie', 'a=secret'],
          ['set-cookie', 'b=secret'],
        ],
      }),
  ]
  for (const handler of handlers) {
    const { app } = await oneRoute(t, handler)
    const key = newKey()
    t.ok((await send(app, '/things', { key })).headers['set-cookie'], 'the first client gets it')
    t.notMatch(JSON.stringify(await recordOf(database, key)), 'secret')
    const retry = await send(app, '/things', { key })
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.notOk('set-cookie' in retry.headers)
  }
})

test('set-cookie is refused in the list of headers', async (t) => {
  for (const name of ['set-cookie', 'Set-Cookie']) {
    await t.rejects(
      oneRoute(t, () => 'x', { config: { headers: [name] } }),
      {
        code: 'IDEMPOTENCY_OPTION_INVALID',
        message: /"headers" of route POST \/things must not contain 'set-cookie'/i,
      },
    )
  }
})

test('a header that Node cannot send is a 500, as without the plugin', async (t) => {
  const { app } = await oneRoute(t, (_request, reply) => reply.header('location', '/→').send('x'))
  const bare = await send(app, '/things')
  t.equal(bare.statusCode, 500)
  const answer = await send(app, '/things', { key: newKey() })
  t.equal(answer.statusCode, 500)
})

test('a body of exactly maxBodyBytes is replayed, one byte more is not', async (t) => {
  const events = collectEvents(t)
  const kinds: Record<string, (size: number) => unknown> = {
    bytes: (size) => randomBytes(size),
    text: (size) => 'ü'.repeat(Math.floor(size / 2)).padEnd(size - Math.floor(size / 2), 'x'),
    stream: (size) => Readable.from([randomBytes(size - 1), randomBytes(1)]),
    'web stream': (size) => new Blob([randomBytes(size)]).stream(),
  }
  for (const [name, make] of Object.entries(kinds)) {
    await t.test(name, async (t) => {
      const config = { maxBodyBytes: 1001 }
      const fits = await oneRoute(t, (_request, reply) => reply.send(make(1001)), { config })
      t.equal((await replays(t, fits)).rawPayload.length, 1001)

      const tooLarge = await oneRoute(t, (_request, reply) => reply.send(make(1002)), { config })
      const key = newKey()
      const first = await send(tooLarge.app, '/things', { key })
      t.equal(first.statusCode, 200)
      t.equal(first.rawPayload.length, 1002, 'the client gets all of it')
      for (const turn of [1, 2]) {
        const retry = await send(tooLarge.app, '/things', { key })
        t.equal(retry.statusCode, 409, `retry ${turn}`)
        t.equal(retry.json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
      }
      t.equal(tooLarge.runs(), 1)
    })
  }
  t.match(
    events.all.filter(({ kind }) => kind === 'response_omitted'),
    [
      { reason: 'too large' },
      { reason: 'too large' },
      { reason: 'too large' },
      { reason: 'too large' },
    ],
  )
})

test('1 MiB is kept by default', async (t) => {
  const size = 1024 * 1024
  await replays(t, await oneRoute(t, (_request, reply) => reply.send(Buffer.alloc(size, 'x'))))
  const { app } = await oneRoute(t, (_request, reply) => reply.send(Buffer.alloc(size + 1, 'x')))
  const key = newKey()
  await send(app, '/things', { key })
  t.equal((await send(app, '/things', { key })).statusCode, 409)
})

test('a stream past the limit is delivered whole, while it is made', async (t) => {
  const chunks = Array.from({ length: 50 }, () => randomBytes(64 * 1024))
  const { app, runs } = await oneRoute(t, (_request, reply) => reply.send(Readable.from(chunks)), {
    config: { maxBodyBytes: 100_000 },
  })
  const port = await listen(app)
  const key = newKey()
  const response = await fetch(`http://127.0.0.1:${port}/things`, {
    method: 'POST',
    headers: { 'idempotency-key': key },
  })
  t.ok(Buffer.from(await response.arrayBuffer()).equals(Buffer.concat(chunks)))
  t.equal((await send(app, '/things', { key, payload: '' })).statusCode, 409)
  t.equal(runs(), 1)
})

test('the first bytes of a stream reach the client before the last are made', async (t) => {
  const source = new PassThrough()
  const { app } = await oneRoute(t, (_request, reply) => reply.send(source))
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', [`idempotency-key: ${key}`]))
  const seen: Buffer[] = []
  socket.on('data', (chunk) => seen.push(chunk))
  source.write('first')
  while (!Buffer.concat(seen).includes('first')) await once(socket, 'data')
  t.equal((await recordOf(database, key))?.status, 'in_progress')
  source.end('last')
  await once(socket, 'close')
  t.match(Buffer.concat(seen).toString(), 'last')
  t.equal((await send(app, '/things', { key })).body, 'firstlast')
})

test('a client that has seen the end of a stream can rely on its being stored', async (t) => {
  const { app } = await oneRoute(t, (_request, reply) => reply.send(Readable.from(['a', 'b'])))
  for (let turn = 0; turn < 10; turn += 1) {
    const key = newKey()
    await send(app, '/things', { key })
    t.equal((await recordOf(database, key))?.status, 'completed')
  }
})

test('a stream that fails midway breaks off, and a retry runs the handler', async (t) => {
  let source = new PassThrough()
  const { app, runs } = await oneRoute(t, (_request, reply) => reply.send(source))
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', [`idempotency-key: ${key}`]))
  source.write('first')
  await once(socket, 'data')
  source.destroy(new Error('the disk broke'))
  const rest: Buffer[] = []
  socket.on('data', (chunk) => rest.push(chunk))
  await once(socket, 'close')
  t.notOk(Buffer.concat(rest).includes('0\r\n\r\n'), 'the client is not told that this was all')
  t.equal((await recordOf(database, key))?.status, 'released')
  source = new PassThrough()
  source.end('whole')
  t.equal((await send(app, '/things', { key })).body, 'whole')
  t.equal(runs(), 2)
})

test('a stream that fails before its first byte is a 500 that frees the key', async (t) => {
  const { app, runs } = await oneRoute(t, (_request, reply) => {
    const source = new Readable({
      read() {
        this.destroy(new Error('no such file'))
      },
    })
    return reply.send(source)
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 500)
  t.equal((await send(app, '/things', { key })).statusCode, 500)
  t.equal(runs(), 2)
})

test('a client that disconnects in the middle of a stream gets all of it by a retry', async (t) => {
  const events = collectEvents(t)
  const source = new PassThrough()
  const { app, runs } = await oneRoute(t, (_request, reply) => reply.send(source))
  const port = await listen(app)
  const key = newKey()
  const text = postText('/things', [`idempotency-key: ${key}`])
  const socket = await openSocket(t, port, text)
  source.write('first ')
  await once(socket, 'data')
  socket.destroy()
  source.end('and last')
  t.match(await events.first('completed'), { statusCode: 200, bytes: 14 })
  t.equal((await send(app, '/things', { key })).body, 'first and last')
  t.equal(runs(), 1)
})

test('a stream that is larger than what the client read is stored for its retry all the same', async (t) => {
  const events = collectEvents(t)
  const body = randomBytes(900 * 1024)
  const go = latch()
  async function* parts() {
    yield body.subarray(0, 100 * 1024)
    await go.opened
    for (let at = 100 * 1024; at < body.length; at += 50 * 1024)
      yield body.subarray(at, at + 50 * 1024)
  }
  const { app } = await oneRoute(t, (_request, reply) => reply.send(Readable.from(parts())))
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', [`idempotency-key: ${key}`]))
  await once(socket, 'data')
  socket.destroy()
  go.open()
  await events.first('completed')
  t.ok((await send(app, '/things', { key })).rawPayload.equals(body))
})

test('a stream past the limit is not read to its end for nobody', async (t) => {
  const events = collectEvents(t)
  let made = 0
  const ended = latch()
  async function* endless() {
    try {
      for (;;) {
        made += 1
        yield Buffer.alloc(64 * 1024)
        await new Promise((resolve) => setImmediate(resolve))
      }
    } finally {
      ended.open()
    }
  }
  const { app } = await oneRoute(t, (_request, reply) => reply.send(Readable.from(endless())), {
    config: { maxBodyBytes: 1_000 },
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', [`idempotency-key: ${key}`]))
  await once(socket, 'data')
  socket.destroy()
  await ended.opened
  t.ok(made > 0)
  await events.first('completed')
  t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_NOT_REPLAYABLE')
})

test('a stream of a status that is not kept goes out as it is', async (t) => {
  const { app, runs } = await oneRoute(t, (_request, reply) =>
    reply.code(503).send(Readable.from(['try ', 'later'])),
  )
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body, 'try later')
  t.equal((await send(app, '/things', { key })).body, 'try later')
  t.equal(runs(), 2)
})

test('a stream that another hook throws away does not keep the key busy', async (t) => {
  const events = collectEvents(t)
  let fails = true
  const { app } = await oneRoute(
    t,
    (_request, reply) => reply.send(Readable.from(Array(20).fill(randomBytes(64 * 1024)))),
    { config: { maxBodyBytes: 10_000_000 } },
    (app) =>
      app.addHook('onSend', async (_request, _reply, payload) => {
        if (!fails) return payload
        fails = false
        throw new Error('of another hook')
      }),
  )
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 500)
  await Promise.race([events.first('completed'), events.first('released')])
  t.not((await recordOf(database, key))?.status, 'in_progress')
})

/** What a hook can see of a payload, and of how it is framed. */
async function formOf(t: Test, reply: FastifyReply, payload: unknown): Promise<[unknown, unknown]> {
  const length = payload instanceof Readable ? reply.getHeader('content-length') : undefined
  const read = async () => {
    if (!(payload instanceof Readable)) return payload
    const pieces: unknown[] = await payload.toArray()
    if (payload.readableObjectMode) return ['objects', pieces]
    t.ok(pieces.every((piece) => Buffer.isBuffer(piece)))
    return ['a stream', payload.readableObjectMode, Buffer.concat(pieces as Buffer[]).toString()]
  }
  return [await read(), length]
}

/** Each kind of payload that a hook can be given. */
const PAYLOADS: Record<string, RouteHandlerMethod> = {
  JSON: () => ({ internal: 'secret', id: 1 }),
  text: () => 'héllo',
  'an empty text': () => '',
  'text below a header beyond ASCII': (_request, reply) =>
    reply.header('location', '/ü').send('text'),
  'an empty text with 204': (_request, reply) => reply.code(204).send(''),
  'text with 304': (_request, reply) => reply.code(304).type('text/plain').send('not sent'),
  HTML: (_request, reply) => reply.type('text/html').send('<p>ü</p>'),
  bytes: () => Buffer.from('bytes'),
  'a typed array': () => new Uint8Array([1, 2, 3]),
  'empty bytes': () => Buffer.alloc(0),
  nothing: (_request, reply) => reply.send(),
  null: (_request, reply) => reply.type('text/plain').send(null),
  'null as JSON': () => null,
  'a fetch Response without a body': () => new Response(null, { status: 201 }),
}
/** Those that an atomic route does not answer with. */
const OTHERS: Record<string, RouteHandlerMethod> = {
  'an error': () => {
    throw Object.assign(new Error('no funds'), { statusCode: 402 })
  },
  'a stream': () => Readable.from(['one', 'two']),
  'an empty stream': () => Readable.from([]),
  'a stream with content-length': (_request, reply) =>
    reply.header('content-length', '6').send(Readable.from(['one', 'two'])),
  'a web stream': () => new Blob(['one']).stream(),
  'a fetch Response': () => new Response('one', { headers: { 'content-type': 'text/plain' } }),
}
const FORM_ROUTES = {
  'a protected route': { config: {}, payloads: { ...PAYLOADS, ...OTHERS } },
  'an atomic route': { config: { atomic: true }, payloads: PAYLOADS },
} as const

for (const [route, { config, payloads }] of Object.entries(FORM_ROUTES)) {
  test(`${route}: later hooks get a replay in the form of the first response`, async (t) => {
    for (const [name, handler] of Object.entries<RouteHandlerMethod>(payloads)) {
      const seen: unknown[] = []
      const began = latch()
      const go = latch()
      const pool = new WatchedPool(database)
      const app = await buildApp(t, database, {
        plugin: { wait: '1m', ...(!('atomic' in config) && { pool }) },
        before: (app) => {
          // As frameworks do that choose a serializer by what the client accepts.
          app.addHook('preHandler', async (_request, reply) => {
            reply.serializer((value) => JSON.stringify(value))
          })
        },
        routes(app) {
          app.addHook('onSend', async (_request, reply, payload) => {
            seen.push(await formOf(t, reply, payload))
            return 'in its place'
          })
          app.post('/things', { config: { idempotency: config } }, async function (...call) {
            began.open()
            await go.opened
            return handler.apply(this, call)
          })
        },
      })
      const key = newKey()
      const first = begin(app, '/things', { key })
      await began.opened
      const duplicate = begin(app, '/things', { key })
      if (!('atomic' in config)) await pool.untilAnswered('fi_insert', 2)
      go.open()
      const answers = [await first, await duplicate, await send(app, '/things', { key })]
      t.strictSame(
        answers.map(({ headers }) => headers['idempotent-replayed']),
        [undefined, 'true', 'true'],
        name,
      )
      t.equal(seen.length, 3)
      t.strictSame(seen[1], seen[0], `${name}: the duplicate that waited`)
      t.strictSame(seen[2], seen[0], `${name}: the retry`)
      // A stream becomes one of the plugin's own.
      if (/stream|Response/.test(name)) continue
      await send(app, '/things')
      t.strictSame(seen[3], seen[0], `${name}: as without a key`)
    }
  })

  test(`${route}: a later hook that removes a part of the text removes it from replays, too`, async (t) => {
    const app = await buildApp(t, database, {
      routes(app) {
        app.addHook('onSend', async (_request, _reply, payload) =>
          typeof payload === 'string' ? payload.replace('secret', '***') : payload,
        )
        app.post('/things', { config: { idempotency: config } }, () => ({ internal: 'secret' }))
      },
    })
    const key = newKey()
    for (const turn of ['first', 'retry']) {
      const answer = await send(app, '/things', { key })
      t.same(answer.json(), { internal: '***' }, turn)
      t.match(answer.headers['content-type'], /json/)
    }
  })
}

test('what a person decided is replayed in the form that was given', async (t) => {
  const seen: unknown[] = []
  let began = latch()
  let go = latch()
  const { app } = await oneRoute(
    t,
    async () => {
      began.open()
      await go.opened
      return 'too late'
    },
    {},
    (app) => {
      app.addHook('onSend', async (_request, _reply, payload) => {
        seen.push(payload)
        return payload
      })
    },
  )
  for (const [given, body] of [
    ['text', 'text'],
    ['', ''],
    [{ a: 1 }, '{"a":1}'],
    [Buffer.from('bytes'), Buffer.from('bytes')],
    [undefined, undefined],
  ]) {
    began = latch()
    go = latch()
    const key = newKey()
    const first = begin(app, '/things', { key })
    await began.opened
    const decision = { response: { statusCode: 200, body: given } }
    t.match(await app.idempotency.resolve(key, decision, { force: true }), { kind: 'resolved' })
    const retry = await send(app, '/things', { key })
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.strictSame(seen.at(-1), body)
    go.open()
    await first
  }
})

test('a record of no known form is replayed as bytes', async (t) => {
  const seen: unknown[] = []
  const { app } = await oneRoute(
    t,
    () => 'text',
    {},
    (app) => {
      app.addHook('onSend', async (_request, _reply, payload) => {
        seen.push(payload)
        return payload
      })
    },
  )
  for (const headers of [{}, { ':payload': 'of another version' }]) {
    const key = newKey()
    await send(app, '/things', { key })
    await database.prisma.idempotencyRecord.update({
      where: { tenantId_key: { tenantId: '', key } },
      data: { headers },
    })
    const retry = await send(app, '/things', { key })
    t.equal(retry.body, 'text')
    t.notOk(':payload' in retry.headers)
    t.ok(Buffer.isBuffer(seen.at(-1)))
  }
})

test('each replay has bytes and lists of headers of its own', async (t) => {
  const change = (payload: unknown) => {
    if (Buffer.isBuffer(payload) && payload.length > 0) payload[0] = (payload[0] ?? 0) + 1
    return payload
  }
  const handlers: Record<string, RouteHandlerMethod> = {
    bytes: () => Buffer.from('a---'),
    'a stream': () => Readable.from(['a---']),
  }
  for (const [name, handler] of Object.entries(handlers)) {
    const { app } = await oneRoute(
      t,
      (request, reply) => {
        reply.header('x-list', ['a', 'b'] as never)
        return handler.call(app, request, reply)
      },
      { config: { headers: ['x-list'] } },
      (app) => {
        app.addHook('onSend', async (_request, reply, payload) => {
          ;(reply.getHeader('x-list') as unknown as string[]).push('c')
          return payload instanceof Readable ? payload.map(change) : change(payload)
        })
      },
    )
    const key = newKey()
    const answers = [await send(app, '/things', { key })]
    answers.push(
      ...(await Promise.all(Array.from({ length: 20 }, () => send(app, '/things', { key })))),
    )
    t.strictSame(
      answers.map(({ body, headers }) => [body, headers['x-list']]),
      answers.map(() => ['b---', ['a', 'b', 'c']]),
      name,
    )
  }
})

test('what a later hook changes in place is not stored, however late the response is', async (t) => {
  const pool = new WatchedPool(database)
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes(app) {
      app.addHook('onSend', async (_request, _reply, payload) => {
        pool.before = () => {}
        return (payload as Buffer).fill('*')
      })
      app.post('/things', () => Buffer.from('bytes'))
    },
  })
  pool.before = (name) => {
    if (name === 'fi_finish') throw new Error('read ECONNRESET')
  }
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body, '*****')
  await pool.untilAnswered('fi_finish', 1)
  t.equal(Buffer.from((await recordOf(database, key))?.body ?? []).toString(), 'bytes')
})

test('what hooks in front of the plugin do to a replay in place is undone', async (t) => {
  let isReplay = false
  const app = await buildApp(t, database, {
    before: (app) =>
      app.addHook('onSend', async (_request, _reply, payload) => {
        if (isReplay && Buffer.isBuffer(payload)) payload.fill(42)
        return payload
      }),
    routes: (app) => app.post('/things', () => Buffer.from('bytes')),
  })
  const key = newKey()
  await send(app, '/things', { key })
  isReplay = true
  t.equal((await send(app, '/things', { key })).body, 'bytes')
  t.equal((await send(app, '/things', { key })).body, 'bytes')
})

test('a replay that a later hook turns into an error is the error, and no replay', async (t) => {
  let fails = false
  const { app } = await oneRoute(
    t,
    (_request, reply) => reply.code(201).header('location', '/things/1').send({ id: 1 }),
    {},
    (app) => {
      app.addHook('onSend', async (_request, _reply, payload) => {
        if (!fails) return payload
        // Once: the hooks run for the error, too.
        fails = false
        throw new Error('the audit log is down')
      })
    },
  )
  const key = newKey()
  await send(app, '/things', { key })
  fails = true
  const failed = await send(app, '/things', { key })
  t.equal(failed.statusCode, 500)
  t.match(failed.json(), { message: 'the audit log is down' })
  for (const name of ['idempotent-replayed', 'location']) t.notOk(name in failed.headers, name)
  const retry = await send(app, '/things', { key })
  t.equal(retry.statusCode, 201)
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.equal(retry.headers.location, '/things/1')
  t.same(retry.json(), { id: 1 })
})
