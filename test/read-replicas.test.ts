// A client that reads from replicas, by Prisma's own extension. What decides is read from the primary.
import { randomUUID } from 'node:crypto'
import { readReplicas } from '@prisma/extension-read-replicas'
import t, { type Test } from 'tap'
import { defineFlow, type PrismaClientLike } from '../src/index.js'
import { buildApp, latch, newKey, send } from './fixtures/app.js'
import type { Database } from './fixtures/database.js'
import { pgliteDatabase } from './fixtures/pglite.js'
import { postgresDatabase } from './fixtures/postgres.js'
import { missing } from './fixtures/services.js'
import { sqliteDatabase } from './fixtures/sqlite.js'
import { bank, postBank } from './fixtures/webhooks.js'

const noPostgres = await missing('postgres')
const flow = defineFlow({ levels: { pending: 0, paid: 1, refunded: 2 }, terminal: ['refunded'] })

type Open = (t: Test) => Promise<{ prisma: unknown }>

/** A primary, and a replica that has the tables and lags behind all that is written in the test. */
async function lagging(t: Test, open: Open): Promise<{ database: Database; primary: Anything }> {
  const [{ prisma: primary }, { prisma: replica }] = await Promise.all([open(t), open(t)])
  const extension = readReplicas({ replicas: [replica as never] })
  const prisma = (primary as Anything).$extends(extension) as PrismaClientLike
  return { database: { kind: 'replicated', prisma } as never, primary }
}

// biome-ignore lint/suspicious/noExplicitAny: clients of two providers, and one that is extended
type Anything = any

async function contract(t: Test, open: Open): Promise<void> {
  const { database, primary } = await lagging(t, open)
  const prisma = database.prisma as Anything
  t.strictSame(
    await prisma.slotReservation.findMany(),
    [],
    'the application reads from the replica',
  )

  await t.test('reservations', async (t) => {
    const { idempotency } = await buildApp(t, database, { routes: () => {} })
    const slots = { resource: randomUUID(), slots: ['a', 'b'], holder: 'ann' }
    t.match(await idempotency.reserve(slots), { kind: 'reserved', isNew: true })
    t.match(await idempotency.reserve(slots), { kind: 'reserved', isNew: false })
    t.match(await idempotency.reserve({ ...slots, slots: ['b', 'c'], holder: 'bob' }), {
      kind: 'taken',
      slots: ['b'],
    })
    t.match(await idempotency.availability({ resource: slots.resource }), [
      { kind: 'held' },
      { kind: 'held' },
    ])
    t.match(await idempotency.confirm(slots), { kind: 'confirmed', isNew: true })
    t.match(await idempotency.confirm(slots), { kind: 'confirmed', isNew: false })
    t.match(await idempotency.cancel(slots), { slots: ['a', 'b'] })
  })

  await t.test('locks', async (t) => {
    const { idempotency } = await buildApp(t, database, { routes: () => {} })
    const name = randomUUID()
    const inside = await idempotency.lock(name, { holder: 'ann' }, () =>
      idempotency.lock(name, {}, () => {}),
    )
    t.match(inside, { kind: 'done', value: { kind: 'busy', holder: 'ann' }, kept: true })
    t.match(await idempotency.lock(name, {}, () => {}), { kind: 'done' })
  })

  await t.test('statuses', async (t) => {
    const { idempotency } = await buildApp(t, database, { routes: () => {} })
    const { id } = await prisma.payment.create({
      data: { tenantId: '', amount: 1, currency: 'EUR' },
    })
    const to = (to: 'paid' | 'refunded') =>
      idempotency.advance(prisma.payment, { where: { id }, flow, to })
    t.match(await to('paid'), { kind: 'advanced', from: 'pending' })
    t.match(await to('paid'), { kind: 'unchanged' })
    t.match(await to('refunded'), { kind: 'advanced', from: 'paid' })
    t.match(await to('paid'), { kind: 'blocked', from: 'refunded' })
    t.equal(await primary.statusChange.count({ where: { entityId: id } }), 2)
  })

  await t.test('operations, and what people decide about them', async (t) => {
    const app = await buildApp(t, database, { routes: () => {} })
    const key = randomUUID()
    const run = () => app.idempotency.run(key, async () => 'done')
    t.match(await run(), { kind: 'ran' })
    t.match(await run(), { kind: 'replayed', value: 'done' })
    t.match(await app.idempotency.resolve({ run: key }, { release: true }), { kind: 'completed' })
  })

  await t.test('operations that another process left behind', async (t) => {
    let runs = 0
    const begun = latch()
    const ended = latch<string>()
    const process = async () => {
      const app = await buildApp(t, database, { plugin: { recoverEvery: false }, routes: () => {} })
      const work = app.idempotency.handler('payout', async () => {
        runs += 1
        if (runs > 1) return 'done'
        begun.open()
        return ended.opened
      })
      return { app, work }
    }
    const first = await process()
    first.app.idempotency.run('payout-1', first.work, { lease: '1s' }).catch(() => {})
    await begun.opened
    const past = new Date(0)
    await primary.idempotencyRecord.updateMany({ data: { leaseUntil: past } })
    const second = await process()
    t.match(await second.app.idempotency.recover(), { finished: 1 })
    t.equal(runs, 2)
    ended.open('too late')
  })

  await t.test('requests', async (t) => {
    let runs = 0
    const app = await buildApp(t, database, {
      routes: (app) =>
        app.post('/pay', async () => {
          runs += 1
          return { runs }
        }),
    })
    const key = newKey()
    for (const _ of [1, 2]) t.strictSame((await send(app, '/pay', { key })).json(), { runs: 1 })
  })

  await t.test('events', async (t) => {
    let runs = 0
    const app = await buildApp(t, database, {
      routes: (app) =>
        app.webhook('/webhooks/bank', { provider: bank() }, () => {
          runs += 1
        }),
    })
    const event = { id: randomUUID() }
    t.equal((await postBank(app, event)).json().outcome, 'processed')
    t.equal((await postBank(app, event)).json().outcome, 'duplicate')
    const name = { provider: 'bank', eventId: event.id }
    t.strictSame(await app.idempotency.replay(name, { force: true }), { kind: 'processed' })
    t.equal(runs, 2)
  })
}

t.test('PostgreSQL', { skip: noPostgres }, (t) => contract(t, postgresDatabase))
if (noPostgres) t.test('PGlite', (t) => contract(t, pgliteDatabase))
t.test('SQLite', (t) => contract(t, sqliteDatabase))
