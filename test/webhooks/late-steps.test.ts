// What a handler begins after its run has ended is refused before any of it runs.
import { randomUUID } from 'node:crypto'
import t, { test } from 'tap'
import type { IdempotencyEvent, WebhookEvent, WebhookHandler } from '../../src/index.js'
import { collectEvents, latch } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { eventOf, inboxApp, postStripe, stripeEvent } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

/** How a run ends, and what is reported then. */
const ENDINGS: Record<string, { handler: WebhookHandler; kind: IdempotencyEvent['kind'] }> = {
  'was processed': { handler: () => {}, kind: 'webhook_processed' },
  failed: {
    handler: () => {
      throw new Error('not today')
    },
    kind: 'webhook_failed',
  },
  'was put back': { handler: (event) => event.defer(), kind: 'webhook_postponed' },
  'was ignored': { handler: (event) => event.ignore(), kind: 'webhook_ignored' },
  'was rejected': { handler: (event) => event.reject('unknown currency'), kind: 'webhook_dead' },
  'was processed by its final transaction': {
    handler: async (event) => {
      await event.transaction((tx) => tx.payment.count(), { final: true })
    },
    kind: 'webhook_processed',
  },
}

for (const mode of ['inline', 'deferred'] as const) {
  for (const [name, { handler, kind }] of Object.entries(ENDINGS)) {
    test(`${mode}: after an event ${name}, a step or transaction of it runs nothing`, async (t) => {
      const given = latch<WebhookEvent>()
      const happened = collectEvents(t)
      const app = await inboxApp(
        t,
        database,
        async (event) => {
          given.open(event)
          await handler(event)
        },
        {
          // What earlier tests have put back is not for this worker.
          webhook: {
            name: `${mode} ${name}`,
            mode,
            retry: { attempts: 3, first: '1h', most: '1h' },
          },
        },
      )
      await postStripe(app, stripeEvent())
      const event = await given.opened
      await happened.first(kind)
      const ran: string[] = []
      await t.rejects(
        event.step('late', () => ran.push('step')),
        { code: 'IDEMPOTENCY_STEP_TOO_LATE' },
      )
      await t.rejects(
        event.transaction(
          async (tx) => {
            ran.push('transaction')
            return tx.payment.count()
          },
          { name: 'late' },
        ),
        { code: 'IDEMPOTENCY_STEP_TOO_LATE' },
      )
      t.strictSame(ran, [])
      t.equal(event.keyFor('late'), event.keyFor('late'), 'a key does nothing by itself')
    })
  }
}

test('a step that is begun while an earlier one is waited for is refused', async (t) => {
  const go = latch()
  const chained = latch<{ code?: string }>()
  const ran: string[] = []
  const app = await inboxApp(t, database, (event) => {
    void event
      .step('first', async () => {
        await go.opened
        ran.push('first')
      })
      .then(() => event.step('second', () => ran.push('second')))
      .catch(chained.open)
    setImmediate(go.open)
  })
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).statusCode, 500)
  t.match(await chained.opened, { code: 'IDEMPOTENCY_STEP_TOO_LATE' })
  t.strictSame(ran, ['first'])
  t.match(await eventOf(database, event.id), {
    errors: [{ message: /did not await a step/ }],
    steps: { '["first"]': /./ },
  })
})

test('what an event that was handed back begins runs nothing: another process has it', async (t) => {
  const began = latch()
  const go = latch()
  const refused = latch<{ code?: string }>()
  const tenantId = randomUUID()
  const app = await inboxApp(
    t,
    database,
    async (event) => {
      began.open()
      await go.opened
      await event
        .transaction((tx) => tx.payment.create({ data: { tenantId, amount: 1, currency: 'EUR' } }))
        .catch(refused.open)
      await event.step('late', () => t.fail('it ran'))
    },
    { plugin: { drain: 10 } },
  )
  const event = stripeEvent()
  const happened = collectEvents(t)
  const answer = postStripe(app, event).catch(() => {})
  await began.opened
  const closing = app.close()
  await happened.first('webhook_handed_back')
  go.open()
  t.match(await refused.opened, { code: 'IDEMPOTENCY_LEASE_LOST' })
  await Promise.all([closing, answer])
  t.equal(await prisma.payment.count({ where: { tenantId } }), 0)
})
