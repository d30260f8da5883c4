// Every way in which an atomic request can end other than by its answer being committed and read.
import { Readable } from 'node:stream'
import type { RouteHandlerMethod, RouteShorthandOptions } from 'fastify'
import t, { test } from 'tap'
import { onCrashPoint } from '../../src/crash-points.js'
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
  recordOf,
  send,
} from '../fixtures/app.js'
import { anotherProcess, effectOf, effects } from '../fixtures/atomic.js'
import type { Database } from '../fixtures/database.js'
import { type PostgresDatabase, postgresDatabase } from '../fixtures/postgres.js'
import { proxyTo } from '../fixtures/proxy.js'
import { missing } from '../fixtures/services.js'
import { until } from '../fixtures/until.js'

const skip = await missing('postgres')
const database = skip ? (undefined as never) : await postgresDatabase(t)

interface Setup extends RouteOptions {
  plugin?: object
  server?: object
  route?: RouteShorthandOptions
}

function atomicApp(
  t: Parameters<typeof buildApp>[0],
  on: Database,
  handler: RouteHandlerMethod,
  { plugin = {}, server = {}, route = {}, ...options }: Setup = {},
) {
  return buildApp(t, on, {
    plugin,
    server,
    routes: (app) =>
      app.post(
        '/things',
        { ...route, config: { idempotency: { atomic: true, ...options } } },
        handler,
      ),
  })
}

const keyLine = (key: string) => [`idempotency-key: ${key}`]

/** A log that is kept. */
function logger() {
  const lines: { level: number; msg: string }[] = []
  const stream = { write: (line: string) => void lines.push(JSON.parse(line)) }
  return { lines, server: { logger: { level: 'error', stream } } }
}

test('a handler that never ends: 503 when its time is over, and nothing is left', {
  skip,
}, async (t) => {
  const events = collectEvents(t)
  const on = await postgresDatabase(t, { max: 1 })
  const aborted = latch<unknown>()
  const tx = latch<{ payment: { count(): Promise<number> } }>()
  let runs = 0
  const app = await atomicApp(
    t,
    on,
    async ({ idempotency }) => {
      runs += 1
      const { signal } = idempotency
      signal.addEventListener('abort', () => aborted.open(signal.reason))
      await idempotency.tx.payment.create(effectOf(idempotency.key))
      if (runs > 1) return { run: runs }
      tx.open(idempotency.tx)
      return new Promise(() => {})
    },
    { atomic: { timeout: 500 } },
  )
  const port = await listen(app)
  const key = newKey()
  // A client's first query takes its time.
  await on.prisma.payment.create(effectOf('first'))
  const startedAt = performance.now()
  const answer = await exchangeBytes(t, port, postText('/things', keyLine(key)))
  t.ok(performance.now() - startedAt < 2_000)
  t.equal(answer.statusCode, 503)
  t.match(JSON.parse(answer.body.toString()), { code: 'IDEMPOTENCY_ATOMIC_TIMED_OUT' })
  t.match(answer.head.toLowerCase(), /retry-after: 1\r\n/)
  t.match(await aborted.opened, { code: 'IDEMPOTENCY_ATOMIC_TIMED_OUT' })
  await t.rejects(
    (await tx.opened).payment.count(),
    { code: 'IDEMPOTENCY_ATOMIC_TIMED_OUT' },
    'what it does later fails',
  )
  t.equal(await effects(on, key), 0, 'and the connection is free')
  t.same((await send(app, '/things', { key })).json(), { run: 2 })
  t.equal(await effects(on, key), 1)
  t.match(events.all[1], { kind: 'rolled_back', why: 'it took longer than its timeout' })
})

