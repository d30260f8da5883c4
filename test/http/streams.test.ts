// Stored, then sent: no client has a whole response before its record is durable, whatever sends it;
// and what a client does with its connection does not decide whether the response is stored.
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { connect as connectHttp2 } from 'node:http2'
import { type AddressInfo, connect } from 'node:net'
import { PassThrough, pipeline, Readable } from 'node:stream'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { createGzip, gunzipSync } from 'node:zlib'
import compress from '@fastify/compress'
import httpProxy from '@fastify/http-proxy'
import replyFrom from '@fastify/reply-from'
import fastifyStatic from '@fastify/static'
import Fastify, {
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type RouteHandlerMethod,
} from 'fastify'
import t, { type Test, test } from 'tap'
import { recordStream } from '../../src/http/recorded-stream.js'
import type { RouteOptions } from '../../src/index.js'
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
  readAnswer,
  recordOf,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

const FILE = randomBytes(200 * 1024)
const folder = t.testdir({})
await writeFile(`${folder}/report.bin`, FILE)

const keyLine = (key: string) => [`idempotency-key: ${key}`]

/** A service behind the application, which answers every POST with the file. */
async function upstream(t: Pick<Test, 'teardown'>, hasLength: boolean): Promise<string> {
  const app = Fastify()
  t.teardown(() => app.close())
  app.post('/report', (_request, reply) =>
    hasLength ? reply.send(FILE) : reply.send(Readable.from(pieces(FILE))),
  )
  await app.listen({ port: 0, host: '127.0.0.1' })
  return `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
}

function* pieces(bytes: Buffer, size = 10_000): Generator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

const withLength = { 'content-length': String(FILE.length) }

/** Every kind of response whose body is a stream, at `POST /report`. */
const KINDS: Record<string, (app: FastifyInstance, t: Test) => unknown> = {
  'a Node stream, chunked': (app) =>
    app.post('/report', (_request, reply) => reply.send(Readable.from(pieces(FILE)))),
  'a Node stream with content-length': (app) =>
    app.post('/report', (_request, reply) =>
      reply.headers(withLength).send(Readable.from(pieces(FILE))),
    ),
  'a Node stream of one piece with content-length': (app) =>
    app.post('/report', (_request, reply) => reply.headers(withLength).send(Readable.from([FILE]))),
  'a Node stream with a content-length of Node’s own': (app) =>
    app.post('/report', (_request, reply) => {
      reply.raw.setHeader('content-length', FILE.length)
      return reply.send(Readable.from(pieces(FILE)))
    }),
  'a web stream with content-length': (app) =>
    app.post('/report', (_request, reply) =>
      reply.headers(withLength).send(new Blob([FILE]).stream()),
    ),
  'a fetch Response with content-length': (app) =>
    app.post('/report', () => new Response(FILE, { headers: withLength })),
  'a stream whose length a later hook knows': (app) => {
    app.addHook('onSend', async (_request, reply, payload) => {
      reply.headers(withLength)
      return payload
    })
    app.post('/report', (_request, reply) => reply.send(Readable.from(pieces(FILE))))
  },
  'a stream that ends long after its last byte': (app) =>
    app.post('/report', (_request, reply) => {
      const source = new PassThrough()
      for (const piece of pieces(FILE)) source.write(piece)
      setTimeout(() => source.end(), 20)
      return reply.headers(withLength).send(source)
    }),
  '@fastify/static': async (app) => {
    await app.register(fastifyStatic, { root: folder, serve: false })
    app.post('/report', (_request, reply) => reply.sendFile('report.bin'))
  },
  '@fastify/reply-from with content-length': async (app, t) => {
    await app.register(replyFrom, { base: await upstream(t, true) })
    app.post('/report', (_request, reply) => reply.from('/report'))
  },
  '@fastify/reply-from, chunked': async (app, t) => {
    await app.register(replyFrom, { base: await upstream(t, false) })
    app.post('/report', (_request, reply) => reply.from('/report'))
  },
  '@fastify/http-proxy': async (app, t) => {
    await app.register(httpProxy, { upstream: await upstream(t, true), httpMethods: ['POST'] })
  },
  'bytes, and no stream': (app) => app.post('/report', () => FILE),
}

/** Posts and calls back with the response once its head is there. */
function post(port: number, key: string): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const headers = { 'idempotency-key': key, 'content-type': 'application/json' }
    httpRequest({ port, method: 'POST', path: '/report', headers }, resolve)
      .on('error', reject)
      .end('{}')
  })
}

async function bodyOf(response: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of response) chunks.push(chunk)
  return Buffer.concat(chunks)
}

/** Until whatever the server has given to its connections is where the clients can see it. */
async function settle(port: number): Promise<void> {
  for (let turn = 0; turn < 5; turn += 1) {
    const response = await fetch(`http://127.0.0.1:${port}/ping`)
    await response.text()
  }
}

