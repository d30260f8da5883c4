// The database does not die: it stands still. Rows and tables stay locked, backends stop, packets are
// lost. What has nothing to do with it goes on, and what waits ends within a bound.
import { randomUUID } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import pg from 'pg'
import t, { type Test } from 'tap'
import { defineFlow } from '../../src/status/define-flow.js'
import { stripe } from '../../src/webhooks/providers/index.js'
import { begin, buildApp, collectEvents, latch, newKey, send } from '../fixtures/app.js'
import { effectOf, effects } from '../fixtures/atomic.js'
import { missingOwnPostgres, ownPostgres } from '../fixtures/own-postgres.js'
import { clientOn, type PostgresDatabase, postgresDatabase } from '../fixtures/postgres.js'
import { proxyTo } from '../fixtures/proxy.js'
import { missing } from '../fixtures/services.js'
import { until } from '../fixtures/until.js'
import { postStripe, SECRET, stripeEvent } from '../fixtures/webhooks.js'

// Below tap's own limit for a file.
t.setTimeout(550_000)

const skip = await missing('postgres')

const flow = defineFlow({ transitions: { pending: ['off'], on: ['off'], off: ['on'] } })

/** How the plugin reaches PostgreSQL. */
const PATHS = ['pool', 'prisma'] as const

/** A connection of another process, with a transaction that the test ends. */
async function otherTransaction(t: Pick<Test, 'teardown'>, { url }: { url: string }) {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  t.teardown(() => client.end().catch(() => {}))
  await client.query('BEGIN')
  return { client, end: () => client.query('ROLLBACK') }
}

/** Ends the server's side of every connection that waits for a lock. */
const KILL_WAITING = `
  SELECT pg_terminate_backend(pid) FROM pg_stat_activity
  WHERE datname = current_database() AND wait_event_type = 'Lock'`

async function stalledApp(
  t: Test,
  database: PostgresDatabase,
  path: (typeof PATHS)[number],
  { lease = '30s', storeTimeout = 10_000 }: { lease?: string | number; storeTimeout?: number } = {},
) {
  const counts = new Map<string, number>()
  const held = latch()
  const brief = latch()
  const app = await buildApp(t, database, {
    plugin: {
      ...(path === 'prisma' && { pool: undefined }),
      ...{ lease: lease as '30s', storeTimeout, maxConnections: 4 },
      tenant: (request) => String(request.headers['x-tenant'] ?? 'acme'),
    },
    routes(app) {
      app.post('/pay', async (request) => {
        const key = String(request.idempotency.key)
        counts.set(key, (counts.get(key) ?? 0) + 1)
        return { run: counts.get(key) }
      })
      for (const [url, { opened }] of Object.entries({ '/held': held, '/brief': brief })) {
        app.post(url, async (request) => {
          const key = String(request.idempotency.key)
          counts.set(key, (counts.get(key) ?? 0) + 1)
          await opened
          return { run: counts.get(key) }
        })
      }
      // Needs a connection of the pool, and nothing of the plugin.
      app.post('/unrelated', { config: { idempotency: false } }, () =>
        database.prisma.payment.count(),
      )
    },
  })
  return { app, counts, held, brief }
}

/**
 * How much longer than without the stall others may take. The documents say 300 ms for each statement, and a
 * machine that is busy takes its time; what waits for the stall itself takes `storeTimeout`, or for ever.
 */
const MARGIN_MS = 3_000

/** Requests with nothing to do with what stalls: with keys of other tenants, and without any. */
async function others(app: FastifyInstance, count = 20) {
  const startedAt = performance.now()
  const keyed = Array.from({ length: count }, (_, n) =>
    begin(app, '/pay', { key: newKey(), headers: { 'x-tenant': `tenant-${n}` } }),
  )
  const unrelated = Array.from({ length: count }, () => begin(app, '/unrelated'))
  const answers = await Promise.all([...keyed, ...unrelated])
  return { count, statuses: tally(answers), tookMs: performance.now() - startedAt }
}

/** While something stalls, they are served as they were before. */
async function othersAreServed(
  t: Test,
  app: FastifyInstance,
  calm: Awaited<ReturnType<typeof others>>,
): Promise<void> {
  const { statuses, tookMs } = await others(app, calm.count)
  t.same(statuses, { 200: 2 * calm.count }, 'other tenants and routes are served')
  t.ok(tookMs < calm.tookMs + MARGIN_MS, `${tookMs} ms, and ${calm.tookMs} ms before`)
}

/** How many connections of the database wait for a lock. */
async function waiting({ url }: { url: string }): Promise<number> {
  const row = await ask(
    url,
    `SELECT count(*)::int AS count FROM pg_stat_activity
      WHERE datname = current_database() AND wait_event_type = 'Lock'`,
  )
  return (row as { count: number }).count
}

/** Until what waits for a lock has ended, or was canceled. */
const noneWaits = (database: { url: string }) =>
  until(
    () => waiting(database),
    (count) => count === 0,
  )

/** The process of the server that waits for a lock. */
async function waitingProcess({ url }: { url: string }): Promise<{ pid: number }> {
  const sql = `SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'`
  return (await until(
    () => ask(url, sql),
    (found) => found !== undefined,
  )) as { pid: number }
}

async function isExecuting({ url }: { url: string }, pid: number): Promise<boolean> {
  const sql = `SELECT pid FROM pg_stat_activity WHERE pid = ${pid} AND state = 'active'`
  return (await ask(url, sql)) !== undefined
}

/** The first row of an answer. */
async function ask(url: string, sql: string): Promise<object | undefined> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    const { rows } = await client.query(sql)
    return rows[0]
  } finally {
    await client.end()
  }
}

