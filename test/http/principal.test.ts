// A stored response goes to the caller whose request it answered, and to no other one.
import t, { test } from 'tap'
import type { PluginOptions, PrincipalId, RouteOptions } from '../../src/index.js'
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

const byHeader: PluginOptions['principal'] = ({ headers }) => headers['x-user'] as string

async function countedApp(
  t: Parameters<typeof buildApp>[0],
  plugin: Partial<PluginOptions>,
  route: RouteOptions = {},
) {
  const counted = { runs: 0 }
  const app = await buildApp(t, database, {
    plugin,
    routes: (app) =>
      app.post('/things', { config: { idempotency: route } }, ({ headers }) => ({
        run: ++counted.runs,
        secret: `of ${headers['x-user']}`,
      })),
  })
  return { app, counted }
}

test('another principal with the same key and body gets 422, and never the stored response', async (t) => {
  const { app, counted } = await countedApp(t, { tenant: () => 'acme', principal: byHeader })
  const key = newKey()
  const ask = (user: string) => send(app, '/things', { key, headers: { 'x-user': user } })
  const first = await ask('ann')
  t.equal(first.statusCode, 200)
  const before = await recordOf(database, key, 'acme')

  const other = await ask('bob')
  t.equal(other.statusCode, 422)
  t.equal(other.json().code, 'IDEMPOTENCY_KEY_REUSED')
  t.match(other.json().detail, /with another request or by another caller/)
  t.notMatch(other.body, 'ann')
  t.same(await recordOf(database, key, 'acme'), before)

  const retry = await ask('ann')
  t.equal(retry.body, first.body)
  t.equal(retry.headers['idempotent-replayed'], 'true')
  t.equal(counted.runs, 1)
})

test('a fingerprint of the route’s own leaves the principal compared', async (t) => {
  const route: RouteOptions = { fingerprint: ({ params }) => params }
  const { app, counted } = await countedApp(t, { principal: byHeader }, route)
  const key = newKey()
  const ask = (user: string) => send(app, '/things', { key, headers: { 'x-user': user } })
  t.equal((await ask('ann')).statusCode, 200)
  t.equal((await ask('bob')).json().code, 'IDEMPOTENCY_KEY_REUSED')
  t.equal((await ask('ann')).headers['idempotent-replayed'], 'true')
  t.equal(counted.runs, 1)
})

test('another principal does not wait for a request that runs, and learns nothing of it', async (t) => {
  const began = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { principal: byHeader, wait: '10s' },
    routes: (app) =>
      app.post('/things', async () => {
        began.open()
        await go.opened
        return 'done'
      }),
  })
  const key = newKey()
  const first = begin(app, '/things', { key, headers: { 'x-user': 'ann' } })
  await began.opened
  t.equal((await send(app, '/things', { key, headers: { 'x-user': 'bob' } })).statusCode, 422)
  go.open()
  t.equal((await first).body, 'done')
})

test('a key that was released stays its principal’s', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { principal: byHeader },
    routes: (app) =>
      app.post('/things', (_request, reply) => reply.code(++runs === 1 ? 503 : 200).send({ runs })),
  })
  const key = newKey()
  const ask = (user: string) => send(app, '/things', { key, headers: { 'x-user': user } })
  t.equal((await ask('ann')).statusCode, 503)
  t.equal((await ask('bob')).statusCode, 422)
  t.equal((await ask('ann')).statusCode, 200)
})

test('on an atomic route, another principal gets 422, too', {
  skip: database.kind === 'postgres' ? false : 'needs PostgreSQL',
}, async (t) => {
  const { app, counted } = await countedApp(t, { principal: byHeader }, { atomic: true })
  const key = newKey()
  const ask = (user: string) => send(app, '/things', { key, headers: { 'x-user': user } })
  t.equal((await ask('ann')).statusCode, 200)
  t.equal((await ask('bob')).statusCode, 422)
  t.equal((await ask('ann')).headers['idempotent-replayed'], 'true')
  t.equal(counted.runs, 1)
})

test('a principal is named by a string of any length, a number or a bigint, at once or by a promise', async (t) => {
  const names: readonly (PrincipalId | Promise<PrincipalId>)[] = [
    'ann',
    'ann ',
    'Ann',
    0,
    42,
    2n ** 64n,
    Promise.resolve('later'),
    'x'.repeat(10_000),
    `${'x'.repeat(9_999)}y`,
  ]
  let name: PrincipalId | Promise<PrincipalId>
  const { app } = await countedApp(t, { principal: () => name })
  for (const owner of names) {
    const key = newKey()
    for (const caller of [owner, ...names]) {
      name = caller
      const expected = caller === owner ? 200 : 422
      t.equal((await send(app, '/things', { key })).statusCode, expected, String(await caller))
    }
  }
})

test('a request of no principal is answered 403, and nothing is looked up or run', async (t) => {
  const events = collectEvents(t)
  for (const nothing of [undefined, null, '']) {
    for (const value of [nothing, Promise.resolve(nothing)]) {
      const pool = new WatchedPool(database)
      const { app, counted } = await countedApp(t, { principal: () => value, pool })
      const answer = await send(app, '/things', { key: newKey() })
      t.equal(answer.statusCode, 403)
      t.equal(answer.json().code, 'IDEMPOTENCY_PRINCIPAL_UNKNOWN')
      t.equal(answer.headers['content-type'], 'application/problem+json')
      t.equal(counted.runs, 0)
      t.same(pool.asked, [])
    }
  }
  t.match(events.all[0], { kind: 'key_rejected', reason: 'the request belongs to no principal' })
})

