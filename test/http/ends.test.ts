// Every way in which a request can end other than by its answer being read.
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { Readable } from 'node:stream'
import type { RouteHandlerMethod } from 'fastify'
import t, { test } from 'tap'
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

/** As time does it: the lease of whoever runs this operation is over. */
async function endLease(key: string) {
  await database.prisma.idempotencyRecord.updateMany({
    where: { key },
    data: { leaseUntil: new Date(0) },
  })
}

/** As another process does it once a lease is over. */
async function takeOver(key: string) {
  await database.prisma.idempotencyRecord.updateMany({
    where: { key },
    data: { attempt: { increment: 1 } },
  })
}

function keyLine(key: string) {
  return [`idempotency-key: ${key}`]
}

test('a client that disconnects while the handler runs: it goes on, and a retry replays its response', async (t) => {
  const events = collectEvents(t)
  const began = latch()
  const left = latch()
  const go = latch()
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async (request, reply) => {
        runs += 1
        request.raw.socket.once('close', () => left.open())
        began.open()
        await go.opened
        return reply.code(201).send({ run: runs, aborted: request.idempotency.signal.aborted })
      }),
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', keyLine(key)))
  await began.opened
  socket.destroy()
  await left.opened
  t.equal((await send(app, '/things', { key })).statusCode, 409, 'it still runs')
  go.open()
  t.match(await events.first('completed'), { statusCode: 201 })
  const retry = await exchangeBytes(t, port, postText('/things', keyLine(key)))
  t.equal(retry.statusCode, 201)
  t.equal(retry.body.toString(), '{"run":1,"aborted":false}')
  t.equal(runs, 1)
})

test('the same with a handler that answers by reply.send', async (t) => {
  const events = collectEvents(t)
  const answer = latch<() => void>()
  const left = latch()
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', (request, reply) => {
        runs += 1
        request.raw.socket.once('close', () => left.open())
        answer.open(() => void reply.send('late'))
      }),
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', keyLine(key)))
  const finish = await answer.opened
  socket.destroy()
  await left.opened
  // Fastify notices a closed connection a moment after the socket does.
  await new Promise((resolve) => setTimeout(resolve, 20))
  finish()
  await events.first('completed')
  t.equal((await send(app, '/things', { key })).body, 'late')
  t.equal(runs, 1)
})

test('the same with a handler that returns its reply, and answers later', async (t) => {
  const events = collectEvents(t)
  const answer = latch<() => void>()
  const left = latch()
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async (request, reply) => {
        runs += 1
        request.raw.socket.once('close', () => left.open())
        answer.open(() => reply.code(201).send({ run: runs }))
        return reply
      }),
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', keyLine(key)))
  const respond = await answer.opened
  socket.destroy()
  await left.opened
  t.equal((await send(app, '/things', { key })).statusCode, 409, 'it still runs')
  respond()
  t.match(await events.first('completed'), { statusCode: 201 })
  t.equal((await send(app, '/things', { key })).body, '{"run":1}')
  t.equal(runs, 1)
})

test('a client that disconnects before the handler runs: nothing is done, and the key is free', async (t) => {
  const events = collectEvents(t)
  const pool = new WatchedPool(database)
  const asked = latch()
  const left = latch()
  const go = latch()
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes(app) {
      app.addHook('preHandler', async (request) => {
        request.raw.socket.once('close', () => left.open())
      })
      app.post('/things', () => ({ run: ++runs }))
    },
  })
  pool.after = async (name) => {
    if (name !== 'fi_insert') return
    asked.open()
    await go.opened
  }
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', keyLine(key)))
  await asked.opened
  socket.destroy()
  await left.opened
  go.open()
  await events.first('released')
  t.equal(runs, 0)
  t.equal((await recordOf(database, key))?.status, 'released')
  t.same((await send(app, '/things', { key })).json(), { run: 1 })
})