/** The first answer that is not 503. */
const served = (call: () => ReturnType<typeof begin>) =>
  until(
    () => call(),
    ({ statusCode }) => statusCode !== 503,
  )

/** Statuses and how often each came. */
const tally = (answers: readonly { statusCode: number }[]) => {
  const counts: Record<number, number> = {}
  for (const { statusCode } of answers) counts[statusCode] = (counts[statusCode] ?? 0) + 1
  return counts
}

for (const path of PATHS) {
  t.test(
    `${path}: a key whose record is locked is answered 409 without waiting`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 6 })
      const { app } = await stalledApp(t, database, path, { storeTimeout: 30_000 })
      const calm = await others(app)
      for (const left of ['its lease runs', 'its lease has expired', 'it was released']) {
        const key = newKey()
        await send(app, '/pay', { key })
        await database.prisma.idempotencyRecord.updateMany({
          where: { key },
          data: {
            status: left === 'it was released' ? 'released' : 'in_progress',
            leaseUntil: new Date(left === 'its lease runs' ? Date.now() + 60_000 : 0),
          },
        })
        const other = await otherTransaction(t, database)
        await other.client.query('UPDATE idempotency_record SET steps = $1 WHERE key = $2', [
          '{}',
          key,
        ])
        const retries = Array.from({ length: 20 }, () => begin(app, '/pay', { key }))
        await othersAreServed(t, app, calm)
        t.same(tally(await Promise.all(retries)), { 409: 20 }, left)
        t.equal(await waiting(database), 0, 'no connection waits')
        await other.end()
      }
    },
  )

  t.test(
    `${path}: a key that another transaction inserts and does not commit is busy, alone`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 6 })
      const { app, counts } = await stalledApp(t, database, path, { storeTimeout: 30_000 })
      const calm = await others(app, 60)
      const key = newKey()
      const other = await otherTransaction(t, database)
      await other.client.query(
        `INSERT INTO idempotency_record
         (tenant_id, key, operation_id, fingerprint, status, lease_until, expires_at)
       VALUES ('acme', $1, 'o', 'f', 'in_progress', now(), now())`,
        [key],
      )
      const retries = Array.from({ length: 3 }, () => begin(app, '/pay', { key }))
      // Some of them travel with it.
      await othersAreServed(t, app, calm)
      t.same(tally(await Promise.all(retries)), { 409: 3 })
      await other.end()
      t.equal((await send(app, '/pay', { key })).statusCode, 200)
      t.equal(counts.get(key), 1)
    },
  )

  t.test(
    `${path}: while the table is locked, routes that do not need it are served`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 8 })
      const { app } = await stalledApp(t, database, path, { storeTimeout: 6_000 })
      const calm = await others(app, 40)
      const other = await otherTransaction(t, database)
      await other.client.query('LOCK TABLE idempotency_record IN ACCESS EXCLUSIVE MODE')
      const refused = Array.from({ length: 60 }, () => begin(app, '/pay', { key: newKey() }))
      const startedAt = performance.now()
      const unrelated = Array.from({ length: 40 }, () => begin(app, '/unrelated'))
      t.same(tally(await Promise.all(unrelated)), { 200: 40 })
      const tookMs = performance.now() - startedAt
      t.ok(tookMs < calm.tookMs + MARGIN_MS, `${tookMs} ms, and ${calm.tookMs} ms before`)
      t.same(tally(await Promise.all(refused)), { 503: 60 }, 'nothing ran')
      t.ok((await waiting(database)) <= 4, 'no more connections wait than the plugin may take')
      if (path === 'pool') {
        // Canceled on the server, while the table is still locked.
        await noneWaits(database)
      }
      t.same(tally(await Promise.all([begin(app, '/unrelated')])), { 200: 1 })
      await other.end()
      const key = newKey()
      const answer = await served(() => begin(app, '/pay', { key }))
      t.equal(answer.statusCode, 200)
      t.equal((await send(app, '/pay', { key })).body, answer.body)
    },
  )

  t.test(
    `${path}: a stall of half a lease under 16 running handlers loses none of their leases`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 8 })
      const leaseMs = 9_000
      const events = collectEvents(t)
      const { app, counts, held } = await stalledApp(t, database, path, {
        ...{ lease: leaseMs, storeTimeout: 1_500 },
      })
      const keys = Array.from({ length: 16 }, newKey)
      const first = keys.map((key) => begin(app, '/held', { key }))
      const areRunning = (count: number) => count === keys.length
      await until(() => counts.size, areRunning)
      const other = await otherTransaction(t, database)
      await other.client.query('LOCK TABLE idempotency_record IN ACCESS EXCLUSIVE MODE')
      // The renewals of all handlers have timed out once, and the next ones queue behind them.
      await events.first('heartbeat_failed', keys.length)
      await other.end()
      const renewed = async () =>
        database.prisma.idempotencyRecord.count({
          where: { key: { in: keys }, leaseUntil: { gt: new Date(Date.now() + leaseMs / 2) } },
        })
      await until(renewed, areRunning)
      const retries = keys.map((key) => begin(app, '/held', { key }))
      t.same(tally(await Promise.all(retries)), { 409: keys.length }, 'each is still held')
      held.open()
      t.same(tally(await Promise.all(first)), { 200: keys.length })
      t.strictSame(
        [...counts.values()],
        keys.map(() => 1),
        'each ran once',
      )
      t.notOk(events.kinds().includes('lease_lost'))
    },
  )
}

