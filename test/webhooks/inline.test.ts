import t, { test } from 'tap'
import type { WebhookHandler, WebhookOptions } from '../../src/index.js'
import { stripe } from '../../src/webhooks/providers/index.js'
import { buildApp, collectEvents, latch } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { eventOf, postStripe, SECRET, stripeEvent } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

async function inbox(
  t: Parameters<typeof buildApp>[0],
  handler: WebhookHandler,
  options: Partial<WebhookOptions> = {},
) {
  return buildApp(t, database, {
    routes: (app) =>
      app.webhook(
        '/webhooks/stripe',
        { provider: stripe({ secret: SECRET }), ...options },
        handler,
      ),
  })
}

test('a valid event is run in its request, and recorded as processed', async (t) => {
  const seen: unknown[] = []
  const app = await inbox(t, (event) => {
    seen.push(event.payload, event.eventId, event.type, event.attempt, event.rawBody.toString())
  })
  const event = stripeEvent()
  const answer = await postStripe(app, event)
  t.equal(answer.statusCode, 200)
  t.strictSame(answer.json(), { outcome: 'processed' })
  t.strictSame(seen, [event, event.id, event.type, 1, JSON.stringify(event)])
  t.match(await eventOf(database, event.id), {
    status: 'processed',
    deliveries: 1,
    fence: 1,
    attempts: 1,
    endpoint: '/webhooks/stripe',
    headers: { 'stripe-signature': String },
  })
})

test('a duplicate is acknowledged, counted, logged, and not run', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const app = await inbox(t, () => {
    runs += 1
  })
  const event = stripeEvent()
  await postStripe(app, event)
  const answer = await postStripe(app, event)
  t.equal(answer.statusCode, 200)
  t.strictSame(answer.json(), { outcome: 'duplicate' })
  t.equal(runs, 1)
  const stored = await eventOf(database, event.id)
  t.equal(stored?.deliveries, 2)
  t.equal((stored?.deliveredAt as string[] | undefined)?.length, 2)
  t.match(await events.first('webhook_duplicate'), { eventId: event.id, deliveries: 2 })
})

test('a failure is 500, and the next delivery runs it again', async (t) => {
  let runs = 0
  const app = await inbox(t, () => {
    runs += 1
    if (runs === 1) throw new Error('first time')
  })
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).statusCode, 500)
  t.match(await eventOf(database, event.id), {
    status: 'retrying',
    errors: [{ message: 'Error: first time' }],
  })
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
  t.match(await eventOf(database, event.id), { status: 'processed', fence: 2, deliveries: 2 })
})

test('a duplicate of one that is running is told to come back', async (t) => {
  const began = latch()
  const go = latch()
  const app = await inbox(t, async () => {
    began.open()
    await go.opened
  })
  const event = stripeEvent()
  const first = postStripe(app, event)
  await began.opened
  const second = await postStripe(app, event)
  t.equal(second.statusCode, 503)
  t.equal(second.headers['retry-after'], '5')
  go.open()
  t.equal((await first).statusCode, 200)
})

test('transaction: effect and step commit together, and a later attempt skips it', async (t) => {
  let runs = 0
  let effects = 0
  const app = await inbox(t, async (event) => {
    runs += 1
    const value = await event.transaction(async (tx) => {
      effects += 1
      await tx.payment.create({ data: { tenantId: event.id, amount: 1, currency: 'EUR' } })
      return { at: new Date(5) }
    })
    t.strictSame(value, { at: new Date(5) })
    if (runs === 1) throw new Error('after the commit')
  })
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).statusCode, 500)
  t.equal((await postStripe(app, event)).statusCode, 200)
  t.equal(runs, 2)
  t.equal(effects, 1)
  const id = (await eventOf(database, event.id))?.id as string
  t.equal(await database.prisma.payment.count({ where: { tenantId: id } }), 1)
})