test('a client that disconnects while waiting is waited for no longer, and disturbs nobody', async (t) => {
  const events = collectEvents(t)
  const pool = new WatchedPool(database)
  const began = latch()
  const go = latch()
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { pool, wait: '1m' },
    routes: (app) =>
      app.post('/things', async () => {
        runs += 1
        began.open()
        await go.opened
        return { run: runs }
      }),
  })
  const port = await listen(app)
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  const socket = await openSocket(t, port, postText('/things', keyLine(key)))
  await pool.untilAnswered('fi_insert', 2)
  socket.destroy()
  await events.first('busy')
  const asked = pool.asked.filter((name) => name === 'fi_insert').length
  const patient = begin(app, '/things', { key })
  go.open()
  t.same((await first).json(), { run: 1 })
  t.same((await patient).json(), { run: 1 })
  t.equal(runs, 1)
  t.ok(asked >= 2)
})

test('a hijacked reply that was written to its end: done, and not replayable', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const handlers: Record<string, RouteHandlerMethod> = {
    '/sync': (_request, reply) => {
      runs += 1
      reply.hijack()
      reply.raw.writeHead(200, { 'content-type': 'text/event-stream' })
      reply.raw.end('data: 1\n\n')
    },
    '/async': async (_request, reply) => {
      runs += 1
      reply.hijack()
      await new Promise((resolve) => setImmediate(resolve))
      reply.raw.end('data: 1\n\n')
    },
    '/later': (_request, reply) => {
      runs += 1
      reply.hijack()
      setImmediate(() => reply.raw.end('data: 1\n\n'))
    },
  }
  const app = await buildApp(t, database, {
    routes(app) {
      for (const [url, handler] of Object.entries(handlers)) app.post(url, handler)
    },
  })
  const port = await listen(app)
  for (const [n, url] of Object.keys(handlers).entries()) {
    runs = 0
    const key = newKey()
    const first = await exchangeBytes(t, port, postText(url, keyLine(key)))
    t.match(first.body.toString(), 'data: 1')
    t.match(await events.first('response_omitted', n + 1), { reason: 'written past the hooks' })
    await events.first('completed', n + 1)
    const retry = await exchangeBytes(t, port, postText(url, keyLine(key)))
    t.equal(retry.statusCode, 409, url)
    t.match(retry.body.toString(), 'IDEMPOTENCY_NOT_REPLAYABLE')
    t.equal(runs, 1)
  }
})

test('a hijacked reply under app.inject is recorded as one over HTTP', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', (_request, reply) => {
        runs += 1
        reply.hijack()
        reply.raw.write('data: 1\n\n')
        reply.raw.end('data: 2\n\n')
      }),
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body, 'data: 1\n\ndata: 2\n\n')
  await Promise.race([events.first('completed'), events.first('abandoned')])
  t.match((await send(app, '/things', { key })).json(), { code: 'IDEMPOTENCY_NOT_REPLAYABLE' })
  t.equal(runs, 1)
})

test('a hijacked reply that was broken off: nobody knows, so the lease runs out and a retry may run', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  let signal: AbortSignal | undefined
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', (request, reply) => {
        runs += 1
        signal ??= request.idempotency.signal
        reply.hijack()
        reply.raw.write('data: 1\n\n')
        if (runs === 2) reply.raw.end()
      }),
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', keyLine(key)))
  await once(socket, 'data')
  t.equal((await send(app, '/things', { key })).statusCode, 409)
  socket.destroy()
  await events.first('abandoned')
  t.equal(signal?.aborted, true)
  t.equal((await recordOf(database, key))?.status, 'in_progress')
  t.equal((await send(app, '/things', { key })).statusCode, 409, 'as long as the lease runs')
  await endLease(key)
  t.equal((await exchangeBytes(t, port, postText('/things', keyLine(key)))).statusCode, 200)
  t.equal(runs, 2)
})

test('a client that leaves before it has all of a hijacked reply that was ended: done', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', (_request, reply) => {
        runs += 1
        reply.hijack()
        reply.raw.end(Buffer.alloc(64 * 1024 * 1024))
      }),
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', keyLine(key)))
  await once(socket, 'data')
  socket.destroy()
  await events.first('completed')
  t.match((await send(app, '/things', { key })).json(), { code: 'IDEMPOTENCY_NOT_REPLAYABLE' })
  t.equal(runs, 1)
})

