// How the answer of a request says how the events that it has recorded ended: streams, errors, and
// answers that are sent twice, on routes with and without an Idempotency-Key.
import { once } from 'node:events'
import { connect, constants } from 'node:http2'
import { PassThrough, Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest, onSendHookHandler } from 'fastify'
import t, { test } from 'tap'
import { errors } from '../../src/index.js'
import {
  begin,
  buildApp,
  exchangeBytes,
  latch,
  listen,
  newKey,
  openSocket,
  postText,
  recordOf,
  WatchedPool,
  withoutDate,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { until } from '../fixtures/until.js'
import { eventOf } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

type Answer = (request: FastifyRequest, reply: FastifyReply) => unknown

interface Setup {
  answer: Answer
  /** Answers the second delivery, if that is none. */
  again?: Answer
  isProtected?: boolean
  errorHandler?: Parameters<FastifyInstance['setErrorHandler']>[0] | undefined
  before?: (app: FastifyInstance) => unknown
  pool?: WatchedPool
}

/** A route that records the event `body.id` and answers, and one that answers in the same way and records nothing. */
async function appOf(t: Parameters<typeof buildApp>[0], setup: Setup) {
  const { answer, again = () => 'done', isProtected = false, errorHandler, before, pool } = setup
  let runs = 0
  const app = await buildApp(t, database, {
    ...(pool && { plugin: { pool } }),
    routes(app) {
      if (errorHandler) app.setErrorHandler(errorHandler)
      app.addHook('onRequest', async (_request, reply) => {
        reply.header('date', 'x')
      })
      before?.(app)
      const config = { idempotency: isProtected && { required: true } }
      app.post('/plain', { config: { idempotency: false } }, async (request, reply) =>
        answer(request, reply),
      )
      app.post('/hook', { config }, async (request, reply) => {
        const { id } = request.body as { id: string }
        const { duplicate } = await request.idempotency.recordEvent({
          provider: 'own',
          eventId: id,
        })
        if (duplicate) return 'duplicate'
        runs += 1
        return (runs === 1 ? answer : again)(request, reply)
      })
    },
  })
  return { app, runs: () => runs, port: await listen(app) }
}

const statusOf = async (id: string) => (await eventOf(database, id, '', 'own'))?.status
const untilStatus = (id: string, status: string) =>
  until(
    () => statusOf(id),
    (found) => found === status,
  )

const request = (path: string, id: string, key = newKey()) =>
  postText(path, [`idempotency-key: ${key}`], JSON.stringify({ id }))

function failing(error: Error, first?: string): Readable {
  return new Readable({
    read() {
      if (first !== undefined && this.push(first)) setImmediate(() => this.destroy(error))
      else this.destroy(error)
    },
  })
}

const OWN = new errors.StepTooLate()
const OTHER = Object.assign(new Error('broken'), { statusCode: 502 })
const acknowledging: Setup['errorHandler'] = (_error, _request, reply) => {
  reply.code(200).send('acknowledged')
}

interface Case {
  name: string
  answer: Answer
  errorHandler?: Setup['errorHandler']
  isProcessed: boolean
  /** Whether its connection is cut. */
  isCut?: boolean
}

const CASES: Case[] = [
  { name: 'a stream', answer: () => Readable.from(['some ', 'parts']), isProcessed: true },
  { name: 'an empty stream', answer: () => Readable.from([]), isProcessed: true },
  {
    name: 'a stream of known length',
    answer: (_request, reply) =>
      reply.header('content-length', 10).send(Readable.from(['some ', 'parts'])),
    isProcessed: true,
  },
  {
    name: 'a stream with a status that has no body',
    answer: (_request, reply) => reply.code(204).send(Readable.from(['some'])),
    isProcessed: true,
  },
  {
    name: 'a stream with trailers',
    answer: (_request, reply) =>
      reply
        .trailer('x-sum', (_reply, _payload, done) => done(null, '1'))
        .send(Readable.from(['some ', 'parts'])),
    isProcessed: true,
  },
  {
    name: 'a web stream',
    answer: (_request, reply) => reply.send(new Response('some parts').body),
    isProcessed: true,
  },
  {
    name: 'a Response',
    answer: () => new Response('some parts', { status: 201, headers: { 'x-own': 'y' } }),
    isProcessed: true,
  },
  {
    name: 'a stream with a status that says it failed',
    answer: (_request, reply) => reply.code(503).send(Readable.from(['some ', 'parts'])),
    isProcessed: false,
  },
  {
    name: 'a stream that fails before its first byte',
    answer: (_request, reply) => reply.code(201).send(failing(OTHER)),
    isProcessed: false,
  },
  {
    name: 'a stream that fails with an error of the library',
    answer: () => failing(OWN),
    isProcessed: false,
  },
  {
    name: 'a stream that fails, and an error handler that acknowledges it',
    answer: (_request, reply) => reply.code(201).send(failing(OTHER)),
    errorHandler: acknowledging,
    isProcessed: true,
  },
  {
    name: 'a stream that fails, and an error handler that takes its time',
    answer: (_request, reply) => reply.code(201).send(failing(OTHER)),
    errorHandler: async (_error, _request, reply) => {
      await new Promise((resolve) => setTimeout(resolve, 20))
      return reply.code(503).send('not now')
    },
    isProcessed: false,
  },
  {
    name: 'a stream that fails, and an error handler that writes past the hooks',
    answer: (_request, reply) => reply.code(201).send(failing(OTHER)),
    errorHandler: (_error, _request, reply) => {
      reply.hijack()
      reply.raw.writeHead(500, { date: 'x', connection: 'close' }).end('broken')
    },
    isProcessed: false,
  },
  {
    name: 'a stream that fails with an error of the library, and an error handler that acknowledges it',
    answer: () => failing(OWN),
    errorHandler: acknowledging,
    isProcessed: false,
  },
  {
    name: 'an error of the library, and an error handler that acknowledges it',
    answer: () => {
      throw OWN
    },
    errorHandler: acknowledging,
    isProcessed: false,
  },
  {
    name: 'an error, and an error handler that acknowledges it',
    answer: () => {
      throw OTHER
    },
    errorHandler: acknowledging,
    isProcessed: true,
  },
  {
    name: 'a stream that fails after its first byte',
    answer: () => failing(OTHER, 'some '),
    isProcessed: false,
    isCut: true,
  },
  {
    name: 'a web stream that fails after its first byte',
    answer: (_request, reply) => reply.send(Readable.toWeb(failing(OTHER, 'some '))),
    isProcessed: false,
    isCut: true,
  },
  {
    name: 'a stream that is destroyed without an error',
    answer: () => {
      const stream = new PassThrough()
      stream.write('some ')
      setTimeout(() => stream.destroy(), 20)
      return stream
    },
    isProcessed: false,
    isCut: true,
  },
  {
    name: 'an answer that is sent and not returned',
    answer: (_request, reply) => {
      reply.code(201).send({ sent: true })
    },
    isProcessed: true,
  },
  {
    name: 'an answer that is sent, and then another value',
    answer: (_request, reply) => {
      reply.code(201).header('x-own', 'y').send({ sent: true })
      return 'ignored'
    },
    isProcessed: true,
  },
  {
    name: 'an answer that is sent, and then an error',
    answer: (_request, reply) => {
      reply.code(201).header('x-own', 'y').send({ sent: true })
      throw OTHER
    },
    isProcessed: true,
  },
  {
    name: 'an answer that is sent, and then another head',
    answer: (_request, reply) => {
      reply.code(201).header('x-own', 'y').send({ sent: true })
      reply.code(500)
    },
    isProcessed: true,
  },
  {
    name: 'an answer that is sent, and then one past the hooks',
    answer: (_request, reply) => {
      reply.code(201).send({ sent: true })
      reply.raw.end('past')
    },
    isProcessed: true,
    isCut: true,
  },
  {
    name: 'a refusal that is sent, and then an error',
    answer: (_request, reply) => {
      reply.code(422).send({ wrong: true })
      throw OTHER
    },
    isProcessed: false,
  },
  {
    name: 'two errors',
    answer: (_request, reply) => {
      reply.send(Object.assign(new Error('first'), { statusCode: 418 }))
      throw OTHER
    },
    isProcessed: false,
  },
  {
    name: 'a header that Node refuses',
    answer: (_request, reply) => reply.header('x-own', 'a\nb').send({ sent: true }),
    isProcessed: false,
  },
  {
    name: 'a header that Node refuses, and an error handler that acknowledges it',
    answer: (_request, reply) => reply.header('x-own', 'a\nb').send({ sent: true }),
    errorHandler: (_error, _request, reply) => {
      reply.removeHeader('x-own').code(200).send('acknowledged')
    },
    isProcessed: true,
  },
  {
    name: 'a stream with a header that Node refuses, and an error handler that sends another one',
    answer: (_request, reply) =>
      reply
        .code(201)
        .header('x-own', 'a\nb')
        .send(Readable.from(['some ', 'parts'])),
    errorHandler: (_error, _request, reply) => {
      reply
        .removeHeader('x-own')
        .code(202)
        .send(Readable.from(['other ', 'parts']))
    },
    isProcessed: true,
  },
  {
    name: 'a head that is written, and then a value',
    answer: (_request, reply) => {
      reply.raw.writeHead(202)
      return { sent: true }
    },
    isProcessed: false,
    isCut: true,
  },
  {
    name: 'a payload that Fastify refuses',
    answer: (_request, reply) => reply.type('text/plain').send({ sent: true }),
    isProcessed: false,
  },
]

/** Hooks behind the plugin's: what leaves behind them is the answer. */
const LATER: {
  name: string
  change: (reply: FastifyReply, payload: unknown) => unknown
  isProcessed: boolean
}[] = [
  {
    name: 'a later hook that throws',
    change: (reply) => {
      if (reply.statusCode < 400) throw OTHER
      return 'failed'
    },
    isProcessed: false,
  },
  {
    name: 'a later hook that makes a failure of it',
    change: (reply, payload) => {
      reply.code(500)
      return payload
    },
    isProcessed: false,
  },
  {
    name: 'a later hook that sends a failure',
    change: (reply) => {
      if (reply.statusCode < 400) reply.code(500).send('failed')
      else return 'failed'
      return new Promise(() => {})
    },
    isProcessed: false,
  },
  {
    name: 'a later hook that sends a stream that fails',
    change: (reply) => (reply.statusCode < 400 ? failing(OTHER) : 'failed'),
    isProcessed: false,
  },
  {
    name: 'a later hook that sends a stream that fails late',
    change: () => failing(OTHER, 'some '),
    isProcessed: false,
  },
  {
    name: 'a later hook that sends something else',
    change: (reply) => {
      reply.code(202)
      return 'other'
    },
    isProcessed: true,
  },
  {
    name: 'a later hook that takes its time',
    change: async (_reply, payload) => {
      await new Promise((resolve) => setTimeout(resolve, 20))
      return payload
    },
    isProcessed: true,
  },
]

/** How hooks come to run behind the plugin's. */
const PLACES: Record<string, (app: FastifyInstance, hook: onSendHookHandler) => unknown> = {
  'of the application': (app, hook) => app.addHook('onSend', hook),
  'set on the route': (app, hook) =>
    app.addHook('onRoute', (route) => {
      route.onSend = [route.onSend ?? [], hook].flat()
    }),
  'wrapped around those of the route': (app, hook) =>
    app.addHook('onRoute', (route) => {
      const others = [route.onSend ?? []].flat()
      route.onSend = async function (request, reply, payload) {
        for (const other of others) await other.call(this, request, reply, payload, () => {})
        return hook.call(this, request, reply, payload, () => {})
      }
    }),
  'pushed onto the route': (app, hook) =>
    app.addHook('onRoute', (route) => {
      if (Array.isArray(route.onSend)) route.onSend.push(hook)
      else route.onSend = [hook]
    }),
}
const LATER_PLACES = Object.keys(PLACES).flatMap((where) =>
  LATER.map((later) => ({ where, ...later })),
)

for (const isProtected of [false, true]) {
  const route = isProtected ? 'protected' : 'unprotected'
  for (const { name, answer, errorHandler, isProcessed, isCut } of CASES) {
    test(`${name}, ${route}: ${isProcessed ? 'the event is processed' : 'the next delivery is no duplicate'}`, async (t) => {
      const { app, port } = await appOf(t, { answer, errorHandler, isProtected })
      const id = newKey()
      const given = await exchangeBytes(t, port, request('/hook', id))
      await untilStatus(id, isProcessed ? 'processed' : 'retrying')
      // What an error of the library is answered with, and a payload that cannot be sent, on a
      // protected route, has tests of its own.
      if (!isProtected && !isCut) {
        const plain = await exchangeBytes(t, port, request('/plain', id))
        t.equal(withoutDate(given), withoutDate(plain))
        t.equal(String(given.body), String(plain.body))
      }
      const options = { payload: { id }, headers: { 'idempotency-key': newKey() } }
      const again = await begin(app, '/hook', options)
      t.equal(again.body, isProcessed ? 'duplicate' : 'done')
      t.equal(await statusOf(id), 'processed')
    })
  }

  test(`a client that leaves a stream, ${route}`, async (t) => {
    const source = new PassThrough()
    const { app, port, runs } = await appOf(t, { answer: () => source, isProtected })
    const id = newKey()
    const key = newKey()
    const socket = await openSocket(t, port, request('/hook', id, key))
    source.write('some ')
    await once(socket, 'data')
    t.equal(await statusOf(id), 'processing')
    socket.destroy()
    if (isProtected) {
      // The source is read to its end, and its response recorded.
      source.end('parts')
      await untilStatus(id, 'processed')
      t.match(await recordOf(database, key), { status: 'completed' })
    } else {
      await once(source, 'close')
      await untilStatus(id, 'retrying')
    }
    await begin(app, '/hook', { payload: { id }, headers: { 'idempotency-key': newKey() } })
    t.equal(runs(), isProtected ? 1 : 2)
  })

  test(`a client that leaves before a stream is sent, ${route}`, async (t) => {
    const began = latch()
    const left = latch()
    const answer: Answer = async (_request, reply) => {
      reply.raw.once('close', () => left.open())
      began.open()
      await left.opened
      return Readable.from(['some ', 'parts'])
    }
    const { port } = await appOf(t, { answer, isProtected })
    const id = newKey()
    const socket = await openSocket(t, port, request('/hook', id))
    await began.opened
    socket.destroy()
    await untilStatus(id, isProtected ? 'processed' : 'retrying')
    t.pass()
  })

  for (const { where, name, change, isProcessed } of LATER_PLACES) {
    test(`${name}, ${where}, ${route}: ${isProcessed ? 'the event is processed' : 'the next delivery is no duplicate'}`, async (t) => {
      const hook: onSendHookHandler = async (request, reply, payload) =>
        request.url.endsWith('?change') ? change(reply, payload) : payload
      const before = (app: FastifyInstance) => PLACES[where]?.(app, hook)
      for (const answer of [() => ({ sent: true }), () => Readable.from(['some ', 'parts'])]) {
        const { port, app } = await appOf(t, { answer, isProtected, before })
        const id = newKey()
        await exchangeBytes(t, port, request('/hook?change', id))
        await untilStatus(id, isProcessed ? 'processed' : 'retrying')
        const options = { payload: { id }, headers: { 'idempotency-key': newKey() } }
        t.equal((await begin(app, '/hook', options)).body, isProcessed ? 'duplicate' : 'done')
      }
    })
  }

  test(`a stream that a later hook replaces, ${route}`, async (t) => {
    const before = (app: FastifyInstance) =>
      app.addHook('onSend', async (request, _reply, payload) => {
        if (!request.url.endsWith('?fail')) return payload
        throw Object.assign(new Error('later'), { statusCode: 500 })
      })
    const answer: Answer = () => Readable.from(['some ', 'parts'])
    const { port } = await appOf(t, { answer, isProtected, before })
    const id = newKey()
    const given = await exchangeBytes(t, port, request('/hook?fail', id))
    t.match(given.head, /^HTTP\/1.1 500 /)
    await untilStatus(id, 'retrying')
    t.pass()
  })

  test(`a stream that a later hook does not read, ${route}`, async (t) => {
    const before = (app: FastifyInstance) =>
      app.addHook('onSend', async (request, _reply, payload) =>
        request.url.endsWith('?other') ? 'other' : payload,
      )
    // More than waits between the source and the client.
    const answer: Answer = () => Readable.from(Array<string>(50).fill('x'.repeat(16_384)))
    const { port } = await appOf(t, { answer, isProtected, before })
    const id = newKey()
    t.equal(String((await exchangeBytes(t, port, request('/hook?other', id))).body), 'other')
    await untilStatus(id, 'processed')
  })

  for (const [name, length] of [
    ['chunked', undefined],
    ['of known length', 10],
  ] as const) {
    test(`a stream, ${name}, ends for its client once its event has ended, ${route}`, async (t) => {
      const pool = new WatchedPool(database)
      const asked = latch()
      const go = latch()
      pool.before = (name) => {
        if (name !== 'fi_event_end') return
        asked.open()
        return go.opened
      }
      const answer: Answer = (_request, reply) => {
        if (length !== undefined) reply.header('content-length', length)
        return reply.send(Readable.from(['some ', 'parts']))
      }
      const { port } = await appOf(t, { answer, isProtected, pool })
      const id = newKey()
      const socket = await openSocket(t, port, request('/hook', id))
      let given = ''
      socket.on('data', (data) => {
        given += data
      })
      await asked.opened
      // Longer than it takes for what is not held back.
      await new Promise((resolve) => setTimeout(resolve, 50))
      const [end, whole] =
        length === undefined
          ? ['\r\n0\r\n\r\n', /some .*parts.*\r\n0\r\n\r\n$/s]
          : ['parts', /some parts$/]
      t.notOk(given.includes(end))
      go.open()
      await once(socket, 'close')
      t.match(given, whole)
      t.equal(await statusOf(id), 'processed')
    })
  }
}

// Fastify answers the error in place of a stream that has not begun, and ignores it for one that has.
for (const [name, delayMs] of [
  ['that begins at once', 0],
  ['that begins late', 50],
] as const) {
  for (const isProtected of [false, true]) {
    test(`a stream ${name} is sent, and then an error, ${isProtected ? 'protected' : 'unprotected'}: the event agrees with the client`, async (t) => {
      const answer: Answer = (_request, reply) => {
        const stream = new PassThrough()
        if (delayMs === 0) stream.end('some parts')
        else setTimeout(() => stream.end('some parts'), delayMs)
        reply.code(201).send(stream)
        throw OTHER
      }
      const { port } = await appOf(t, { answer, isProtected })
      const id = newKey()
      const { head, body } = await exchangeBytes(t, port, request('/hook', id))
      const isProcessed = head.startsWith('HTTP/1.1 201')
      t.match(String(body), isProcessed ? 'some parts' : 'broken')
      if (isProtected) t.ok(isProcessed)
      await untilStatus(id, isProcessed ? 'processed' : 'retrying')
    })
  }
}

test('an answer that is sent and not returned is no second answer to warn of', async (t) => {
  const lines: { level: number; msg: string }[] = []
  const stream = { write: (line: string) => lines.push(JSON.parse(line)) }
  const app = await buildApp(t, database, {
    server: { logger: { level: 'warn', stream } },
    routes: (app) =>
      app.post('/hook', async (request, reply) => {
        const { id, value } = request.body as { id: string; value?: string }
        await request.idempotency.recordEvent({ provider: 'own', eventId: id })
        reply.send('sent')
        return value
      }),
  })
  t.equal((await begin(app, '/hook', { payload: { id: newKey() } })).body, 'sent')
  t.strictSame(lines, [])
  t.equal((await begin(app, '/hook', { payload: { id: newKey(), value: 'b' } })).body, 'sent')
  t.match(lines, [{ msg: /did you forget to "return reply"/ }])
})

test('a reply that was taken over before the event is recorded', async (t) => {
  for (const [status, isProcessed] of [
    [202, true],
    [500, false],
  ] as const) {
    const app = await buildApp(t, database, {
      routes: (app) =>
        app.post('/hook', async (request, reply) => {
          const { id } = request.body as { id: string }
          reply.hijack()
          const { duplicate } = await request.idempotency.recordEvent({
            provider: 'own',
            eventId: id,
          })
          reply.raw.writeHead(status, { connection: 'close' }).end(String(duplicate))
        }),
    })
    const id = newKey()
    const port = await listen(app)
    t.match(String((await exchangeBytes(t, port, request('/hook', id))).body), 'false')
    await untilStatus(id, isProcessed ? 'processed' : 'retrying')
  }
})

test('a reply that was taken over, and whose client left before anything was written', async (t) => {
  const began = latch()
  const { port } = await appOf(t, {
    answer: (_request, reply) => {
      reply.hijack()
      began.open()
    },
  })
  const id = newKey()
  const socket = await openSocket(t, port, request('/hook', id))
  await began.opened
  socket.destroy()
  await untilStatus(id, 'retrying')
  t.pass()
})

for (const [name, code] of [
  ['CANCEL', constants.NGHTTP2_CANCEL],
  ['NO_ERROR', constants.NGHTTP2_NO_ERROR],
] as const) {
  for (const isHijacked of [false, true]) {
    test(`HTTP/2: a client that leaves ${isHijacked ? 'a hijacked reply' : 'a stream'} with ${name}: the next delivery is no duplicate`, async (t) => {
      const source = new PassThrough()
      const app = await buildApp(t, database, {
        server: { http2: true } as object,
        routes: (app) =>
          app.post('/hook', async (request, reply) => {
            const { id } = request.body as { id: string }
            await request.idempotency.recordEvent({ provider: 'own', eventId: id })
            source.write('some ')
            if (!isHijacked) return source
            reply.hijack()
            source.pipe(reply.raw)
            return undefined
          }),
      })
      const session = connect(`http://127.0.0.1:${await listen(app)}`)
      t.teardown(() => session.destroy())
      const id = newKey()
      const posted = session.request({
        ':method': 'POST',
        ':path': '/hook',
        'content-type': 'application/json',
      })
      posted.end(JSON.stringify({ id }))
      await once(posted, 'data')
      posted.close(code)
      await untilStatus(id, 'retrying')
      t.pass()
    })
  }
}

test('an error that a later hook turns into a success: the event is processed', async (t) => {
  const { port } = await appOf(t, {
    answer: () => {
      throw OTHER
    },
    before: (app) =>
      app.addHook('onSend', async (_request, reply) => {
        reply.code(200)
        return 'acknowledged'
      }),
  })
  const id = newKey()
  t.match((await exchangeBytes(t, port, request('/hook', id))).head, /^HTTP\/1.1 200 /)
  await untilStatus(id, 'processed')
})

test('an event that is recorded too late is not processed, and says what to write', async (t) => {
  const pool = new WatchedPool(database)
  const answered = latch()
  let late: Promise<unknown> = Promise.resolve()
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) =>
      app.post('/hooks', (request, reply) => {
        const { id } = request.body as { id: string }
        late = request.idempotency.recordEvent({ provider: 'own', eventId: id })
        late.catch(() => {})
        pool.before = async () => {
          pool.before = () => {}
          reply.send('done')
          await answered.opened
        }
      }),
  })
  const id = newKey()
  t.equal((await begin(app, '/hooks', { payload: { id } })).body, 'done')
  answered.open()
  await t.rejects(late, {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message: /the next delivery is no duplicate: write await request\.idempotency\.recordEvent/,
  })
  await untilStatus(id, 'retrying')
})

