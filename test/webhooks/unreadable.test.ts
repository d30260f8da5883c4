// A signed event that the provider's or the application's functions cannot read: it is kept for a
// person, and costs the other events of its delivery nothing.
import { createHmac } from 'node:crypto'
import t, { test } from 'tap'
import type { WebhookEvent } from '../../src/index.js'
import { inProcess } from '../../src/index.js'
import { verify } from '../../src/webhooks/verify.js'
import { buildApp, collectEvents, listen, newKey } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import {
  bank,
  eventOf,
  inboxApp,
  postBank,
  postStripe,
  SECRET,
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

const THEN = 'then'
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
      webhook: { name: newKey(), provider },
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
      why: 'it cannot be read; its errors say why',
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
        webhook: { name: newKey(), provider },
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
      webhook: { name: newKey(), provider },
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

/** An endpoint of the bank whose functions can be mended. */
async function mendable(
  t: Parameters<typeof inboxApp>[0],
  mended: Parameters<typeof bank>[0] = {},
  {
    broken = 'eventId',
    handler = () => {},
    webhook = {},
    plugin = {},
    more = {},
  }: {
    broken?: 'eventId' | 'items'
    handler?: (event: WebhookEvent) => unknown
    webhook?: object
    plugin?: object
    more?: object
  } = {},
) {
  let isMended = false
  const name = `bank-${newKey()}`
  const whole = bank({ name, type: (payload) => payload.type, ...mended })
  const seen: WebhookEvent[] = []
  const provider = {
    ...whole,
    [broken]: (...given: [never, never]) => (isMended ? whole[broken]?.(...given) : failing()),
    ...more,
  }
  const run = (event: WebhookEvent) => {
    seen.push(event)
    return handler(event)
  }
  const app = await inboxApp(t, database, run, {
    url: '/webhooks/bank',
    plugin,
    webhook: { name: newKey(), provider, ...webhook },
  })
  const rows = () =>
    prisma.webhookEvent.findMany({ where: { provider: name }, orderBy: { receivedAt: 'asc' } })
  const replay = async (options = {}) => {
    const [unreadable] = await rows()
    return app.idempotency.replay(unreadable?.id ?? '', options)
  }
  const mend = () => {
    isMended = true
  }
  return { app, mend, seen, rows, replay }
}

test('a replay reads an unreadable event again, and delivers it under its own name', async (t) => {
  const { app, mend, seen, rows, replay } = await mendable(t)
  const body = { id: newKey(), type: 'paid' }
  t.equal((await postBank(app, body)).json().outcome, 'dead')
  mend()
  t.strictSame(await replay(), { kind: 'read', outcomes: ['processed'] })
  t.match(seen, [{ eventId: body.id, type: 'paid', payload: body, attempt: 1 }])
  t.match(await rows(), [
    { eventId: /^unreadable:/, type: 'unreadable', status: 'processed' },
    { eventId: body.id, type: 'paid', status: 'processed' },
  ])
  t.equal((await postBank(app, body)).json().outcome, 'duplicate')
  t.strictSame(await replay(), { kind: 'refused' })
  t.strictSame(await replay({ force: true }), { kind: 'read', outcomes: ['duplicate'] })
  t.equal(seen.length, 1)
})

test('an unreadable event that was delivered again meanwhile is a duplicate when it is replayed', async (t) => {
  const { app, mend, seen, replay } = await mendable(t)
  const body = { id: newKey(), type: 'paid' }
  await postBank(app, body)
  mend()
  t.equal((await postBank(app, body)).json().outcome, 'processed')
  t.strictSame(await replay(), { kind: 'read', outcomes: ['duplicate'] })
  t.equal(seen.length, 1)
})

test('an event that still cannot be read is dead again, with the reason', async (t) => {
  const { app, seen, rows, replay } = await mendable(t)
  await postBank(app, { id: 'x' })
  t.strictSame(await replay(), { kind: 'dead' })
  t.strictSame(await replay(), { kind: 'dead' })
  const message = 'Error: cannot read it'
  t.match(await rows(), [{ status: 'dead', errors: [{ message }, { message }, { message }] }])
  t.equal(seen.length, 0)
})

test('a replay of an unreadable request delivers each event in it', async (t) => {
  const items = (payload: { list: unknown[] }) => payload.list
  const { app, mend, seen, rows, replay } = await mendable(t, { items }, { broken: 'items' })
  const list = [{ id: newKey() }, null, { id: newKey() }, { id: newKey() }]
  t.equal((await postBank(app, { list })).json().outcome, 'dead')
  mend()
  t.strictSame(await replay(), {
    kind: 'read',
    outcomes: ['dead', 'processed', 'processed', 'processed'],
  })
  t.strictSame(
    seen.map(({ eventId }) => eventId),
    list.flatMap((item) => item?.id ?? []),
  )
  t.match((await rows())[1], { eventId: /^unreadable-item:/, status: 'dead' })
})

test('a replay of an unreadable item does not take it for a request', async (t) => {
  // An item of this bank has a list of the same name as the request.
  const items = (payload: { list: unknown[] }) => payload.list
  const { app, mend, seen, replay } = await mendable(t, { items })
  const item = { id: newKey(), list: [{ id: 'a line of the invoice' }] }
  t.equal((await postBank(app, { list: [item] })).json().outcome, 'dead')
  mend()
  t.strictSame(await replay(), { kind: 'read', outcomes: ['processed'] })
  t.match(seen, [{ eventId: item.id, payload: item }])
})

test('a replayed event that could not be read obeys types and lanes', async (t) => {
  const webhook = { types: ['paid'], serialize: (event: { type: string }) => event.type }
  const { app, mend, seen, rows } = await mendable(t, {}, { webhook })
  await postBank(app, [
    { id: 'a', type: 'paid' },
    { id: 'b', type: 'other' },
  ])
  const unreadable = await rows()
  mend()
  const outcomes = []
  for (const { id } of unreadable) outcomes.push(await app.idempotency.replay(id))
  t.match(outcomes, [{ kind: 'read' }, { kind: 'read' }])
  t.match(seen, [{ type: 'paid' }])
  const ofPaid = (await rows()).find(({ eventId }) => eventId === 'a')
  t.match(ofPaid, { status: 'processed', lane: String })
  t.match(
    (await rows()).find(({ eventId }) => eventId === 'b'),
    { status: 'ignored' },
  )
})

test('a handler that fails after a replay is run again by the inbox', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const { app, mend, replay } = await mendable(
    t,
    {},
    {
      handler: () => {
        runs += 1
        if (runs === 1) throw new Error('the first one fails')
      },
      plugin: { dispatch: inProcess({ pollEvery: 10 }) },
      webhook: { retry: { first: 1, most: 1 }, mode: 'deferred' },
    },
  )
  await postBank(app, { id: 'x' })
  mend()
  await listen(app)
  t.strictSame(await replay(), { kind: 'read', outcomes: ['accepted'] })
  await events.first('webhook_processed', 2)
  t.equal(runs, 2)
})

