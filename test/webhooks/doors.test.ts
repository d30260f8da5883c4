// What is let into the inbox, what is not, and what a request may look like.
import { createHmac } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import t, { test } from 'tap'
import type { WebhookOptions } from '../../src/index.js'
import { github } from '../../src/webhooks/providers/index.js'
import { buildApp, collectEvents, newKey, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import {
  bank,
  eventOf,
  inboxApp,
  postBank,
  postStripe,
  SECRET,
  signedByBank,
  signedByStripe,
  stripeEvent,
} from '../fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

type Teardown = Parameters<typeof buildApp>[0]

/** An application on a pool that tells what it was asked. */
async function watchedApp(t: Teardown, webhook: Partial<WebhookOptions> = {}) {
  const pool = new WatchedPool(database)
  const counted = { runs: 0 }
  const handler = () => {
    counted.runs += 1
  }
  const plugin = { pool, failedSignatures: false } as const
  const app = await inboxApp(t, database, handler, { plugin, webhook })
  return { app, pool, counted }
}

const nowS = () => Math.trunc(Date.now() / 1_000)

interface Refused {
  name: string
  reason: string
  headers: (body: Buffer) => Record<string, string>
}

const REFUSED: Refused[] = [
  { name: 'no signature', reason: 'missing_header', headers: () => ({}) },
  {
    name: 'an empty signature',
    reason: 'missing_header',
    headers: () => ({ 'stripe-signature': '' }),
  },
  {
    name: 'something else in its place',
    reason: 'malformed',
    headers: () => ({ 'stripe-signature': 'Bearer abc' }),
  },
  {
    name: 'a signature that is no hex',
    reason: 'malformed',
    headers: () => ({ 'stripe-signature': `t=${nowS()},v1=zz` }),
  },
  {
    name: 'a time that is no number',
    reason: 'malformed',
    headers: (body) => ({
      'stripe-signature': signature(body).replace(/t=\d+/, 't=now'),
    }),
  },
  {
    name: 'the signature of another secret',
    reason: 'no_match',
    headers: (body) => signedByStripe(body, { secret: 'whsec_another' }),
  },
  {
    name: 'half of a signature',
    reason: 'no_match',
    headers: (body) => ({ 'stripe-signature': signature(body).slice(0, -32) }),
  },
  {
    name: 'a time that was changed after signing',
    reason: 'no_match',
    headers: (body) => ({
      'stripe-signature': signature(body).replace(/t=\d+/, `t=${nowS() + 1}`),
    }),
  },
  {
    name: 'a signature of ten minutes ago',
    reason: 'too_old',
    headers: (body) => signedByStripe(body, { at: nowS() - 600 }),
  },
  {
    name: 'a signature of ten minutes ahead',
    reason: 'from_future',
    headers: (body) => signedByStripe(body, { at: nowS() + 600 }),
  },
]

function signature(body: Buffer): string {
  return signedByStripe(body)['stripe-signature'] as string
}

for (const { name, reason, headers } of REFUSED) {
  test(`${name}: 401 with the reason, nothing looked up, nothing recorded`, async (t) => {
    const events = collectEvents(t)
    const { app, pool, counted } = await watchedApp(t)
    const event = stripeEvent()
    const body = Buffer.from(JSON.stringify(event))
    const answer = await app.inject({
      method: 'POST',
      url: '/webhooks/stripe',
      headers: { 'content-type': 'application/json', ...headers(body) },
      payload: body,
    })
    t.equal(answer.statusCode, 401)
    t.equal(answer.headers['content-type'], 'application/problem+json')
    t.match(answer.json(), {
      code: 'IDEMPOTENCY_SIGNATURE_REFUSED',
      status: 401,
      type: /#idempotency_signature_refused$/,
      reason,
    })
    t.strictSame(pool.asked, [])
    t.equal(counted.runs, 0)
    t.match(events.all, [{ kind: 'webhook_refused', provider: 'stripe', reason }])
    t.equal(await eventOf(database, event.id), null)
    t.equal((await postStripe(app, event)).json().outcome, 'processed', 'nothing is suppressed')
  })
}

test('one byte changed after signing, anywhere in the body, is refused', async (t) => {
  const { app, pool } = await watchedApp(t)
  const body = Buffer.from(JSON.stringify(stripeEvent()))
  const headers = signedByStripe(body)
  const answers = await Promise.all(
    Array.from(body, (byte, place) => {
      const payload = Buffer.from(body)
      payload[place] = byte ^ 1
      return app.inject({ method: 'POST', url: '/webhooks/stripe', headers, payload })
    }),
  )
  const said = answers.map((answer) => `${answer.statusCode} ${answer.json().reason}`)
  t.same(new Set(said), new Set(['401 no_match']))
  t.strictSame(pool.asked, [])
})

test('the window is compared with the clock of the endpoint', async (t) => {
  const at = 1_700_000_000
  const { app } = await watchedApp(t, { clock: () => at * 1_000 })
  t.equal((await postStripe(app, stripeEvent(), { at: at - 299 })).statusCode, 200)
  t.equal((await postStripe(app, stripeEvent(), { at: at + 299 })).statusCode, 200)
  t.equal((await postStripe(app, stripeEvent(), { at: at - 301 })).json().reason, 'too_old')
  t.equal((await postStripe(app, stripeEvent(), { at: at + 301 })).json().reason, 'from_future')
  t.equal((await postStripe(app, stripeEvent())).json().reason, 'from_future')
})

test('bytes that are no UTF-8, and text that is no JSON, are kept for a person when they are signed', async (t) => {
  const bodies = [
    Buffer.from([0x22, 0xff, 0xfe, 0x22]),
    Buffer.from('{"id":"evt_1","type":'),
    Buffer.from(''),
    Buffer.from([0]),
  ]
  for (const body of bodies) {
    const events = collectEvents(t)
    const { app, counted } = await watchedApp(t)
    const at = Math.trunc(Date.now() / 1_000)
    const answer = await postStripe(app, body, { at })
    t.equal(answer.statusCode, 200)
    t.strictSame(answer.json(), { outcome: 'dead' })
    t.equal(counted.runs, 0)
    const dead = await events.first('webhook_dead')
    t.match(dead, {
      attempt: 0,
      why: 'it cannot be read; its errors say why',
      eventId: /^unreadable:/,
    })
    const id = 'event' in dead ? dead.event : ''
    const stored = await prisma.webhookEvent.findUnique({ where: { id } })
    t.match(stored, { status: 'dead', type: 'unreadable', dueAt: null, deliveries: 1 })
    t.ok(Buffer.from(stored?.payload ?? []).equals(body))
    // Delivered again, it is not one more for a person to look at.
    t.equal((await postStripe(app, body, { at })).json().outcome, 'dead')
    t.equal(events.kinds().filter((kind) => kind === 'webhook_dead').length, 1)
    t.match(await prisma.webhookEvent.findUnique({ where: { id } }), { deliveries: 2 })
  }
})

test('JSON that is no object is an event without a name', async (t) => {
  for (const body of ['null', '1', '"text"', '[]', 'true']) {
    const { app } = await watchedApp(t)
    t.equal((await postStripe(app, body)).json().outcome, 'processed', body)
  }
})

test("a function of the application's that fails on what was signed keeps the event as dead, and quotes nothing of it", async (t) => {
  const events = collectEvents(t)
  let isMended = false
  const eventId = (payload: { deep?: { id: string } }) => {
    if (isMended) return payload.deep?.id ?? null
    throw new TypeError('canary of the payload')
  }
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { provider: bank({ eventId }) },
  })
  const answer = await postBank(app, { shallow: true })
  t.strictSame([answer.statusCode, answer.json()], [200, { outcome: 'dead' }])
  t.match(await events.first('webhook_dead'), { failure: { name: 'TypeError' } })
  t.notMatch(JSON.stringify(events.all), 'canary')
  isMended = true
  t.equal((await postBank(app, { shallow: true })).json().outcome, 'processed')
})