test('an event that is recorded while the end of another is stored comes too late', async (t) => {
  const pool = new WatchedPool(database)
  const ending = latch()
  const over = latch()
  let late: Promise<unknown> = Promise.resolve()
  const [first, second] = [newKey(), newKey()]
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) =>
      app.post('/hooks', async (request) => {
        await request.idempotency.recordEvent({ provider: 'own', eventId: first })
        pool.before = async (name) => {
          if (name === 'fi_event_record') await ending.opened
          if (name !== 'fi_event_end') return
          ending.open()
          await over.opened
        }
        late = request.idempotency.recordEvent({ provider: 'own', eventId: second })
        late.catch(() => {})
        return 'done'
      }),
  })
  const answer = begin(app, '/hooks')
  await ending.opened
  await t.rejects(late, { message: /the next delivery is no duplicate/ })
  over.open()
  t.equal((await answer).body, 'done')
  await untilStatus(first, 'processed')
  await untilStatus(second, 'retrying')
})

test('a hook before the plugin that records an event is told to come after it', async (t) => {
  const app = await buildApp(t, database, {
    before: (app) =>
      app.addHook('onRequest', async (request) => {
        await request.idempotency.recordEvent({ provider: 'own', eventId: 'x' })
      }),
    routes: (app) => app.post('/hook', () => 'done'),
  })
  const answer = await begin(app, '/hook', {})
  t.equal(answer.json().code, 'IDEMPOTENCY_OPTION_INVALID')
  t.match(answer.json().detail, /register fastify-idempotency before it/)
})
