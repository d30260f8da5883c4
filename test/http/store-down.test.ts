// A database that is down, slow, or comes back.
import { PrismaPg } from '@prisma/adapter-pg'
import pg from 'pg'
import t, { test } from 'tap'
import { PrismaClient } from '../../prisma/generated/postgresql/client.js'
import type { RouteOptions } from '../../src/index.js'
import {
  begin,
  buildApp,
  collectEvents,
  latch,
  newKey,
  recordOf,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase, type Database } from '../fixtures/database.js'
import { type PostgresDatabase, postgresDatabase } from '../fixtures/postgres.js'
import { proxyTo, type TcpProxy } from '../fixtures/proxy.js'
import { missing } from '../fixtures/services.js'

const database = await anyDatabase(t)

/** An application that counts its handler's runs, on a pool that the test can break. */
async function watchedApp(
  t: Parameters<typeof buildApp>[0],
  plugin: RouteOptions & { storeTimeout?: number } = {},
) {
  const pool = new WatchedPool(database)
  const counted = { runs: 0 }
  const app = await buildApp(t, database, {
    plugin: { pool, ...plugin },
    routes: (app) => app.post('/things', () => ({ run: ++counted.runs })),
  })
  return { app, pool, counted }
}

function connectionRefused(): never {
  throw Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' })
}

test('a store that fails: 503 with Retry-After, and nothing is executed', async (t) => {
  const events = collectEvents(t)
  const { app, pool, counted } = await watchedApp(t)
  pool.before = connectionRefused
  const key = newKey()
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 503)
  t.equal(answer.json().code, 'IDEMPOTENCY_STORE_UNAVAILABLE')
  t.equal(answer.headers['content-type'], 'application/problem+json')
  t.ok(Number(answer.headers['retry-after']) >= 1)
  t.equal(counted.runs, 0)
  t.match(events.all, [
    {
      kind: 'store_unavailable',
      bypassed: false,
      failure: { code: 'ECONNREFUSED', hint: /cannot be reached/ },
    },
  ])
  pool.before = () => {}
  t.same((await send(app, '/things', { key })).json(), { run: 1 }, 'the key is free')
})

test('a request without a key needs no store', async (t) => {
  const { app, pool } = await watchedApp(t)
  pool.before = connectionRefused
  t.equal((await send(app, '/things')).statusCode, 200)
})

test('a store that is slow: 503 after storeTimeout, and nothing is executed', async (t) => {
  const { app, pool, counted } = await watchedApp(t, { storeTimeout: 50 })
  const go = latch()
  pool.before = () => go.opened
  const startedAt = performance.now()
  const answer = await send(app, '/things', { key: newKey() })
  t.equal(answer.statusCode, 503)
  t.ok(performance.now() - startedAt < 1_000)
  t.equal(counted.runs, 0)
  go.open()
})

test('a key that is granted too late is given back', async (t) => {
  const { app, pool, counted } = await watchedApp(t, { storeTimeout: 50 })
  const go = latch()
  pool.after = (name) => (name === 'fi_insert' ? go.opened : undefined)
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 503)
  go.open()
  await pool.untilAnswered('fi_forget', 1)
  t.equal(await recordOf(database, key), null)
  t.equal(counted.runs, 0)
  t.same((await send(app, '/things', { key })).json(), { run: 1 })
})

test('a takeover that is granted too late is given back', async (t) => {
  const { app, pool, counted } = await watchedApp(t, { storeTimeout: 50 })
  const key = newKey()
  await send(app, '/things', { key })
  await database.prisma.idempotencyRecord.updateMany({
    where: { key },
    data: { status: 'released' },
  })
  const go = latch()
  pool.after = (name) => (name === 'fi_take_over' ? go.opened : undefined)
  t.equal((await send(app, '/things', { key })).statusCode, 503)
  t.match(await recordOf(database, key), { status: 'in_progress', attempt: 2 })
  go.open()
  await pool.untilAnswered('fi_finish', 2)
  t.match(await recordOf(database, key), { status: 'released', attempt: 2 })
  t.equal(counted.runs, 1)
  t.same((await send(app, '/things', { key })).json(), { run: 2 })
})