test('the content type does not matter: signed bytes are', async (t) => {
  const { app } = await watchedApp(t)
  for (const type of [
    ...['text/plain', 'application/xml', 'application/json; charset=utf-16', 'image/png'],
    ...['application/x-www-form-urlencoded', 'multipart/form-data; boundary=x'],
  ]) {
    const posted = { headers: { 'content-type': type } }
    t.equal((await postStripe(app, stripeEvent(), posted)).json().outcome, 'processed', type)
    const other = { ...posted, secret: 'whsec_another' }
    t.equal((await postStripe(app, stripeEvent(), other)).statusCode, 401, type)
  }
  const body = JSON.stringify(stripeEvent())
  const { 'content-type': _, ...headers } = signedByStripe(body)
  const untyped = await app.inject({
    method: 'POST',
    url: '/webhooks/stripe',
    headers,
    payload: Buffer.from(body),
  })
  t.equal(untyped.json().outcome, 'processed', 'none at all')
})

test('a body that is too large is 413 each time, and told; GitHub sends up to 25 MiB', async (t) => {
  const events = collectEvents(t)
  const app = await inboxApp(t, database, () => {}, {
    webhook: { bodyLimit: 300 },
    routes: (app) => {
      app.webhook('/webhooks/github', { provider: github({ secret: SECRET }) }, () => {})
    },
  })
  for (let delivery = 1; delivery <= 2; delivery += 1) {
    const answer = await postStripe(app, { ...stripeEvent(), x: 'x'.repeat(500) })
    t.equal(answer.statusCode, 413)
    t.match(await events.first('webhook_too_large', delivery), {
      provider: 'stripe',
      bodyLimit: 300,
      route: '/webhooks/stripe',
    })
  }
  const mebibyte = 1024 * 1024
  for (const [bytes, status] of [
    [25 * mebibyte, 200],
    [25 * mebibyte + 1, 413],
  ] as const) {
    const body = Buffer.alloc(bytes, ' ').fill('{}', 0, 2)
    const hmac = createHmac('sha256', SECRET).update(body).digest('hex')
    const headers = { 'x-hub-signature-256': `sha256=${hmac}`, 'x-github-delivery': newKey() }
    const posted = { method: 'POST', url: '/webhooks/github', payload: body, headers } as const
    t.equal((await app.inject(posted)).statusCode, status)
  }
})