for (const [what, more, timed] of [
  ['that are signed at two times', {}, true],
  ['that are never merged', { mergesUnnamed: false }, false],
] as const) {
  test(`the same unreadable bytes ${what} are two events, each read once`, async (t) => {
    const { app, mend, seen, rows } = await mendable(
      t,
      { eventId: () => null, ...(timed && { timestampHeader: 'x-bank-time' }) },
      { more },
    )
    const body = '{"ping":true}'
    const post = (ago: number) => {
      const at = String(Math.trunc(Date.now() / 1_000) - ago)
      const signed = createHmac('sha256', SECRET).update(`${at}.${body}`).digest('hex')
      const headers = { 'x-bank-signature': signed, 'x-bank-time': at }
      return timed
        ? app.inject({ method: 'POST', url: '/webhooks/bank', payload: body, headers })
        : postBank(app, body)
    }
    for (const ago of [9, 5]) t.equal((await post(ago)).json().outcome, 'dead')
    const unreadable = await rows()
    t.equal(unreadable.length, 2)
    mend()
    for (const { id } of unreadable) {
      const read = { kind: 'read', outcomes: ['processed'] } as const
      t.strictSame(await app.idempotency.replay(id), read)
      const again = { kind: 'read', outcomes: ['duplicate'] } as const
      t.strictSame(await app.idempotency.replay(id, { force: true }), again)
    }
    t.equal(seen.length, 2)
  })
}

