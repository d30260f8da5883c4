import t, { test } from 'tap'
import type { PluginOptions, TenantId } from '../../src/index.js'
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
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

const byHeader: PluginOptions['tenant'] = ({ headers }) => headers['x-tenant'] as string

async function countedApp(
  t: Parameters<typeof buildApp>[0],
  tenant: PluginOptions['tenant'],
  pool?: WatchedPool,
) {
  const counted = { runs: 0 }
  const app = await buildApp(t, database, {
    plugin: { tenant, ...(pool && { pool }) },
    routes: (app) =>
      app.post('/things', ({ headers }) => ({ run: ++counted.runs, tenant: headers['x-tenant'] })),
  })
  return { app, counted }
}

test('two tenants with the same key and the same request never meet', async (t) => {
  const { app, counted } = await countedApp(t, byHeader)
  const key = newKey()
  const answers = await Promise.all(
    ['a', 'b', 'A', 'a ', 'á'].map((tenant) =>
      send(app, '/things', { key, headers: { 'x-tenant': encodeURIComponent(tenant) } }),
    ),
  )
  t.same(
    answers.map(({ statusCode }) => statusCode),
    [200, 200, 200, 200, 200],
  )
  t.equal(counted.runs, 5)
  for (const tenant of ['a', 'b', 'A']) {
    const retry = await send(app, '/things', { key, headers: { 'x-tenant': tenant } })
    t.equal(retry.json().tenant, tenant)
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.ok(await recordOf(database, key, tenant))
  }
})

test('two tenants with the same key do not wait for each other', async (t) => {
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { tenant: byHeader, wait: '10s' },
    routes: (app) =>
      app.post('/things', async ({ headers }) => {
        if (headers['x-tenant'] === 'slow') {
          began.open()
          await go.opened
        }
        return headers['x-tenant']
      }),
  })
  const key = newKey()
  const slow = begin(app, '/things', { key, headers: { 'x-tenant': 'slow' } })
  await began.opened
  t.equal((await send(app, '/things', { key, headers: { 'x-tenant': 'fast' } })).body, 'fast')
  go.open()
  t.equal((await slow).body, 'slow')
})

test('a tenant and a key cannot be shifted into each other', async (t) => {
  const { app, counted } = await countedApp(t, byHeader)
  const key = newKey()
  await send(app, '/things', { key: `b${key}`, headers: { 'x-tenant': 'a' } })
  await send(app, '/things', { key, headers: { 'x-tenant': 'ab' } })
  t.equal(counted.runs, 2)
})

test('an application with one tenant says so, and stores an empty name', async (t) => {
  const { app } = await countedApp(t, false)
  const key = newKey()
  await send(app, '/things', { key })
  t.equal((await recordOf(database, key))?.tenantId, '')
})

test('a tenant is named by a string, a number or a bigint, at once or by a promise', async (t) => {
  const names: [TenantId | Promise<TenantId>, string][] = [
    ['org', 'org'],
    [0, '0'],
    [42, '42'],
    [2n ** 64n, '18446744073709551616'],
    [Promise.resolve('later'), 'later'],
    ['x'.repeat(255), 'x'.repeat(255)],
  ]
  for (const [given, name] of names) {
    const { app } = await countedApp(t, () => given)
    const key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, 200)
    t.ok(await recordOf(database, key, name), name)
  }
})

test('a request of no tenant is answered 403, and nothing is looked up or run', async (t) => {
  for (const nothing of [undefined, null, '']) {
    for (const value of [nothing, Promise.resolve(nothing)]) {
      const pool = new WatchedPool(database)
      const { app, counted } = await countedApp(t, () => value, pool)
      const answer = await send(app, '/things', { key: newKey() })
      t.equal(answer.statusCode, 403)
      t.equal(answer.json().code, 'IDEMPOTENCY_TENANT_UNKNOWN')
      t.equal(answer.headers['content-type'], 'application/problem+json')
      t.equal(counted.runs, 0)
      t.same(pool.asked, [])
    }
  }
})

test('a tenant that is no name is a 500 of ours, never a key that several share', async (t) => {
  for (const value of [
    {},
    [],
    true,
    Number.NaN,
    // Two ids that JSON.parse rounded to one number.
    2 ** 53,
    1.5,
    Number.POSITIVE_INFINITY,
    'half of a character: \ud800',
    Symbol('x'),
    () => 'x',
    'x'.repeat(256),
    'a\0b',
    { id: 1 },
  ]) {
    const pool = new WatchedPool(database)
    const { app, counted } = await countedApp(t, () => value as never, pool)
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, 500)
    t.equal(answer.json().code, 'IDEMPOTENCY_TENANT_FAILED')
    t.equal(counted.runs, 0)
    t.same(pool.asked, [])
  }
})

test('a tenant function that throws is a 500 of ours, and says nothing of why', async (t) => {
  for (const tenant of [
    () => {
      throw new Error('canary: the token was abc')
    },
    () => Promise.reject(new TypeError("canary: cannot read 'orgId' of undefined")),
  ]) {
    const { app, counted } = await countedApp(t, tenant)
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, 500)
    t.equal(answer.json().code, 'IDEMPOTENCY_TENANT_FAILED')
    t.notMatch(answer.body, 'canary')
    t.equal(counted.runs, 0)
  }
})

test('a tenant function that throws an error with a status answers by that', async (t) => {
  for (const statusCode of [401, 403, 404, 503]) {
    const { app, counted } = await countedApp(t, () => {
      throw Object.assign(new Error('no session'), { statusCode })
    })
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, statusCode)
    t.equal(answer.json().message, 'no session')
    t.equal(counted.runs, 0)
  }
})