test('a body of exactly 1 MiB is accepted, and one byte more is 413', async (t) => {
  const { app, pool, counted } = await watchedApp(t)
  const sized = (bytes: number) => {
    const event = { ...stripeEvent(), fill: '' }
    event.fill = 'x'.repeat(bytes - JSON.stringify(event).length)
    return event
  }
  t.equal((await postStripe(app, sized(1024 * 1024))).json().outcome, 'processed')
  const asked = pool.asked.length
  const answer = await postStripe(app, sized(1024 * 1024 + 1))
  t.equal(answer.statusCode, 413)
  t.equal(pool.asked.length, asked)
  t.equal(counted.runs, 1)
})

test('bodyLimit sets another limit, over that of the server', async (t) => {
  const app = await inboxApp(t, database, () => {}, {
    server: { bodyLimit: 10 },
    webhook: { bodyLimit: 500 },
  })
  t.equal((await postStripe(app, stripeEvent())).statusCode, 200)
  t.equal((await postStripe(app, { ...stripeEvent(), x: 'x'.repeat(500) })).statusCode, 413)
})

test('headers are kept by a list of names, and credentials never', async (t) => {
  const { app } = await watchedApp(t, { headers: ['X-Request-Id'] })
  const event = stripeEvent()
  await postStripe(app, event, {
    headers: {
      authorization: 'Bearer canary',
      cookie: 'session=canary',
      'x-forwarded-for': '10.0.0.1',
      'x-api-key': 'canary',
      'x-request-id': 'r1',
      'user-agent': 'Stripe/1.0',
    },
  })
  const { headers } = (await eventOf(database, event.id)) as { headers: Record<string, string> }
  t.same(Object.keys(headers).toSorted(), [
    ...['content-type', 'stripe-signature', 'user-agent', 'x-request-id'],
  ])
  t.equal(headers['x-request-id'], 'r1')
})

test('the application keeps its own parsers, and the webhook its bytes', async (t) => {
  const before = (app: FastifyInstance) => {
    app.removeContentTypeParser('application/json')
    app.addContentTypeParser('application/json', { parseAs: 'string' }, (_request, body, done) =>
      done(null, { parsedBy: 'the application', body }),
    )
    app.addContentTypeParser('application/own', { parseAs: 'string' }, (_request, body, done) =>
      done(null, `own ${body}`),
    )
  }
  const app = await inboxApp(t, database, () => {}, {
    before,
    routes: (app) => void app.post('/echo', ({ body }) => ({ body })),
  })
  t.equal((await postStripe(app, stripeEvent())).json().outcome, 'processed')
  const own = { headers: { 'content-type': 'application/own' } }
  t.equal((await postStripe(app, stripeEvent(), own)).json().outcome, 'processed')
  const echo = (type: string) =>
    app.inject({ method: 'POST', url: '/echo', headers: { 'content-type': type }, payload: '{}' })
  t.same((await echo('application/json')).json().body, { parsedBy: 'the application', body: '{}' })
  t.same((await echo('application/own')).json().body, 'own {}')
  t.equal((await echo('application/unknown')).statusCode, 415)
})

