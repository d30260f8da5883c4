// Handlers that are no async functions and return a lazy thenable: a query builder (drizzle, knex)
// runs its query each time `then` is called.
import type { RouteHandlerMethod } from 'fastify'
import t, { test } from 'tap'
import { buildApp, newKey, send, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

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