for (const [name, late] of Object.entries<(...call: Parameters<RouteHandlerMethod>) => unknown>({
  'is returned': () => 'late',
  'is sent': (_, reply) => void reply.code(201).header('x-late', 'a').send('late'),
  'is thrown': () => {
    throw new Error('late')
  },
})) {
  test(`an answer that ${name} too late does no harm`, { skip }, async (t) => {
    const over = latch()
    const app = await atomicApp(
      t,
      database,
      async (request, reply) => {
        const { signal, tx, key } = request.idempotency
        const isOver = new Promise((resolve) => signal.addEventListener('abort', resolve))
        // On a slow machine the time may be over before this is.
        await tx.payment.create(effectOf(key)).catch(() => {})
        await isOver
        setImmediate(() => over.open())
        return late.call(undefined as never, request, reply)
      },
      { atomic: { timeout: 500 } },
    )
    const key = newKey()
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 503)
    t.equal(answer.json().code, 'IDEMPOTENCY_ATOMIC_TIMED_OUT')
    await over.opened
    t.equal(await recordOf(database, key), null)
    t.equal(await effects(database, key), 0)
  })
}

test('a late answer does not mix with the one that is on its way', { skip }, async (t) => {
  const go = latch()
  const sent = latch()
  const app = await buildApp(t, database, {
    plugin: {},
    routes(app) {
      app.addHook('onSend', async () => {
        go.open()
        await sent.opened
      })
      const config = { idempotency: { atomic: { timeout: 500 } } }
      app.post('/things', { config }, async (_, reply) => {
        await go.opened
        reply.code(201).header('location', '/late').send('late')
        setImmediate(() => sent.open())
        return reply
      })
    },
  })
  const answer = await send(app, '/things', { key: newKey() })
  t.equal(answer.statusCode, 503)
  t.equal(answer.json().code, 'IDEMPOTENCY_ATOMIC_TIMED_OUT')
  t.equal(answer.headers['content-type'], 'application/problem+json')
  t.equal(answer.headers.location, undefined)
})

test('a query that hangs: the client hears at once, and the connection is free when the server ends it', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t, { max: 1 })
  const app = await atomicApp(
    t,
    on,
    async ({ idempotency: { tx, key } }) => {
      await tx.payment.create(effectOf(key))
      return tx.$queryRawUnsafe('SELECT pg_sleep(60)::text')
    },
    { atomic: { timeout: 200 } },
  )
  const key = newKey()
  const startedAt = performance.now()
  t.equal((await send(app, '/things', { key })).json().code, 'IDEMPOTENCY_ATOMIC_TIMED_OUT')
  t.equal(await effects(on, key), 0)
  t.ok(performance.now() - startedAt < 5_000, 'the pool of one serves again')
})

test('the server itself ends what a process that stands still has open', { skip }, async (t) => {
  const app = await atomicApp(
    t,
    database,
    ({ idempotency: { tx } }) =>
      tx.$queryRawUnsafe(`SELECT current_setting('statement_timeout') AS statement,
        current_setting('idle_in_transaction_session_timeout') AS idle`),
    { atomic: { timeout: '3s' } },
  )
  t.same((await send(app, '/things', { key: newKey() })).json(), [
    { statement: '3500ms', idle: '4s' },
  ])
  t.same((await send(app, '/things')).json(), [{ statement: '3500ms', idle: '4s' }])
  const [after] = await database.prisma.$queryRaw<[{ statement_timeout: string }]>`
    SHOW statement_timeout`
  t.equal(after.statement_timeout, '0', 'other transactions of the connection are left alone')
})

test('Fastify’s handlerTimeout undoes it', { skip }, async (t) => {
  const events = collectEvents(t)
  const go = latch()
  const late = latch<{ code?: string }>()
  let runs = 0
  const handler: RouteHandlerMethod = async ({ idempotency: { tx, key, signal } }) => {
    runs += 1
    await tx.payment.create(effectOf(key))
    if (runs > 1) return { run: runs }
    await go.opened
    t.ok(signal.aborted)
    await tx.payment.count().catch((error: { code: string }) => late.open(error))
    return 'late'
  }
  const app = await atomicApp(t, database, handler, { route: { handlerTimeout: 300 } })
  const patient = await atomicApp(t, database, handler)
  const key = newKey()
  const answer = await send(app, '/things', { key })
  t.equal(answer.json().code, 'FST_ERR_HANDLER_TIMEOUT')
  t.equal(await effects(database, key), 0)
  go.open()
  t.match(await late.opened, { code: 'IDEMPOTENCY_ATOMIC_TIMED_OUT' })
  t.same((await send(patient, '/things', { key })).json(), { run: 2 })
  t.match(events.all[1], { kind: 'rolled_back', why: /handlerTimeout/ })
})

