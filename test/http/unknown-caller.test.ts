// Keys on public routes: what a request that belongs to no tenant, or no principal, may do with one.
import t, { test } from 'tap'
import type { PluginOptions, RouteOptions } from '../../src/index.js'
import { buildApp, collectEvents, newKey, recordOf, send } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

interface User {
  readonly id: string
  readonly orgId: string
}

const USER = Symbol('user')

declare module 'fastify' {
  interface FastifyRequest {
    [USER]?: User | undefined
  }
}

const ANN: User = { id: 'ann', orgId: 'acme' }

/** An application whose users log in with POST /login, which therefore knows none of them. */
async function publicApp(
  t: Parameters<typeof buildApp>[0],
  plugin: Partial<PluginOptions>,
  login: RouteOptions | false | undefined = undefined,
) {
  const counted = { logins: 0, payments: 0 }
  const lines: string[] = []
  const app = await buildApp(t, database, {
    plugin: { tenant: (request) => request[USER]?.orgId, ...plugin },
    server: { logger: { level: 'info', stream: { write: (line) => void lines.push(line) } } },
    routes(app) {
      app.decorateRequest(USER)
      app.addHook('onRequest', async (request) => {
        request[USER] = request.headers.authorization === 'Bearer ann' ? ANN : undefined
      })
      const config = login === undefined ? {} : { config: { idempotency: login } }
      app.post('/login', config, (request) => ({
        token: `token-${++counted.logins}`,
        key: request.idempotency.key,
        attempt: request.idempotency.attempt,
      }))
      app.post('/payments', () => ({ payment: ++counted.payments }))
    },
  })
  return { app, counted, logged: () => lines.join('') }
}

const ASKED = { headers: { authorization: 'Bearer ann' } }

test('POST /login with a key is refused by default, with a 403 that says why', async (t) => {
  const events = collectEvents(t)
  const { app, counted } = await publicApp(t, {})
  const answer = await send(app, '/login', { key: newKey() })
  t.equal(answer.statusCode, 403)
  t.equal(answer.json().code, 'IDEMPOTENCY_TENANT_UNKNOWN')
  t.equal(counted.logins, 0)
  t.match(events.all, [{ kind: 'key_rejected', reason: 'the request belongs to no tenant' }])
})

for (const [where, plugin, login] of [
  ['the plugin', { onUnknownCaller: 'bypass' }, undefined],
  ['the route', {}, { onUnknownCaller: 'bypass' }],
] as const) {
  test(`with 'bypass' on ${where}, POST /login runs unprotected: nothing is stored, and the log says so`, async (t) => {
    const events = collectEvents(t)
    const { app, counted, logged } = await publicApp(t, plugin, login)
    const key = newKey()
    for (const n of [1, 2]) {
      const answer = await send(app, '/login', { key })
      t.equal(answer.statusCode, 200)
      t.strictSame(answer.json(), { token: `token-${n}`, attempt: 0 })
      t.notOk('idempotent-replayed' in answer.headers)
    }
    t.equal(counted.logins, 2)
    t.equal(await database.prisma.idempotencyRecord.count({ where: { key } }), 0)
    t.match(events.all, [
      { kind: 'key_ignored', reason: 'tenant_unknown', route: 'POST /login' },
      { kind: 'key_ignored', reason: 'tenant_unknown', route: 'POST /login' },
    ])
    t.match(logged(), 'key_ignored')
    t.notMatch(logged(), key)
  })
}

test("with 'bypass', a request of a known caller is protected as ever", async (t) => {
  const { app, counted } = await publicApp(t, { onUnknownCaller: 'bypass' })
  const key = newKey()
  const first = await send(app, '/payments', { key, ...ASKED })
  t.equal((await send(app, '/payments', { key, ...ASKED })).body, first.body)
  t.equal(counted.payments, 1)
  t.ok(await recordOf(database, key, 'acme'))
  // The same key of somebody who is not logged in: no replay, whatever is stored.
  const anonymous = await send(app, '/payments', { key })
  t.strictSame(anonymous.json(), { payment: 2 })
})