function withPing(routes: (app: FastifyInstance) => unknown) {
  return async (app: FastifyInstance) => {
    await routes(app)
    app.get('/ping', () => 'pong')
  }
}

for (const [name, routes] of Object.entries(KINDS)) {
  test(`${name}: nobody has all of it before it is stored`, async (t) => {
    const pool = new WatchedPool(database)
    const storing = latch()
    const go = latch()
    const app = await buildApp(t, database, {
      plugin: { pool },
      routes: withPing((app) => routes(app, t)),
    })
    pool.before = async (name) => {
      if (name !== 'fi_finish') return
      storing.open()
      await go.opened
    }
    const port = await listen(app)
    const key = newKey()
    let isComplete = false
    const answer = post(port, key).then(async (response) => {
      const body = await bodyOf(response)
      isComplete = true
      return body
    })
    await storing.opened
    await settle(port)
    t.notOk(isComplete, 'the client waits for the rest')
    go.open()
    t.ok((await answer).equals(FILE))
    const retry = await post(port, key)
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.ok((await bodyOf(retry)).equals(FILE))
  })
}

test('40 of 40 immediate retries of a file are replays', async (t) => {
  const app = await buildApp(t, database, {
    async routes(app) {
      await app.register(fastifyStatic, { root: folder, serve: false })
      app.post('/report', (_request, reply) => reply.sendFile('report.bin'))
    },
  })
  const port = await listen(app)
  for (let turn = 0; turn < 40; turn += 1) {
    const key = newKey()
    const first = await bodyOf(await post(port, key))
    const retry = await post(port, key)
    t.equal(retry.statusCode, 200)
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.ok((await bodyOf(retry)).equals(first))
  }
})

test('a client of HTTP/1.0, which knows the end by the connection’s, waits for all of it', async (t) => {
  const pool = new WatchedPool(database)
  const storing = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: withPing((app) =>
      app.post('/report', (_request, reply) => reply.send(Readable.from(pieces(FILE)))),
    ),
  })
  pool.before = async (name) => {
    if (name !== 'fi_finish') return
    storing.open()
    await go.opened
  }
  const port = await listen(app)
  const key = newKey()
  const text = postText('/report', keyLine(key)).toString().replace('HTTP/1.1', 'HTTP/1.0')
  const socket = connect(port, '127.0.0.1')
  t.teardown(() => void socket.destroy())
  const seen: Buffer[] = []
  socket.on('data', (chunk) => seen.push(chunk))
  socket.write(text)
  await storing.opened
  await settle(port)
  t.equal(Buffer.concat(seen).length, 0)
  go.open()
  await once(socket, 'close')
  t.ok(Buffer.concat(seen).includes(FILE))
})

test('a response without a body goes out once the stream that came with it is stored', async (t) => {
  const pool = new WatchedPool(database)
  const storing = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: withPing((app) =>
      app.post('/report', (_request, reply) => reply.code(304).send(Readable.from(['a', 'b']))),
    ),
  })
  pool.before = async (name) => {
    if (name !== 'fi_finish') return
    storing.open()
    await go.opened
  }
  const port = await listen(app)
  const key = newKey()
  let isThere = false
  const answer = post(port, key).then((response) => {
    isThere = true
    return response
  })
  await storing.opened
  await settle(port)
  t.notOk(isThere)
  go.open()
  t.equal((await answer).statusCode, 304)
})

/** One route with its options. */
function oneRoute(t: Test, handler: RouteHandlerMethod, config: RouteOptions = {}) {
  return buildApp(t, database, {
    routes: withPing((app) => app.post('/report', { config: { idempotency: config } }, handler)),
  })
}

/** Opens a connection whose client reads the head of the response, and nothing after that. */
async function stalledClient(t: Test, port: number, key: string) {
  const socket = await openSocket(t, port, postText('/report', keyLine(key)))
  await once(socket, 'readable')
  return socket
}

const MiB = 1024 * 1024

test('a client that stops reading does not keep its key: 8 MiB are stored all the same', async (t) => {
  const events = collectEvents(t)
  const body = randomBytes(8 * MiB)
  let runs = 0
  const app = await oneRoute(
    t,
    (_request, reply) => {
      runs += 1
      return reply.send(Readable.from(pieces(body, 64 * 1024)))
    },
    { maxBodyBytes: 16 * MiB },
  )
  const port = await listen(app)
  const key = newKey()
  await stalledClient(t, port, key)
  t.match(await events.first('completed'), { bytes: body.length })
  const retry = await post(port, key)
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.ok((await bodyOf(retry)).equals(body))
  t.equal(runs, 1)
})