for (const path of PATHS) {
  t.test(
    `${path}: a PostgreSQL process that stands still keeps no other request waiting`,
    { skip: missingOwnPostgres() },
    async (t) => {
      const server = await ownPostgres(t)
      const database = clientOn(t, server.url, { max: 6 })
      const { app, counts } = await stalledApp(t, database, path, { storeTimeout: 6_000 })
      const calm = await others(app, 40)
      // The lock shows which process executes the statement.
      const other = await otherTransaction(t, server)
      await other.client.query('LOCK TABLE idempotency_record IN ACCESS EXCLUSIVE MODE')
      const key = newKey()
      const stalled = begin(app, '/pay', { key })
      const { pid } = await waitingProcess(server)
      process.kill(pid, 'SIGSTOP')
      await other.end()
      await othersAreServed(t, app, calm)
      // Once many have travelled together, one statement goes at a time.
      await othersAreServed(t, app, calm)
      t.equal((await stalled).statusCode, 503)
      t.equal((await send(app, '/pay', { key })).statusCode, 200, 'a retry has another connection')
      // What it was told to insert comes to it now, and finds the key taken.
      process.kill(pid, 'SIGCONT')
      await until(
        () => isExecuting(server, pid),
        (isSo) => !isSo,
      )
      t.equal((await send(app, '/pay', { key })).headers['idempotent-replayed'], 'true')
      t.equal(counts.get(key), 1)
    },
  )
}

t.test(
  'a network that loses every packet is not waited for, and its connections are replaced',
  { skip },
  async (t) => {
    const there = await postgresDatabase(t)
    const proxy = await proxyTo(t, there.url)
    const behind = clientOn(t, proxy.url, { max: 4 })
    const { app } = await stalledApp(t, behind, 'pool', { storeTimeout: 300 })
    await send(app, '/pay', { key: newKey() })
    proxy.pause()
    const refused = Array.from({ length: 20 }, () => begin(app, '/pay', { key: newKey() }))
    t.same(tally(await Promise.all(refused)), { 503: 20 })
    proxy.resume()
    const key = newKey()
    const answer = await served(() => begin(app, '/pay', { key }))
    t.equal(answer.statusCode, 200, 'broken connections were replaced')
  },
)

for (const path of PATHS) {
  t.test(
    `${path}: a connection that loses every packet keeps no other request waiting`,
    { skip },
    async (t) => {
      const there = await postgresDatabase(t)
      const proxy = await proxyTo(t, there.url)
      const behind = clientOn(t, proxy.url, { max: 6 })
      const { app, counts } = await stalledApp(t, behind, path, {
        ...{ lease: 2_000, storeTimeout: 6_000 },
      })
      // A pool ends once its connections are back.
      t.teardown(() => proxy.cut())
      const calm = await others(app, 40)
      const key = newKey()
      const silent = proxy.silenceAt(key)
      const stalled = begin(app, '/pay', { key })
      await silent
      await othersAreServed(t, app, calm)
      await othersAreServed(t, app, calm)
      t.equal((await stalled).statusCode, 503)
      // The claim has arrived, and its answer has not: a lease begins that nothing renews.
      const retry = await until(
        () => send(app, '/pay', { key }),
        ({ statusCode }) => statusCode !== 409,
      )
      t.equal(retry.statusCode, 200)
      t.equal(counts.get(key), 1)
    },
  )
}

for (const [said, url] of [
  ['fi_extend', '/held'],
  ['fi_finish', '/held'],
  ['fi_event_extend', '/webhooks/stripe'],
  ['fi_event_end', '/webhooks/stripe'],
] as const) {
  t.test(
    `a connection that goes silent at ${said} keeps nothing waiting, and runs nothing twice`,
    { skip },
    async (t) => {
      const there = await postgresDatabase(t)
      const proxy = await proxyTo(t, there.url)
      const behind = clientOn(t, proxy.url, { max: 6 })
      const runs: string[] = []
      const began = latch()
      const held = latch()
      const app = await buildApp(t, behind, {
        plugin: {
          ...{ lease: '3s', storeTimeout: 2_000, maxConnections: 4 },
          tenant: (request) => String(request.headers['x-tenant'] ?? 'acme'),
        },
        routes(app) {
          const run = async (name: string) => {
            runs.push(name)
            began.open()
            await held.opened
          }
          app.post('/held', async ({ idempotency: { key } }) => {
            await run(String(key))
            return 'done'
          })
          app.webhook(
            '/webhooks/stripe',
            { provider: stripe({ secret: SECRET }), tenant: 'acme' },
            ({ id }) => run(id),
          )
          app.post('/pay', () => 'paid')
          app.post('/unrelated', { config: { idempotency: false } }, () =>
            behind.prisma.payment.count(),
          )
        },
      })
      // A pool ends once its connections are back.
      t.teardown(() => proxy.cut())
      const calm = await others(app)
      const key = newKey()
      const event = stripeEvent()
      const send = () => (url === '/held' ? begin(app, url, { key }) : postStripe(app, event))
      const silent = proxy.silenceAt(said)
      const first = send()
      await began.opened
      if (said === 'fi_finish' || said === 'fi_event_end') held.open()
      await silent
      await othersAreServed(t, app, calm)
      await othersAreServed(t, app, calm)
      held.open()
      await first
      await until(
        () => send(),
        ({ statusCode }) => statusCode === 200,
      )
      t.equal(runs.length, 1)
    },
  )
}

