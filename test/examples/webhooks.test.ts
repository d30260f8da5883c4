// The example's webhooks, where the demo does not look.
import { randomUUID } from 'node:crypto'
import { type Test, test } from 'tap'
import { buildApp } from '../../examples/payments/app.js'
import { parseEnvironment } from '../../examples/payments/environment.js'
import { type Delivery, deliveries, withoutSignature } from '../../scripts/demo/signed.js'
import { anyDatabase } from '../fixtures/database.js'

const { secrets } = parseEnvironment({ STRIPE_WEBHOOK_SECRET: 'whsec_ours' })
const { stripe, github } = deliveries(secrets)

async function api(t: Test) {
  const { prisma } = await anyDatabase(t)
  const app = await buildApp({ prisma }, secrets)
  t.teardown(() => app.close())
  const post = async ({ path, headers, body }: Delivery, more: Record<string, string> = {}) => {
    const request = { method: 'POST', url: path, payload: body } as const
    const { statusCode, body: text } = await app.inject({
      ...request,
      headers: { ...headers, ...more },
    })
    return { statusCode, ...JSON.parse(text) }
  }
  const pay = (id: string, tenant = 'acme') =>
    app.inject({
      method: 'POST',
      url: '/payments',
      headers: { authorization: `Bearer ${tenant}-demo-token`, 'idempotency-key': randomUUID() },
      payload: { id, amount: 4900, currency: 'EUR' },
    })
  return { app, prisma, post, pay }
}

test('a provider signs and does not log in, and a client that logs in does not sign', async (t) => {
  const { post, pay } = await api(t)
  const payment = randomUUID()
  await pay(payment)
  const event = stripe({ id: 'evt_1', payment })
  t.match(await post(event), { statusCode: 200, outcome: 'processed' })
  const unsigned = await post(withoutSignature(event), { authorization: 'Bearer acme-demo-token' })
  t.match(unsigned, { statusCode: 401, reason: 'missing_header' })
  const known = stripe({ id: 'evt_2', payment }, { secret: 'whsec_demo_stripe' })
  t.match(await post(known), { statusCode: 401, reason: 'no_match' })
})

test('an event of one tenant does not confirm the payment of another', async (t) => {
  const { prisma, post, pay } = await api(t)
  const payment = randomUUID()
  await pay(payment, 'globex')
  t.match(await post(stripe({ id: 'evt_1', payment })), { statusCode: 503, outcome: 'postponed' })
  t.equal(await prisma.confirmation.count(), 0)
})

test('a payment that was cancelled is not confirmed by what is told of it later', async (t) => {
  const { prisma, post, pay } = await api(t)
  const payment = randomUUID()
  await pay(payment)
  const cancelled = stripe({ id: 'evt_1', payment, type: 'payment_intent.canceled' })
  t.match(await post(cancelled), { statusCode: 200, outcome: 'processed' })
  t.match(await post(stripe({ id: 'evt_2', payment })), { statusCode: 200, outcome: 'processed' })
  t.match(await prisma.payment.findUnique({ where: { id: payment } }), { status: 'cancelled' })
  t.equal(await prisma.confirmation.count(), 0)
})

test('an event that names no payment is dead, and acknowledged, until a person has looked', async (t) => {
  const { app, prisma, post } = await api(t)
  const event = stripe({ id: 'evt_1', payment: undefined as unknown as string })
  t.match(await post(event), { statusCode: 200, outcome: 'dead' })
  t.match(await post(event), { statusCode: 200, outcome: 'dead' })
  t.match(await prisma.webhookEvent.findFirst(), {
    status: 'dead',
    deliveries: 2,
    errors: [{ message: 'Rejected: it names no payment' }],
  })
  const name = { tenantId: 'acme', provider: 'stripe', eventId: 'evt_1' }
  t.same(await app.idempotency.replay(name), { kind: 'dead' })
})

test('what GitHub sends besides pushes is recorded as ignored', async (t) => {
  const { prisma, post } = await api(t)
  const ping = await post(github({ id: 'a' }), { 'x-github-event': 'ping' })
  t.match(ping, { statusCode: 200, outcome: 'ignored' })
  t.match(await prisma.webhookEvent.findFirst(), { status: 'ignored', type: 'ping' })
})

test('a payment whose name is taken is refused', async (t) => {
  const { pay } = await api(t)
  const payment = randomUUID()
  t.equal((await pay(payment)).statusCode, 201)
  t.match((await pay(payment)).json(), { statusCode: 409, code: 'PAYMENT_EXISTS' })
})
