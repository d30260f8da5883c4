// An inbox that is down, slow, or comes back: nothing is acknowledged that is not durable.
import t, { test } from 'tap'
import type { WebhookOptions } from '../../src/index.js'
import { type buildApp, collectEvents, latch, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { bank, eventOf, inboxApp, postBank, postStripe, stripeEvent } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

async function watchedApp(
  t: Parameters<typeof buildApp>[0],
  plugin: { storeTimeout?: number } = {},
  webhook: Partial<WebhookOptions> = {},
) {
  const pool = new WatchedPool(database)
  const counted = { runs: 0 }
  const handler = () => {
    counted.runs += 1
  }
  const app = await inboxApp(t, database, handler, { plugin: { pool, ...plugin }, webhook })
  return { app, pool, counted }
}

function connectionRefused(): never {
  throw Object.assign(new Error('connect ECONNREFUSED canary'), { code: 'ECONNREFUSED' })
}

for (const mode of ['inline', 'deferred'] as const) {
  test(`${mode}: a store that fails is 503 with Retry-After, and nothing is run`, async (t) => {
    const events = collectEvents(t)
    const { app, pool, counted } = await watchedApp(t, {}, { mode })
    pool.before = connectionRefused
    const event = stripeEvent()
    const answer = await postStripe(app, event)
    t.equal(answer.statusCode, 503)
    t.equal(answer.headers['content-type'], 'application/problem+json')
    t.equal(answer.headers['retry-after'], '5')
    t.equal(answer.json().code, 'IDEMPOTENCY_INBOX_UNAVAILABLE')
    t.notMatch(answer.body, 'canary')
    t.equal(counted.runs, 0)
    t.match(events.all, [{ kind: 'inbox_unavailable', failure: { code: 'ECONNREFUSED' } }])
    pool.before = () => {}
    t.equal((await postStripe(app, event)).statusCode, 200)
  })
}

test('a store that fails cannot be made to look like anything else by "answers"', async (t) => {
  const { app, pool } = await watchedApp(t, {}, { answers: { failed: { status: 200 } } })
  pool.before = connectionRefused
  t.equal((await postStripe(app, stripeEvent())).statusCode, 503)
})

test('a batch of which one item cannot be recorded is 503, and is delivered again', async (t) => {
  const pool = new WatchedPool(database)
  const runs: string[] = []
  const app = await inboxApp(t, database, ({ eventId }) => void runs.push(eventId as string), {
    plugin: { pool },
    url: '/webhooks/bank',
    webhook: { provider: bank({ name: 'broken-batch' }), serialize: () => 'one by one' },
  })
  let records = 0
  pool.before = (name) => {
    if (name !== 'fi_event_record') return
    records += 1
    if (records === 2) connectionRefused()
  }
  const items = [{ id: 'b1' }, { id: 'b2' }, { id: 'b3' }]
  t.equal((await postBank(app, items)).statusCode, 503)
  t.strictSame(runs, ['b1'])
  t.equal((await postBank(app, items)).statusCode, 200)
  t.strictSame(runs, ['b1', 'b2', 'b3'])
})

test('a table that is missing is 503, and the event says what to do', async (t) => {
  const events = collectEvents(t)
  const { app, pool } = await watchedApp(t)
  pool.before = () => {
    throw Object.assign(new Error('no such table'), { code: '42P01' })
  }
  t.equal((await postStripe(app, stripeEvent())).statusCode, 503)
  t.match(await events.first('inbox_unavailable'), { failure: { hint: /migrate deploy/ } })
})

test('an event that is recorded too late is given back, and run by the next delivery', async (t) => {
  const { app, pool, counted } = await watchedApp(t, { storeTimeout: 400 })
  const go = latch()
  pool.after = (name) => (name === 'fi_event_record' ? go.opened : undefined)
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).statusCode, 503)
  t.match(await eventOf(database, event.id), { fence: 1 })
  go.open()
  await pool.untilAnswered('fi_event_end', 1)
  t.match(await eventOf(database, event.id), { status: 'retrying', attempts: 0 })
  t.equal(counted.runs, 0)
  pool.after = () => {}
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
  t.match(await eventOf(database, event.id), { fence: 2, attempts: 1 })
})

