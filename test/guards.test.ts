// What keeps operations apart, as an application gets it: of a request, of an event, outside of both.
import t, { test } from 'tap'
import { type AdvanceResult, defineFlow, type Guards, once } from '../src/index.js'
import { buildApp, collectEvents, latch, newKey, send } from './fixtures/app.js'
import { anyDatabase } from './fixtures/database.js'
import { inboxApp, postStripe, stripeEvent } from './fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

const flow = defineFlow({ levels: { pending: 0, paid: 1 }, terminal: ['paid'] })
const payment = () => prisma.payment.create({ data: { tenantId: '', amount: 1, currency: 'EUR' } })
const lockOf = (tenantId: string, name: string) =>
  prisma.namedLock.findUnique({ where: { tenantId_name: { tenantId, name } } })

test('a request has the guards of its tenant', async (t) => {
  const { id } = await payment()
  const seen: unknown[] = []
  const app = await buildApp(t, database, {
    plugin: { tenant: () => 'acme' },
    routes: (app) =>
      app.post('/things', async ({ idempotency }) => {
        const slots = { resource: 'venue', slots: 'friday', holder: 'ann' }
        seen.push(
          await idempotency.lock('name', {}, async (signal, fence) => [
            signal.aborted,
            typeof fence,
          ]),
          await idempotency.reserve(slots),
          await idempotency.availability({ resource: 'venue' }),
          await idempotency.confirm(slots),
          await idempotency.cancel(slots),
          await idempotency.advance(prisma.payment, { where: { id }, flow, to: 'paid' }),
          await idempotency.once(async () => 1, { find: async () => undefined }),
        )
        return {}
      }),
  })
  const events = collectEvents(t)
  t.equal((await send(app, '/things')).statusCode, 200)
  t.match(seen, [
    { kind: 'done', value: [false, 'number'], kept: true },
    { kind: 'reserved', slots: ['friday'], isNew: true },
    [{ slot: 'friday', kind: 'held', holder: 'ann' }],
    { kind: 'confirmed' },
    { kind: 'cancelled', slots: ['friday'] },
    { kind: 'advanced', from: 'pending', to: 'paid' },
    { duplicate: false, value: 1 },
  ])
  t.ok(await lockOf('acme', 'name'))
  t.match(await prisma.statusChange.findMany({ where: { entityId: id } }), [{ tenantId: 'acme' }])
  const told = events.all.filter(({ kind }) => kind !== 'pruned')
  t.strictSame(
    told.map(({ kind }) => kind),
    ['locked', 'reserved', 'reservation_confirmed', 'reservation_cancelled', 'status_advanced'],
  )
  for (const event of told) {
    t.match(event, { tenantId: 'acme', keyId: undefined, route: 'POST /things' })
  }
})

test('a request of no tenant has none, and nothing runs', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    plugin: { tenant: () => null },
    routes: (app) =>
      app.post('/things', ({ idempotency }) => idempotency.lock('name', {}, () => ++runs)),
  })
  const answer = await send(app, '/things')
  t.equal(answer.statusCode, 403)
  t.match(answer.json(), {
    code: 'IDEMPOTENCY_TENANT_UNKNOWN',
    detail: /belongs to no tenant.*Authenticate.*tenant function.*onUnknownCaller/,
  })
  t.equal(runs, 0)
})

test('tenants, and the application itself, have locks and slots of their own', async (t) => {
  const app = await buildApp(t, database, { routes: () => {} })
  const { idempotency } = app
  const all: Guards[] = [idempotency, idempotency.for('acme'), idempotency.for('globex')]
  const name = newKey()
  // Each while the one before holds it.
  const nested = ([first, ...others]: Guards[]): Promise<unknown> | undefined =>
    first?.lock(name, {}, () => nested(others))
  t.match(await nested(all), { kind: 'done', value: { kind: 'done', value: { kind: 'done' } } })
  for (const guards of all) {
    const slots = { resource: name, slots: ['1'], holder: newKey() }
    t.match(await guards.reserve(slots), { kind: 'reserved', isNew: true })
  }
})

test('a tenant without a name is none', async (t) => {
  const app = await buildApp(t, database, { routes: () => {} })
  for (const name of [undefined, null, 7, 'x'.repeat(256)]) {
    t.throws(() => app.idempotency.for(name as string), { code: 'IDEMPOTENCY_OPTION_INVALID' })
  }
})

test('what somebody holds is busy: who, and until when', async (t) => {
  const app = await buildApp(t, database, { routes: () => {} })
  const held = latch()
  const go = latch()
  const name = newKey()
  const first = app.idempotency.lock(name, { holder: 'nightly', ttl: '10s' }, async () => {
    held.open()
    await go.opened
    return 'first'
  })
  await held.opened
  const busy = await app.idempotency.lock(name, {}, () => 'second')
  t.match(busy, { kind: 'busy', name, holder: 'nightly', until: Date })
  const waiting = app.idempotency.lock(name, { wait: '10s' }, () => 'third')
  go.open()
  t.match(await first, { kind: 'done', value: 'first', kept: true })
  t.match(await waiting, { kind: 'done', value: 'third', kept: true })
})