test('a hijacked reply with a status that is not kept frees the key', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', (_request, reply) => {
        runs += 1
        reply.hijack()
        reply.raw.writeHead(503).end('later')
      }),
  })
  const port = await listen(app)
  const key = newKey()
  t.equal((await exchangeBytes(t, port, postText('/things', keyLine(key)))).statusCode, 503)
  t.match(await events.first('released'), { why: 'status 503' })
  t.equal((await exchangeBytes(t, port, postText('/things', keyLine(key)))).statusCode, 503)
  t.equal(runs, 2)
})

test('a keepStatus that throws over a hijacked reply ends neither the process nor the key for good', async (t) => {
  const events = collectEvents(t)
  let fails = true
  const keepStatus = () => {
    if (fails) throw new Error('a mistake')
    return true
  }
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', { config: { idempotency: { keepStatus } } }, (_request, reply) => {
        reply.hijack()
        reply.raw.end('x')
      }),
  })
  const port = await listen(app)
  const key = newKey()
  await exchangeBytes(t, port, postText('/things', keyLine(key)))
  await Promise.race([
    events.first('abandoned'),
    events.first('released'),
    events.first('completed'),
  ])
  fails = false
  await endLease(key)
  t.equal((await send(app, '/things', { key, payload: [] })).statusCode, 422)
})

test('an answer after reply.raw.write() is not stored: done, and not replayable', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const answers: Record<string, () => unknown> = {
    '/text': () => 'x',
    '/stream': () => Readable.from(['x']),
  }
  const app = await buildApp(t, database, {
    routes(app) {
      for (const [url, answer] of Object.entries(answers)) {
        app.post(url, (_request, reply) => {
          runs += 1
          reply.raw.write('raw')
          return reply.send(answer())
        })
      }
    },
  })
  const port = await listen(app)
  for (const [n, url] of Object.keys(answers).entries()) {
    runs = 0
    const key = newKey()
    const first = await exchangeBytes(t, port, postText(url, keyLine(key)))
    t.match(first.body.toString(), 'raw')
    t.match(await events.first('response_omitted', n + 1), { reason: 'written past the hooks' })
    await events.first('completed', n + 1)
    const retry = await exchangeBytes(t, port, postText(url, keyLine(key)))
    t.equal(retry.statusCode, 409, url)
    t.match(retry.body.toString(), 'IDEMPOTENCY_NOT_REPLAYABLE')
    t.equal(runs, 1)
  }
})

test('an error after reply.raw.write() frees the key', async (t) => {
  const events = collectEvents(t)
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async (_request, reply) => {
        reply.raw.write('raw')
        throw new Error('after that')
      }),
  })
  const port = await listen(app)
  await exchangeBytes(t, port, postText('/things', keyLine(newKey())))
  t.match(await events.first('released'), { why: 'status 500' })
})

test('reply.raw.end() without hijack: done, and not replayable', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/sync', (_request, reply) => {
        runs += 1
        reply.raw.end('past the hooks')
      })
      app.post('/async', async (_request, reply) => {
        runs += 1
        reply.raw.end('past the hooks')
      })
      app.post('/reply', async (_request, reply) => {
        runs += 1
        reply.raw.end('past the hooks')
        return reply
      })
    },
  })
  const port = await listen(app)
  for (const [n, url] of ['/sync', '/async', '/reply'].entries()) {
    runs = 0
    const key = newKey()
    const first = await exchangeBytes(t, port, postText(url, keyLine(key)))
    t.match(first.body.toString(), 'past the hooks')
    await events.first('completed', n + 1)
    const retry = await exchangeBytes(t, port, postText(url, keyLine(key)))
    t.equal(retry.statusCode, 409, url)
    t.match(retry.body.toString(), 'IDEMPOTENCY_NOT_REPLAYABLE')
    t.equal(runs, 1)
  }
})