test('equal items of a batch that cannot be read are several events', async (t) => {
  const { app, mend, seen, rows } = await mendable(t, { eventId: () => null })
  const batch = [{ n: 1 }, { n: 1 }, { n: 2 }]
  for (let delivery = 1; delivery <= 2; delivery += 1) await postBank(app, batch)
  const unreadable = await rows()
  t.equal(unreadable.length, 3)
  mend()
  for (const { id } of unreadable) {
    t.strictSame(await app.idempotency.replay(id), { kind: 'read', outcomes: ['processed'] })
  }
  t.equal(seen.length, 3)
  t.equal((await postBank(app, batch)).json().outcome, 'duplicate')
})

test('of equal items of a batch, one that cannot be read is not its neighbour', async (t) => {
  const name = `bank-${newKey()}`
  let calls = 0
  const eventId = () => {
    calls += 1
    if (calls === 2) failing()
    return null
  }
  const seen: WebhookEvent[] = []
  const app = await inboxApp(t, database, (event) => void seen.push(event), {
    url: '/webhooks/bank',
    webhook: { name, provider: bank({ name, eventId }) },
  })
  const batch = [{ n: 1 }, { n: 1 }, { n: 1 }]
  t.equal((await postBank(app, batch)).json().outcome, 'dead')
  const [unreadable] = await deadOf(name)
  const replayed = await app.idempotency.replay(unreadable?.id ?? '')
  t.strictSame(replayed, { kind: 'read', outcomes: ['processed'] })
  t.equal(seen.length, 3)
  t.equal((await postBank(app, batch)).json().outcome, 'duplicate')
})

test('the same unreadable bytes under two ids in a header are two events', async (t) => {
  const { app, mend, seen, rows } = await mendable(t, {
    eventId: (_: unknown, header: (name: string) => string | undefined) => header('x-id'),
    keptHeaders: ['x-id'],
  })
  const ids = [newKey(), newKey()]
  for (const id of ids) await postBank(app, { n: 1 }, { headers: { 'x-id': id } })
  mend()
  for (const { id } of await rows()) await app.idempotency.replay(id)
  t.strictSame(seen.map(({ eventId }) => eventId).sort(), ids.sort())
  t.notOk(seen.some(({ headers }) => ':kept' in headers))
})

test('a header that was not kept when an event came is not kept because it is now', async (t) => {
  const name = `bank-${newKey()}`
  const body = { n: newKey() }
  const headers = { 'x-id': newKey() }
  const broken = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { name, provider: bank({ name, eventId: failing }) },
  })
  await postBank(broken, body, { headers })
  const mended = await inboxApp(t, database, () => t.fail('it was run under another name'), {
    url: '/webhooks/bank',
    webhook: {
      name,
      provider: bank({ name, eventId: (_, header) => header('x-id'), keptHeaders: ['x-id'] }),
    },
  })
  const [unreadable] = await deadOf(name)
  t.strictSame(await mended.idempotency.replay(unreadable?.id ?? ''), { kind: 'dead' })
})

test('what was read after all is a duplicate when it cannot be read again', async (t) => {
  let isMended = false
  const eventId = ({ id }: { id: string }) => (isMended ? id : failing())
  const provider = bank({ name: `bank-${newKey()}`, eventId })
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { name: newKey(), provider },
  })
  const body = { id: newKey() }
  await postBank(app, body)
  const [unreadable] = await deadOf(provider.name)
  isMended = true
  await app.idempotency.replay(unreadable?.id ?? '')
  isMended = false
  t.equal((await postBank(app, body)).json().outcome, 'duplicate')
})