test('a client that stops reading and goes on gets all of it', async (t) => {
  const events = collectEvents(t)
  const body = randomBytes(8 * MiB)
  for (const maxBodyBytes of [16 * MiB, MiB]) {
    const app = await oneRoute(
      t,
      (_request, reply) => reply.send(Readable.from(pieces(body, 64 * 1024))),
      { maxBodyBytes },
    )
    const port = await listen(app)
    const response = await post(port, newKey())
    await events.first('completed', maxBodyBytes === MiB ? 2 : 1)
    t.ok((await bodyOf(response)).equals(body), `${maxBodyBytes}`)
  }
})

test('a stream past the limit is recorded at once, and read no faster than its client does', async (t) => {
  const events = collectEvents(t)
  let made = 0
  let runs = 0
  async function* endless() {
    for (;;) {
      made += 1
      yield Buffer.alloc(64 * 1024)
      await new Promise((resolve) => setImmediate(resolve))
    }
  }
  const app = await oneRoute(
    t,
    (_request, reply) => {
      runs += 1
      return reply.send(Readable.from(endless()))
    },
    { maxBodyBytes: MiB },
  )
  const port = await listen(app)
  const key = newKey()
  const socket = await stalledClient(t, port, key)
  await events.first('completed')
  t.match(await events.first('response_omitted'), { reason: 'too large' })
  t.equal((await post(port, key)).statusCode, 409)
  t.equal(runs, 1)
  // What the kernel buffers is not ours: wait until it takes no more.
  for (let before = -1; before !== made; ) {
    before = made
    await settle(port)
  }
  t.ok(made * 64 * 1024 < 32 * MiB, `${made} pieces of 64 KiB`)
  socket.destroy()
})

test('a stream past the limit that fails later breaks off, and the handler does not run again', async (t) => {
  const events = collectEvents(t)
  const broken = latch()
  let runs = 0
  async function* failing() {
    yield Buffer.alloc(2_000)
    await broken.opened
    throw new Error('the disk broke')
  }
  const app = await oneRoute(
    t,
    (_request, reply) => {
      runs += 1
      return reply.send(Readable.from(failing()))
    },
    { maxBodyBytes: 1_000 },
  )
  const port = await listen(app)
  const key = newKey()
  const answering = exchangeBytes(t, port, postText('/report', keyLine(key)))
  await events.first('completed')
  broken.open()
  t.notMatch((await answering).body.toString('latin1'), /0\r\n\r\n$/)
  const retry = await exchangeBytes(t, port, postText('/report', keyLine(key)))
  t.match(retry.body.toString(), 'IDEMPOTENCY_NOT_REPLAYABLE')
  t.equal(runs, 1)
})

for (const [name, maxBodyBytes] of [
  ['that is kept', 16 * MiB],
  ['past the limit', MiB],
] as const) {
  test(`a later hook that replaces a large stream ${name} keeps neither key nor source`, async (t) => {
    const events = collectEvents(t)
    const closed = latch()
    const body = randomBytes(8 * MiB)
    const app = await buildApp(t, database, {
      routes(app) {
        app.addHook('onSend', async () => 'in its place')
        app.post('/report', { config: { idempotency: { maxBodyBytes } } }, (_request, reply) => {
          const source = Readable.from(pieces(body, 64 * 1024))
          source.once('close', () => closed.open())
          return reply.send(source)
        })
      },
    })
    const port = await listen(app)
    const key = newKey()
    const first = await post(port, key)
    t.equal((await bodyOf(first)).toString(), 'in its place')
    await events.first('completed')
    await closed.opened
    const retry = await post(port, key)
    await bodyOf(retry)
    t.equal(retry.statusCode, maxBodyBytes === MiB ? 409 : 200)
  })
}

test('a piece that is no text and no bytes is an error that frees the key', async (t) => {
  let runs = 0
  const app = await oneRoute(t, (_request, reply) => {
    runs += 1
    return runs === 1 ? reply.send(Readable.from([{ a: 1 }])) : 'done'
  })
  const key = newKey()
  t.equal((await send(app, '/report', { key })).statusCode, 500)
  t.equal((await recordOf(database, key))?.status, 'released')
  t.equal((await send(app, '/report', { key })).body, 'done')
})

/** Sources that disagree with the 10 bytes that their content-length announces. */
const MISMATCHES: Record<string, readonly string[]> = {
  'ends early': ['abc'],
  'ends at once': [],
  'has one byte more': ['abcde', 'fghijk'],
  'has many more': ['abcdefghij', 'HTTP/1.1 200 OK'],
}

