// Providers that read what they are answered: the default is nothing that they would show or misread, and a
// handler can answer itself.
import { createHmac } from 'node:crypto'
import { Readable } from 'node:stream'
import type { FastifyInstance } from 'fastify'
import t, { test } from 'tap'
import type { WebhookEvent } from '../../src/index.js'
import { slack, twilio } from '../../src/webhooks/providers/index.js'
import { buildApp, newKey } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { bank, inboxApp, postBank, postStripe, SECRET, stripeEvent } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

const cyclic: { self?: object } = {}
cyclic.self = cyclic

const ANSWER = { status: 202, headers: { 'x-own': 'y' }, body: { text: 'done' } }

test('a handler answers its delivery; a duplicate is answered as one', async (t) => {
  const app = await inboxApp(t, database, (event) => event.respond(ANSWER))
  const event = stripeEvent()
  const first = await postStripe(app, event)
  t.strictSame([first.statusCode, first.headers['x-own']], [202, 'y'])
  t.strictSame(first.json(), { text: 'done' })
  const second = await postStripe(app, event)
  t.strictSame([second.statusCode, second.json()], [200, { outcome: 'duplicate' }])
})

test('text is sent as it is, with the type that it is given', async (t) => {
  const body = '<Response><Message>Thanks</Message></Response>'
  const app = await inboxApp(t, database, (event) =>
    event.respond({ status: 200, headers: { 'content-type': 'text/xml' }, body }),
  )
  const answer = await postStripe(app, stripeEvent())
  t.strictSame([answer.headers['content-type'], answer.body], ['text/xml', body])
})

test('a handler that fails is answered as its failure, and the next delivery by the next run', async (t) => {
  let runs = 0
  const app = await inboxApp(t, database, (event) => {
    runs += 1
    event.respond({ status: 200, body: `run ${runs}` })
    if (runs === 1) throw new Error('broken')
  })
  const event = stripeEvent()
  t.strictSame((await postStripe(app, event)).json(), { outcome: 'failed' })
  t.equal((await postStripe(app, event)).body, 'run 2')
})

for (const [name, decide] of [
  ['ignored', (event: WebhookEvent) => event.ignore()],
  ['put back', (event: WebhookEvent) => event.defer()],
  ['rejected', (event: WebhookEvent) => event.reject('no')],
] as const) {
  test(`an event that is ${name} is answered by its handler as well`, async (t) => {
    const app = await inboxApp(t, database, (event) => {
      event.respond(ANSWER)
      decide(event)
    })
    t.equal((await postStripe(app, stripeEvent())).statusCode, 202)
  })
}

test('respond() has no effect for several items, or for a deferred event', async (t) => {
  const batch = await inboxApp(t, database, (event) => event.respond(ANSWER), {
    url: '/webhooks/bank',
    webhook: { provider: bank() },
  })
  const items = [{ id: newKey() }, { id: newKey() }]
  t.strictSame((await postBank(batch, items)).json(), { outcome: 'processed' })
  t.equal((await postBank(batch, [{ id: newKey() }])).statusCode, 202, 'one is no batch')
  const deferred = await inboxApp(t, database, (event) => event.respond(ANSWER), {
    webhook: { mode: 'deferred' },
  })
  t.strictSame((await postStripe(deferred, stripeEvent())).json(), { outcome: 'accepted' })
})

test('what cannot be sent is refused with what to write', async (t) => {
  const wrong: [unknown, RegExp][] = [
    [undefined, /the options of respond\(\) must be an object/],
    [{}, /"status" of respond\(\) must be a whole number from 200 to 599/],
    [{ status: 99 }, /"status"/],
    [
      { status: 200, headers: { 'x-own': 'a\nb' } },
      /"headers" of respond\(\) must be text by header name/,
    ],
    [{ status: 200, headers: [] }, /"headers"/],
    [{ status: 200, body: 5 }, /"body" of respond\(\) must be text, or plain data/],
    [{ status: 200, body: null }, /"body"/],
    [
      { status: 200, body: { n: 1n } },
      /"body" of respond\(\) must be text, or plain data that can/,
    ],
    [{ status: 200, body: cyclic }, /"body"/],
    [{ status: 200, body: { toJSON: () => undefined } }, /"body"/],
    [{ status: 200, body: { toJSON: () => Promise.reject.call(0) } }, /"body"/],
    [{ status: 200, body: Buffer.from('x') }, /"body"/],
    [{ status: 200, body: Promise.resolve({}) }, /"body"/],
    [{ status: 200, body: new Map([['a', 1]]) }, /"body"/],
    [{ status: 200, body: Readable.from(['x']) }, /"body"/],
    [{ status: 200, body: new Response('x') }, /"body"/],
    [
      { status: 200, headers: { 'Transfer-Encoding': 'chunked' } },
      /"headers" of respond\(\) must not contain 'Transfer-Encoding'/,
    ],
    [{ status: 200, headers: { 'content-length': '1' } }, /must not contain 'content-length'/],
    [{ status: 200, headers: { trailer: 'x' } }, /must not contain 'trailer'/],
    [{ status: 200, headers: new Map([['x-own', 'a']]) }, /"headers" of respond\(\) must be text/],
    [{ status: 200, headers: { 'x-own': ['a', 'b'] } }, /"headers"/],
    [{ status: 200, headers: { 'x-own': null } }, /"headers"/],
    [{ status: 200, text: 'x' }, /"text" of respond\(\) is not known/],
  ]
  for (const [answer, message] of wrong) {
    let thrown: unknown
    const app = await inboxApp(t, database, (event) => {
      try {
        event.respond(answer as never)
      } catch (error) {
        thrown = error
      }
    })
    t.strictSame((await postStripe(app, stripeEvent())).json(), { outcome: 'processed' })
    t.match(thrown, { code: 'IDEMPOTENCY_OPTION_INVALID', message })
  }
})