t.test('PostgreSQL ends a transaction whose process stands still in it', { skip }, async (t) => {
  const database = await postgresDatabase(t)
  const seen: Record<string, string>[] = []
  const app = await buildApp(t, database, {
    routes(app) {
      const read = async (tx: { $queryRawUnsafe: (sql: string) => Promise<unknown> }) => {
        const [row] = (await tx.$queryRawUnsafe(`SELECT
          current_setting('idle_in_transaction_session_timeout') AS silence,
          current_setting('statement_timeout') AS statement`)) as Record<string, string>[]
        seen.push(row ?? {})
      }
      app.post('/default', (request) => request.idempotency.transaction(read).then(() => 'done'))
      app.post('/longer', (request) =>
        request.idempotency.transaction(read, { timeout: 20_000 }).then(() => 'done'),
      )
    },
  })
  await send(app, '/default', { key: newKey() })
  await send(app, '/longer', { key: newKey() })
  await send(app, '/default')
  t.strictSame(seen, [
    { silence: '6s', statement: '6s' },
    { silence: '21s', statement: '21s' },
    { silence: '6s', statement: '6s' },
  ])
  const { rows } = await database.pool.query('SHOW idle_in_transaction_session_timeout')
  t.equal(rows[0].idle_in_transaction_session_timeout, '0', 'the connection is as it was')
})

t.test(
  'while the table is locked, transactions that have run give their connections back',
  { skip },
  async (t) => {
    const database = await postgresDatabase(t, { max: 4 })
    const inside = new Set<string>()
    const go = latch()
    const app = await buildApp(t, database, {
      routes(app) {
        app.post('/book', async ({ idempotency }) =>
          idempotency.transaction(
            async (tx) => {
              inside.add(String(idempotency.key))
              await go.opened
              const [row] = (await tx.$queryRawUnsafe(
                `SELECT current_setting('lock_timeout') AS lock`,
              )) as { lock: string }[]
              return row?.lock
            },
            { timeout: 600_000 },
          ),
        )
        app.post('/unrelated', { config: { idempotency: false } }, () =>
          database.prisma.payment.count(),
        )
      },
    })
    const keys = Array.from({ length: 4 }, newKey)
    const booked = keys.map((key) => begin(app, '/book', { key }))
    await until(
      () => inside.size,
      (size) => size === keys.length,
    )
    const other = await otherTransaction(t, database)
    await other.client.query('LOCK TABLE idempotency_record IN ACCESS EXCLUSIVE MODE')
    const unrelated = begin(app, '/unrelated')
    go.open()
    t.equal((await unrelated).statusCode, 200, 'served while the table is locked')
    t.same(tally(await Promise.all(booked)), { 503: 4 })
    await other.end()
    t.equal((await send(app, '/book', { key: newKey() })).body, '0', 'fn has no such bound')
  },
)

for (const mode of ['ACCESS EXCLUSIVE', 'SHARE'] as const) {
  t.test(
    `while the table is locked in ${mode} mode, atomic routes leave connections to others`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 10 })
      const app = await buildApp(t, database, {
        plugin: { storeTimeout: 1_000 },
        routes(app) {
          const atomic = { timeout: 2_000 }
          app.post('/book', { config: { idempotency: { atomic } } }, ({ idempotency }) =>
            idempotency.tx.payment.create(effectOf(idempotency.key)),
          )
          app.post('/unrelated', { config: { idempotency: false } }, () =>
            database.prisma.booking.count(),
          )
        },
      })
      t.equal((await send(app, '/book', { key: newKey() })).statusCode, 200)
      const other = await otherTransaction(t, database)
      await other.client.query(`LOCK TABLE idempotency_record IN ${mode} MODE`)
      const refused: ReturnType<typeof begin>[] = []
      // Longer than one of them is waited for.
      for (let turn = 0; turn < 3; turn += 1) {
        const more = Array.from({ length: 10 }, () => begin(app, '/book', { key: newKey() }))
        refused.push(...more)
        await until(
          () => waiting(database),
          (count) => count > 0,
        )
        const startedAt = performance.now()
        const unrelated = await Promise.all(
          Array.from({ length: 20 }, () => begin(app, '/unrelated')),
        )
        t.same(tally(unrelated), { 200: 20 })
        const tookMs = performance.now() - startedAt
        t.ok(tookMs < MARGIN_MS, `${tookMs} ms`)
        const count = await waiting(database)
        t.ok(count <= 7, `${count} connections wait`)
        await Promise.race(more)
      }
      t.same(tally(await Promise.all(refused)), { 503: 30 })
      await other.end()
      const key = newKey()
      t.equal((await served(() => begin(app, '/book', { key }))).statusCode, 200)
      t.equal(await effects(database, key), 1)
    },
  )
}

t.test('records that are locked keep no connection of atomic routes', { skip }, async (t) => {
  const database = await postgresDatabase(t, { max: 8 })
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/book', { config: { idempotency: { atomic: true } } }, ({ idempotency }) =>
        idempotency.tx.payment.create(effectOf(idempotency.key)),
      )
      app.post('/pay', () => 'paid')
      app.post('/unrelated', { config: { idempotency: false } }, () =>
        database.prisma.booking.count(),
      )
    },
  })
  const calm = await others(app)
  const keys = Array.from({ length: 40 }, newKey)
  for (const key of keys) await send(app, '/book', { key })
  const released = { where: { key: { in: keys } }, data: { status: 'released' } }
  await database.prisma.idempotencyRecord.updateMany(released)
  const other = await otherTransaction(t, database)
  await other.client.query('SELECT FROM idempotency_record WHERE key = ANY($1) FOR UPDATE', [keys])
  const retries = keys.map((key) => begin(app, '/book', { key }))
  await othersAreServed(t, app, calm)
  t.same(tally(await Promise.all(retries)), { 409: 40 })
  t.equal(await waiting(database), 0)
  // An insert that is not committed is waited for, but not for long.
  const key = newKey()
  await other.client.query(
    `INSERT INTO idempotency_record
       (tenant_id, key, operation_id, fingerprint, status, lease_until, expires_at)
     VALUES ('', $1, 'o', 'f', 'in_progress', now(), now())`,
    [key],
  )
  const beside = Array.from({ length: 20 }, () => begin(app, '/book', { key }))
  await othersAreServed(t, app, calm)
  const answers = tally(await Promise.all(beside))
  t.strictSame(Object.keys(answers), ['409', '503'])
  await other.end()
  t.equal((await send(app, '/book', { key })).statusCode, 200)
  t.equal(await effects(database, key), 1)
})