test('a refusal for want of a tenant leaves the key free', async (t) => {
  const events = collectEvents(t)
  const { app, counted } = await countedApp(t, byHeader)
  const key = newKey()
  t.equal((await send(app, '/things', { key })).statusCode, 403)
  t.equal((await send(app, '/things', { key, headers: { 'x-tenant': 'a' } })).statusCode, 200)
  t.equal(counted.runs, 1)
  t.notMatch(events.kinds(), ['released'])
})

test('the tenant is asked after authentication, and once for each request with a key', async (t) => {
  const asked: unknown[] = []
  const app = await buildApp(t, database, {
    plugin: {
      tenant: (request) => {
        asked.push(Reflect.get(request, 'user'))
        return (Reflect.get(request, 'user') as { orgId: string }).orgId
      },
    },
    routes(app) {
      app.decorateRequest('user', null)
      app.addHook('preHandler', async (request) => {
        Reflect.set(request, 'user', { orgId: 'org-1' })
      })
      app.post('/things', () => 'ran')
    },
  })
  const key = newKey()
  await send(app, '/things', { key })
  await send(app, '/things', { key })
  await send(app, '/things')
  t.same(asked, [{ orgId: 'org-1' }, { orgId: 'org-1' }])
  t.ok(await recordOf(database, key, 'org-1'))
})

test('what a client sends has no say in its tenant', async (t) => {
  const { app } = await countedApp(t, ({ ip }) => ip)
  const key = newKey()
  await send(app, '/things', { key, payload: { tenantId: 'other', tenant_id: 'other' } })
  t.ok(await recordOf(database, key, '127.0.0.1'))
  t.equal(await recordOf(database, key, 'other'), null)
})

test('where a tenant function says whose a key or an event is, operators name the tenant', async (t) => {
  const { app } = await countedApp(t, byHeader)
  const key = newKey()
  await send(app, '/things', { key, headers: { 'x-tenant': 'a' } })
  const release = { release: true } as const
  const { idempotency } = app
  await t.rejects(idempotency.resolve(key, release), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message: /write app\.idempotency\.for\(tenantId\)\.resolve\(…\)/,
  })
  const event = { provider: 'stripe', eventId: newKey() }
  await t.rejects(idempotency.replay(event), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message: /replay needs a "tenantId" beside "provider" and "eventId"/,
  })
  t.strictSame(await idempotency.for('a').resolve(key, release), { kind: 'completed' })
  t.strictSame(await idempotency.replay({ tenantId: 'a', ...event }), { kind: 'missing' })

  // A name that says so is the application's own.
  t.strictSame(await idempotency.resolve({ run: newKey() }, release), { kind: 'missing' })
  t.strictSame(await idempotency.for('').resolve(newKey(), release), { kind: 'missing' })
  t.strictSame(await idempotency.replay({ tenantId: '', ...event }), { kind: 'missing' })
})

test('with one tenant, a key and an event are found without a name of it', async (t) => {
  const { app } = await countedApp(t, false)
  const key = newKey()
  await send(app, '/things', { key })
  const release = { release: true } as const
  t.strictSame(await app.idempotency.resolve(key, release), { kind: 'completed' })
  const event = { provider: 'stripe', eventId: newKey() }
  t.strictSame(await app.idempotency.replay(event), { kind: 'missing' })
})

test('what a helper needs the tenant for is told what the answer to a key would be', async (t) => {
  const broken = new Error('password authentication failed for user "shop"')
  for (const [what, tenant] of Object.entries<PluginOptions['tenant']>({
    throws: () => {
      throw broken
    },
    rejects: () => Promise.reject(broken),
    'never answers': () => new Promise(() => {}),
    'returns a NUL': () => 'a\0b',
    'returns half a character': () => '\ud800',
    'returns no name': () => ({}) as string,
  })) {
    const app = await buildApp(t, database, {
      plugin: { tenant, storeTimeout: 300 },
      routes(app) {
        const config = { config: { idempotency: false } }
        const slot = { resource: 'r', slots: 's', holder: 'h' }
        app.post('/reserve', config, ({ idempotency }) => idempotency.reserve(slot))
        app.post('/confirm', config, ({ idempotency }) => idempotency.confirm(slot))
        app.post('/cancel', config, ({ idempotency }) => idempotency.cancel(slot))
        app.post('/availability', config, ({ idempotency }) =>
          idempotency.availability({ resource: 'r' }),
        )
        app.post('/lock', config, ({ idempotency }) => idempotency.lock('l', {}, () => 1))
        app.post('/record', config, ({ idempotency }) =>
          idempotency.recordEvent({ provider: 'own', eventId: newKey() }),
        )
        const work = app.idempotency.handler('work', async () => 1)
        app.post('/run', async ({ idempotency }) => idempotency.run(work, undefined))
      },
    })
    const events = collectEvents(t)
    const urls = ['/reserve', '/confirm', '/cancel', '/availability', '/lock', '/record', '/run']
    for (const url of urls) {
      const answer = await send(app, url)
      t.equal(answer.statusCode, 500, `${url}: ${what}`)
      t.equal(answer.json().code, 'IDEMPOTENCY_TENANT_FAILED')
      t.notMatch(answer.body, 'password')
    }
    t.equal(events.kinds().filter((kind) => kind === 'caller_failed').length, urls.length)
  }
})
