// Handlers that are no async functions and return a lazy thenable: a query builder (drizzle, knex)
// runs its query each time `then` is called.
import type { RouteHandlerMethod } from 'fastify'
import t, { test } from 'tap'
import { buildApp, newKey, send, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { bank } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

/** A query that runs whenever `then` is called, and counts that. */
function lazyQuery(counts: { queries: number }, end: () => unknown): PromiseLike<unknown> {
  return {
    // biome-ignore lint/suspicious/noThenProperty: it stands for a query builder, which has one
    then(onValue, onError) {
      counts.queries += 1
      return new Promise((resolve) => setImmediate(resolve)).then(end).then(onValue, onError)
    },
  }
}

const ROUTES = {
  'a protected route': {},
  'an atomic route': { atomic: true },
  'a route that may be bypassed': { onStoreError: 'bypass' },
} as const

for (const [name, config] of Object.entries(ROUTES)) {
  const isBypass = 'onStoreError' in config
  const setUp = (t: Parameters<typeof buildApp>[0], handler: RouteHandlerMethod) => {
    const pool = new WatchedPool(database)
    if (isBypass) {
      pool.before = () => {
        throw new Error('the store is down')
      }
    }
    return buildApp(t, database, {
      plugin: { pool },
      routes: (app) => app.post('/things', { config: { idempotency: config } }, handler),
    })
  }

  test(`on ${name}, a lazy thenable that a handler returns runs once`, async (t) => {
    const counts = { queries: 0 }
    const app = await setUp(t, () => lazyQuery(counts, () => ({ made: counts.queries })))
    const key = newKey()
    t.same((await send(app, '/things', { key })).json(), { made: 1 })
    t.equal(counts.queries, 1)
    if (isBypass) return
    t.same((await send(app, '/things', { key })).json(), { made: 1 })
    t.equal(counts.queries, 1)
  })

  test(`on ${name}, a lazy thenable that fails runs once, and its error is the answer`, async (t) => {
    const counts = { queries: 0 }
    const app = await setUp(t, () =>
      lazyQuery(counts, () => {
        throw new Error('no such table')
      }),
    )
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, 500)
    t.equal(answer.json().message, 'no such table')
    t.equal(counts.queries, 1)
  })
}

test('without a key, a lazy thenable runs once', async (t) => {
  const counts = { queries: 0 }
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/things', () => lazyQuery(counts, () => ({ made: counts.queries })))
      const config = { idempotency: { atomic: true } }
      app.post('/atomic', { config }, () => lazyQuery(counts, () => ({ made: counts.queries })))
    },
  })
  for (const url of ['/things', '/atomic']) {
    counts.queries = 0
    t.same((await send(app, url)).json(), { made: 1 })
    t.equal(counts.queries, 1)
  }
})

test('whatever else runs a function of the application adopts what it returns once', async (t) => {
  const counts = { queries: 0 }
  const lazy = () => lazyQuery(counts, () => ({ made: counts.queries }))
  const ran: Record<string, number> = {}
  const counting = async (name: string, call: () => unknown) => {
    counts.queries = 0
    await call()
    ran[name] = counts.queries
  }
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/things', async ({ idempotency }) => {
        await counting('step', () => idempotency.step('a', lazy))
        await counting('transaction', () => idempotency.transaction(lazy as never))
        await counting('lock', () => idempotency.lock('a', {}, lazy))
        await counting('run of a request', () => idempotency.run(handler as never, undefined))
        return 'done'
      })
      app.webhook('/bank', { provider: bank() }, lazy as never)
    },
  })
  const handler = app.idempotency.handler('lazy', lazy as never)
  t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
  await counting('run', () => app.idempotency.run(newKey(), lazy))
  await counting('handler', () => app.idempotency.run(newKey(), handler as never))
  await counting('once', () => app.idempotency.once(lazy, { find: async () => undefined }))
  await counting('webhook', () =>
    app.idempotency.ingest({ endpoint: '/bank', payload: {}, eventId: newKey() }),
  )
  t.strictSame(ran, Object.fromEntries(Object.keys(ran).map((name) => [name, 1])))
  t.equal(Object.keys(ran).length, 8)
})
