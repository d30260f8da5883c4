// What becomes of a delivery that is processed in its request, and what it is answered.

import t, { test } from 'tap'
import { github, slack } from '../../src/webhooks/providers/index.js'
import type { Incoming } from '../../src/webhooks/signature.js'
import { collectEvents, latch, listen, openSocket, postText, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import {
  bank,
  eventOf,
  inboxApp,
  postBank,
  postStripe,
  signedByStripe,
  stripeEvent,
} from '../fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

test('a valid event is run in its request, and recorded as processed', async (t) => {
  const seen: unknown[] = []
  const app = await inboxApp(t, database, (event) => {
    const { payload, eventId, type, attempt, tenantId, provider, sameBodyAs, headers } = event
    seen.push(payload, eventId, type, attempt, tenantId, provider, sameBodyAs)
    seen.push(event.rawBody.toString(), Object.keys(headers).sort(), event.signal.aborted)
  })
  const event = stripeEvent()
  const answer = await postStripe(app, event)
  t.equal(answer.statusCode, 200)
  t.strictSame(answer.json(), { outcome: 'processed' })
  t.strictSame(seen, [
    ...[event, event.id, event.type, 1, '', 'stripe', null],
    ...[JSON.stringify(event), ['content-type', 'stripe-signature', 'user-agent'], false],
  ])
  t.match(await eventOf(database, event.id), {
    status: 'processed',
    deliveries: 1,
    fence: 1,
    attempts: 1,
    errors: [],
    endpoint: '/webhooks/stripe',
    headers: { 'stripe-signature': String },
  })
})

test('the bytes are stored as they came, spaces and all', async (t) => {
  const app = await inboxApp(t, database, () => {})
  const event = stripeEvent()
  const body = ` ${JSON.stringify(event, null, 3)}\n`
  await postStripe(app, body)
  const stored = await eventOf(database, event.id)
  t.equal(Buffer.from(stored?.payload ?? []).toString(), body)
})

test('a new event costs two statements, and a duplicate one', async (t) => {
  const pool = new WatchedPool(database)
  const app = await inboxApp(t, database, () => {}, { plugin: { pool } })
  const event = stripeEvent()
  await postStripe(app, event)
  t.strictSame(pool.asked, ['fi_event_record', 'fi_event_end'])
  await postStripe(app, event)
  t.strictSame(pool.asked, ['fi_event_record', 'fi_event_end', 'fi_event_record'])
})

test('a duplicate is acknowledged, counted, logged, and not run', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const app = await inboxApp(t, database, () => {
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

test('an id makes a duplicate, whatever else the delivery says', async (t) => {
  let runs = 0
  const app = await inboxApp(t, database, () => {
    runs += 1
  })
  const event = stripeEvent()
  await postStripe(app, event)
  const answer = await postStripe(app, { ...event, data: { object: { id: 'other' } } })
  t.equal(answer.json().outcome, 'duplicate')
  t.equal(runs, 1)
  const stored = await eventOf(database, event.id)
  t.equal(Buffer.from(stored?.payload ?? []).toString(), JSON.stringify(event))
})

test('of 100 parallel deliveries one runs, and the others are told to come back or that it is done', async (t) => {
  let runs = 0
  const app = await inboxApp(t, database, async (event) => {
    runs += 1
    await event.transaction((tx) =>
      tx.payment.create({ data: { tenantId: event.id, amount: 1, currency: 'EUR' } }),
    )
  })
  for (let round = 0; round < 5; round += 1) {
    runs = 0
    const event = stripeEvent()
    const answers = await Promise.all(Array.from({ length: 100 }, () => postStripe(app, event)))
    const outcomes = answers.map((answer) => `${answer.statusCode} ${answer.json().outcome}`)
    t.equal(outcomes.filter((outcome) => outcome === '200 processed').length, 1)
    const expected = ['200 processed', '503 running', '200 duplicate']
    t.ok(outcomes.every((outcome) => expected.includes(outcome)))
    t.equal(runs, 1)
    const stored = await eventOf(database, event.id)
    t.match(stored, { status: 'processed', deliveries: 100, fence: 1 })
    t.equal(
      (stored?.deliveredAt as string[] | undefined)?.length,
      20,
      'the last twenty times are kept',
    )
    t.equal(await prisma.payment.count({ where: { tenantId: stored?.id as string } }), 1)
  }
})

test('an event that arrives before an earlier one is run when it arrives', async (t) => {
  const seen: (string | null)[] = []
  const app = await inboxApp(t, database, ({ type }) => {
    seen.push(type)
  })
  const data = { object: { id: 'pi_1' } }
  const created = stripeEvent({ type: 'payment_intent.created', data })
  const succeeded = stripeEvent({ type: 'payment_intent.succeeded', data })
  for (const event of [succeeded, created, succeeded]) {
    t.equal((await postStripe(app, event)).statusCode, 200)
  }
  t.strictSame(seen, ['payment_intent.succeeded', 'payment_intent.created'])
})

test('a client that leaves while its event runs finds it done when it comes back', async (t) => {
  const began = latch()
  const go = latch()
  const events = collectEvents(t)
  let runs = 0
  const app = await inboxApp(t, database, async () => {
    runs += 1
    began.open()
    await go.opened
  })
  const port = await listen(app)
  const event = stripeEvent()
  const body = JSON.stringify(event)
  const lines = Object.entries(signedByStripe(body))
    .filter(([name]) => name !== 'content-type')
    .map(([name, value]) => `${name}: ${value}`)
  const socket = await openSocket(t, port, postText('/webhooks/stripe', lines, body))
  await began.opened
  socket.destroy()
  t.equal((await postStripe(app, event)).statusCode, 503, 'it is still running')
  go.open()
  await events.first('webhook_processed')
  t.equal((await postStripe(app, event)).json().outcome, 'duplicate')
  t.equal(runs, 1)
})

test('a failure is 500, and the next delivery runs it again', async (t) => {
  let runs = 0
  const app = await inboxApp(t, database, () => {
    runs += 1
    if (runs === 1) throw new Error('first time')
  })
  const event = stripeEvent()
  const answer = await postStripe(app, event)
  t.equal(answer.statusCode, 500)
  t.strictSame(answer.json(), { outcome: 'failed' })
  t.match(await eventOf(database, event.id), {
    status: 'retrying',
    errors: [{ attempt: 1, message: 'Error: first time' }],
  })
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
  t.match(await eventOf(database, event.id), { status: 'processed', fence: 2, deliveries: 2 })
})

test('an event is dead when its attempts are used up, and acknowledged from then on', async (t) => {
  let runs = 0
  const app = await inboxApp(
    t,
    database,
    () => {
      runs += 1
      throw new Error(`number ${runs}`)
    },
    { webhook: { retry: { attempts: 3 } } },
  )
  const event = stripeEvent()
  const outcomes: string[] = []
  for (let delivery = 1; delivery <= 5; delivery += 1) {
    const answer = await postStripe(app, event)
    outcomes.push(`${answer.statusCode} ${answer.json().outcome}`)
  }
  t.strictSame(outcomes, ['500 failed', '500 failed', '200 dead', '200 dead', '200 dead'])
  t.equal(runs, 3)
  t.match(await eventOf(database, event.id), {
    status: 'dead',
    dueAt: null,
    errors: [1, 2, 3].map((attempt) => ({ attempt, message: `Error: number ${attempt}` })),
  })
})

test('with fewer attempts than an event has had, it has one more, and its error is kept', async (t) => {
  const seen: number[] = []
  let isMended = false
  const handler = ({ attempt }: { attempt: number }) => {
    seen.push(attempt)
    if (!isMended) throw new Error(`number ${attempt}`)
  }
  const patient = await inboxApp(t, database, handler)
  const events = [stripeEvent(), stripeEvent()]
  for (let delivery = 1; delivery <= 5; delivery += 1) {
    for (const event of events) await postStripe(patient, event)
  }
  const strict = await inboxApp(t, database, handler, { webhook: { retry: { attempts: 2 } } })
  const [first, second] = events as [(typeof events)[0], (typeof events)[0]]
  t.equal((await postStripe(strict, first)).json().outcome, 'dead')
  const stored = await eventOf(database, first.id)
  t.match(stored, { status: 'dead', attempts: 6 })
  t.match([stored?.errors].flat().at(-1), { attempt: 6, message: 'Error: number 6' })
  isMended = true
  t.equal((await postStripe(strict, second)).json().outcome, 'processed')
})

test('what a handler throws may be anything', async (t) => {
  const thrown = ['text', undefined, null, new Error('a\0b\ud800'), Object.create(null)]
  for (const value of thrown) {
    const app = await inboxApp(t, database, () => {
      throw value
    })
    const event = stripeEvent()
    t.equal((await postStripe(app, event)).statusCode, 500)
    t.match(await eventOf(database, event.id), { status: 'retrying', errors: [{ attempt: 1 }] })
  }
})

test('a duplicate of one that is running is told to come back', async (t) => {
  const began = latch()
  const go = latch()
  const app = await inboxApp(t, database, async () => {
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

test('an event whose process died is run by the next delivery once its lease has run out', async (t) => {
  const app = await inboxApp(t, database, () => {})
  const event = stripeEvent()
  await postStripe(app, event)
  const left = (dueAt: Date) =>
    prisma.webhookEvent.updateMany({
      where: { eventId: event.id },
      data: { status: 'processing', dueAt },
    })
  await left(new Date(Date.now() + 86_400_000))
  t.equal((await postStripe(app, event)).statusCode, 503)
  await left(new Date(0))
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
  t.match(await eventOf(database, event.id), { status: 'processed', fence: 2 })
})

test('a run that another one took over is not acknowledged', async (t) => {
  const began = latch()
  const go = latch()
  const app = await inboxApp(t, database, async () => {
    began.open()
    await go.opened
  })
  const event = stripeEvent()
  const first = postStripe(app, event)
  await began.opened
  await prisma.webhookEvent.updateMany({ where: { eventId: event.id }, data: { fence: 7 } })
  go.open()
  const answer = await first
  t.equal(answer.statusCode, 503)
  t.match(await eventOf(database, event.id), { status: 'processing', fence: 7 })
})

test('a delivery does not wait for a handler whose lease is over', async (t) => {
  const events = collectEvents(t)
  const webhook = { lease: '1s', maxRun: '1s' } as const
  const app = await inboxApp(
    t,
    database,
    ({ attempt }) => (attempt === 1 ? new Promise(() => {}) : undefined),
    { webhook },
  )
  const event = stripeEvent()
  const answer = await postStripe(app, event)
  t.equal(answer.statusCode, 503)
  t.strictSame(answer.json(), { outcome: 'running' })
  t.match(await events.first('webhook_overdue'), { eventId: event.id, attempt: 1, overdue: 1 })
  // The database's lease began a moment later, and so it ends.
  const dueAt = new Date(0)
  await prisma.webhookEvent.updateMany({ where: { eventId: event.id }, data: { dueAt } })
  t.strictSame((await postStripe(app, event)).json(), { outcome: 'processed' })
})

test('transaction: effect and step commit together, and a later attempt skips it', async (t) => {
  let runs = 0
  let effects = 0
  const app = await inboxApp(t, database, async (event) => {
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
  t.equal(await prisma.payment.count({ where: { tenantId: id } }), 1)
})

test('transaction: nothing of it is kept when another run took over', async (t) => {
  const app = await inboxApp(t, database, async (event) => {
    await prisma.webhookEvent.update({ where: { id: event.id }, data: { fence: 7 } })
    await event.transaction((tx) =>
      tx.payment.create({ data: { tenantId: event.id, amount: 1, currency: 'EUR' } }),
    )
  })
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).statusCode, 503)
  const id = (await eventOf(database, event.id))?.id as string
  t.equal(await prisma.payment.count({ where: { tenantId: id } }), 0)
})

test('transaction, final: effect and "processed" are one commit, and what fails after it is only told', async (t) => {
  const events = collectEvents(t)
  const pool = new WatchedPool(database)
  const app = await inboxApp(
    t,
    database,
    async (event) => {
      await event.transaction(
        (tx) => tx.payment.create({ data: { tenantId: event.id, amount: 1, currency: 'EUR' } }),
        { final: true },
      )
      t.equal((await eventOf(database, event.eventId as string))?.status, 'processed')
      throw new Error('too late')
    },
    { plugin: { pool } },
  )
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
  t.match(await events.first('webhook_failed'), { retryInMs: null })
  t.notOk(pool.asked.includes('fi_event_end'), 'no further write')
  t.equal((await postStripe(app, event)).json().outcome, 'duplicate')
})

test('step: done once over all attempts, with one key', async (t) => {
  const keys: string[] = []
  let charges = 0
  let runs = 0
  const app = await inboxApp(t, database, async (event) => {
    runs += 1
    keys.push(event.keyFor('charge'))
    t.equal(await event.step('charge', () => ++charges), 1)
    if (runs === 1) throw new Error('after the step')
  })
  const event = stripeEvent()
  await postStripe(app, event)
  t.equal((await postStripe(app, event)).statusCode, 200)
  t.equal(charges, 1)
  t.equal(new Set(keys).size, 1)
})

test('types: others are recorded as ignored and acknowledged, and not run', async (t) => {
  const seen: (string | null)[] = []
  const app = await inboxApp(t, database, ({ type }) => void seen.push(type), {
    webhook: { types: ['invoice.paid'] },
  })
  const other = stripeEvent()
  for (let delivery = 1; delivery <= 2; delivery += 1) {
    const answer = await postStripe(app, other)
    t.equal(answer.statusCode, 200)
    t.equal(answer.json().outcome, 'ignored')
  }
  t.match(await eventOf(database, other.id), { status: 'ignored', attempts: 0, deliveries: 2 })
  const wanted = stripeEvent({ type: 'invoice.paid' })
  t.equal((await postStripe(app, wanted)).json().outcome, 'processed')
  t.strictSame(seen, ['invoice.paid'])
})

test('types: an event without a type is handled, not ignored', async (t) => {
  const seen: (string | null)[] = []
  const app = await inboxApp(t, database, ({ type }) => void seen.push(type), {
    webhook: { types: ['invoice.paid'] },
  })
  const { type: _type, ...typeless } = stripeEvent()
  t.equal((await postStripe(app, typeless)).json().outcome, 'processed')
  t.strictSame(seen, [null])
})

test('ignore(): acknowledged, and not run again', async (t) => {
  let runs = 0
  const app = await inboxApp(t, database, (event) => {
    runs += 1
    event.ignore()
  })
  const event = stripeEvent()
  for (let delivery = 1; delivery <= 2; delivery += 1) {
    const answer = await postStripe(app, event)
    t.equal(`${answer.statusCode} ${answer.json().outcome}`, '200 ignored')
  }
  t.equal(runs, 1)
  t.match(await eventOf(database, event.id), { status: 'ignored' })
})

test('reject(): dead at once, with the reason, and acknowledged', async (t) => {
  let runs = 0
  const app = await inboxApp(t, database, (event) => {
    runs += 1
    event.reject('no such order')
  })
  const event = stripeEvent()
  for (let delivery = 1; delivery <= 2; delivery += 1) {
    const answer = await postStripe(app, event)
    t.equal(`${answer.statusCode} ${answer.json().outcome}`, '200 dead')
  }
  t.equal(runs, 1)
  t.match(await eventOf(database, event.id), {
    status: 'dead',
    errors: [{ message: /no such order/ }],
  })
})

test('defer(): 503, no attempt, and the next delivery runs it; after too many it is dead', async (t) => {
  const app = await inboxApp(t, database, (event) => event.defer({ after: '1h' }), {
    webhook: { deferrals: 2, retry: { attempts: 1 } },
  })
  const event = stripeEvent()
  const before = Date.now()
  const first = await postStripe(app, event)
  t.equal(first.statusCode, 503)
  t.equal(first.json().outcome, 'postponed')
  t.equal(first.headers['retry-after'], '5')
  const stored = await eventOf(database, event.id)
  t.match(stored, { status: 'retrying', deferrals: 1, attempts: 0, errors: [] })
  const dueInMs = (stored?.dueAt?.getTime() ?? 0) - before
  t.ok(dueInMs > 3_590_000 && dueInMs < 3_660_000, `${dueInMs} ms`)
  t.equal((await postStripe(app, event)).json().outcome, 'postponed')
  const last = await postStripe(app, event)
  t.equal(`${last.statusCode} ${last.json().outcome}`, '200 dead')
  t.match(await eventOf(database, event.id), { status: 'dead', errors: [{ message: String }] })
})

test('a handler that says one thing and throws has failed', async (t) => {
  const app = await inboxApp(t, database, (event) => {
    event.ignore()
    throw new Error('after all')
  })
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).statusCode, 500)
  t.match(await eventOf(database, event.id), { status: 'retrying' })
})

test('serialize: two events of one object are not run side by side', async (t) => {
  const began = latch()
  const go = latch()
  const app = await inboxApp(
    t,
    database,
    async (event) => {
      if (event.payload.held !== true) return
      began.open()
      await go.opened
    },
    { webhook: { serialize: true } },
  )
  const data = { object: { id: 'pi_serialized' } }
  const first = postStripe(app, { ...stripeEvent({ data }), held: true })
  await began.opened
  const next = stripeEvent({ data })
  const refused = await postStripe(app, next)
  t.equal(refused.statusCode, 503)
  t.ok(refused.headers['retry-after'])
  t.match(await eventOf(database, next.id), { status: 'received', attempts: 0 })
  t.equal((await postStripe(app, stripeEvent())).statusCode, 200, 'another object')
  go.open()
  t.equal((await first).statusCode, 200)
  t.equal((await postStripe(app, next)).json().outcome, 'processed')
})

test('a batch is one event per item, and a failing one is run again alone', async (t) => {
  const runs: string[] = []
  let isBroken = true
  const app = await inboxApp(
    t,
    database,
    ({ eventId, payload, rawBody }) => {
      runs.push(eventId as string)
      t.strictSame(JSON.parse(rawBody.toString()), payload)
      if (payload.breaks && isBroken) throw new Error('broken')
    },
    { url: '/webhooks/bank', webhook: { provider: bank() } },
  )
  const ids = Array.from({ length: 25 }, (_, n) => `batch-${n}`)
  const items = ids.map((id, n) => ({ id, breaks: n === 13 }))
  const first = await postBank(app, items)
  t.equal(`${first.statusCode} ${first.json().outcome}`, '500 failed')
  t.same(runs.toSorted(), ids.toSorted())
  for (const id of ids) {
    const status = id === 'batch-13' ? 'retrying' : 'processed'
    t.equal((await eventOf(database, id, '', 'bank'))?.status, status)
  }
  runs.length = 0
  isBroken = false
  const second = await postBank(app, items)
  t.equal(`${second.statusCode} ${second.json().outcome}`, '200 processed')
  t.strictSame(runs, ['batch-13'])
  t.equal((await postBank(app, items)).json().outcome, 'duplicate')
})

test('a batch that holds an event twice runs it once, and is acknowledged', async (t) => {
  const runs: string[] = []
  const app = await inboxApp(
    t,
    database,
    async ({ eventId }) => {
      runs.push(eventId as string)
      await new Promise((resolve) => setImmediate(resolve))
    },
    { url: '/webhooks/bank', webhook: { provider: bank() } },
  )
  const [twice, once] = ['twice-1', 'once-1']
  const answer = await postBank(app, [{ id: twice }, { id: twice }, { id: once }, { id: twice }])
  t.equal(`${answer.statusCode} ${answer.json().outcome}`, '200 processed')
  t.same(runs.toSorted(), [once, twice])
  t.equal((await eventOf(database, twice, '', 'bank'))?.deliveries, 3)
})

test('a batch of one lane runs in its order', async (t) => {
  const runs: string[] = []
  const app = await inboxApp(
    t,
    database,
    async ({ eventId }) => {
      runs.push(`${eventId} begins`)
      await new Promise((resolve) => setImmediate(resolve))
      runs.push(`${eventId} ends`)
    },
    { url: '/webhooks/bank', webhook: { provider: bank(), serialize: () => 'one' } },
  )
  t.equal((await postBank(app, [{ id: 'l1' }, { id: 'l2' }, { id: 'l3' }])).statusCode, 200)
  t.strictSame(
    runs,
    ['l1', 'l2', 'l3'].flatMap((id) => [`${id} begins`, `${id} ends`]),
  )
})

test('a batch without an event is nothing to do', async (t) => {
  const app = await inboxApp(t, database, () => t.fail('it ran'), {
    url: '/webhooks/bank',
    webhook: { provider: bank() },
  })
  const answer = await postBank(app, [])
  t.equal(`${answer.statusCode} ${answer.json().outcome}`, '200 ignored')
})

test('numbers are names; what no column can hold is told apart by its hash', async (t) => {
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { provider: bank({ name: 'odd' }) },
  })
  const odd = [
    7,
    '7 ',
    'a\0b',
    'x'.repeat(10_000),
    `${'x'.repeat(9_999)}y`,
    '\ud800',
    '\ud801',
    'é',
  ]
  for (const id of odd) t.equal((await postBank(app, { id })).json().outcome, 'processed')
  for (const id of odd) t.equal((await postBank(app, { id })).json().outcome, 'duplicate')
  t.equal((await postBank(app, { id: '7' })).json().outcome, 'duplicate')
  t.equal(await prisma.webhookEvent.count({ where: { provider: 'odd' } }), odd.length)
})

test('the same body under a new name is run, and flagged', async (t) => {
  const events = collectEvents(t)
  const seen: (string | null)[] = []
  const app = await inboxApp(t, database, ({ sameBodyAs }) => void seen.push(sameBodyAs), {
    url: '/webhooks/github',
    webhook: { provider: { ...bank({ name: 'headed' }), eventId: (_, header) => header('x-id') } },
  })
  const body = { note: 'the same' }
  const post = (id: string) =>
    postBank(app, body, { url: '/webhooks/github', headers: { 'x-id': id } })
  await post('h1')
  t.equal((await post('h2')).json().outcome, 'processed')
  const first = await eventOf(database, 'h1', '', 'headed')
  const second = await eventOf(database, 'h2', '', 'headed')
  t.equal(second?.sameBodyAs, first?.id)
  t.strictSame(seen, [null, first?.id])
  t.match(await events.first('webhook_same_body'), { eventId: 'h2', sameBodyAs: first?.id })
  await post('h2')
  t.equal(events.kinds().filter((kind) => kind === 'webhook_same_body').length, 1)
})

test('answers: those of the endpoint, over those of the provider, over the usual ones', async (t) => {
  const provider = bank({
    answers: {
      dead: { status: 202, headers: { 'x-no-retry': '1' } },
      ignored: { status: 204 },
      failed: { status: 599, body: 'of the provider' },
    },
  })
  const app = await inboxApp(
    t,
    database,
    ({ payload }) => {
      if (payload.as === 'failed') throw new Error('broken')
    },
    {
      url: '/webhooks/bank',
      webhook: {
        provider,
        types: ['known'],
        retry: { attempts: 2 },
        answers: {
          failed: { status: 502, headers: { 'retry-after': '60' }, body: { again: true } },
          processed: { status: 201, body: 'ok' },
          duplicate: { status: 208, body: '' },
        },
      },
    },
  )
  const event = { id: 'answered', type: 'known' }
  const processed = await postBank(app, event)
  t.equal(processed.statusCode, 201)
  t.equal(processed.body, 'ok')
  t.match(processed.headers, { 'content-type': 'text/plain; charset=utf-8' })
  const duplicate = await postBank(app, event)
  t.equal(duplicate.statusCode, 208)
  t.equal(duplicate.body, '')
  const ignored = await postBank(app, { id: 'answered-2', type: 'unknown' })
  t.equal(ignored.statusCode, 204)
  t.equal(ignored.body, '')
  const broken = { id: 'answered-3', type: 'known', as: 'failed' }
  const failed = await postBank(app, broken)
  t.equal(failed.statusCode, 502)
  t.equal(failed.headers['retry-after'], '60')
  t.strictSame(failed.json(), { again: true })
  const dead = await postBank(app, broken)
  t.equal(dead.statusCode, 202)
  t.equal(dead.headers['x-no-retry'], '1')
  t.strictSame(dead.json(), { outcome: 'dead' })
})

test('providers that are built in want to hear something of their own', async (t) => {
  t.same(slack({ secret: 's' }).answers?.dead?.headers, { 'x-slack-no-retry': '1' })
  t.equal(github({ secret: 's' }).redelivers, false)
})

test('a provider that sends forms, and batches of JSON: a later run reads both', async (t) => {
  const seen: unknown[] = []
  const provider = {
    ...bank({ name: 'forms', keptHeaders: ['content-type'] }),
    parse: ({ body, headers }: Incoming) =>
      headers['content-type'] === 'application/json'
        ? JSON.parse(body.toString())
        : Object.fromEntries(new URLSearchParams(body.toString())),
  }
  const app = await inboxApp(t, database, ({ payload }) => void seen.push(payload), {
    url: '/webhooks/bank',
    webhook: { provider },
  })
  const json = { 'content-type': 'application/json' }
  await postBank(app, 'id=f1&note=a+b', { headers: { 'content-type': 'text/form' } })
  await postBank(app, [{ id: 'f2' }], { headers: json })
  await postBank(app, { id: 'f3' }, { headers: json })
  const events = [{ id: 'f1', note: 'a b' }, { id: 'f2' }, { id: 'f3' }]
  for (const { id } of events) {
    const name = { tenantId: '', provider: 'forms', eventId: id }
    t.strictSame(await app.idempotency.replay(name, { force: true }), { kind: 'processed' })
  }
  t.strictSame(seen, [...events, ...events])
})