test("with 'bypass', a request that has a tenant and no principal runs unprotected, too", async (t) => {
  const events = collectEvents(t)
  const { app, counted } = await publicApp(t, {
    tenant: false,
    principal: (request) => request[USER]?.id,
    onUnknownCaller: 'bypass',
  })
  const key = newKey()
  for (const _ of [1, 2]) await send(app, '/login', { key })
  t.equal(counted.logins, 2)
  t.equal(await recordOf(database, key), null)
  t.match(events.all, [{ kind: 'key_ignored', reason: 'principal_unknown' }, {}])
})

test("with 'bypass', a handler that answers later, fails or streams is left to Fastify", async (t) => {
  const app = await buildApp(t, database, {
    plugin: { tenant: () => undefined, onUnknownCaller: 'bypass' },
    routes(app) {
      app.post('/later', (_request, reply) => {
        setImmediate(() => reply.code(201).send('later'))
      })
      app.post('/fails', async () => {
        throw Object.assign(new Error('of the application'), { statusCode: 418 })
      })
    },
  })
  const later = await send(app, '/later', { key: newKey() })
  t.strictSame([later.statusCode, later.body], [201, 'later'])
  const failed = await send(app, '/fails', { key: newKey() })
  t.strictSame([failed.statusCode, failed.json().message], [418, 'of the application'])
})

test("with 'bypass', an atomic route runs in its transaction, and stores no response", {
  skip: database.kind === 'postgres' ? false : 'needs PostgreSQL',
}, async (t) => {
  const app = await buildApp(t, database, {
    plugin: { tenant: () => undefined, onUnknownCaller: 'bypass' },
    routes: (app) =>
      app.post('/bookings', { config: { idempotency: { atomic: true } } }, async (request) => {
        return request.idempotency.tx.$queryRawUnsafe('SELECT 1 AS one')
      }),
  })
  const key = newKey()
  t.same((await send(app, '/bookings', { key })).json(), [{ one: 1 }])
  t.equal(await database.prisma.idempotencyRecord.count({ where: { key } }), 0)
})

test("with 'bypass', locks and reservations of such a request still need a tenant", async (t) => {
  const app = await buildApp(t, database, {
    plugin: { tenant: () => undefined, onUnknownCaller: 'bypass', locks: 'memory' },
    routes: (app) => app.post('/things', ({ idempotency }) => idempotency.lock('a', {}, () => 'x')),
  })
  const answer = await send(app, '/things', { key: newKey() })
  t.equal(answer.statusCode, 403)
  t.equal(answer.json().code, 'IDEMPOTENCY_TENANT_UNKNOWN')
})

test('a tenant function that reads a user who is not there is a 500 with either setting, and the log says what to write', async (t) => {
  for (const onUnknownCaller of ['reject', 'bypass'] as const) {
    const events = collectEvents(t)
    const { app, counted, logged } = await publicApp(t, {
      tenant: (request) => (request[USER] as User).orgId,
      onUnknownCaller,
    })
    const answer = await send(app, '/login', { key: newKey() })
    t.equal(answer.statusCode, 500)
    t.equal(answer.json().code, 'IDEMPOTENCY_TENANT_FAILED')
    t.equal(counted.logins, 0)
    t.match(events.all, [
      {
        kind: 'caller_failed',
        option: 'tenant',
        failure: { name: 'TypeError', hint: /\(request\) => request\.user\?\.orgId/ },
      },
    ])
    t.match(logged(), 'request.user?.orgId')
  }
})

test('a public route is taken out of the plugin by config.idempotency: false', async (t) => {
  const { app, counted } = await publicApp(t, {}, false)
  const key = newKey()
  for (const _ of [1, 2]) t.equal((await send(app, '/login', { key })).statusCode, 200)
  t.equal(counted.logins, 2)
})