test('a webhook in a context with a prefix is named by its whole URL', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.register(
        async (inner) => {
          inner.webhook('/stripe', { provider: bank({ name: 'prefixed' }) }, () => {})
        },
        { prefix: '/v1/hooks' },
      ),
  })
  const answer = await postBank(app, { id: 'prefixed-1' }, { url: '/v1/hooks/stripe' })
  t.equal(answer.json().outcome, 'processed')
  t.match(await eventOf(database, 'prefixed-1', '', 'prefixed'), { endpoint: '/v1/hooks/stripe' })
})

test('an Idempotency-Key of the sender changes nothing', async (t) => {
  const { app, counted } = await watchedApp(t)
  const posted = { headers: { 'idempotency-key': 'k' } }
  for (let n = 1; n <= 2; n += 1) {
    t.equal((await postStripe(app, stripeEvent(), posted)).json().outcome, 'processed')
  }
  t.equal(counted.runs, 2)
})

test('the tenant comes from the endpoint, and two tenants may have events of one name', async (t) => {
  const seen: string[] = []
  const app = await inboxApp(t, database, ({ tenantId }) => void seen.push(tenantId), {
    plugin: { tenant: () => 'of the plugin' },
    url: '/webhooks/:tenant',
    webhook: {
      provider: bank({ name: 'tenanted' }),
      tenant: ({ params }) => (params as { tenant: string }).tenant,
    },
  })
  const event = { id: 'e1', tenant: 'of the payload', tenantId: 'of the payload' }
  for (const tenant of ['a', 'b', 'a']) await postBank(app, event, { url: `/webhooks/${tenant}` })
  t.strictSame(seen, ['a', 'b'])
  t.match(await eventOf(database, 'e1', 'a', 'tenanted'), { deliveries: 2 })
  t.match(await eventOf(database, 'e1', 'b', 'tenanted'), { deliveries: 1 })
})

test('the tenant may be a name', async (t) => {
  const app = await inboxApp(t, database, () => {}, {
    plugin: { tenant: () => 'of the plugin' },
    webhook: { tenant: 'platform' },
  })
  const event = stripeEvent()
  await postStripe(app, event)
  t.match(await eventOf(database, event.id, 'platform'), { status: 'processed' })
})

test('an endpoint of no tenant is 403, before its body is read', async (t) => {
  for (const nobody of [undefined, null, '']) {
    const pool = new WatchedPool(database)
    const asked: string[] = []
    const secret = (tenantId: string) => {
      asked.push(tenantId)
      return SECRET
    }
    const app = await inboxApp(t, database, () => t.fail('it ran'), {
      plugin: { pool },
      url: '/webhooks/:tenant',
      webhook: {
        provider: bank({ secret }),
        tenant: async () => nobody,
      },
    })
    const answer = await postBank(app, { id: 'nobody' }, { url: '/webhooks/x' })
    t.equal(answer.statusCode, 403)
    t.equal(answer.json().code, 'IDEMPOTENCY_TENANT_UNKNOWN')
    t.equal(answer.headers['content-type'], 'application/problem+json')
    t.strictSame(pool.asked, [])
    t.strictSame(asked, [])
  }
})

test('the tenant function cannot read the body', async (t) => {
  const bodies: unknown[] = []
  const app = await inboxApp(t, database, () => {}, {
    webhook: {
      tenant: (request) => {
        bodies.push(request.body)
        return 'x'
      },
    },
  })
  await postStripe(app, stripeEvent())
  t.strictSame(bodies, [undefined])
})

test('a tenant that cannot be found out is 503, which tells nobody why, and the event comes again', async (t) => {
  const events = collectEvents(t)
  let isDown = true
  const app = await inboxApp(t, database, () => {}, {
    webhook: {
      tenant: () => {
        if (isDown) throw new Error('canary of the database')
        return 'x'
      },
    },
  })
  const event = stripeEvent()
  const answer = await postStripe(app, event)
  t.equal(answer.statusCode, 503)
  t.equal(answer.json().code, 'IDEMPOTENCY_INBOX_UNAVAILABLE')
  t.ok(answer.headers['retry-after'])
  t.notMatch(answer.body, 'canary')
  t.match(events.all, [{ kind: 'webhook_not_verified', failure: { name: 'Error' } }])
  isDown = false
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
})