test('a claim that is granted too late is given back, and is no attempt', async (t) => {
  const { app, pool, counted } = await watchedApp(t, { storeTimeout: 400 })
  const event = stripeEvent()
  await postStripe(app, event)
  const error = { attempt: 1, at: '', message: 'before' }
  await prisma.webhookEvent.updateMany({
    where: { eventId: event.id },
    data: { status: 'retrying', attempts: 1, deferrals: 3, errors: [error] },
  })
  const go = latch()
  pool.after = (name) => (name === 'fi_event_claim' ? go.opened : undefined)
  t.equal((await postStripe(app, event)).statusCode, 503)
  t.match(await eventOf(database, event.id), { status: 'processing', fence: 2, attempts: 2 })
  go.open()
  await pool.untilAnswered('fi_event_end', 2)
  t.match(await eventOf(database, event.id), {
    status: 'retrying',
    attempts: 1,
    deferrals: 3,
    errors: [error],
  })
  t.equal(counted.runs, 1)
  pool.after = () => {}
  t.equal((await postStripe(app, event)).json().outcome, 'processed')
})

test('a late claim whose renewal is as late is renewed once more before it is run', async (t) => {
  const { app, pool } = await watchedApp(t, {}, { lease: 1_000 })
  const asked: string[] = []
  pool.after = async (name) => {
    if (name !== 'fi_event_record' && name !== 'fi_event_extend') return
    asked.push(name)
    // Longer than half a lease.
    if (asked.length < 3) await new Promise((resolve) => setTimeout(resolve, 550))
  }
  t.equal((await postStripe(app, stripeEvent())).json().outcome, 'processed')
  t.strictSame(asked.slice(0, 3), ['fi_event_record', 'fi_event_extend', 'fi_event_extend'])
})

test('a claim that stays late is not run', async (t) => {
  const { app, pool, counted } = await watchedApp(t, {}, { lease: 1_000 })
  pool.after = async (name) => {
    if (name !== 'fi_event_record' && name !== 'fi_event_extend') return
    await new Promise((resolve) => setTimeout(resolve, 550))
  }
  t.equal((await postStripe(app, stripeEvent())).json().outcome, 'running')
  t.equal(counted.runs, 0)
})

test('an ending that cannot be stored is no success, and storing it goes on', async (t) => {
  const events = collectEvents(t)
  const { app, pool, counted } = await watchedApp(t)
  pool.before = (name) => (name === 'fi_event_end' ? connectionRefused() : undefined)
  const event = stripeEvent()
  const answer = await postStripe(app, event)
  t.ok(answer.statusCode >= 500, 'what is acknowledged is durable as processed')
  t.match(await events.first('webhook_end_not_stored'), { attempt: 1 })
  t.equal((await postStripe(app, event)).statusCode, 503, 'it is still held')
  pool.before = () => {}
  await pool.untilAnswered('fi_event_end', 1)
  t.equal((await postStripe(app, event)).json().outcome, 'duplicate')
  t.equal(counted.runs, 1)
})

test('a lease that cannot be renewed aborts the signal', async (t) => {
  const pool = new WatchedPool(database)
  const aborted = latch()
  const app = await inboxApp(
    t,
    database,
    async ({ signal }) => {
      signal.addEventListener('abort', () => aborted.open())
      pool.before = (name) => (name === 'fi_event_extend' ? connectionRefused() : undefined)
      await aborted.opened
      pool.before = () => {}
    },
    { plugin: { pool }, webhook: { lease: '1s' } },
  )
  const event = stripeEvent()
  t.equal((await postStripe(app, event)).statusCode, 200, 'nobody took over')
  t.match(await eventOf(database, event.id), { status: 'processed' })
})