for (const [mismatch, parts] of Object.entries(MISMATCHES)) {
  for (const maxBodyBytes of [MiB, 10]) {
    test(`a source that ${mismatch}, against its content-length, is one that failed: ${maxBodyBytes} bytes are kept`, async (t) => {
      const events = collectEvents(t)
      let runs = 0
      const app = await oneRoute(
        t,
        (_request, reply) => {
          runs += 1
          reply.header('content-length', '10')
          return reply.send(Readable.from(runs === 1 ? parts : ['abcde', 'fghij']))
        },
        { maxBodyBytes },
      )
      const port = await listen(app)
      const key = newKey()
      const text = postText('/report', keyLine(key))
      const first = await exchangeBytes(t, port, text)
      t.not(first.statusCode === 200 && first.body.length >= 10, true, 'no complete response')
      t.match(await events.first('released'), { why: /content-length/ })
      t.equal((await recordOf(database, key))?.status, 'released')
      const second = await exchangeBytes(t, port, text)
      t.equal(second.body.toString(), 'abcdefghij')
      const retry = await exchangeBytes(t, port, text)
      t.match(retry.head, /idempotent-replayed: true/)
      t.match(retry.head, /content-length: 10/)
      t.equal(retry.body.toString(), 'abcdefghij')
      t.equal(runs, 2)
    })
  }
}

test('a stream past the limit that ends before its content-length breaks off, and is not made again', async (t) => {
  const app = await oneRoute(
    t,
    (_request, reply) => reply.header('content-length', '10').send(Readable.from(['abc', 'def'])),
    { maxBodyBytes: 5 },
  )
  const port = await listen(app)
  const text = postText('/report', keyLine(newKey()))
  t.ok((await exchangeBytes(t, port, text)).body.length < 10)
  t.match((await exchangeBytes(t, port, text)).body.toString(), 'IDEMPOTENCY_NOT_REPLAYABLE')
})

test('the replay of an empty stream is framed as its first response', async (t) => {
  const app = await oneRoute(t, () => Readable.from([]))
  const port = await listen(app)
  const text = postText('/report', keyLine(newKey()))
  const first = await exchangeBytes(t, port, text)
  const retry = await exchangeBytes(t, port, text)
  t.match(retry.head, /idempotent-replayed: true/)
  t.match(first.head, /content-length: 0/i)
  t.match(retry.head, /content-length: 0/i)
})

test('the content-length of a response that is sent without its body is no mismatch', async (t) => {
  const app = await oneRoute(t, (_request, reply) =>
    reply
      .code(304)
      .header('content-length', '10')
      .send(Readable.from(['abc'])),
  )
  const key = newKey()
  t.equal((await send(app, '/report', { key })).statusCode, 304)
  t.equal((await send(app, '/report', { key })).headers['idempotent-replayed'], 'true')
})

test('what a source does with a buffer after it has passed it on changes nothing', async (t) => {
  const events = collectEvents(t)
  async function* reusing() {
    const buffer = Buffer.alloc(4)
    for (const text of ['1111', '2222', '3333']) {
      buffer.write(text)
      yield buffer
      await new Promise((resolve) => setImmediate(resolve))
    }
    buffer.fill(0)
  }
  const app = await oneRoute(t, (_request, reply) =>
    reply.header('content-length', '12').send(Readable.from(reusing())),
  )
  const key = newKey()
  t.equal((await send(app, '/report', { key })).body, '111122223333')
  await events.first('completed')
  t.equal((await send(app, '/report', { key })).body, '111122223333')
})

for (const hasLength of [false, true]) {
  test(`HTTP/2, ${hasLength ? 'with' : 'without'} content-length: nobody has all of a stream before it is stored`, async (t) => {
    const pool = new WatchedPool(database)
    const storing = latch()
    const go = latch()
    const app = await buildApp(t, database, {
      plugin: { pool },
      server: { http2: true } as never,
      routes: (app) =>
        app.post('/report', (_request, reply) => {
          if (hasLength) reply.headers(withLength)
          return reply.send(Readable.from(pieces(FILE)))
        }),
    })
    pool.before = async (name) => {
      if (name !== 'fi_finish') return
      storing.open()
      await go.opened
    }
    const session = connectHttp2(`http://127.0.0.1:${await listen(app)}`)
    t.teardown(() => session.close())
    const key = newKey()
    const post = () => {
      const headers = { 'idempotency-key': key, 'content-type': 'application/json' }
      const stream = session.request({ ':method': 'POST', ':path': '/report', ...headers })
      stream.end('{}')
      return stream
    }
    let hasEnded = false
    const stream = post()
    const answer = stream.toArray().then((chunks) => {
      hasEnded = true
      return Buffer.concat(chunks)
    })
    await storing.opened
    for (let turn = 0; turn < 5; turn += 1) {
      await new Promise((resolve) => session.ping(resolve))
    }
    t.notOk(hasEnded, 'the client waits for the rest')
    go.open()
    t.ok((await answer).equals(FILE))
    t.ok(Buffer.concat(await post().toArray()).equals(FILE))
  })
}