test("onStoreError: 'bypass' runs the handler without protection, as the route's choice", async (t) => {
  const events = collectEvents(t)
  const pool = new WatchedPool(database)
  const seen: unknown[] = []
  const app = await buildApp(t, database, {
    plugin: { pool, storeTimeout: 50 },
    routes(app) {
      app.post('/careful', () => 'ran')
      app.post(
        '/open',
        { config: { idempotency: { onStoreError: 'bypass' } } },
        (request, reply) => {
          const { key, attempt, resumed, signal } = request.idempotency
          seen.push({ key, attempt, resumed, aborted: signal.aborted })
          return reply.code(201).send('ran')
        },
      )
    },
  })
  const go = latch()
  pool.before = () => go.opened
  const key = newKey()
  t.equal((await send(app, '/careful', { key })).statusCode, 503)
  for (let turn = 0; turn < 2; turn += 1) {
    const answer = await send(app, '/open', { key })
    t.equal(answer.statusCode, 201)
    t.equal(answer.body, 'ran')
    t.notOk('idempotent-replayed' in answer.headers)
  }
  const unprotected = { key: undefined, attempt: 0, resumed: false, aborted: false }
  t.same(seen, [unprotected, unprotected])
  t.match(
    events.all.map((event) => event.kind === 'store_unavailable' && event.bypassed),
    [false, true, true],
  )
  go.open()
})

test('a bad key, or a missing one, is refused also where the store may be bypassed', async (t) => {
  const { app, pool, counted } = await watchedApp(t, { onStoreError: 'bypass', required: true })
  pool.before = connectionRefused
  t.equal((await send(app, '/things')).statusCode, 400)
  t.equal((await send(app, '/things', { key: '"' })).statusCode, 400)
  t.equal(counted.runs, 0)
})

test('a response that cannot be stored reaches the client, an event says so, and storing goes on', async (t) => {
  const events = collectEvents(t)
  const { app, pool, counted } = await watchedApp(t, { storeTimeout: 1_000 })
  pool.before = (name) => (name === 'fi_finish' ? connectionRefused() : undefined)
  const key = newKey()
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 200)
  t.same(answer.json(), { run: 1 })
  t.match(await events.first('response_not_stored'), {
    attempt: 1,
    failure: { code: 'ECONNREFUSED' },
  })
  t.equal((await recordOf(database, key))?.status, 'in_progress')
  t.equal((await send(app, '/things', { key })).statusCode, 409, 'nobody else may run it meanwhile')
  pool.before = () => {}
  await pool.untilAnswered('fi_finish', 1)
  t.equal((await recordOf(database, key))?.status, 'completed')
  const retry = await send(app, '/things', { key })
  t.equal(retry.body, answer.body)
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.equal(counted.runs, 1)
})

test('a store that hangs while the response is stored holds the client no longer than storeTimeout', async (t) => {
  const events = collectEvents(t)
  const { app, pool, counted } = await watchedApp(t, { storeTimeout: 1_000 })
  const go = latch()
  pool.before = (name) => (name === 'fi_finish' ? go.opened : undefined)
  const key = newKey()
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 200)
  t.match(await events.first('response_not_stored'), { failure: { code: 'ETIMEDOUT' } })
  go.open()
  await pool.untilAnswered('fi_finish', 1)
  t.equal((await send(app, '/things', { key })).body, answer.body)
  t.equal(counted.runs, 1)
})

test('a response whose storing was not acknowledged is stored once, also when it is said again', async (t) => {
  const { app, pool, counted } = await watchedApp(t)
  let acknowledged = 0
  pool.after = (name) => {
    if (name !== 'fi_finish') return
    acknowledged += 1
    if (acknowledged === 1)
      throw Object.assign(new Error('Connection terminated'), { code: 'ECONNRESET' })
  }
  const key = newKey()
  const events = collectEvents(t)
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 200)
  await pool.untilAnswered('fi_finish', 1)
  t.notOk(events.kinds().includes('lease_lost'))
  t.equal((await send(app, '/things', { key })).body, answer.body)
  t.equal(counted.runs, 1)
})

test('a key that cannot be released does not keep the client from its answer', async (t) => {
  const events = collectEvents(t)
  const pool = new WatchedPool(database)
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) =>
      app.post('/things', () => {
        throw new Error('broken')
      }),
  })
  pool.before = (name) => (name === 'fi_finish' ? connectionRefused() : undefined)
  const answer = await send(app, '/things', { key: newKey() })
  t.equal(answer.statusCode, 500)
  t.match(await events.first('release_failed'), { attempt: 1, failure: { code: 'ECONNREFUSED' } })
})

test('a heartbeat that fails is tried again, and the signal is aborted only when the lease is over', async (t) => {
  const events = collectEvents(t)
  const pool = new WatchedPool(database)
  const began = latch<AbortSignal>()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { pool, lease: '1s', maxRun: '1m' },
    routes: (app) =>
      app.post('/things', async ({ idempotency }) => {
        began.open(idempotency.signal)
        await go.opened
        return 'done'
      }),
  })
  const key = newKey()
  const answer = begin(app, '/things', { key })
  const signal = await began.opened
  pool.before = connectionRefused
  await events.first('heartbeat_failed', 2)
  t.equal(signal.aborted, false)
  await events.first('lease_lost')
  t.equal(signal.aborted, true)
  pool.before = () => {}
  go.open()
  t.equal((await answer).body, 'done', 'nobody took over, so this is the answer')
  t.equal((await send(app, '/things', { key })).body, 'done')
})

