import { randomUUID } from 'node:crypto'
import t, { test } from 'tap'
import type { WebhookHandler } from '../../src/index.js'
import { stripe } from '../../src/webhooks/index.js'
import { buildApp, latch } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { eventOf, postStripe, SECRET, stripeEvent } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

const appOf = (t: Parameters<typeof buildApp>[0], handler: WebhookHandler) =>
  buildApp(t, database, {
    routes: (app) =>
      app.webhook('/webhooks/stripe', { provider: stripe({ secret: SECRET }) }, handler),
  })

const paid = (tenantId: string) => database.prisma.payment.count({ where: { tenantId } })

test('a handler that does not await its transaction has failed, and its effect is there once', async (t) => {
  const tenantId = randomUUID()
  let runs = 0
  const app = await appOf(t, (event) => {
    runs += 1
    const effect = event.transaction((tx) =>
      tx.payment.create({ data: { tenantId, amount: 1, currency: 'EUR' }, select: { id: true } }),
    )
    return runs === 1 ? undefined : effect
  })
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).statusCode, 500)
  t.match(await eventOf(database, event.id), {
    status: 'retrying',
    errors: [{ message: /FastifyError: The handler did not await a step, a transaction/ }],
  })
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
  t.equal(await paid(tenantId), 1)
})

test('what fails without being awaited ends no process', async (t) => {
  const app = await appOf(t, (event) => {
    void event.step('mail', async () => {
      throw new Error('no mail today')
    })
  })
  t.equal((await postStripe(app, stripeEvent())).statusCode, 500)
})

test('a failure that nothing awaited fails the attempt, also when the handler ends later', async (t) => {
  const tenantId = randomUUID()
  let runs = 0
  const app = await appOf(t, async (event) => {
    runs += 1
    if (runs > 2) return
    if (runs === 1) void event.step('mail', () => Promise.reject(new Error('no mail today')))
    else void event.transaction(() => Promise.reject(new Error('no row to update')))
    await paid(tenantId)
    await paid(tenantId)
  })
  const event = stripeEvent()
  for (const attempt of [1, 2]) {
    t.equal((await postStripe(app, event)).statusCode, 500)
    t.match((await eventOf(database, event.id))?.errors, { length: attempt })
  }
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
})

test('a step beside one that failed is done before the attempt ends', async (t) => {
  const go = latch()
  let charges = 0
  let runs = 0
  const app = await appOf(t, async (event) => {
    runs += 1
    await Promise.all([
      event.step('charge', async () => {
        await go.opened
        charges += 1
      }),
      event.step('mail', () => {
        // After this, the slower one goes on beside the failure.
        setImmediate(go.open)
        if (runs === 1) throw new Error('no mail today')
      }),
    ])
  })
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).statusCode, 500)
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
  t.equal(charges, 1, 'its result was kept')
})

test('a verdict within a transaction undoes it, and it is asked again', async (t) => {
  const tenantId = randomUUID()
  let isThere = false
  const app = await appOf(t, async (event) => {
    await event.transaction(
      async (tx) => {
        await tx.payment.create({ data: { tenantId, amount: 1, currency: 'EUR' } })
        if (!isThere) event.defer()
      },
      { final: true },
    )
  })
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).json().outcome, 'postponed')
  t.equal(await paid(tenantId), 0)
  isThere = true
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
  t.equal(await paid(tenantId), 1)
})

test('an event that waits under a name that is served no more holds up nothing else', async (t) => {
  const named = (name: string, handler: WebhookHandler) =>
    buildApp(t, database, {
      routes: (app) =>
        app.webhook(
          '/webhooks/stripe',
          { provider: stripe({ secret: SECRET }), name, serialize: true },
          handler,
        ),
    })
  const about = { data: { object: { id: randomUUID() } } }
  const began = latch()
  const go = latch()
  const old = await named('before', async () => {
    began.open()
    await go.opened
  })
  const first = postStripe(old, stripeEvent(about))
  await began.opened
  const renamed = await named('after', () => {})
  t.equal((await postStripe(renamed, stripeEvent(about))).json().outcome, 'processed')
  go.open()
  await first
})
