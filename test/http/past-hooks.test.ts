// What a handler writes past Fastify, over HTTP/1.1 and HTTP/2, when its client leaves.
import type { ServerResponse } from 'node:http'
import { type ClientHttp2Stream, connect as connectHttp2 } from 'node:http2'
import type { Socket } from 'node:net'
import { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import t, { type Test, test } from 'tap'
import type { WebhookEvent } from '../../src/index.js'
import {
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
import { until } from '../fixtures/until.js'
import { eventOf } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

interface Version {
  readonly server: object
  /** Sends a request; returns what makes its client leave. */
  post(t: Test, port: number, url: string, key: string | undefined): Promise<() => void>
}

const VERSIONS: Record<string, Version> = {
  'HTTP/1.1': {
    server: {},
    async post(t, port, url, key) {
      const lines = key === undefined ? [] : [`idempotency-key: ${key}`]
      const socket: Socket = await openSocket(t, port, postText(url, lines))
      return () => socket.destroy()
    },
  },
  'HTTP/2': {
    server: { http2: true },
    async post(t, port, url, key) {
      const session = connectHttp2(`http://127.0.0.1:${port}`)
      t.teardown(() => session.destroy())
      const stream: ClientHttp2Stream = session.request({
        ...{ ':method': 'POST', ':path': url, 'content-type': 'application/json' },
        ...(key !== undefined && { 'idempotency-key': key }),
      })
      stream.on('error', () => {})
      stream.end('{}')
      return () => session.destroy()
    },
  },
}

type Handler = (reply: FastifyReply, left: Promise<void>, request: FastifyRequest) => unknown

interface Case {
  readonly handler: Handler
  /** What is told of the key when the handler has ended. */
  readonly told: 'completed' | 'released' | 'abandoned'
  /** The client stays. */
  readonly stays?: true
}

const begin = (raw: ServerResponse) => raw.writeHead(201).write('some')

/** A source that fails after so many pieces. */
const failing = (pieces: number) =>
  Readable.from(
    (function* () {
      for (let n = 0; n < pieces; n += 1) yield 'a piece'
      throw new Error('a mistake')
    })(),
  )

const CASES: Record<string, Case> = {
  'ends it': {
    async handler(reply, left) {
      begin(reply.hijack().raw)
      await left
      reply.raw.end('all')
    },
    told: 'completed',
  },
  'ends it, and then returns': {
    async handler(reply, left) {
      begin(reply.hijack().raw)
      await left
      reply.raw.end('all')
      await new Promise(setImmediate)
    },
    told: 'completed',
  },
  'begins and ends it after that': {
    async handler(reply, left) {
      reply.hijack()
      await left
      reply.raw.writeHead(201)
      reply.raw.end('all')
    },
    told: 'completed',
  },
  'refuses it after that': {
    async handler(reply, left) {
      reply.hijack()
      await left
      reply.raw.writeHead(503)
      reply.raw.end()
    },
    told: 'released',
  },
  'refuses it by a status': {
    async handler(reply, left) {
      reply.hijack()
      await left
      reply.raw.statusCode = 503
      reply.raw.end()
    },
    told: 'released',
  },
  'takes it after that': {
    async handler(reply, left) {
      await left
      begin(reply.hijack().raw)
      reply.raw.end('all')
    },
    told: 'completed',
  },
  throws: {
    async handler(reply, left) {
      begin(reply.hijack().raw)
      await left
      throw new Error('a mistake')
    },
    told: 'released',
  },
  'does not end it': {
    async handler(reply, left) {
      begin(reply.hijack().raw)
      await left
    },
    told: 'abandoned',
  },
  'has returned': {
    handler: (reply) => void begin(reply.hijack().raw),
    told: 'abandoned',
  },
  'calls back, takes it and ends it': {
    handler(reply, left) {
      void left.then(() => {
        begin(reply.hijack().raw)
        reply.raw.end('all')
      })
    },
    told: 'completed',
  },
  'calls back and ends it': {
    handler(reply, left) {
      void left.then(() => reply.raw.end('all'))
    },
    told: 'completed',
  },
  'returns a stream that fails': {
    async handler(_reply, left) {
      await left
      return failing(0)
    },
    told: 'released',
  },
  'returns a stream that fails later': {
    async handler(_reply, left) {
      await left
      return failing(3)
    },
    told: 'released',
  },
  'breaks it off itself': {
    async handler(reply) {
      begin(reply.hijack().raw)
      await new Promise(setImmediate)
      reply.raw.destroy()
    },
    told: 'abandoned',
    stays: true,
  },
  'answers after it has written past the hooks': {
    async handler({ raw }) {
      begin(raw)
      await new Promise(setImmediate)
      return 'more'
    },
    told: 'completed',
    stays: true,
  },
}

interface EventCase {
  /** `record` stores an event of this request; `leave` makes its client leave, and waits until it has left. */
  handler(
    reply: FastifyReply,
    record: () => Promise<WebhookEvent>,
    leave: () => Promise<void>,
  ): unknown
  /** What becomes of the event with a key, and without one. */
  readonly keyed: 'processed' | 'retrying'
  readonly unkeyed: 'processed' | 'retrying'
}

const EVENT_CASES: Record<string, EventCase> = {
  'before, and uses it after that': {
    async handler(reply, record, leave) {
      const event = await record()
      begin(reply.hijack().raw)
      await leave()
      await event.step('late', () => 1)
      reply.raw.end('all')
    },
    keyed: 'processed',
    unkeyed: 'retrying',
  },
  'after that, and ends the response': {
    async handler(reply, record, leave) {
      await leave()
      await record()
      begin(reply.hijack().raw)
      reply.raw.end('all')
    },
    keyed: 'processed',
    unkeyed: 'processed',
  },
  'after that, and refuses': {
    async handler(reply, record, leave) {
      await leave()
      await record()
      reply.hijack().raw.writeHead(503)
      reply.raw.end()
    },
    keyed: 'retrying',
    unkeyed: 'retrying',
  },
  'after that, and throws': {
    async handler(reply, record, leave) {
      await leave()
      await record()
      begin(reply.hijack().raw)
      throw new Error('a mistake')
    },
    keyed: 'retrying',
    unkeyed: 'retrying',
  },
  'after that, and returns a stream': {
    async handler(_reply, record, leave) {
      await leave()
      await record()
      return Readable.from(['all'])
    },
    keyed: 'processed',
    unkeyed: 'retrying',
  },
  'after that, and returns a stream that fails': {
    async handler(_reply, record, leave) {
      await leave()
      await record()
      return failing(1)
    },
    keyed: 'retrying',
    unkeyed: 'retrying',
  },
  'after that, and returns an answer': {
    async handler(_reply, record, leave) {
      await leave()
      await record()
      return 'all'
    },
    keyed: 'processed',
    unkeyed: 'processed',
  },
}

for (const [version, { server, post }] of Object.entries(VERSIONS)) {
  for (const [name, { handler, ...expected }] of Object.entries(EVENT_CASES)) {
    for (const kind of ['keyed', 'unkeyed'] as const) {
      // Without a key, the handler's end is not known.
      if (kind === 'unkeyed' && name === 'after that, and throws') continue
      test(`${version}, ${kind}: the client leaves, and the handler records an event ${name}`, async (t) => {
        const began = latch()
        const left = latch()
        const eventId = newKey()
        const app = await buildApp(t, database, {
          server: server as never,
          routes: (app) =>
            app.post('/things', (request, reply) => {
              reply.raw.once('close', () => left.open())
              const leave = () => {
                began.open()
                return left.opened
              }
              const record = async () => {
                const recorded = await request.idempotency.recordEvent({
                  ...{ provider: 'own', eventId, payload: {} },
                })
                if (recorded.duplicate) throw new Error('it was not recorded before')
                return recorded.event
              }
              return handler(reply, record, leave)
            }),
        })
        const key = kind === 'keyed' ? newKey() : undefined
        const leave = await post(t, await listen(app), '/things', key)
        await began.opened
        leave()
        const found = await until(
          () => eventOf(database, eventId, '', 'own'),
          (row) => row?.status === expected[kind],
        )
        t.equal(found?.status, expected[kind])
      })
    }
  }

  for (const [name, { handler, told, stays }] of Object.entries(CASES)) {
    test(`${version}: the client ${stays ? 'stays' : 'leaves'}, and the handler ${name}`, async (t) => {
      const events = collectEvents(t)
      const began = latch()
      const left = latch()
      const go = latch()
      let runs = 0
      const app = await buildApp(t, database, {
        server: server as never,
        plugin: { drain: '100ms' },
        routes: (app) =>
          app.post('/things', (request, reply) => {
            runs += 1
            if (runs > 1) return reply.code(200).send('again')
            reply.raw.once('close', () => left.open())
            began.open()
            return handler(
              reply,
              left.opened.then(() => go.opened),
              request,
            )
          }),
      })
      const key = newKey()
      const leave = await post(t, await listen(app), '/things', key)
      await began.opened
      if (!stays) leave()
      if (!stays) await left.opened
      if (told !== 'abandoned' && !stays) {
        t.equal((await recordOf(database, key))?.status, 'in_progress')
        t.equal((await send(app, '/things', { key })).statusCode, 409)
      }
      go.open()
      await events.first(told)
      const retry = await send(app, '/things', { key })
      if (told === 'released') t.equal(retry.body, 'again')
      else t.equal(retry.statusCode, 409)
      const code = told === 'completed' ? 'NOT_REPLAYABLE' : 'IN_PROGRESS'
      if (told !== 'released') t.match(retry.json(), { code: `IDEMPOTENCY_${code}` })
      t.equal(runs, told === 'released' ? 2 : 1)
    })
  }

  test(`${version}: a client that leaves before its handler has begun: it does not begin`, async (t) => {
    const events = collectEvents(t)
    const pool = new WatchedPool(database)
    const asked = latch()
    const left = latch()
    const go = latch()
    pool.before = async (name) => {
      if (name !== 'fi_insert') return
      asked.open()
      await go.opened
    }
    let runs = 0
    const app = await buildApp(t, database, {
      server: server as never,
      plugin: { pool },
      before: (app) =>
        app.addHook('onRequest', async (_request, reply) => {
          reply.raw.once('close', () => left.open())
        }),
      routes: (app) => app.post('/things', () => ({ run: ++runs })),
    })
    const key = newKey()
    const leave = await post(t, await listen(app), '/things', key)
    await asked.opened
    leave()
    await left.opened
    go.open()
    await events.first('released')
    t.equal(runs, 0)
    t.same((await send(app, '/things', { key })).json(), { run: 1 })
  })

  test(`${version}: a timeout after the handler has written past the hooks ends no process`, async (t) => {
    const events = collectEvents(t)
    const errors: unknown[] = []
    const onError = (error: unknown) => errors.push(error)
    process.on('unhandledRejection', onError)
    t.teardown(() => process.off('unhandledRejection', onError))
    const left = latch()
    const app = await buildApp(t, database, {
      server: { ...server, handlerTimeout: 20 } as never,
      routes: (app) =>
        app.post('/things', async (_request, reply) => {
          reply.raw.once('close', () => left.open())
          begin(reply.raw)
          // Fastify breaks the response off at its timeout, or does not in HTTP/1.1.
          await Promise.race([left.opened, new Promise((resolve) => setTimeout(resolve, 200))])
          reply.raw.end('all')
        }),
    })
    const key = newKey()
    await post(t, await listen(app), '/things', key)
    await Promise.race([events.first('completed'), events.first('released')])
    await new Promise(setImmediate)
    t.same(errors, [])
  })
}

test('HTTP/2: a stream that fails after its first byte does not end like a whole one', async (t) => {
  const app = await buildApp(t, database, {
    server: { http2: true } as never,
    routes: (app) => app.post('/things', () => failing(3)),
  })
  const session = connectHttp2(`http://127.0.0.1:${await listen(app)}`)
  t.teardown(() => session.destroy())
  const stream = session.request({
    ...{ ':method': 'POST', ':path': '/things', 'content-type': 'application/json' },
    'idempotency-key': newKey(),
  })
  stream.end('{}')
  await t.rejects(stream.toArray())
  t.equal(stream.rstCode, 2)
})