test('an event has the guards of its tenant, and advances in its transaction', async (t) => {
  const { id } = await payment()
  const results: AdvanceResult[] = []
  const app = await inboxApp(
    t,
    database,
    async (event) => {
      await event.transaction(async (tx) => {
        results.push(
          await event.advance(tx.payment, {
            where: { id },
            flow,
            to: event.payload.data.object.to,
          }),
        )
      })
      const held = await event.lock(id, {}, () => event.tenantId)
      t.match(held, { kind: 'done', value: 'acme' })
    },
    { webhook: { tenant: 'acme' } },
  )
  const events = collectEvents(t)
  const told = (to: string) => stripeEvent({ data: { object: { id, to } } })
  const paid = told('paid')
  for (const event of [paid, paid, told('paid'), told('pending')]) {
    t.equal((await postStripe(app, event)).statusCode, 200)
  }
  t.match(results, [
    { kind: 'advanced', from: 'pending', to: 'paid' },
    { kind: 'unchanged', status: 'paid' },
    { kind: 'blocked', why: 'terminal' },
  ])
  t.equal(results.length, 3, 'the duplicate did not run')
  t.match(await prisma.payment.findUnique({ where: { id } }), { status: 'paid' })
  t.match(await prisma.statusChange.findMany({ where: { entityId: id } }), [
    { tenantId: 'acme', entity: 'Payment', from: 'pending', to: 'paid' },
  ])
  t.match(await events.first('status_blocked'), { tenantId: 'acme', route: '/webhooks/stripe' })
})

test('an event whose transaction is undone leaves its status, and its audit, as they were', async (t) => {
  const { id } = await payment()
  const app = await inboxApp(t, database, (event) =>
    event.transaction(async (tx) => {
      await event.advance(tx.payment, { where: { id }, flow, to: 'paid' })
      throw new Error('too early')
    }),
  )
  t.equal((await postStripe(app, stripeEvent())).statusCode, 500)
  t.match(await prisma.payment.findUnique({ where: { id } }), { status: 'pending' })
  t.equal(await prisma.statusChange.count({ where: { entityId: id } }), 0)
})

test('what a part needs of the client is asked for when it is used, and named', async (t) => {
  const { idempotencyRecord, payment } = prisma
  const client = {
    ...{ idempotencyRecord, payment, _activeProvider: 'postgresql' },
    $queryRawUnsafe: prisma.$queryRawUnsafe.bind(prisma),
    $transaction: prisma.$transaction.bind(prisma),
  }
  const app = await buildApp(t, database, { plugin: { prisma: client as never }, routes: () => {} })
  const { idempotency } = app
  const slots = { resource: 'r', slots: 's', holder: 'h' }
  const missing = (model: string) => ({
    code: 'IDEMPOTENCY_MODELS_MISSING',
    message: new RegExp(`lacks model ${model}\\. .*npx fastify-idempotency init`),
  })
  await t.rejects(
    idempotency.lock('name', {}, () => {}),
    missing('NamedLock'),
  )
  await t.rejects(idempotency.reserve(slots), missing('SlotReservation'))
  await t.rejects(
    idempotency.advance(payment, { where: { id: 'x' }, flow, to: 'paid' }),
    missing('StatusChange'),
  )
})

test('in memory, locks need no table', async (t) => {
  const app = await buildApp(t, database, { plugin: { locks: 'memory' }, routes: () => {} })
  const name = newKey()
  t.match(await app.idempotency.lock(name, {}, () => 'value'), { kind: 'done', value: 'value' })
  t.equal(await lockOf('', name), null)
})

test('a Redis that may forget locks is told of at the start', async (t) => {
  const events = collectEvents(t)
  const redis = {
    ...{ defineCommand() {}, eval: async () => {}, evalsha: async () => {} },
    config: async () => ['maxmemory-policy', 'allkeys-lru'],
  }
  await buildApp(t, database, { plugin: { locks: 'redis', redis }, routes: () => {} })
  t.match(await events.first('redis_may_evict'), { policy: 'allkeys-lru' })
})

test('a server that closes lets nobody wait for a lock', async (t) => {
  const app = await buildApp(t, database, { routes: () => {} })
  const held = latch()
  const go = latch()
  const name = newKey()
  const first = app.idempotency.lock(name, {}, async () => {
    held.open()
    await go.opened
  })
  await held.opened
  const waiting = app.idempotency.lock(name, { wait: '10m' }, () => 'never')
  const closing = app.close()
  t.match(await waiting, { kind: 'busy' })
  go.open()
  await Promise.all([first, closing])
})

test('prune deletes what nobody holds any more', async (t) => {
  const app = await buildApp(t, database, { routes: () => {} })
  const name = newKey()
  await app.idempotency.lock(name, {}, () => {})
  await app.idempotency.reserve({ resource: name, slots: ['old', 'new'], holder: 'h' })
  const longAgo = new Date('2001-01-01T00:00:00Z')
  await prisma.namedLock.updateMany({ where: { name }, data: { heldUntil: longAgo } })
  await prisma.slotReservation.updateMany({
    where: { resource: name, slot: 'old' },
    data: { heldUntil: longAgo },
  })
  await app.idempotency.prune()
  t.equal(await lockOf('', name), null)
  t.match(await prisma.slotReservation.findMany({ where: { resource: name } }), [{ slot: 'new' }])
})

test('once is there without the plugin, too', async (t) => {
  const app = await buildApp(t, database, { routes: () => {} })
  t.equal(app.idempotency.once, once)
})