for (const path of PATHS) {
  t.test(
    `${path}: a renewal that waits behind another one of its lease does not lose it`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 8 })
      const leaseMs = 9_000
      const events = collectEvents(t)
      const { app, counts, held, brief } = await stalledApp(t, database, path, {
        ...{ lease: leaseMs, storeTimeout: 20_000 },
      })
      const ending = [newKey(), newKey()].map((key) => begin(app, '/brief', { key }))
      await until(() => counts.size === ending.length)
      const keys = Array.from({ length: 16 }, newKey)
      const first = keys.map((key) => begin(app, '/held', { key }))
      await until(() => counts.size === ending.length + keys.length)
      const other = await otherTransaction(t, database)
      await other.client.query('LOCK TABLE idempotency_record IN ACCESS EXCLUSIVE MODE')
      // Their responses take both places of what runs, and the renewals queue: each is given up once, and
      // still queued when the next one comes.
      brief.open()
      await events.first('heartbeat_failed', keys.length)
      await new Promise((resolve) => setTimeout(resolve, leaseMs / 8))
      await other.end()
      const isRenewed = async () => {
        const leaseUntil = { gt: new Date(Date.now() + leaseMs / 2) }
        const where = { key: { in: keys }, leaseUntil }
        return (await database.prisma.idempotencyRecord.count({ where })) === keys.length
      }
      await until(isRenewed)
      t.notOk(events.kinds().includes('lease_lost'))
      held.open()
      t.same(tally(await Promise.all([...ending, ...first])), { 200: counts.size })
      t.strictSame(new Set(counts.values()), new Set([1]), 'each ran once')
    },
  )

  t.test(
    `${path}: a response waits for a locked row for storeTimeout, and leaves stored`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 8 })
      const events = collectEvents(t)
      // Longer than a statement waits for a row.
      const lockedMs = 2_500
      const { app, counts, held } = await stalledApp(t, database, path, { storeTimeout: 30_000 })
      const key = newKey()
      let isAnswered = false
      const answer = begin(app, '/held', { key }).finally(() => {
        isAnswered = true
      })
      await until(() => counts.has(key))
      const other = await otherTransaction(t, database)
      await other.client.query('SELECT FROM idempotency_record WHERE key = $1 FOR UPDATE', [key])
      held.open()
      await new Promise((resolve) => setTimeout(resolve, lockedMs))
      t.notOk(isAnswered, 'it waits')
      await other.end()
      const { statusCode, body } = await answer
      t.equal(statusCode, 200)
      t.notOk(events.kinds().includes('response_not_stored'))
      const replay = await send(app, '/held', { key })
      t.strictSame([replay.headers['idempotent-replayed'], replay.body], ['true', body])
    },
  )

  for (const doesKill of [false, true]) {
    t.test(
      `${path}: large bodies that wait for locked rows${doesKill ? ', and lose their connections,' : ''} are stored whole in the end`,
      { skip },
      async (t) => {
        const database = await postgresDatabase(t, { max: 8 })
        const events = collectEvents(t)
        const started = latch()
        const go = latch()
        let runs = 0
        const keys = Array.from({ length: 20 }, newKey)
        const app = await buildApp(t, database, {
          plugin: {
            ...(path === 'prisma' && { pool: undefined }),
            ...{ storeTimeout: 1_000, maxConnections: 4, lease: '60s' },
          },
          routes: (app) =>
            app.post('/large', async ({ idempotency }) => {
              runs += 1
              if (runs === keys.length) started.open()
              await go.opened
              return `${idempotency.key} ${'x'.repeat(300_000)}`
            }),
        })
        const answers = keys.map((key) => begin(app, '/large', { key }))
        await started.opened
        const other = await otherTransaction(t, database)
        await other.client.query('SELECT FROM idempotency_record WHERE key = ANY($1) FOR UPDATE', [
          keys,
        ])
        go.open()
        // Sent while they are being stored, over and over.
        t.same(tally(await Promise.all(answers)), { 200: keys.length })
        for (let turn = 0; turn < 12; turn += 1) {
          if (doesKill) await other.client.query(KILL_WAITING)
          await new Promise((resolve) => setTimeout(resolve, 500))
        }
        await other.end()
        const replays = await Promise.all(
          keys.map((key) =>
            until(
              () => send(app, '/large', { key }),
              ({ statusCode, body }) => statusCode !== 409 || body.includes('NOT_REPLAYABLE'),
            ),
          ),
        )
        t.same(tally(replays), { 200: keys.length })
        t.ok(replays.every(({ body }, n) => body.startsWith(`${keys[n]} xxx`)))
        t.notOk(events.kinds().includes('response_omitted'))
        t.equal(runs, keys.length)
      },
    )
  }

  t.test(
    `${path}: an event's end waits for its locked row for storeTimeout`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 8 })
      const run = latch()
      const go = latch()
      const app = await buildApp(t, database, {
        plugin: { ...(path === 'prisma' && { pool: undefined }), storeTimeout: 30_000 },
        routes: (app) =>
          app.webhook('/webhooks/stripe', { provider: stripe({ secret: SECRET }) }, async () => {
            run.open()
            await go.opened
          }),
      })
      let isAnswered = false
      const answer = postStripe(app, stripeEvent()).finally(() => {
        isAnswered = true
      })
      await run.opened
      const other = await otherTransaction(t, database)
      await other.client.query('SELECT FROM webhook_event FOR UPDATE')
      go.open()
      await new Promise((resolve) => setTimeout(resolve, 2_500))
      t.notOk(isAnswered, 'it waits')
      await other.end()
      t.strictSame((await answer).json(), { outcome: 'processed' })
    },
  )

  t.test(
    `${path}: replay() of an event whose row is locked fails, and leaves nothing on the server`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 6 })
      const app = await buildApp(t, database, {
        plugin: path === 'pool' ? {} : { pool: undefined },
        routes: (app) =>
          app.webhook('/webhooks/stripe', { provider: stripe({ secret: SECRET }) }, (event) =>
            event.reject('it is not wanted'),
          ),
      })
      const { id: eventId } = stripeEvent()
      t.equal((await postStripe(app, stripeEvent({ id: eventId }))).statusCode, 200)
      const other = await otherTransaction(t, database)
      await other.client.query('SELECT FROM webhook_event FOR UPDATE')
      const replaying = app.idempotency.replay({ provider: 'stripe', eventId })
      await t.rejects(replaying, { code: 'IDEMPOTENCY_DATABASE_FAILED' })
      t.equal(await waiting(database), 0)
      await other.end()
      t.match(await app.idempotency.replay({ provider: 'stripe', eventId }), { kind: /./ })
    },
  )
}