test('a request that waits when the store goes down gets 503', async (t) => {
  const pool = new WatchedPool(database)
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { pool, wait: '1m' },
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
  const waiting = begin(app, '/things', { key })
  await pool.untilAnswered('fi_insert', 2)
  pool.before = (name) => (name === 'fi_insert' ? connectionRefused() : undefined)
  t.equal((await waiting).statusCode, 503)
  pool.before = () => {}
  go.open()
  t.equal((await first).body, 'done')
})

test('tables that are missing are said by their name and the command that adds them', async (t) => {
  const events = collectEvents(t)
  const { app, pool } = await watchedApp(t)
  pool.before = () => {
    throw Object.assign(new Error('relation does not exist'), { code: '42P01' })
  }
  t.equal((await send(app, '/things', { key: newKey() })).statusCode, 503)
  t.match(await events.first('store_unavailable'), {
    failure: { code: '42P01', hint: /prisma migrate deploy/ },
  })
})

/** The same database by way of a proxy, on connections of its own. */
async function throughProxy(
  t: Parameters<typeof buildApp>[0],
): Promise<{ there: PostgresDatabase; here: Database; proxy: TcpProxy }> {
  const there = await postgresDatabase(t as never)
  const proxy = await proxyTo(t, there.url)
  const pool = new pg.Pool({ connectionString: proxy.url, max: 5, connectionTimeoutMillis: 1_000 })
  pool.on('error', () => {})
  const prisma = new PrismaClient({ adapter: new PrismaPg(pool) })
  t.teardown(async () => {
    proxy.resume()
    await prisma.$disconnect()
    if (!pool.ended) await pool.end()
  })
  return { there, here: { kind: 'postgres', url: proxy.url, pool, prisma }, proxy }
}

const skip = await missing('postgres')

for (const path of ['the pool', 'Prisma alone']) {
  const plugin = path === 'the pool' ? {} : ({ pool: undefined } as never)

  test(`on ${path}: a database that goes down and comes back`, { skip }, async (t) => {
    const { there, here, proxy } = await throughProxy(t)
    let runs = 0
    const app = await buildApp(t, here, {
      plugin: { ...plugin, storeTimeout: 2_000 },
      routes: (app) => app.post('/things', () => ({ run: ++runs })),
    })
    const before = newKey()
    const during = newKey()
    const first = await send(app, '/things', { key: before })
    t.equal(first.statusCode, 200)
    proxy.cut()
    for (const key of [before, during]) {
      const answer = await send(app, '/things', { key })
      t.equal(answer.statusCode, 503)
      t.ok(answer.headers['retry-after'])
    }
    t.equal(runs, 1)
    proxy.resume()
    t.equal((await send(app, '/things', { key: before })).body, first.body)
    t.same((await send(app, '/things', { key: during })).json(), { run: 2 })
    t.equal((await recordOf(there, during))?.status, 'completed')
  })

  test(`on ${path}: a database that hangs and goes on`, { skip }, async (t) => {
    const { there, here, proxy } = await throughProxy(t)
    let runs = 0
    const app = await buildApp(t, here, {
      plugin: { ...plugin, storeTimeout: 1_000 },
      routes: (app) => app.post('/things', () => ({ run: ++runs })),
    })
    await send(app, '/things', { key: newKey() })
    proxy.pause()
    const key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, 503)
    t.equal(runs, 1)
    proxy.resume()
    // The insert arrives now, and is given back.
    const gone = async () => (await recordOf(there, key)) === null
    for (let turn = 0; turn < 100 && !((await gone()) && turn > 5); turn += 1) {
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    t.ok(await gone())
    t.same((await send(app, '/things', { key })).json(), { run: 2 })
  })

  test(`on ${path}: a database that goes down while the handler runs`, { skip }, async (t) => {
    const events = collectEvents(t)
    const { there, here, proxy } = await throughProxy(t)
    const began = latch()
    const go = latch()
    let runs = 0
    const app = await buildApp(t, here, {
      plugin: { ...plugin, storeTimeout: 500 },
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
    proxy.cut()
    go.open()
    const answer = await first
    t.equal(answer.statusCode, 200, 'the client gets its response')
    await events.first('response_not_stored')
    proxy.resume()
    for (let turn = 0; turn < 200; turn += 1) {
      if ((await recordOf(there, key))?.status === 'completed') break
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    const retry = await send(app, '/things', { key })
    t.equal(retry.body, answer.body)
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.equal(runs, 1)
  })
}