for (const [name, answer] of Object.entries<(...call: Parameters<RouteHandlerMethod>) => unknown>({
  'returns its answer': () => 'done',
  'returns nothing': () => undefined,
  'sends its answer later': (_, reply) => {
    setImmediate(() => reply.send('done'))
    return reply
  },
})) {
  test(`a client that leaves in the middle: a handler that ${name} is finished, and a retry replayed`, {
    skip,
  }, async (t) => {
    const events = collectEvents(t)
    const began = latch()
    const left = latch()
    const go = latch()
    let runs = 0
    const app = await atomicApp(t, database, async (request, reply) => {
      runs += 1
      await request.idempotency.tx.payment.create(effectOf(request.idempotency.key))
      reply.raw.once('close', () => left.open())
      began.open()
      await go.opened
      return answer.call(undefined as never, request, reply)
    })
    const port = await listen(app)
    const key = newKey()
    const socket = await openSocket(t, port, postText('/things', keyLine(key)))
    await began.opened
    socket.destroy()
    await left.opened
    go.open()
    await events.first('completed')
    const retry = await exchangeBytes(t, port, postText('/things', keyLine(key)))
    t.equal(retry.statusCode, 200)
    t.equal(retry.body.toString(), name === 'returns nothing' ? '' : 'done')
    t.equal(runs, 1)
    t.equal(await effects(database, key), 1)
  })
}

test('a client that leaves before it began: nothing runs', { skip }, async (t) => {
  const on = await postgresDatabase(t, { max: 1 })
  const events = collectEvents(t)
  const asked = latch()
  const left = latch()
  let runs = 0
  const app = await buildApp(t, on, {
    plugin: {},
    routes(app) {
      app.addHook('preHandler', async (_, reply) => {
        reply.raw.once('close', () => left.open())
        asked.open()
      })
      app.post('/things', { config: { idempotency: { atomic: true } } }, () => ({ run: ++runs }))
    },
  })
  const port = await listen(app)
  const key = newKey()
  const holder = await on.pool.connect()
  const socket = await openSocket(t, port, postText('/things', keyLine(key)))
  await asked.opened
  socket.destroy()
  await left.opened
  holder.release()
  t.match(await events.first('rolled_back'), { why: /left.* before it ran/ })
  t.equal(runs, 0)
  await until(async () => (await send(app, '/things', { key })).body === '{"run":1}')
})

test('no connection becomes free: 503, and nothing ran', { skip }, async (t) => {
  const on = await postgresDatabase(t, { max: 1 })
  const events = collectEvents(t)
  let runs = 0
  const app = await atomicApp(t, on, () => ({ run: ++runs }), { atomic: { maxWait: 100 } })
  const holder = await on.pool.connect()
  const key = newKey()
  for (const call of [{ key }, {}]) {
    const answer = await send(app, '/things', call)
    t.equal(answer.json().code, 'IDEMPOTENCY_STORE_UNAVAILABLE')
    t.equal(answer.headers['retry-after'], '5')
  }
  t.match(events.all[0], { kind: 'store_unavailable', failure: { code: 'P2028' } })
  holder.release()
  t.equal(runs, 0)
  t.same((await send(app, '/things', { key })).json(), { run: 1 })
})

test('a database that hangs at the first look: 503 after storeTimeout, and nothing ran', {
  skip,
}, async (t) => {
  const proxy = await proxyTo(t, database.url)
  const on = anotherProcess(t, { ...database, url: proxy.url }, { max: 1 })
  let runs = 0
  const app = await atomicApp(t, on, () => ({ run: ++runs }), { plugin: { storeTimeout: 500 } })
  // So that there is a connection.
  await send(app, '/things', { key: newKey() })
  const before = runs
  proxy.pause()
  const answer = await send(app, '/things', { key: newKey() })
  t.equal(answer.json().code, 'IDEMPOTENCY_STORE_UNAVAILABLE')
  t.equal(runs, before)
  proxy.resume()
})