test('what is read ahead of a client takes little more memory than its bytes', async (t) => {
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')
  const stored = latch()
  async function* parts() {
    // Each a small part of what its source has read.
    for (let n = 0; n < 4_000; n += 1) yield Buffer.alloc(64 * 1024, n).subarray(0, 100)
  }
  collect()
  const before = process.memoryUsage().arrayBuffers
  const out = recordStream(Readable.from(parts()), {
    limit: MiB,
    passableBytes: () => Number.POSITIVE_INFINITY,
    record: async (body) => {
      t.equal(body?.byteLength, 400_000)
      stored.open()
    },
    onError: async (error) => void t.fail(String(error)),
  })
  await stored.opened
  collect()
  const grownBy = process.memoryUsage().arrayBuffers - before
  t.ok(grownBy < 64 * MiB, `${grownBy} bytes of the 250 MiB that were read`)
  t.equal(Buffer.concat(await out.toArray()).byteLength, 400_000)
})

/** Sources that fail before their first byte, each with the message `no report`. */
const FAILING_SOURCES: Record<string, (reply: FastifyReply) => unknown> = {
  'a generator that throws': () => Readable.from(failing()),
  'a stream that is destroyed when it is read': () =>
    new Readable({
      read() {
        this.destroy(new Error('no report'))
      },
    }),
  'a stream that has failed before it was sent': () => {
    const source = new PassThrough()
    source.on('error', () => {}).destroy(new Error('no report'))
    return source
  },
  'a web stream': () =>
    new ReadableStream({ pull: (controller) => controller.error(new Error('no report')) }),
  'a fetch Response': () =>
    new Response(
      new ReadableStream({ pull: (controller) => controller.error(new Error('no report')) }),
      { headers: { 'content-type': 'text/csv', location: '/report' } },
    ),
  'a stream with content-length': (reply) => {
    reply.header('content-length', '10')
    return Readable.from(failing('abc'))
  },
  'a file that is not there': () => createReadStream(`${folder}/no-such-file`),
}

async function* failing(...before: string[]) {
  yield* before
  throw new Error('no report')
}

type ErrorHandler = (error: Error, request: FastifyRequest, reply: FastifyReply) => unknown

const conflict: ErrorHandler = (_error, _request, reply) =>
  reply.code(409).send({ problem: 'no report' })

/** Error handlers of an application, and the statuses with which they answer. */
const ERROR_HANDLERS: Record<string, [status: number, handler: ErrorHandler]> = {
  'answers 409': [409, conflict],
  'answers 200': [200, (_error, _request, reply) => reply.code(200).send({ problem: 'no report' })],
  'answers 422 later': [
    422,
    async (_error, _request, reply) => {
      await new Promise((resolve) => setImmediate(resolve))
      return reply.code(422).type('text/plain').header('location', '/problem').send('no report')
    },
  ],
  'answers with a stream': [
    409,
    (_error, _request, reply) => reply.code(409).send(Readable.from(['no ', 'report'])),
  ],
  'answers 503': [503, (_error, _request, reply) => reply.code(503).send({ problem: 'later' })],
  'answers 401': [401, (_error, _request, reply) => reply.code(401).send({ problem: 'who?' })],
  throws: [
    500,
    () => {
      throw new Error('in the error handler')
    },
  ],
  'throws an error of 409': [
    409,
    () => {
      throw Object.assign(new Error('in the error handler'), { statusCode: 409 })
    },
  ],
  rejects: [
    500,
    async () => {
      await new Promise((resolve) => setImmediate(resolve))
      throw new Error('in the error handler')
    },
  ],
  'answers with a stream that fails': [
    500,
    (_error, _request, reply) => reply.code(200).send(Readable.from(failing())),
  ],
  'sends an error of 400': [
    400,
    (_error, _request, reply) => reply.send(Object.assign(new Error('again'), { statusCode: 400 })),
  ],
}

interface FailingSetup {
  source: (reply: FastifyReply) => unknown
  errorHandler?: ErrorHandler
  config?: RouteOptions
  before?: (app: FastifyInstance) => unknown
  more?: (app: FastifyInstance) => unknown
}