test('a principal that is no name, or no valid text, is a 500 and never one that several share', async (t) => {
  for (const value of [{}, [], true, Number.NaN, Symbol('x'), () => 'x', 'a\ud800', 'a\0', {}]) {
    const { app, counted } = await countedApp(t, { principal: () => value as never })
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, 500)
    t.equal(answer.json().code, 'IDEMPOTENCY_PRINCIPAL_FAILED')
    t.equal(counted.runs, 0)
  }
})

test('a principal function that throws is a 500, and tells nothing of why', async (t) => {
  const events = collectEvents(t)
  for (const principal of [
    () => {
      throw new Error('canary: the token was abc')
    },
    () => Promise.reject(new Error('canary: no such user')),
  ]) {
    const { app, counted } = await countedApp(t, { principal })
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, 500)
    t.equal(answer.json().code, 'IDEMPOTENCY_PRINCIPAL_FAILED')
    t.notMatch(answer.body + JSON.stringify(events.all), 'canary')
    t.equal(counted.runs, 0)
  }
  t.match(events.all[0], { kind: 'caller_failed', option: 'principal', failure: { name: 'Error' } })
})

test('a principal function that throws an error with a status answers with that error', async (t) => {
  for (const statusCode of [401, 403]) {
    const { app, counted } = await countedApp(t, {
      principal: () => {
        throw Object.assign(new Error('no session'), { statusCode })
      },
    })
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, statusCode)
    t.equal(answer.json().message, 'no session')
    t.equal(counted.runs, 0)
  }
})

test('a tenant or principal function that never answers is a 500 after storeTimeout', async (t) => {
  const events = collectEvents(t)
  for (const option of ['tenant', 'principal']) {
    const { app, counted } = await countedApp(t, {
      [option]: () => new Promise<never>(() => {}),
      storeTimeout: 20,
    })
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, 500)
    t.equal(answer.json().code, `IDEMPOTENCY_${option.toUpperCase()}_FAILED`)
    t.equal(counted.runs, 0)
    t.match(events.all.at(-1), { kind: 'caller_failed', option, failure: { code: 'ETIMEDOUT' } })
  }
})

test('a tenant or principal function that returns no name: the hint says what it returned', async (t) => {
  const events = collectEvents(t)
  for (const [value, hint] of [
    [{ id: 7 }, /it returned an object: return text, a safe integer or a bigint/],
    [true, /it returned a boolean: /],
    [2 ** 53, /it returned a number that is no safe integer: /],
    ['\ud800', /text that cannot be stored as it is: /],
  ] as const) {
    for (const option of ['tenant', 'principal']) {
      const { app } = await countedApp(t, { [option]: () => value as never })
      t.equal((await send(app, '/things', { key: newKey() })).statusCode, 500)
      t.match(events.all.at(-1), { kind: 'caller_failed', option, failure: { hint } })
    }
  }
})

test('a route replaces the plugin’s principal, or takes it away', async (t) => {
  const app = await buildApp(t, database, {
    plugin: { principal: byHeader },
    routes(app) {
      const config = (idempotency: RouteOptions) => ({ config: { idempotency } })
      app.post('/by-ip', config({ principal: ({ ip }) => ip }), () => 'ran')
      app.post('/shared', config({ principal: false }), () => 'ran')
    },
  })
  for (const url of ['/by-ip', '/shared']) {
    const key = newKey()
    t.equal((await send(app, url, { key, headers: { 'x-user': 'ann' } })).statusCode, 200)
    const other = await send(app, url, { key, headers: { 'x-user': 'bob' } })
    t.equal(other.headers['idempotent-replayed'], 'true')
  }
})

test('a request without a key needs no principal', async (t) => {
  const { app } = await countedApp(t, { principal: byHeader })
  t.equal((await send(app, '/things')).statusCode, 200)
})

test('a lock and a reservation are the tenant’s: two principals meet there', async (t) => {
  const app = await buildApp(t, database, {
    plugin: { principal: byHeader, locks: 'memory' },
    routes: (app) =>
      app.post('/things', async (request) => {
        const { headers, idempotency } = request
        const holder = headers['x-user'] as string
        return idempotency.reserve({ resource: 'venue:principal', slots: 'today', holder })
      }),
  })
  const ask = (user: string) =>
    send(app, '/things', { key: newKey(), headers: { 'x-user': user } }).then((a) => a.json().kind)
  t.equal(await ask('ann'), 'reserved')
  t.equal(await ask('bob'), 'taken')
})

test('what two principals store differs in its fingerprint alone', async (t) => {
  const { app } = await countedApp(t, {
    tenant: ({ headers }) => headers['x-user'] as string,
    principal: byHeader,
  })
  const key = newKey()
  for (const user of ['ann', 'bob'])
    await send(app, '/things', { key, headers: { 'x-user': user } })
  const [ann, bob] = await Promise.all(['ann', 'bob'].map((user) => recordOf(database, key, user)))
  t.equal(ann?.fingerprint.length, 43)
  t.not(ann?.fingerprint, bob?.fingerprint)
  t.notMatch(JSON.stringify([ann?.fingerprint, ann?.steps, ann?.input]), 'ann')
})