for (const [name, stream] of Object.entries<RouteHandlerMethod>({
  'a stream': () => Readable.from(['a', 'b']),
  'a web stream': () => new Blob(['ab']).stream(),
  'a fetch Response with a body': () => new Response('ab', { status: 201 }),
})) {
  test(`${name} is refused as an answer, and all is undone`, { skip }, async (t) => {
    let runs = 0
    const app = await atomicApp(t, database, async (request, reply) => {
      runs += 1
      await request.idempotency.tx.payment.create(effectOf(request.idempotency.key))
      return runs === 1 ? stream.call(app, request, reply) : { run: runs }
    })
    const key = newKey()
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 500)
    t.match(answer.json(), { code: 'IDEMPOTENCY_ATOMIC_STREAM', detail: /Return text, bytes/ })
    t.equal(await effects(database, key), 0)
    t.same((await send(app, '/things', { key })).json(), { run: 2 })
  })
}

test('a fetch Response without a body, and a header that cannot be sent', { skip }, async (t) => {
  const empty = await atomicApp(t, database, async ({ idempotency: { tx, key } }) => {
    await tx.payment.create(effectOf(key))
    return new Response(null, { status: 204 })
  })
  const key = newKey()
  t.equal((await send(empty, '/things', { key })).statusCode, 204)
  t.equal((await send(empty, '/things', { key })).statusCode, 204)
  t.equal(await effects(database, key), 1)

  const broken = await atomicApp(t, database, async ({ idempotency: { tx, key } }, reply) => {
    await tx.payment.create(effectOf(key))
    return reply.header('x-own', 'a\nb').send('x')
  })
  const other = newKey()
  t.equal((await send(broken, '/things', { key: other })).statusCode, 500)
  t.equal(await effects(database, other), 0)
})

test('an answer that cannot be made undoes it: by the schema, by an error that is sent', {
  skip,
}, async (t) => {
  const key = newKey()
  const ways: Record<string, [RouteHandlerMethod, RouteShorthandOptions]> = {
    'no JSON': [() => ({ n: 1n }), {}],
    'an error': [(_, reply) => reply.send(Object.assign(new Error('no'), { statusCode: 404 })), {}],
  }
  for (const [name, [answer, route]] of Object.entries(ways)) {
    const app = await atomicApp(
      t,
      database,
      async (request, reply) => {
        await request.idempotency.tx.payment.create(effectOf(key))
        return answer.call(app, request, reply)
      },
      { route },
    )
    t.ok((await send(app, '/things', { key })).statusCode >= 400, name)
    t.equal(await effects(database, key), 0, name)
    t.equal(await recordOf(database, key), null, name)
  }
})

for (const [name, past] of Object.entries<RouteHandlerMethod>({
  hijack: (_, reply) => {
    reply.hijack()
    reply.raw.end('past')
  },
  'reply.raw': (_, reply) => {
    reply.raw.end('past')
  },
  'hijack, with the end later': (_, reply) => {
    reply.hijack()
    setImmediate(() => reply.raw.end('past'))
  },
  'reply.raw, and an answer after that': (_, reply) => {
    reply.raw.writeHead(200)
    reply.raw.write('past')
    setImmediate(() => reply.raw.destroy())
    return 'x'
  },
  'reply.raw, and reply.send after that': (_, reply) => {
    reply.raw.write('past')
    return reply.send('x')
  },
})) {
  test(`a response past the hooks undoes it, and the log says so: ${name}`, { skip }, async (t) => {
    const events = collectEvents(t)
    const { lines, server } = logger()
    const app = await atomicApp(
      t,
      database,
      async (request, reply) => {
        await request.idempotency.tx.payment.create(effectOf(request.idempotency.key))
        return past.call(app, request, reply)
      },
      { server },
    )
    const port = await listen(app)
    const key = newKey()
    await exchangeBytes(t, port, postText('/things', keyLine(key)))
    t.match(await events.first('rolled_back'), { why: 'its response was written past the hooks' })
    t.ok(lines.some(({ level, msg }) => level === 50 && /past the hooks.*rolled back/.test(msg)))
    t.equal(await effects(database, key), 0)
    t.equal(await recordOf(database, key), null)
  })
}