/** An application behind a network on which single connections go silent. */
async function silentApp(t: Test) {
  const there = await postgresDatabase(t)
  const proxy = await proxyTo(t, there.url)
  const behind = clientOn(t, proxy.url, { max: 8 })
  let runs = 0
  const app = await buildApp(t, behind, {
    plugin: { storeTimeout: 1_000, drain: 100, maxRun: '1h' },
    routes(app) {
      app.post('/book', async ({ idempotency }) => {
        runs += 1
        await idempotency.transaction((tx) => tx.payment.create(effectOf(idempotency.key)), {
          timeout: 300,
          maxWait: 2_000,
        })
        return { runs }
      })
      app.post('/charge', async ({ idempotency }) => {
        await idempotency.step('charge', () => 'charged')
        return {}
      })
      app.idempotency.handler('ship', async () => 'shipped')
      const provider = stripe({ secret: SECRET })
      app.webhook('/webhooks/stripe', { provider }, async (event) => {
        await event.transaction((tx) => tx.payment.create(effectOf(String(event.eventId))), {
          timeout: 300,
        })
      })
    },
  })
  // A pool ends once its connections are back.
  t.teardown(() => proxy.cut())
  // Opens connections, and answers.
  await send(app, '/book', { key: newKey() })
  return { app, proxy, behind, there }
}

for (const [said, statusCode, effect] of [
  ['BEGIN', 503, 0],
  // The application's own query, which fails as Prisma says.
  ['"payment"', 500, 0],
  ['UPDATE "public"."idempotency_record"', 503, 0],
  ['COMMIT', 503, 1],
] as const) {
  t.test(
    `a transaction whose connection goes silent at ${said} ends, and a retry finds out what it did`,
    { skip },
    async (t) => {
      const { app, proxy, there } = await silentApp(t)
      const key = newKey()
      const silent = proxy.silenceAt(said)
      const answer = await begin(app, '/book', { key })
      await silent
      t.equal(answer.statusCode, statusCode)
      t.equal(await effects(there, key), effect)
      await until(
        () => send(app, '/book', { key }),
        (retry) => retry.statusCode === 200,
      )
      t.equal(await effects(there, key), 1)
      await app.close()
    },
  )
}

t.test(
  'an event whose transaction is silent at COMMIT fails, and is run again',
  { skip },
  async (t) => {
    const { app, proxy, there } = await silentApp(t)
    const silent = proxy.silenceAt('COMMIT')
    const id = newKey()
    const answer = await postStripe(app, stripeEvent({ id }))
    await silent
    t.equal(answer.statusCode, 500)
    const event = await there.prisma.webhookEvent.findFirst({ where: { eventId: id } })
    t.equal(event?.status, 'retrying')
    t.equal((await postStripe(app, stripeEvent({ id }))).statusCode, 200)
    t.equal(await effects(there, id), 1)
  },
)

t.test('a step whose result is stored on a silent connection ends', { skip }, async (t) => {
  const { app, proxy } = await silentApp(t)
  const key = newKey()
  const silent = proxy.silenceAt('fi_keep_steps')
  const answer = await begin(app, '/charge', { key })
  await silent
  t.equal(answer.json().code, 'IDEMPOTENCY_DATABASE_FAILED')
  t.equal((await send(app, '/charge', { key })).statusCode, 200)
})

