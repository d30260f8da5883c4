import { createHmac, randomUUID } from 'node:crypto'
import t, { test } from 'tap'
import type { WebhookHandler } from '../../src/index.js'
import { adyen, github, hmac, slack } from '../../src/webhooks/index.js'
import { buildApp } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

/** An application with one endpoint for each provider, all of one tenant, but for `/of/:tenant`. */
async function appOf(t: Parameters<typeof buildApp>[0], handler: WebhookHandler = () => {}) {
  const bank = (name: string) =>
    hmac({
      name,
      secret: 's',
      header: 'x-signature',
      eventId: (payload) => payload.id,
    })
  return buildApp(t, database, {
    plugin: { tenant: () => 'of-requests' },
    routes: (app) => {
      app.webhook('/bank', { provider: bank('bank'), tenant: 'acme' }, handler)
      app.webhook(
        '/of/:tenant',
        { provider: bank('banks'), tenant: (request) => request.params.tenant },
        handler,
      )
      app.webhook('/github', { provider: github({ secret: 's' }), tenant: 'acme' }, handler)
      app.webhook('/slack', { provider: slack({ secret: 's' }), tenant: 'acme' }, handler)
      app.webhook('/adyen', { provider: adyen({ hmacKey: '00ff' }), tenant: 'acme' }, handler)
    },
  })
}

test('what was delivered is a duplicate when it is ingested, and the reverse', async (t) => {
  let runs = 0
  const app = await appOf(t, () => {
    runs += 1
  })
  const payload = { id: randomUUID(), type: 'paid' }
  const body = JSON.stringify(payload)
  const deliver = () =>
    app.inject({
      method: 'POST',
      url: '/bank',
      headers: { 'x-signature': createHmac('sha256', 's').update(body).digest('hex') },
      payload: body,
    })
  t.equal((await deliver()).json().outcome, 'processed')
  t.match(await app.idempotency.ingest({ endpoint: '/bank', payload }), {
    outcome: 'duplicate',
    deliveries: 2,
  })
  t.equal((await deliver()).json().outcome, 'duplicate')
  t.equal(runs, 1)
})

test('where requests say whose events arrive, an ingested one must say it', async (t) => {
  const app = await appOf(t)
  const payload = { id: randomUUID() }
  await t.rejects(app.idempotency.ingest({ endpoint: '/of/:tenant', payload }), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message: /needs a "tenantId"/,
  })
  const ingest = (tenantId: string) =>
    app.idempotency.ingest({ endpoint: '/of/:tenant', tenantId, payload })
  t.equal((await ingest('a')).outcome, 'processed')
  t.equal((await ingest('b')).outcome, 'processed', 'another tenant, another event')
  t.equal((await ingest('a')).outcome, 'duplicate')
})

test('an event that nothing names is refused, unless that is meant', async (t) => {
  const app = await appOf(t)
  const given = { endpoint: '/github', payload: { action: 'opened', n: randomUUID() } }
  const refused = { code: 'IDEMPOTENCY_OPTION_INVALID', message: /found no id of the provider/ }
  await t.rejects(app.idempotency.ingest(given), refused)
  const headers = { 'X-GitHub-Delivery': randomUUID() }
  t.equal((await app.idempotency.ingest({ ...given, headers })).outcome, 'processed')
  t.equal((await app.idempotency.ingest({ ...given, headers })).outcome, 'duplicate')
  const eventId = randomUUID()
  t.equal((await app.idempotency.ingest({ ...given, eventId })).outcome, 'processed')
  t.equal((await app.idempotency.ingest({ ...given, eventId })).outcome, 'duplicate')
  t.equal((await app.idempotency.ingest({ ...given, eventId: null })).outcome, 'processed')
  t.equal((await app.idempotency.ingest({ ...given, eventId: null })).outcome, 'processed')
})

test('bytes are read as the provider sends them, and a batch item by item', async (t) => {
  const seen: unknown[] = []
  const app = await appOf(t, (event) => {
    seen.push(event.payload)
  })
  const form = { 'content-type': 'application/x-www-form-urlencoded' }
  const command = { endpoint: '/slack', payload: 'command=%2Fdeploy', headers: form, eventId: null }
  await app.idempotency.ingest(command)
  t.strictSame(seen, [{ command: '/deploy' }])

  const item = { eventCode: 'AUTHORISATION', pspReference: randomUUID(), success: 'true' }
  const batch = (...items: object[]) => ({
    notificationItems: items.map((one) => ({ NotificationRequestItem: one })),
  })
  t.equal(
    (await app.idempotency.ingest({ endpoint: '/adyen', payload: item })).outcome,
    'processed',
  )
  const same = await app.idempotency.ingest({ endpoint: '/adyen', payload: batch(item) })
  t.equal(same.outcome, 'duplicate')
  await t.rejects(app.idempotency.ingest({ endpoint: '/adyen', payload: batch(item, item) }), {
    message: /one event at a time, and this payload has 2/,
  })
})

test('what cannot be read is told without repeating it', async (t) => {
  const app = await appOf(t)
  for (const payload of ['{"canary":', Buffer.from([0xff, 0xfe]), undefined]) {
    const error = await app.idempotency.ingest({ endpoint: '/bank', payload }).catch((e) => e)
    t.match(error, { code: 'IDEMPOTENCY_OPTION_INVALID', message: /cannot be read as bank/ })
    t.notMatch(String(error.stack) + String(error.cause), /canary/)
  }
  await t.rejects(app.idempotency.ingest({ endpoint: '/nowhere', payload: {} }), {
    code: 'IDEMPOTENCY_EVENT_MISSING',
    message: /no webhook endpoint \/nowhere; there are .*\/bank/,
  })
})

test('an event of an endpoint that is not here is left alone, unless others have it', async (t) => {
  const { prisma } = database
  const id = randomUUID()
  const app = await buildApp(t, database, {
    plugin: { tenant: false },
    routes: (app) => {
      app.post('/mine', async (request, reply) => {
        await request.idempotency.recordEvent({ provider: 'mine', eventId: id })
        return reply.code(500).send({})
      })
    },
  })
  await app.inject({ method: 'POST', url: '/mine' })
  const name = { provider: 'mine', eventId: id }
  const where = { tenantId_provider_eventId: { tenantId: '', ...name } }
  const before = await prisma.webhookEvent.findUnique({ where })
  t.match(before, { status: 'retrying', dueAt: null }, 'only its next delivery can run it')
  t.strictSame(await app.idempotency.replay(name), { kind: 'unserved' })
  t.strictSame(await prisma.webhookEvent.findUnique({ where }), before)
  t.strictSame(await app.idempotency.replay(name, { queue: true }), { kind: 'queued' })
  t.match(await prisma.webhookEvent.findUnique({ where }), { status: 'received', dueAt: Date })
})