test('a replay does not name an event without the header that names it', async (t) => {
  const mended = {
    eventId: (_: unknown, header: (name: string) => string | undefined) => header('x-id'),
  }
  const unkept = await mendable(t, mended)
  const kept = await mendable(t, { ...mended, keptHeaders: ['x-id'] })
  const id = newKey()
  for (const { app, mend } of [unkept, kept]) {
    await postBank(app, { n: 1 }, { headers: { 'x-id': id } })
    mend()
  }
  t.strictSame(await unkept.replay(), { kind: 'dead' })
  const errors = [{}, { message: /^TypeError: header x-id was not kept with the event/ }]
  t.match(await unkept.rows(), [{ status: 'dead', errors }])
  t.strictSame(await kept.replay(), { kind: 'read', outcomes: ['processed'] })
  t.match((await kept.rows())[1], { eventId: id })
})

test('what a replay reads is acknowledged: the inbox retries it, whatever names it', async (t) => {
  const { app, mend, rows, replay } = await mendable(
    t,
    { eventId: () => null },
    { handler: failing, more: { mergesUnnamed: false } },
  )
  await postBank(app, { id: 'x' })
  mend()
  t.strictSame(await replay(), { kind: 'read', outcomes: ['failed'] })
  t.match((await rows())[1], { eventId: /^bytes:/, status: 'retrying', dueAt: Date })
})

test('a worker reads an event again that was queued by a process without its endpoint', async (t) => {
  const events = collectEvents(t)
  const { app, mend, seen, rows } = await mendable(
    t,
    {},
    { plugin: { dispatch: inProcess({ pollEvery: 10 }) } },
  )
  const body = { id: newKey(), type: 'paid' }
  await postBank(app, body)
  const [unreadable] = await rows()
  const other = await buildApp(t, database, { routes: () => {} })
  t.strictSame(await other.idempotency.replay(unreadable?.id ?? ''), { kind: 'unserved' })
  const queued = await other.idempotency.replay(unreadable?.id ?? '', { queue: true })
  t.strictSame(queued, { kind: 'queued' })
  mend()
  await listen(app)
  await events.first('webhook_processed', 2)
  t.match(seen, [{ eventId: body.id, type: 'paid' }])
  t.match(await rows(), [{ status: 'processed' }, { status: 'processed' }])
})

for (const [how, item] of [
  ['resolve', async (item: unknown) => item],
  ['reject', async () => failing()],
  ['are thenables', (item: unknown) => Object.assign(() => {}, { [THEN]: () => item })],
  [
    'hide that they are promises',
    () => Object.assign(Promise.reject(new Error('hidden')), { [THEN]: 5, catch: 5 }),
  ],
] as const) {
  test(`a list of items that ${how}: the request is dead, with its bytes`, async (t) => {
    const name = `bank-${newKey()}`
    const provider = bank({ name, items: (payload) => payload.list.map(item) })
    const app = await inboxApp(t, database, () => t.fail('it was run'), {
      url: '/webhooks/bank',
      webhook: { name: newKey(), provider },
    })
    const body = '{"list":[{"id":"a"},{"id":"b"}]}'
    t.equal((await postBank(app, body)).json().outcome, 'dead')
    const [dead, ...others] = await deadOf(name)
    t.strictSame(others, [])
    t.match(dead?.errors, [{ message: /^TypeError: items returned a list of promises/ }])
    t.equal(Buffer.from(dead?.payload ?? []).toString(), body)
  })
}

test('an event whose lane is not known is replayed where its endpoint is, and in its lane', async (t) => {
  let isMended = false
  const serialize = () => (isMended ? 'a lane' : failing())
  const app = await inboxApp(t, database, () => {}, { webhook: { serialize } })
  const event = stripeEvent()
  await postStripe(app, event)
  const name = { tenantId: '', provider: 'stripe', eventId: event.id }
  const other = await buildApp(t, database, { routes: () => {} })
  t.strictSame(await other.idempotency.replay(name, { queue: true }), { kind: 'unserved' })
  t.strictSame(await app.idempotency.replay(name), { kind: 'dead' })
  t.match(await eventOf(database, event.id), { status: 'dead', fence: 0 })
  isMended = true
  t.strictSame(await app.idempotency.replay(name), { kind: 'processed' })
  t.match(await eventOf(database, event.id), { status: 'processed', lane: String })
})

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