for (const path of PATHS) {
  for (const table of ['idempotency_record', 'webhook_event'] as const) {
    t.test(
      `${path}: while ${table} is locked, what stores a step in it is not left on the server`,
      { skip, timeout: 60_000 },
      async (t) => {
        const database = await postgresDatabase(t, { max: 6 })
        const began = latch()
        const done = latch()
        const charge = async () => {
          began.open()
          await done.opened
        }
        const app = await buildApp(t, database, {
          // Through Prisma, only what waits for a row is bounded, by the lock timeout.
          plugin: path === 'pool' ? { storeTimeout: 500 } : { pool: undefined },
          routes(app) {
            app.post('/charge', ({ idempotency }) => idempotency.step('charge', charge))
            const provider = stripe({ secret: SECRET })
            app.webhook('/webhooks/stripe', { provider }, (event) => event.step('charge', charge))
          },
        })
        const running =
          table === 'webhook_event'
            ? postStripe(app, stripeEvent())
            : begin(app, '/charge', { key: newKey() })
        await began.opened
        const other = await otherTransaction(t, database)
        await other.client.query(
          path === 'pool'
            ? `LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`
            : `SELECT FROM ${table} FOR UPDATE`,
        )
        done.open()
        t.equal((await running).statusCode, table === 'webhook_event' ? 500 : 503)
        // While the lock is held.
        await noneWaits(database)
        await other.end()
      },
    )
  }
}

t.test('recover() that looks on a silent connection ends', { skip }, async (t) => {
  const { app, proxy } = await silentApp(t)
  const silent = proxy.silenceAt('"handler"')
  await t.rejects(app.idempotency.recover(), { code: 'IDEMPOTENCY_DATABASE_FAILED' })
  await silent
  t.same(await app.idempotency.recover(), { finished: 0, failed: 0, skipped: 0 })
})

t.test('a server closes whose transaction is silent at COMMIT', { skip }, async (t) => {
  const { app, proxy } = await silentApp(t)
  await app.listen({ host: '127.0.0.1', port: 0 })
  const silent = proxy.silenceAt('COMMIT')
  const running = fetch(`${app.listeningOrigin}/book`, {
    method: 'POST',
    headers: { 'idempotency-key': newKey(), 'content-type': 'application/json' },
    body: '{}',
  }).catch(() => {})
  await silent
  await app.close()
  await running
  t.pass('it is closed')
})

for (const path of PATHS) {
  t.test(
    `${path}: redeliveries of an event whose row is locked keep no other event waiting`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 6 })
      const handled = new Map<string, number>()
      const app = await buildApp(t, database, {
        plugin: { ...(path === 'prisma' && { pool: undefined }), maxConnections: 4 },
        routes(app) {
          app.webhook('/webhooks/stripe', { provider: stripe({ secret: SECRET }) }, ({ id }) => {
            handled.set(id, (handled.get(id) ?? 0) + 1)
          })
          app.post('/pay', () => 'paid')
        },
      })
      const event = stripeEvent()
      const deliver = async () => (await postStripe(app, event)).statusCode
      const others = async () => {
        const startedAt = performance.now()
        const events = Array.from({ length: 20 }, () => postStripe(app, stripeEvent()))
        const keyed = Array.from({ length: 20 }, () => begin(app, '/pay', { key: newKey() }))
        t.same(tally(await Promise.all([...events, ...keyed])), { 200: 40 })
        return performance.now() - startedAt
      }
      t.equal(await deliver(), 200)
      const calmMs = await others()
      const other = await otherTransaction(t, database)
      await other.client.query('UPDATE webhook_event SET type = type WHERE event_id = $1', [
        event.id,
      ])
      const redelivered = Array.from({ length: 20 }, deliver)
      for (const when of ['with the first of them', 'with more of them']) {
        const more = when === 'with more of them' ? Array.from({ length: 20 }, deliver) : []
        const tookMs = await others()
        t.ok(tookMs < calmMs + MARGIN_MS, `${when}: ${tookMs} ms, and ${calmMs} ms before`)
        redelivered.push(...more)
      }
      t.strictSame(
        new Set(await Promise.all(redelivered)),
        new Set([503]),
        'the provider repeats them',
      )
      await other.end()
      const status = await until(deliver, (status) => status !== 503)
      t.equal(status, 200)
      t.equal(handled.size, 1 + 3 * 20)
      t.strictSame(new Set(handled.values()), new Set([1]), 'each event ran once')
    },
  )
}

for (const [table, url] of [
  ['slot_reservation', '/reserve'],
  ['named_lock', '/lock'],
  ['status_change', '/advance'],
  ['payment', '/advance'],
  ['webhook_event', '/webhooks/stripe'],
] as const) {
  t.test(
    `while ${table} is locked, calls of ${url} end, and all others are served`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 6 })
      const { prisma } = database
      const payment = { tenantId: '', amount: 1, currency: 'EUR' }
      const { id } = await prisma.payment.create({ data: payment })
      let calls = 0
      const app = await buildApp(t, database, {
        plugin: { storeTimeout: 1_000, maxConnections: 4 },
        routes(app) {
          const config = { config: { idempotency: false } }
          const { idempotency } = app
          app.post('/reserve', config, () => {
            calls += 1
            // One is a statement, two are a transaction.
            const slots = [`${calls}`, `${calls} b`].slice(calls % 2)
            return idempotency.reserve({ resource: 'r', slots, holder: 'h' })
          })
          app.post('/lock', config, () => {
            calls += 1
            return idempotency.lock([`${calls}`, `${calls} b`].slice(calls % 2), {}, () => 1)
          })
          app.post('/advance', config, () => {
            calls += 1
            const to = calls === 1 ? 'off' : 'on'
            return idempotency.advance(prisma.payment, { where: { id }, flow, to })
          })
          app.webhook('/webhooks/stripe', { provider: stripe({ secret: SECRET }) }, () => {})
          app.post('/pay', () => 'paid')
          app.post('/unrelated', config, () => prisma.booking.count())
        },
      })
      const call = () =>
        url === '/webhooks/stripe' ? postStripe(app, stripeEvent()) : begin(app, url)
      t.equal((await call()).statusCode, 200)
      const other = await otherTransaction(t, database)
      await other.client.query(`LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`)
      const stalled = Array.from({ length: 20 }, call)
      await waitingProcess(database)
      const keyed = Array.from({ length: 20 }, () => begin(app, '/pay', { key: newKey() }))
      const unrelated = Array.from({ length: 20 }, () => begin(app, '/unrelated'))
      t.same(tally(await Promise.all(keyed)), { 200: 20 }, 'keys are served')
      t.same(tally(await Promise.all(unrelated)), { 200: 20 })
      t.ok((await waiting(database)) <= 4, 'no more connections wait than the plugin may take')
      t.same(tally(await Promise.all(stalled)), { 503: 20 })
      await other.end()
      const answer = await served(call)
      t.equal(answer.statusCode, 200)
    },
  )
}