test('an answer is what it was when it was given', async (t) => {
  const body = { text: 'given' }
  const headers: Record<string, string> = { 'x-own': 'given' }
  const app = await inboxApp(t, database, async (event) => {
    event.respond({ status: 200, headers, body })
    body.text = 'changed'
    headers['x-own'] = 'changed'
  })
  const answer = await postStripe(app, stripeEvent())
  t.strictSame([answer.headers['x-own'], answer.json()], ['given', { text: 'given' }])
  t.match(answer.headers['content-type'], /^application\/json/)
})

test('JSON has the type that the handler gives it', async (t) => {
  const headers = { 'Content-Type': 'application/vnd.bank+json' }
  const app = await inboxApp(t, database, (event) =>
    event.respond({ status: 200, headers, body: { ok: true } }),
  )
  const answer = await postStripe(app, stripeEvent())
  t.match(answer.headers['content-type'], /^application\/vnd\.bank\+json/)
  t.strictSame(answer.json(), { ok: true })
})

const URL_OF_TWILIO = 'https://example.com/webhooks/twilio'

function postSlack(app: FastifyInstance, body: string, type: string) {
  const at = String(Math.trunc(Date.now() / 1_000))
  const signature = createHmac('sha256', SECRET).update(`v0:${at}:${body}`).digest('hex')
  return app.inject({
    ...{ method: 'POST', url: '/webhooks/slack', payload: body },
    headers: {
      'content-type': type,
      'x-slack-request-timestamp': at,
      'x-slack-signature': `v0=${signature}`,
    },
  })
}

function postTwilio(app: FastifyInstance, fields: Record<string, string>) {
  const text = Object.entries(fields)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => name + value)
    .join('')
  const signature = createHmac('sha1', SECRET)
    .update(URL_OF_TWILIO + text)
    .digest('base64')
  return app.inject({
    ...{ method: 'POST', url: '/webhooks/twilio', payload: new URLSearchParams(fields).toString() },
    headers: {
      'content-type': 'application/x-www-form-urlencoded',
      'x-twilio-signature': signature,
      'i-twilio-idempotency-token': newKey(),
    },
  })
}

test('Slack and Twilio get nothing to show, whatever became of the event', async (t) => {
  let decide: (event: WebhookEvent) => unknown = () => {}
  const app = await buildApp(t, database, {
    routes: (app) => {
      app.webhook('/webhooks/slack', { provider: slack({ secret: SECRET }) }, (event) =>
        decide(event),
      )
      const provider = twilio({ authToken: SECRET, url: URL_OF_TWILIO })
      app.webhook('/webhooks/twilio', { provider }, (event) => decide(event))
    },
  })
  const command = 'command=%2Fpay&text=5&team_id=T1&channel_id=C1&trigger_id='
  const submission = (id: string) =>
    `payload=${encodeURIComponent(JSON.stringify({ type: 'view_submission', trigger_id: id }))}`
  const form = 'application/x-www-form-urlencoded'
  for (const become of [
    () => {},
    (event: WebhookEvent) => event.ignore(),
    (event: WebhookEvent) => event.reject('no'),
  ]) {
    decide = become
    for (const body of [command + newKey(), submission(newKey())]) {
      const answer = await postSlack(app, body, form)
      t.strictSame([answer.statusCode, answer.body], [200, ''])
    }
    const call = await postTwilio(app, { MessageSid: newKey(), Body: 'hello' })
    t.equal(call.statusCode, 200)
    t.equal(call.headers['content-type'], 'text/xml')
    t.match(call.body, /<Response\/>$/)
  }
  decide = () => {
    throw new Error('broken')
  }
  const failed = await postTwilio(app, { MessageSid: newKey(), Body: 'hello' })
  t.strictSame([failed.statusCode, failed.headers['content-type']], [200, 'text/xml'])
  decide = (event) => event.respond({ status: 200, body: { response_action: 'clear' } })
  const cleared = await postSlack(app, submission(newKey()), form)
  t.strictSame(cleared.json(), { response_action: 'clear' })
})

test('a command of Slack whose handler fails is acknowledged, and run again by the inbox', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.webhook('/webhooks/slack', { provider: slack({ secret: SECRET }) }, () => {
        throw new Error('the handler fails')
      }),
  })
  const text = newKey()
  const form = 'application/x-www-form-urlencoded'
  const command = await postSlack(app, `command=%2Fdeploy&text=${text}`, form)
  t.strictSame([command.statusCode, command.body], [200, ''])
  const event = JSON.stringify({ event_id: newKey(), event: { type: 'message' } })
  t.equal((await postSlack(app, event, 'application/json')).statusCode, 500, 'Slack repeats events')
  const rows = await database.prisma.webhookEvent.findMany({ where: { provider: 'slack' } })
  const [row] = rows.filter(({ payload }) => Buffer.from(payload).includes(text))
  t.match(row, { status: 'retrying', eventId: /^bytes:/, dueAt: Date })
})