test('a failed query that the handler swallowed is never a success, with a key or without', {
  skip,
}, async (t) => {
  const app = await atomicApp(t, database, async ({ idempotency: { tx, key } }, reply) => {
    const { id } = await tx.payment.create(effectOf(key ?? 'swallowed'))
    const data = { id, ...effectOf('swallowed').data }
    await tx.payment.create({ data }).catch(() => {})
    return reply.code(201).header('set-cookie', 'a=b').header('location', '/1').send('done')
  })
  for (const call of [{ key: newKey() }, {}]) {
    const answer = await send(app, '/things', call)
    t.equal(answer.statusCode, 500)
    t.match(answer.json(), { code: 'IDEMPOTENCY_ATOMIC_ABORTED', detail: /once\(…, \{ tx, find/ })
    t.equal(answer.headers['retry-after'], undefined, 'a mistake ends in the same way again')
    t.equal(answer.headers['set-cookie'], undefined)
    t.equal(answer.headers.location, undefined)
  }
  t.equal(await effects(database, 'swallowed'), 0)
})

// Each ends the transaction behind the back of Prisma. What comes after it would be committed alone.
for (const statements of [
  ['ROLLBACK'],
  ['rollback; '],
  ['/* all of it */ ABORT'],
  ['ROLLBACK', 'BEGIN'],
  ['ROLLBACK AND CHAIN'],
  ['COMMIT'],
  ['END'],
  ['COMMIT AND CHAIN'],
  ['COMMIT', 'BEGIN ISOLATION LEVEL SERIALIZABLE'],
]) {
  test(`a transaction that the handler ends itself is never a success: ${statements.join(', ')}`, {
    skip,
  }, async (t) => {
    const events = collectEvents(t)
    const on = await postgresDatabase(t)
    const app = await atomicApp(t, on, async ({ idempotency: { tx, key } }, reply) => {
      await tx.payment.create(effectOf(key))
      for (const statement of statements) await tx.$executeRawUnsafe(statement)
      return reply.code(201).header('set-cookie', 'a=b').header('location', '/1').send('done')
    })
    for (const key of [newKey(), undefined]) {
      const answer = await send(app, '/things', key === undefined ? {} : { key })
      t.equal(answer.statusCode, 500)
      t.match(answer.json(), {
        code: 'IDEMPOTENCY_TRANSACTION_ENDED',
        detail: /COMMIT or ROLLBACK/,
      })
      t.equal(answer.headers['retry-after'], undefined, 'a mistake ends in the same way again')
      t.equal(answer.headers['set-cookie'], undefined)
      t.equal(answer.headers.location, undefined)
      if (key !== undefined) t.equal(await recordOf(on, key), null, 'nothing is stored')
    }
    t.match(await events.first('not_confirmed'), {
      failure: { code: 'IDEMPOTENCY_TRANSACTION_ENDED' },
    })
    const { rows } = await on.pool.query(
      `SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'`,
    )
    t.same(rows, [], 'no transaction is left open')
  })
}

test('savepoints of the handler are its own', { skip }, async (t) => {
  const app = await atomicApp(t, database, async ({ idempotency: { tx, key } }) => {
    await tx.payment.create(effectOf(key))
    await tx.$executeRawUnsafe('SAVEPOINT one')
    await tx.payment.create(effectOf(key))
    await tx.$executeRawUnsafe('ROLLBACK TO SAVEPOINT one')
    await tx.$executeRawUnsafe('RELEASE SAVEPOINT one')
    return 'done'
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body, 'done')
  t.equal(await effects(database, key), 1)
  t.equal((await send(app, '/things', { key })).headers['idempotent-replayed'], 'true')
})

test('a query that is not awaited undoes it, and the error says so', { skip }, async (t) => {
  const go = latch()
  const app = await atomicApp(t, database, async ({ idempotency: { tx, key } }) => {
    await tx.payment.create(effectOf(key))
    void tx.$queryRawUnsafe('SELECT pg_sleep(0.05)::text').then(() => go.open())
    return 'x'
  })
  const key = newKey()
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 500)
  t.match(answer.json(), { code: 'IDEMPOTENCY_STEP_NOT_AWAITED', detail: /await/ })
  await go.opened
  t.equal(await effects(database, key), 0)
})

test('a query after the answer is refused, and does not undo what was answered', {
  skip,
}, async (t) => {
  const refused = latch<{ code?: string }>()
  const app = await atomicApp(t, database, async ({ idempotency: { tx, key } }, reply) => {
    await tx.payment.create(effectOf(key))
    reply.send('done')
    await tx.payment.create({ data: { id: 1 as never, ...effectOf(key).data } }).catch(refused.open)
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body, 'done')
  t.match(await refused.opened, { code: 'IDEMPOTENCY_STEP_TOO_LATE' })
  t.equal((await send(app, '/things', { key })).body, 'done')
  t.equal(await effects(database, key), 1)
})

/** Lets COMMIT of operations with this tenant fail, or wait for a lock that the test has. */
async function atCommit(on: PostgresDatabase, does: string): Promise<void> {
  await on.pool.query(`CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN ${does}; RETURN NULL; END $$`)
  await on.pool.query(`CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON payment
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit()`)
}

test('a COMMIT that fails is no success: 503, and the retry runs', { skip }, async (t) => {
  const events = collectEvents(t)
  const on = await postgresDatabase(t)
  await atCommit(on, `RAISE EXCEPTION 'no' USING ERRCODE = '23514'`)
  let runs = 0
  const app = await atomicApp(t, on, async ({ idempotency: { tx, key } }, reply) => {
    runs += 1
    await tx.payment.create(effectOf(key))
    return reply.code(201).send({ run: runs })
  })
  const key = newKey()
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 503)
  t.equal(answer.json().code, 'IDEMPOTENCY_NOT_CONFIRMED')
  t.equal(answer.headers['retry-after'], '1')
  t.equal(await recordOf(on, key), null)
  t.match(events.all[1], { kind: 'not_confirmed', attempt: 1, failure: { code: '23514' } })
  await on.pool.query('DROP TRIGGER at_commit ON payment')
  t.same((await send(app, '/things', { key })).json(), { run: 2 })
  t.equal(await effects(on, key), 1)
})

test('a connection that is cut before COMMIT arrives: 503, and the retry runs', {
  skip,
}, async (t) => {
  const proxy = await proxyTo(t, database.url)
  const handler: RouteHandlerMethod = async ({ idempotency: { tx, key } }) => {
    await tx.payment.create(effectOf(key))
    return 'done'
  }
  const app = await atomicApp(t, anotherProcess(t, { ...database, url: proxy.url }), handler)
  const other = await atomicApp(t, database, handler)
  const key = newKey()
  onCrashPoint((point) => point === 'atomic:recorded' && proxy.cut())
  t.teardown(() => onCrashPoint(undefined))
  const answer = await send(app, '/things', { key })
  t.equal(answer.json().code, 'IDEMPOTENCY_NOT_CONFIRMED')
  onCrashPoint(undefined)
  // The server may still be about to notice.
  await until(async () => (await send(other, '/things', { key })).body === 'done')
  t.equal(await effects(database, key), 1)
})

test('a connection that is cut when COMMIT has arrived: 503, and the retry is replayed', {
  skip,
}, async (t) => {
  const on = await postgresDatabase(t)
  await atCommit(on, 'PERFORM pg_advisory_xact_lock(1)')
  const proxy = await proxyTo(t, on.url)
  let runs = 0
  const handler: RouteHandlerMethod = async ({ idempotency: { tx, key } }) => {
    runs += 1
    await tx.payment.create(effectOf(key))
    return { run: runs }
  }
  const app = await atomicApp(t, anotherProcess(t, { ...on, url: proxy.url }), handler)
  const other = await atomicApp(t, on, handler)
  const holder = await on.pool.connect()
  await holder.query('SELECT pg_advisory_lock(1)')
  const key = newKey()
  const answering = begin(app, '/things', { key })
  await until(async () => {
    const { rows } = await holder.query(
      `SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
        AND query = 'COMMIT' AND wait_event_type = 'Lock'`,
    )
    return rows.length === 1
  })
  proxy.cut()
  t.equal((await answering).json().code, 'IDEMPOTENCY_NOT_CONFIRMED')
  t.equal(
    (await send(other, '/things', { key })).statusCode,
    409,
    'the database has not decided yet',
  )
  await holder.query('SELECT pg_advisory_unlock(1)')
  holder.release()
  await until(async () => (await send(other, '/things', { key })).statusCode === 200)
  t.equal((await send(other, '/things', { key })).headers['idempotent-replayed'], 'true')
  t.equal(runs, 1)
  t.equal(await effects(on, key), 1)
})

test('a network that is silent at COMMIT: 503 when the time is over, and the retry finds out', {
  skip,
}, async (t) => {
  const proxy = await proxyTo(t, database.url)
  const handler: RouteHandlerMethod = async ({ idempotency: { tx, key } }) => {
    await tx.payment.create(effectOf(key))
    return 'done'
  }
  const on = anotherProcess(t, { ...database, url: proxy.url })
  const app = await atomicApp(t, on, handler, { atomic: { timeout: '1s' } })
  const other = await atomicApp(t, database, handler)
  const key = newKey()
  onCrashPoint((point) => point === 'atomic:recorded' && proxy.pause())
  t.teardown(() => onCrashPoint(undefined))
  const startedAt = performance.now()
  const answer = await send(app, '/things', { key })
  t.ok(performance.now() - startedAt < 3_000, 'before the server gives the connection up')
  t.equal(answer.json().code, 'IDEMPOTENCY_NOT_CONFIRMED')
  onCrashPoint(undefined)
  t.equal((await send(app, '/things', { key })).statusCode, 409, 'it may yet be committed')
  proxy.resume()
  await until(async () => (await send(other, '/things', { key })).body === 'done')
  t.equal(await effects(database, key), 1)
})

test('a connection that is cut while the handler runs is his error, and nothing is kept', {
  skip,
}, async (t) => {
  const proxy = await proxyTo(t, database.url)
  const on = anotherProcess(t, { ...database, url: proxy.url })
  const app = await atomicApp(t, on, async ({ idempotency: { tx, key } }) => {
    await tx.payment.create(effectOf(key))
    proxy.cut()
    await tx.payment.create(effectOf(key))
    return 'done'
  })
  const key = newKey()
  t.ok((await send(app, '/things', { key })).statusCode >= 500)
  await until(async () => (await effects(database, key)) === 0)
  t.equal(await recordOf(database, key), null)
})

test('no connection is lost, whatever came of the requests', { skip }, async (t) => {
  const on = await postgresDatabase(t, { max: 2 })
  let n = 0
  const app = await atomicApp(
    t,
    on,
    async ({ idempotency: { tx, key } }, reply) => {
      await tx.payment.create(effectOf(key))
      n += 1
      if (n % 5 === 1) throw new Error('no')
      if (n % 5 === 2) return Readable.from(['x'])
      if (n % 5 === 3) return new Promise(() => {})
      return reply.code(n % 5 === 4 ? 503 : 201).send('x')
    },
    { atomic: { timeout: 50 } },
  )
  for (let round = 0; round < 10; round += 1) await send(app, '/things', { key: newKey() })
  await until(async () => on.pool.idleCount === on.pool.totalCount)
  const { rows } = await on.pool.query(
    `SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'`,
  )
  t.same(rows, [])
})