for (const [said, slots, stored] of [
  ['INSERT INTO "public"."slot_reservation"', ['one'], 1],
  ['FROM "public"."slot_reservation"', ['one'], 0],
  ['BEGIN', ['one', 'two'], 0],
  ['INSERT INTO "public"."slot_reservation"', ['one', 'two'], 0],
  // And not that of READ COMMITTED.
  ['COMMIT\0', ['one', 'two'], 2],
] as const) {
  t.test(
    `reserve() of ${slots.length} whose connection goes silent at ${said.replace('\0', '')} ends, and is repeated`,
    { skip },
    async (t) => {
      const { app, proxy, there } = await silentApp(t)
      const wanted = { resource: 'r', slots, holder: 'h' }
      const silent = proxy.silenceAt(said)
      const reserving = app.idempotency.reserve(wanted)
      await t.rejects(reserving, { code: 'IDEMPOTENCY_DATABASE_FAILED' })
      await silent
      // What the server has heard takes effect, perhaps after the caller has given up.
      const count = await until(
        () => there.prisma.slotReservation.count(),
        (count) => count >= stored,
      )
      t.equal(count, stored)
      const again = await until(
        () => app.idempotency.reserve(wanted).catch((error: Error) => error),
        (answer) => !(answer instanceof Error),
      )
      t.match(again, { kind: 'reserved', slots })
      t.equal(await there.prisma.slotReservation.count(), slots.length)
    },
  )
}

for (const said of [
  'FROM "public"."payment"',
  'BEGIN',
  'UPDATE "public"."payment"',
  'INSERT INTO "public"."status_change"',
  'COMMIT\0',
]) {
  t.test(
    `advance() whose connection goes silent at ${said.replace('\0', '')} ends, and is repeated`,
    { skip },
    async (t) => {
      const { app, proxy, behind, there } = await silentApp(t)
      const payment = { tenantId: '', amount: 1, currency: 'EUR' }
      const { id } = await there.prisma.payment.create({ data: payment })
      const wanted = { where: { id }, flow, to: 'off' } as const
      const silent = proxy.silenceAt(said)
      const advancing = app.idempotency.advance(behind.prisma.payment, wanted)
      await t.rejects(advancing, { code: 'IDEMPOTENCY_DATABASE_FAILED' })
      await silent
      await until(
        () => app.idempotency.advance(behind.prisma.payment, wanted).catch((error: Error) => error),
        (answer) => !(answer instanceof Error),
      )
      t.match(await there.prisma.payment.findUnique({ where: { id } }), { status: 'off' })
      t.equal(await there.prisma.statusChange.count({ where: { entityId: id } }), 1)
    },
  )
}

const poison = 'poisoned'

for (const [by, sql] of Object.entries({
  'a constraint': `ALTER TABLE idempotency_record
    ADD CONSTRAINT refused CHECK (tenant_id <> '${poison}')`,
  'a trigger': `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
    CREATE TRIGGER refused BEFORE INSERT ON idempotency_record
      FOR EACH ROW WHEN (NEW.tenant_id = '${poison}') EXECUTE FUNCTION refuse()`,
})) {
  t.test(
    `one item that ${by} refuses fails alone, and does not bypass protection`,
    { skip },
    async (t) => {
      const database = await postgresDatabase(t, { max: 8 })
      await database.pool.query(sql)
      const runs = new Map<string, number>()
      const app = await buildApp(t, database, {
        plugin: {
          tenant: (request) => String(request.headers['x-tenant']),
          onStoreError: 'bypass',
        },
        routes(app) {
          app.post('/pay', (request) => {
            const key = String(request.headers['x-operation'])
            runs.set(key, (runs.get(key) ?? 0) + 1)
            return 'paid'
          })
        },
      })
      const operations = Array.from({ length: 64 }, () => randomUUID())
      const pay = (operation: string, tenant: string) =>
        begin(app, '/pay', {
          key: operation,
          headers: { 'x-tenant': tenant, 'x-operation': operation },
        })
      // Twice each: were one bypassed, it would run twice. Refused ones travel among them.
      const refused: ReturnType<typeof pay>[] = []
      const others = [...operations, ...operations].map((operation, n) => {
        if (n % 8 === 0) refused.push(pay(`refused-${n}`, poison))
        return pay(operation, 'acme')
      })
      t.same(tally(await Promise.all(refused)), { 503: 16 })
      const statuses = tally(await Promise.all(others))
      t.strictSame(Object.keys(statuses).sort(), ['200', '409'])
      t.strictSame(
        [...runs.values()],
        operations.map(() => 1),
        'each of the others ran once',
      )
    },
  )
}
