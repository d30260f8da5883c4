// A signed event that the provider's or the application's functions cannot read: it is kept for a
// person, and costs the other events of its delivery nothing.
import t, { test } from 'tap'
import type { WebhookEvent } from '../../src/index.js'
import { verify } from '../../src/webhooks/verify.js'
import { collectEvents, newKey } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import {
  bank,
  eventOf,
  inboxApp,
  postBank,
  postStripe,
  signedByBank,
  stripeEvent,
} from '../fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

/** A name of the bank's own for each test, so that what it kept can be found. */
const named = (name: string) =>
  bank({ name, eventId: (payload) => payload.id.toUpperCase(), type: (payload) => payload.type })

const deadOf = (provider: string) =>
  prisma.webhookEvent.findMany({ where: { provider, status: 'dead' }, orderBy: { id: 'asc' } })

const LEVELS = 20_000
const DEEP = `{"id":"deep","in":${'['.repeat(LEVELS)}${']'.repeat(LEVELS)}}`

const BAD: Record<string, string> = {
  null: 'null',
  'a number': '5',
  'a name that is none': '{"id":5}',
  'an item of 20,000 levels': DEEP,
}

for (const [name, item] of Object.entries(BAD)) {
  test(`${name} in a batch: the other events are processed, and it is dead`, async (t) => {
    const seen: unknown[] = []
    const events = collectEvents(t)
    const provider = named(`bank-${Object.keys(BAD).indexOf(name)}`)
    const app = await inboxApp(t, database, ({ eventId }) => void seen.push(eventId), {
      url: '/webhooks/bank',
      webhook: { provider },
    })
    const [before, after] = [newKey().toUpperCase(), newKey().toUpperCase()]
    const body = `[{"id":"${before}"},${item},{"id":"${after}"}]`
    for (let delivery = 1; delivery <= 2; delivery += 1) {
      const answer = await postBank(app, body)
      t.equal(answer.statusCode, 200)
      t.strictSame(answer.json(), { outcome: 'dead' })
    }
    t.strictSame(seen.sort(), [before, after].sort())
    const [dead, ...others] = await deadOf(provider.name)
    t.strictSame(others, [], 'its other deliveries are duplicates')
    t.match(dead, { type: 'unreadable', deliveries: 2, dueAt: null })
    t.match(dead?.errors, [{ attempt: 0, at: String, message: /^(TypeError|RangeError): / }])
    t.match(await events.first('webhook_dead'), {
      why: 'its body cannot be read',
      failure: { name: /TypeError|RangeError/ },
    })
  })
}

for (const [what, over] of [
  ['eventId', { eventId: failing }],
  ['type', { type: failing }],
  ['object', { object: failing }],
  ['items', { items: failing }],
] as const) {
  for (const [how, value] of [
    ['resolves', async () => 'x'],
    ['rejects', async () => failing()],
  ] as const) {
    test(`a function "${what}" whose promise ${how}: the event is dead, with the reason`, async (t) => {
      const provider = bank({ name: `bank-${what}-${how}`, ...over, [what]: value })
      const app = await inboxApp(t, database, () => t.fail('it was run'), {
        url: '/webhooks/bank',
        webhook: { provider },
      })
      for (let delivery = 1; delivery <= 2; delivery += 1) {
        t.strictSame((await postBank(app, { id: 'x' })).json(), { outcome: 'dead' })
      }
      const [dead, ...others] = await deadOf(provider.name)
      t.strictSame(others, [])
      t.match(dead?.errors, [
        { message: /^TypeError: .* returned a promise; it must return at once/ },
      ])
    })
  }

  test(`a function "${what}" that throws: the event is dead, with the reason`, async (t) => {
    const provider = bank({ name: `bank-${what}`, ...over })
    const app = await inboxApp(t, database, () => t.fail('it was run'), {
      url: '/webhooks/bank',
      webhook: { provider },
    })
    const body = JSON.stringify({ id: newKey() })
    t.strictSame((await postBank(app, body)).json(), { outcome: 'dead' })
    const [dead] = await deadOf(provider.name)
    t.match(dead?.errors, [{ message: 'Error: cannot read it' }])
    t.equal(Buffer.from(dead?.payload ?? []).toString(), body, 'nothing of it is lost')
    const result = await verify(provider, signedByBank(body), body)
    t.match(result, { kind: 'unreadable', rawBody: Buffer, error: { message: 'cannot read it' } })
  })
}

for (const [what, serialize, says] of [
  ['throws', failing, 'Error: cannot read it'],
  ['returns a promise', async () => 'lane', /serialize returned a promise/],
  ['returns a promise that rejects', async () => failing(), /serialize returned a promise/],
  ['returns an object', () => ({}), /"serialize" .* returned a value of type object/],
] as const) {
  test(`a function "serialize" that ${what}: the event is dead under its name, and can be replayed`, async (t) => {
    const events = collectEvents(t)
    const seen: WebhookEvent[] = []
    const handler = (event: WebhookEvent) => void seen.push(event)
    const options = { webhook: { serialize: serialize as never } }
    const broken = await inboxApp(t, database, handler, options)
    const event = stripeEvent()
    for (let delivery = 1; delivery <= 2; delivery += 1) {
      const answer = await postStripe(broken, event)
      t.strictSame([answer.statusCode, answer.json()], [200, { outcome: 'dead' }])
    }
    t.equal(seen.length, 0)
    t.match(await eventOf(database, event.id), {
      status: 'dead',
      type: event.type,
      deliveries: 2,
      attempts: 0,
      errors: [{ attempt: 0, message: says }],
    })
    t.match(await events.first('webhook_dead'), { why: 'its option "serialize" failed' })
    const mended = await inboxApp(t, database, handler, { webhook: { serialize: true } })
    const name = { tenantId: '', provider: 'stripe', eventId: event.id }
    t.strictSame(await mended.idempotency.replay(name), { kind: 'processed' })
    t.match(seen, [{ eventId: event.id, attempt: 1 }])
  })
}

test('verify() of a batch gives the events, and what is none beside them', async (t) => {
  const body = '[{"id":"a"},null]'
  const result = await verify(named('bank'), signedByBank(body), body)
  t.match(result, {
    kind: 'verified',
    events: [{ eventId: 'A' }],
    unreadable: [{ rawBody: Buffer.from('null'), error: TypeError }],
  })
})

function failing(): never {
  throw new Error('cannot read it')
}