test('a handler that never answers: its signal is aborted, another attempt runs, its late answer is refused', async (t) => {
  const events = collectEvents(t)
  const aborted = latch<unknown>()
  const go = latch()
  const attempts: object[] = []
  const app = await buildApp(t, database, {
    plugin: { lease: '1s', maxRun: '1s' },
    routes: (app) =>
      app.post('/things', async (request, reply) => {
        const { attempt, resumed, signal } = request.idempotency
        attempts.push({ attempt, resumed })
        if (attempt === 1) {
          signal.addEventListener('abort', () => aborted.open(signal.reason))
          await go.opened
        }
        return reply
          .code(201)
          .header('location', `/things/${attempt}`)
          .header('set-cookie', 'a=b')
          .send({ attempt })
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key })
  t.match(await aborted.opened, { message: /maxRun/ })
  t.match(await events.first('lease_lost'), { attempt: 1 })
  await endLease(key)
  const second = await send(app, '/things', { key })
  t.equal(second.statusCode, 201)
  t.same(second.json(), { attempt: 2 })
  t.same(attempts, [
    { attempt: 1, resumed: false },
    { attempt: 2, resumed: true },
  ])
  const stored = await recordOf(database, key)
  go.open()
  const late = await first
  t.equal(late.statusCode, 409)
  t.equal(late.json().code, 'IDEMPOTENCY_LEASE_LOST')
  t.equal(late.headers['content-type'], 'application/problem+json')
  t.notOk('location' in late.headers)
  t.notOk('set-cookie' in late.headers)
  t.same(await recordOf(database, key), stored, 'the answer of the second attempt stands')
  const retry = await send(app, '/things', { key })
  t.equal(retry.body, second.body)
  t.equal(attempts.length, 2)
})

test('a late answer is the answer when nobody took over', async (t) => {
  const events = collectEvents(t)
  const app = await buildApp(t, database, {
    plugin: { lease: '1s', maxRun: '1s' },
    routes: (app) =>
      app.post('/things', async ({ idempotency }) => {
        await once(idempotency.signal, 'abort')
        return 'late'
      }),
  })
  const key = newKey()
  const first = await send(app, '/things', { key })
  t.equal(first.statusCode, 200)
  t.ok(events.kinds().includes('lease_lost'))
  t.equal((await send(app, '/things', { key })).body, 'late')
})

test('a handler that lost its lease and fails does not free the key of the one that has it', async (t) => {
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/things', async () => {
        began.open()
        await go.opened
        throw new Error('broken')
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  await takeOver(key)
  go.open()
  t.equal((await first).statusCode, 500)
  t.match(await recordOf(database, key), { attempt: 2, status: 'in_progress' })
  t.equal((await send(app, '/things', { key })).statusCode, 409)
})

test('a stream of a handler that lost its lease breaks off, and is not stored', async (t) => {
  const began = latch()
  const go = latch()
  const { Readable } = await import('node:stream')
  async function* parts() {
    yield 'first'
    began.open()
    await go.opened
    yield 'last'
  }
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things', (_request, reply) => reply.send(Readable.from(parts()))),
  })
  const port = await listen(app)
  const key = newKey()
  const socket = await openSocket(t, port, postText('/things', keyLine(key)))
  const answer = readAnswer(socket)
  await began.opened
  await takeOver(key)
  go.open()
  t.notMatch(
    (await answer).body.toString(),
    /0\r\n\r\n$/,
    'the client is not told that this was all',
  )
  t.match(await recordOf(database, key), { attempt: 2, status: 'in_progress' })
})