/** `/report` sends a stream that fails; `/thrown` is the same with a handler that throws. */
async function failingApp(
  t: Test,
  { source, errorHandler, config = {}, before, more }: FailingSetup,
) {
  const runs = { '/report': 0, '/thrown': 0 }
  const app = await buildApp(t, database, {
    ...(before && { before }),
    routes: withPing(async (app) => {
      await more?.(app)
      if (errorHandler) app.setErrorHandler(errorHandler)
      const options = { config: { idempotency: config } }
      app.post('/report', options, (_request, reply) => {
        runs['/report'] += 1
        return reply.type('text/csv').header('location', '/report').send(source(reply))
      })
      app.post('/thrown', options, (_request, reply) => {
        runs['/thrown'] += 1
        reply.type('text/csv').header('location', '/report')
        throw new Error('no report')
      })
    }),
  })
  return { app, runs }
}

const shownOf = ({ statusCode, headers, body }: Awaited<ReturnType<typeof send>>) => ({
  statusCode,
  body,
  ...Object.fromEntries(
    ['content-type', 'content-length', 'location', 'idempotent-replayed'].map((name) => [
      name,
      headers[name],
    ]),
  ),
})

for (const [handler, [status, errorHandler]] of Object.entries(ERROR_HANDLERS)) {
  for (const [source, make] of Object.entries(FAILING_SOURCES)) {
    // Each of both, and some together.
    if (source !== 'a generator that throws' && ![409, 503].includes(status)) continue
    const isStored = ![500, 503, 401].includes(status)
    test(`an error handler ${handler}, for ${source} as for a handler that throws: ${isStored ? 'stored' : 'released'}`, async (t) => {
      const events = collectEvents(t)
      const { app, runs } = await failingApp(t, { source: make, errorHandler })
      const answers: Record<string, unknown> = {}
      for (const url of ['/thrown', '/report'] as const) {
        const key = newKey()
        const first = await send(app, url, { key })
        const retry = await send(app, url, { key })
        t.equal(first.statusCode, status)
        t.equal(retry.headers['idempotent-replayed'], isStored ? 'true' : undefined)
        t.strictSame(
          { ...shownOf(retry), 'idempotent-replayed': undefined },
          { ...shownOf(first), 'idempotent-replayed': undefined },
        )
        t.equal(runs[url], isStored ? 1 : 2)
        const record = await recordOf(database, key)
        t.equal(record?.status, isStored ? 'completed' : 'released')
        answers[url] = shownOf(first)
      }
      t.strictSame(answers['/report'], answers['/thrown'])
      if (!isStored) {
        t.match(events.all.filter(({ kind }) => kind === 'released').at(-1), { why: /stream/ })
      }
    })
  }
}

test('Fastify’s own error handler answers for a stream that fails as for a handler that throws', async (t) => {
  for (const statusCode of [404, 500]) {
    const error = Object.assign(new Error('no report'), { statusCode })
    const { app, runs } = await failingApp(t, {
      source: () =>
        new Readable({
          read() {
            this.destroy(error)
          },
        }),
    })
    const key = newKey()
    const first = await send(app, '/report', { key })
    t.equal(first.statusCode, statusCode)
    t.equal((await send(app, '/report', { key })).body, first.body)
    t.equal(runs['/report'], statusCode === 404 ? 1 : 2)
  }
})

test('the error handler of a route answers for its stream', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/report', { errorHandler: conflict }, (_request, reply) => {
        runs += 1
        return reply.send(Readable.from(failing()))
      }),
  })
  const key = newKey()
  const first = await send(app, '/report', { key })
  const retry = await send(app, '/report', { key })
  t.equal(first.statusCode, 409)
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.equal(retry.body, first.body)
  t.equal(runs, 1)
})

test('while the error handler works on the failure of a stream, the key is held', async (t) => {
  const failed = latch()
  const go = latch()
  const { app, runs } = await failingApp(t, {
    source: () => Readable.from(failing()),
    errorHandler: async (_error, _request, reply) => {
      failed.open()
      await go.opened
      return reply.code(409).send({ problem: 'no report' })
    },
  })
  const key = newKey()
  const answering = begin(app, '/report', { key })
  await failed.opened
  t.match((await send(app, '/report', { key })).json(), { code: 'IDEMPOTENCY_IN_PROGRESS' })
  go.open()
  const first = await answering
  t.equal(first.statusCode, 409)
  const retry = await send(app, '/report', { key })
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.equal(retry.body, first.body)
  t.equal(runs['/report'], 1)
})