test('a tenant function may say itself what to answer', async (t) => {
  const app = await inboxApp(t, database, () => {}, {
    webhook: {
      tenant: () => {
        throw Object.assign(new Error('no such shop'), { statusCode: 404 })
      },
    },
  })
  t.equal((await postStripe(app, stripeEvent())).statusCode, 404)
})

test('each tenant has secrets of its own, looked up when they are needed', async (t) => {
  const secrets: Record<string, string | string[]> = { a: 'secret-a', b: ['old-b', 'new-b'] }
  const asked: string[] = []
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/:tenant',
    webhook: {
      provider: bank({
        name: 'secrets',
        secret: async (tenant: string) => {
          asked.push(tenant)
          return secrets[tenant] as string
        },
      }),
      tenant: ({ params }) => (params as { tenant: string }).tenant,
    },
  })
  const post = async (tenant: string, secret: string) =>
    (await postBank(app, { id: secret }, { url: `/webhooks/${tenant}`, secret })).statusCode
  t.equal(await post('a', 'secret-a'), 200)
  t.equal(await post('b', 'old-b'), 200)
  t.equal(await post('b', 'new-b'), 200)
  t.equal(await post('a', 'old-b'), 401)
  t.equal(await post('b', 'secret-a'), 401)
  t.equal(await post('unknown', 'secret-a'), 401, 'a tenant without secrets')
  t.strictSame(asked, ['a', 'b', 'b', 'a', 'b', 'unknown'])
})

test('what has no signature in the right form costs no look-up of a secret', async (t) => {
  let lookups = 0
  const provider = bank({
    name: 'thrifty',
    secret: () => {
      lookups += 1
      return SECRET
    },
  })
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { provider },
  })
  for (const headers of [{}, { 'x-bank-signature': '' }, { 'x-bank-signature': 'no hex' }]) {
    const answer = await app.inject({
      ...{ method: 'POST', url: '/webhooks/bank', payload: '{}' },
      headers: headers as Record<string, string>,
    })
    t.equal(answer.statusCode, 401)
  }
  t.equal(lookups, 0)
  t.equal((await postBank(app, { id: newKey() })).statusCode, 200)
  t.equal(lookups, 1)
})

test('a secret that is never found holds no request for longer than storeTimeout, and is asked for once', async (t) => {
  const lookups: string[] = []
  const provider = bank({
    name: 'hanging',
    secret: (tenantId) => {
      lookups.push(tenantId)
      return tenantId === 'well' ? SECRET : new Promise<string>(() => {})
    },
  })
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/:tenant',
    plugin: { storeTimeout: 500 },
    webhook: { provider, tenant: ({ params }) => (params as { tenant: string }).tenant },
  })
  const posted = Array.from({ length: 50 }, () =>
    postBank(app, { id: newKey() }, { url: '/webhooks/ill' }),
  )
  const well = await postBank(app, { id: newKey() }, { url: '/webhooks/well' })
  t.equal(well.statusCode, 200, 'another tenant is not held up')
  const answers = await Promise.all(posted)
  t.ok(answers.every(({ statusCode }) => statusCode === 503))
  const asked = lookups.filter((tenantId) => tenantId === 'ill').length
  t.ok(asked < 10, `50 requests asked ${asked} times`)
  t.equal((await postBank(app, {}, { url: '/webhooks/ill' })).statusCode, 503)
  t.ok(lookups.length > asked + 1, 'the next one asks again')
})

test('secrets that cannot be looked up are 503, and nothing is lost', async (t) => {
  const found: unknown[] = [new Error('canary of the vault'), '', [], [''], 7, {}]
  const events = collectEvents(t)
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: {
      provider: bank({
        name: 'vault',
        secret: async () => {
          const next = found.shift()
          if (next instanceof Error) throw next
          return (next ?? SECRET) as string
        },
      }),
    },
  })
  const failures = found.length
  for (let n = 0; n < failures; n += 1) {
    const answer = await postBank(app, { id: 'vault-1' })
    t.equal(answer.statusCode, 503)
    t.equal(answer.json().code, 'IDEMPOTENCY_INBOX_UNAVAILABLE')
    t.ok(answer.headers['retry-after'])
    t.notMatch(answer.body, 'canary')
  }
  t.equal(events.kinds().filter((kind) => kind === 'webhook_not_verified').length, failures)
  t.equal((await postBank(app, { id: 'vault-1' })).json().outcome, 'processed')
})