test('while the handler runs, its lease is renewed', async (t) => {
  const pool = new WatchedPool(database)
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { pool, lease: '1s', maxRun: '1m' },
    routes: (app) =>
      app.post('/things', async () => {
        began.open()
        await go.opened
        return 'ok'
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began.opened
  const before = await recordOf(database, key)
  await pool.untilAnswered('fi_extend', 2)
  const after = await recordOf(database, key)
  t.ok(before && after && after.leaseUntil > before.leaseUntil)
  t.equal(after?.attempt, 1)
  go.open()
  t.equal((await first).statusCode, 200)
})

test('a server that closes lets a running request finish, and stores its response', async (t) => {
  const began = latch()
  const closing = latch()
  const go = latch()
  let runs = 0
  const routes = (app: Awaited<ReturnType<typeof buildApp>>) => {
    app.addHook('preClose', async () => closing.open())
    app.post('/things', async (_request, reply) => {
      runs += 1
      began.open()
      await go.opened
      return reply.code(201).send({ run: runs })
    })
  }
  const server = { forceCloseConnections: false } as const
  const app = await buildApp(t, database, { server, routes })
  const port = await listen(app)
  const key = newKey()
  const answer = readAnswer(await openSocket(t, port, postText('/things', keyLine(key))))
  await began.opened
  const closed = app.close()
  await closing.opened
  go.open()
  t.equal((await answer).statusCode, 201)
  await closed
  t.equal((await recordOf(database, key))?.status, 'completed')
  const next = await buildApp(t, database, { routes })
  t.same((await send(next, '/things', { key })).json(), { run: 1 })
})

test('a server that closes gives a response that is being stored the time for it', async (t) => {
  const pool = new WatchedPool(database)
  const storing = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) => app.post('/things', () => 'done'),
  })
  pool.before = async (name) => {
    if (name !== 'fi_finish') return
    storing.open()
    await go.opened
  }
  const key = newKey()
  const answer = begin(app, '/things', { key })
  await storing.opened
  const closed = app.close()
  go.open()
  await closed
  t.equal((await recordOf(database, key))?.status, 'completed')
  t.equal((await answer).body, 'done')
})

test('a server that closes lets those go who wait for another process', async (t) => {
  const began = latch()
  const go = latch()
  const pool = new WatchedPool(database)
  const routes = (app: Awaited<ReturnType<typeof buildApp>>) =>
    app.post('/things', async () => {
      began.open()
      await go.opened
      return 'done'
    })
  const one = await buildApp(t, database, { routes })
  const other = await buildApp(t, database, {
    plugin: { pool, wait: '3s' },
    server: { forceCloseConnections: false },
    routes,
  })
  const key = newKey()
  const first = begin(one, '/things', { key })
  await began.opened
  const sockets: Socket[] = []
  const port = await listen(other)
  sockets.push(await openSocket(t, port, postText('/things', keyLine(key))))
  const answers = sockets.map(readAnswer)
  await pool.untilAnswered('fi_insert', 1)
  const startedAt = performance.now()
  await other.close()
  const tookMs = performance.now() - startedAt
  t.ok(tookMs < 1_500, `closed in ${Math.round(tookMs)} ms, and not in the 3 s of the wait`)
  for (const answer of answers) t.equal((await answer).statusCode, 409)
  go.open()
  t.equal((await first).statusCode, 200)
})

test('a server that closes around a handler that never answers leaves the key to its lease', async (t) => {
  const events = collectEvents(t)
  const began = latch<AbortSignal>()
  const app = await buildApp(t, database, {
    // Over before the heartbeat: what it has sent by then would come after the end of the lease below.
    plugin: { drain: '100ms' },
    routes: (app) =>
      app.post('/things', ({ idempotency }) => {
        began.open(idempotency.signal)
        return new Promise(() => {})
      }),
  })
  const port = await listen(app)
  const key = newKey()
  await openSocket(t, port, postText('/things', keyLine(key)))
  const signal = await began.opened
  await app.close()
  t.equal(signal.aborted, true)
  t.match(await events.first('abandoned'), { attempt: 1 })
  t.equal((await recordOf(database, key))?.status, 'in_progress')
  await endLease(key)
  const next = await buildApp(t, database, { routes: (app) => app.post('/things', () => 'again') })
  t.equal((await send(next, '/things', { key })).body, 'again')
})