test('a client that leaves while the error handler works on the failure of a stream gets its answer by a retry', async (t) => {
  const events = collectEvents(t)
  const failed = latch()
  const left = latch()
  const { app, runs } = await failingApp(t, {
    source: () => Readable.from(failing()),
    errorHandler: async (_error, request, reply) => {
      request.raw.socket.once('close', () => left.open())
      failed.open()
      await left.opened
      await settle(port)
      return reply.code(409).send({ problem: 'no report' })
    },
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/report', keyLine(key)))
  await failed.opened
  socket.destroy()
  t.match(await events.first('completed'), { statusCode: 409 })
  t.match((await send(app, '/report', { key })).json(), { problem: 'no report' })
  t.equal(runs['/report'], 1)
})

test('a stream that fails once its client has left frees the key', async (t) => {
  const events = collectEvents(t)
  const began = latch()
  const left = latch()
  async function* failsLater() {
    began.open()
    await left.opened
    await settle(port)
    yield* failing()
  }
  const { app } = await failingApp(t, {
    source: () => Readable.from(failsLater()),
    errorHandler: conflict,
    more: (app) =>
      app.addHook('onRequest', async (request) => {
        request.raw.socket.once('close', () => left.open())
      }),
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/report', keyLine(key)))
  await began.opened
  socket.destroy()
  t.match(await events.first('released'), { why: /stream/ })
  t.equal((await recordOf(database, key))?.status, 'released')
})

test('a stream that fails after its first bytes is cut off and frees the key, whatever the error handler does', async (t) => {
  const arrived = latch()
  const { app, runs } = await failingApp(t, {
    source: () => Readable.from(failsLater()),
    errorHandler: conflict,
  })
  async function* failsLater() {
    yield 'first bytes'
    await arrived.opened
    throw new Error('no report')
  }
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/report', keyLine(key)))
  await once(socket, 'readable')
  arrived.open()
  const { statusCode, body } = await readAnswer(socket)
  t.equal(statusCode, 200)
  t.notMatch(body.toString(), /0\r\n\r\n$/)
  t.equal((await recordOf(database, key))?.status, 'released')
  await exchangeBytes(t, port, postText('/report', keyLine(key)))
  t.equal(runs['/report'], 2)
})

test('a stream that fails once its client has left frees the key, while the error handler works on that', async (t) => {
  const events = collectEvents(t)
  const began = latch()
  const called = latch()
  const go = latch()
  async function* failsLater() {
    began.open()
    await called.opened
    yield* failing()
  }
  const { app } = await failingApp(t, {
    source: () => Readable.from(failsLater()),
    // Fastify calls it because the response was closed too early.
    errorHandler: async (_error, _request, reply) => {
      called.open()
      await go.opened
      return reply.code(409).send({ problem: 'closed' })
    },
  })
  const port = await listen(app)
  const socket = await openSocket(t, port, postText('/report', keyLine(newKey())))
  await began.opened
  socket.destroy()
  t.match(await events.first('released'), { why: /stream/ })
  go.open()
})

test('a stream that fails after its first bytes has freed the key before its client knows', async (t) => {
  const pool = new WatchedPool(database)
  const arrived = latch()
  const storing = latch()
  const go = latch()
  async function* failsLater() {
    yield 'first bytes'
    await arrived.opened
    throw new Error('no report')
  }
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: withPing((app) =>
      app.post('/report', (_request, reply) => reply.send(Readable.from(failsLater()))),
    ),
  })
  pool.before = async (name) => {
    if (name !== 'fi_finish') return
    storing.open()
    await go.opened
  }
  const port = await listen(app)
  const socket = await openSocket(t, port, postText('/report', keyLine(newKey())))
  let isCut = false
  const cut = once(socket, 'close').then(() => {
    isCut = true
  })
  await once(socket, 'data')
  arrived.open()
  await storing.opened
  await settle(port)
  t.notOk(isCut)
  go.open()
  await cut
})

const COMPRESSING: Record<string, (app: FastifyInstance) => unknown> = {
  '@fastify/compress': (app) => app.register(compress, { threshold: 0 }),
  'a hook that compresses': (app) =>
    app.addHook('onSend', async (_request, reply, payload) => {
      if (reply.hasHeader('content-encoding')) return payload
      reply.header('content-encoding', 'gzip').removeHeader('content-length')
      const source = payload instanceof Readable ? payload : Readable.from([payload])
      return pipeline(source, createGzip(), () => {})
    }),
}

for (const place of ['before', 'more'] as const) {
  const where = place === 'before' ? 'in front of the plugin' : 'behind the plugin'

  for (const [name, add] of Object.entries(COMPRESSING)) {
    test(`a stream that fails with ${name} ${where}: the error is readable, and so is its replay`, async (t) => {
      const { app, runs } = await failingApp(t, {
        source: () => Readable.from(failing()),
        errorHandler: conflict,
        [place]: add,
      })
      for (const url of ['/thrown', '/report'] as const) {
        const key = newKey()
        const headers = { 'accept-encoding': 'gzip' }
        const first = await send(app, url, { key, headers })
        const retry = await send(app, url, { key, headers })
        for (const answer of [first, retry]) {
          t.equal(answer.statusCode, 409)
          t.equal(answer.headers['content-encoding'], 'gzip')
          t.match(answer.headers['content-type'], 'application/json')
          t.same(JSON.parse(gunzipSync(answer.rawPayload).toString()), { problem: 'no report' })
        }
        t.equal(retry.headers['idempotent-replayed'], 'true')
        t.equal(runs[url], 1)
      }
    })
  }

  test(`a stream that fails while a hook ${where} takes its time`, async (t) => {
    const source = new PassThrough()
    const { app, runs } = await failingApp(t, {
      source: () => source,
      errorHandler: conflict,
      [place]: (app: FastifyInstance) =>
        app.addHook('onSend', async (_request, reply, payload) => {
          if (!(payload instanceof Readable)) return payload
          const closed = latch()
          payload.on('error', () => {}).once('close', () => closed.open())
          source.destroy(new Error('no report'))
          await closed.opened
          reply.header('x-of-the-stream', 'yes')
          return payload
        }),
    })
    const key = newKey()
    const first = await send(app, '/report', { key })
    const retry = await send(app, '/report', { key })
    t.equal(first.statusCode, 409)
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.equal(retry.body, first.body)
    t.equal(runs['/report'], 1)
    // What a later hook has set for the stream is not for the error.
    t.equal(first.headers['x-of-the-stream'], place === 'before' ? 'yes' : undefined)
  })
}

test('a stream that fails and that a later hook has replaced frees the key once the response is out', async (t) => {
  const events = collectEvents(t)
  const { app, runs } = await failingApp(t, {
    source: () => Readable.from(failing()),
    errorHandler: conflict,
    more: (app) =>
      app.addHook('onSend', async (_request, _reply, payload) => {
        if (!(payload instanceof Readable)) return payload
        const closed = latch()
        payload.once('close', () => closed.open())
        await closed.opened
        return 'in its place'
      }),
  })
  const key = newKey()
  t.equal((await send(app, '/report', { key })).body, 'in its place')
  t.match(await events.first('released'), { why: /stream/ })
  await send(app, '/report', { key })
  t.equal(runs['/report'], 2)
})

test('a stream that fails and lost its lease gives out no answer of the error handler', async (t) => {
  const began = latch()
  const go = latch()
  async function* failsLater() {
    began.open()
    await go.opened
    yield* failing()
  }
  const { app } = await failingApp(t, {
    source: () => Readable.from(failsLater()),
    errorHandler: conflict,
  })
  const key = newKey()
  const answering = begin(app, '/report', { key })
  await began.opened
  await database.prisma.idempotencyRecord.update({
    where: { tenantId_key: { tenantId: '', key } },
    data: { attempt: { increment: 1 } },
  })
  go.open()
  t.match((await answering).json(), { code: 'IDEMPOTENCY_LEASE_LOST' })
  t.match(await recordOf(database, key), { attempt: 2, status: 'in_progress' })
})

test('what the handler sends after its stream has failed, and before that is answered, is ignored', async (t) => {
  const closed = latch()
  const sent = latch()
  let runs = 0
  const app = await buildApp(t, database, {
    routes(app) {
      app.setErrorHandler(conflict)
      app.addHook('onSend', async (_request, _reply, payload) => {
        if (!(payload instanceof Readable)) return payload
        payload.once('close', () => closed.open())
        await sent.opened
        return payload
      })
      app.post('/report', async (_request, reply) => {
        runs += 1
        reply.send(Readable.from(failing()))
        await closed.opened
        reply.code(201).send('second')
        sent.open()
        return reply
      })
    },
  })
  const key = newKey()
  t.equal((await send(app, '/report', { key })).statusCode, 409)
  const retry = await send(app, '/report', { key })
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.equal(retry.statusCode, 409)
  t.equal(runs, 1)
})

test('a later hook that sends a response in place of a stream keeps neither key nor source', async (t) => {
  for (const maxBodyBytes of [16 * MiB, MiB]) {
    const events = collectEvents(t)
    const closed = latch()
    const body = randomBytes(8 * MiB)
    const app = await buildApp(t, database, {
      routes(app) {
        app.addHook('onSend', async (_request, reply, payload) =>
          payload instanceof Readable ? reply.code(202).send('of the hook') : payload,
        )
        app.post('/report', { config: { idempotency: { maxBodyBytes } } }, (_request, reply) => {
          const source = Readable.from(pieces(body, 64 * 1024))
          source.once('close', () => closed.open())
          return reply.type('text/plain').send(source)
        })
      },
    })
    const port = await listen(app)
    const key = newKey()
    t.equal((await bodyOf(await post(port, key))).toString(), 'of the hook')
    await events.first('completed')
    await closed.opened
    const retry = await post(port, key)
    t.equal(retry.statusCode, maxBodyBytes === MiB ? 409 : 202)
    await bodyOf(retry)
  }
})