test('a secret that is being changed is accepted in both of its forms', async (t) => {
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { provider: bank({ name: 'rotating', secret: ['new', 'old'] }) },
  })
  for (const secret of ['new', 'old']) {
    t.equal((await postBank(app, { id: secret }, { secret })).statusCode, 200)
  }
  t.equal((await postBank(app, { id: 'x' }, { secret: 'older' })).statusCode, 401)
})

/** A provider that asks whether anybody is here: unsigned by GET, and signed by POST. */
function asking(more: object = {}) {
  return {
    ...bank({ name: 'asking' }),
    greeting: (query: URLSearchParams, tenantId: string) =>
      query.get('token') === 'right'
        ? { status: 200, body: `${tenantId} ${query.get('challenge')}` }
        : undefined,
    handshake: (payload: unknown) => {
      const challenge: unknown = Reflect.get(Object(payload), 'challenge')
      return challenge === undefined ? undefined : { status: 202, body: { challenge } }
    },
    ...more,
  }
}

test('a greeting is answered as the provider says, and 401 otherwise; nothing is recorded', async (t) => {
  const pool = new WatchedPool(database)
  const app = await inboxApp(t, database, () => t.fail('it ran'), {
    plugin: { pool },
    url: '/webhooks/asking',
    webhook: { provider: asking(), tenant: 'us' },
  })
  const right = await app.inject('/webhooks/asking?token=right&challenge=%3Cb%3E')
  t.equal(right.statusCode, 200)
  t.equal(right.body, 'us <b>')
  t.equal(right.headers['content-type'], 'text/plain; charset=utf-8')
  const wrong = await app.inject('/webhooks/asking?token=wrong&challenge=x')
  t.equal(wrong.statusCode, 401)
  t.equal(wrong.json().code, 'IDEMPOTENCY_SIGNATURE_REFUSED')
  t.equal((await app.inject('/webhooks/asking')).statusCode, 401)
  t.strictSame(pool.asked, [])
})

test('a greeting that fails is 503 and tells nobody why', async (t) => {
  const events = collectEvents(t)
  const greeting = () => Promise.reject(new Error('canary of the vault'))
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/asking',
    webhook: { provider: asking({ greeting }) },
  })
  const answer = await app.inject('/webhooks/asking?x=1')
  t.equal(answer.statusCode, 503)
  t.notMatch(answer.body, 'canary')
  t.match(events.all, [{ kind: 'webhook_not_verified' }])
})

test('an endpoint of a provider that does not greet has no GET', async (t) => {
  const { app } = await watchedApp(t)
  t.equal((await app.inject('/webhooks/stripe')).statusCode, 404)
})

test('a handshake is answered only when it is signed, and is no event', async (t) => {
  const events = collectEvents(t)
  const pool = new WatchedPool(database)
  const app = await inboxApp(t, database, () => t.fail('it ran'), {
    plugin: { pool },
    url: '/webhooks/asking',
    webhook: { provider: asking() },
  })
  const url = '/webhooks/asking'
  const answer = await postBank(app, { challenge: 'c' }, { url })
  t.equal(answer.statusCode, 202)
  t.strictSame(answer.json(), { challenge: 'c' })
  const unsigned = await app.inject({ method: 'POST', url, payload: { challenge: 'c' } })
  t.equal(unsigned.statusCode, 401)
  t.notMatch(unsigned.body, '"c"')
  t.strictSame(events.kinds(), ['webhook_handshake', 'webhook_refused'])
  t.strictSame(pool.asked, [])
})

test('two signatures in two headers of one name are none', async (t) => {
  const app = await inboxApp(t, database, () => t.fail('it ran'), {
    url: '/webhooks/bank',
    webhook: { provider: bank() },
  })
  const body = '{"id":"twice"}'
  const one = signedByBank(body)['x-bank-signature'] as string
  const answer = await app.inject({
    method: 'POST',
    url: '/webhooks/bank',
    headers: { 'x-bank-signature': [one, one] as unknown as string },
    payload: body,
  })
  t.equal(answer.statusCode, 401)
})
