// Events that their provider gives no id: what names them, and which of their deliveries are one event.

import { createHmac } from 'node:crypto'
import t, { type Test, test } from 'tap'
import type { WebhookEvent, WebhookOptions } from '../../src/index.js'
import { inProcess } from '../../src/index.js'
import type { Provider } from '../../src/webhooks/provider.js'
import { verify } from '../../src/webhooks/verify.js'
import { buildApp, collectEvents, latch, listen, newKey, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { until } from '../fixtures/until.js'
import { bank, inboxApp, postBank, SECRET, signedByBank } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

/** A provider without ids, of its own for each test. */
const unnamed = (more: Parameters<typeof bank>[0] = {}) =>
  bank({ name: `bank-${newKey()}`, eventId: () => null, ...more })

/** The same, where a time is signed with the bytes. */
const timed = () => unnamed({ timestampHeader: 'x-bank-time' })

function signedAt(body: string, atMs: number): Record<string, string> {
  const at = String(Math.trunc(atMs / 1_000))
  const signature = createHmac('sha256', SECRET).update(`${at}.${body}`).digest('hex')
  return { 'x-bank-signature': signature, 'x-bank-time': at }
}

const rowsOf = (provider: { name: string }) =>
  prisma.webhookEvent.findMany({ where: { provider: provider.name }, orderBy: { id: 'asc' } })

/** An application whose handler fails the first time, and whose worker looks for what is due. */
async function failingOnce(t: Test, webhook: WebhookOptions) {
  let runs = 0
  const handler = () => {
    runs += 1
    if (runs === 1) throw new Error('the first one fails')
  }
  const app = await inboxApp(t, database, handler, {
    url: '/webhooks/bank',
    plugin: { dispatch: inProcess({ pollEvery: 10 }) },
    webhook: { name: newKey(), ...webhook },
  })
  return { app, runs: () => runs }
}

test('the bytes name an event: the same ones again are a duplicate, others are another event', async (t) => {
  const seen: unknown[] = []
  const provider = unnamed()
  const app = await inboxApp(t, database, ({ eventId }) => void seen.push(eventId), {
    url: '/webhooks/bank',
    webhook: { name: newKey(), provider },
  })
  for (const [body, outcome] of [
    [{ n: 1 }, 'processed'],
    [{ n: 1 }, 'duplicate'],
    [{ n: 2 }, 'processed'],
  ] as const) {
    t.equal((await postBank(app, body)).json().outcome, outcome)
  }
  t.match(seen, [/^bytes:/, /^bytes:/])
  t.equal((await rowsOf(provider)).length, 2)
})

test('equal items of one batch are several events, and the same ones in each delivery of it', async (t) => {
  const runs: unknown[] = []
  const app = await inboxApp(t, database, ({ eventId }) => void runs.push(eventId), {
    url: '/webhooks/bank',
    webhook: { name: newKey(), provider: unnamed() },
  })
  const batch = [{ n: 1 }, { n: 2 }, { n: 1 }, { n: 1 }]
  t.equal((await postBank(app, batch)).json().outcome, 'processed')
  t.equal(new Set(runs).size, 4)
  t.equal((await postBank(app, batch)).json().outcome, 'duplicate')
  t.equal(runs.length, 4)
})

test('the type is part of the name, because a header may say it', async (t) => {
  const provider = unnamed({ type: (_payload, header) => header('x-topic') })
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { name: newKey(), provider },
  })
  for (const topic of ['created', 'updated']) {
    const answer = await postBank(app, { n: 1 }, { headers: { 'x-topic': topic } })
    t.equal(answer.json().outcome, 'processed', topic)
  }
})

test('values that are no exact name do not name an event', async (t) => {
  const provider = bank({ name: `bank-${newKey()}` })
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { name: newKey(), provider },
  })
  // As numbers of JavaScript, the first two are the same.
  for (const id of ['9007199254740992', '9007199254740993', '1.5', 'null', '""']) {
    t.equal((await postBank(app, `{"id":${id}}`)).json().outcome, 'processed', id)
  }
  t.equal((await rowsOf(provider)).length, 5)
  t.ok((await rowsOf(provider)).every(({ eventId }) => eventId?.startsWith('bytes:')))
  for (const id of ['true', '{}', '["a"]']) {
    t.equal((await postBank(app, `{"id":${id}}`)).json().outcome, 'dead', id)
  }
  const [dead] = await prisma.webhookEvent.findMany({
    where: { provider: provider.name, status: 'dead' },
  })
  t.match(dead?.errors, [{ message: /^TypeError: eventId returned a value of type/ }])
  const big = await verify(bank({ eventId: () => 2n ** 64n }), signedByBank('{}'), '{}')
  t.match(big, { events: [{ eventId: '18446744073709551616', namedBy: 'provider' }] })
})

test("an id that looks like one of the inbox's own names is another one", async (t) => {
  const provider = bank({ name: `bank-${newKey()}` })
  const app = await inboxApp(t, database, () => Promise.reject(new Error('no')), {
    url: '/webhooks/bank',
    webhook: { name: newKey(), provider, retry: { attempts: 1 } },
  })
  const own = ['bytes:x', 'unreadable:x', 'unreadable-item:x', 'sha256:x']
  for (const id of own) t.equal((await postBank(app, { id })).json().outcome, 'dead', id)
  const rows = await rowsOf(provider)
  t.strictSame([...new Set(rows.map(({ eventId }) => eventId?.slice(0, 7)))], ['sha256:'])
  t.equal(rows.length, own.length)
  // Nor is it the event that is stored under such a name.
  await postBank(app, { id: rows[0]?.eventId })
  t.equal((await rowsOf(provider)).length, own.length + 1)
  // A person writes it as the provider does, or as the log does.
  for (const id of [...own, rows[0]?.eventId ?? '']) {
    const replayed = await app.idempotency.replay({ provider: provider.name, eventId: id })
    t.strictSame(replayed, { kind: 'dead' }, id)
  }
})

test('a signed time is part of the name: the same bytes at two times are two events', async (t) => {
  const provider = timed()
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { name: newKey(), provider },
  })
  const body = '{"ping":true}'
  const now = Date.now()
  for (const [atMs, outcome] of [
    [now, 'processed'],
    [now, 'duplicate'],
    [now - 2_000, 'processed'],
  ] as const) {
    const answer = await app.inject({
      ...{ method: 'POST', url: '/webhooks/bank', payload: body },
      headers: signedAt(body, atMs),
    })
    t.equal(answer.json().outcome, outcome)
  }
})

for (const [what, providerOf] of [
  ['that are signed anew', timed],
  ['that are never merged', () => ({ ...unnamed(), mergesUnnamed: false })],
] as const) {
  // Its provider delivers it again, as another event: the inbox would be the second one to run it.
  test(`deliveries ${what}: a failed one is left to its provider, inline`, async (t) => {
    const events = collectEvents(t)
    const provider = providerOf()
    const runs: WebhookEvent[] = []
    const app = await inboxApp(
      t,
      database,
      (event) => {
        runs.push(event)
        if (runs.length === 1) throw new Error('the first one fails')
      },
      {
        url: '/webhooks/bank',
        plugin: { dispatch: inProcess({ pollEvery: 10 }) },
        webhook: { name: newKey(), provider },
      },
    )
    const body = '{"ping":true}'
    const post = (atMs: number) =>
      app.inject({
        ...({ method: 'POST', url: '/webhooks/bank', payload: body } as const),
        headers: provider.keptHeaders.includes('x-bank-time')
          ? signedAt(body, atMs)
          : signedByBank(body),
      })
    const now = Date.now()
    t.equal((await post(now - 2_000)).statusCode, 500)
    t.match(await events.first('webhook_failed'), { retryInMs: null })
    const [failed] = await rowsOf(provider)
    t.match(failed, { status: 'retrying', dueAt: null, awaitsDelivery: true })
    t.equal((await post(now)).json().outcome, 'processed')
    t.equal(runs.length, 2)
    t.equal((await rowsOf(provider)).length, 2)
    // A person can still run it.
    t.strictSame(await app.idempotency.replay(failed?.id ?? ''), { kind: 'processed' })
    t.equal(runs.length, 3)
  })

  test(`deliveries ${what}: one whose process died is left to its provider`, async (t) => {
    const events = collectEvents(t)
    const provider = providerOf()
    const app = await inboxApp(t, database, () => t.fail('a worker ran it'), {
      url: '/webhooks/bank',
      plugin: { dispatch: inProcess({ pollEvery: 10 }) },
      webhook: { name: provider.name, provider },
    })
    const id = newKey()
    await prisma.webhookEvent.create({ data: crashed(id, provider.name) })
    await listen(app)
    t.match(await events.first('webhook_left_to_provider'), { event: id })
    const over = { status: 'retrying', dueAt: null, fence: 2, attempts: 1 }
    t.match(await rowsOf(provider), [{ ...over, errors: [{ message: /did not end/ }] }])
  })

  test(`deliveries ${what}: the inbox runs one that was acknowledged`, async (t) => {
    const events = collectEvents(t)
    const provider = providerOf()
    const { app, runs } = await failingOnce(t, {
      provider,
      mode: 'deferred',
      retry: { first: 1, most: 1 },
    })
    await listen(app)
    const body = '{"ping":true}'
    const headers = provider.keptHeaders.includes('x-bank-time')
      ? signedAt(body, Date.now())
      : signedByBank(body)
    await app.inject({ method: 'POST', url: '/webhooks/bank', payload: body, headers })
    await events.first('webhook_processed')
    t.equal(runs(), 2)
  })
}

for (const [what, answers, decide] of [
  [
    'by the answer to a failure',
    { failed: { status: 200 } },
    () => Promise.reject(new Error('no')),
  ],
  [
    'by its handler, which puts it back',
    {},
    (event: WebhookEvent) => {
      event.respond({ status: 200, body: 'later' })
      event.defer()
    },
  ],
] as const) {
  test(`an event without an id that is acknowledged ${what} is run again by the inbox`, async (t) => {
    const provider = { ...unnamed(), mergesUnnamed: false }
    const app = await inboxApp(t, database, decide, {
      url: '/webhooks/bank',
      webhook: { name: newKey(), provider, answers },
    })
    t.equal((await postBank(app, { n: 1 })).statusCode, 200)
    t.match(await rowsOf(provider), [{ status: 'retrying', dueAt: Date }])
  })
}

test('an event without an id that its handler has put off is retried when a later run fails', async (t) => {
  const events = collectEvents(t)
  const provider = { ...unnamed(), mergesUnnamed: false }
  let runs = 0
  const decide = (event: WebhookEvent) => {
    runs += 1
    if (runs === 2) throw new Error('the second one fails')
    if (runs > 2) return
    event.respond({ status: 200, body: 'later' })
    event.defer({ after: 1 })
  }
  const app = await inboxApp(t, database, decide, {
    url: '/webhooks/bank',
    plugin: { dispatch: inProcess({ pollEvery: 10 }) },
    webhook: { name: newKey(), provider },
  })
  await listen(app)
  t.equal((await postBank(app, { n: 1 })).statusCode, 200)
  t.match(await events.first('webhook_failed'), { attempt: 2, retryInMs: Number })
  const isOver = ([row]: Awaited<ReturnType<typeof rowsOf>>) => row?.status === 'retrying'
  t.match(await until(() => rowsOf(provider), isOver), [{ dueAt: Date }])
})

test('an event that was acknowledged is retried when its request is delivered again, and fails', async (t) => {
  const provider = timed()
  let runs = 0
  const app = await inboxApp(
    t,
    database,
    (event) => {
      runs += 1
      if (runs > 1) throw new Error('the second one fails')
      event.respond({ status: 200, body: 'later' })
      event.defer({ after: '1h' })
    },
    { url: '/webhooks/bank', webhook: { name: newKey(), provider } },
  )
  const body = '{"ping":true}'
  const headers = signedAt(body, Date.now())
  const post = () => app.inject({ method: 'POST', url: '/webhooks/bank', payload: body, headers })
  t.equal((await post()).statusCode, 200)
  t.equal((await post()).statusCode, 500)
  t.match(await rowsOf(provider), [{ status: 'retrying', deliveries: 2, dueAt: Date }])
})

test('in a batch, an answer of its handler acknowledges no event without an id', async (t) => {
  const provider: Provider = { ...timed(), items: (payload) => payload as unknown[] }
  const app = await inboxApp(
    t,
    database,
    (event) => {
      event.respond({ status: 200, body: 'later' })
      event.defer()
    },
    { url: '/webhooks/bank', webhook: { name: newKey(), provider } },
  )
  const post = (body: string) =>
    app.inject({
      ...({ method: 'POST', url: '/webhooks/bank', payload: body } as const),
      headers: signedAt(body, Date.now()),
    })
  t.equal((await post('[{"n":1},{"n":2}]')).statusCode, 503)
  const left = { status: 'retrying', dueAt: null, awaitsDelivery: true }
  t.match(await rowsOf(provider), [left, left])
  t.equal((await post('[{"n":3}]')).statusCode, 200)
  const alone = (await rowsOf(provider)).find(({ awaitsDelivery }) => !awaitsDelivery)
  t.match(alone, { status: 'retrying', dueAt: Date })
})

test('an event without an id keeps its name when it is read again', async (t) => {
  let isBroken = true
  const provider: Provider = {
    ...timed(),
    type: () => {
      if (isBroken) throw new Error('a mistake')
      return 'ping'
    },
  }
  let runs = 0
  const app = await inboxApp(
    t,
    database,
    () => {
      runs += 1
      if (runs === 1) throw new Error('the first one fails')
    },
    { url: '/webhooks/bank', webhook: { name: newKey(), provider } },
  )
  const body = '{"ping":true}'
  const headers = signedAt(body, Date.now())
  const post = () => app.inject({ method: 'POST', url: '/webhooks/bank', payload: body, headers })
  t.equal((await post()).json().outcome, 'dead')
  const [unreadable] = await rowsOf(provider)
  isBroken = false
  t.equal((await post()).statusCode, 500)
  const read = await app.idempotency.replay(unreadable?.id ?? '')
  t.strictSame(read, { kind: 'read', outcomes: ['processed'] })
  t.equal((await rowsOf(provider)).length, 2)
  t.equal(runs, 2)
})

test('a delivery that a closing server hands back is left to its provider', async (t) => {
  const provider = { ...unnamed(), mergesUnnamed: false }
  const began = latch()
  const go = latch()
  const app = await inboxApp(
    t,
    database,
    async () => {
      began.open()
      await go.opened
    },
    { url: '/webhooks/bank', plugin: { drain: 0 }, webhook: { name: newKey(), provider } },
  )
  const answered = postBank(app, { n: 1 })
  await began.opened
  const closing = app.close()
  t.equal((await answered).statusCode, 503)
  go.open()
  await closing
  t.match(await rowsOf(provider), [{ status: 'retrying', dueAt: null }])
})

test('a delivery that is recorded too late to be run is left to its provider', async (t) => {
  const provider = { ...unnamed(), mergesUnnamed: false }
  const pool = new WatchedPool(database)
  const go = latch()
  pool.after = (name) => (name === 'fi_event_record' ? go.opened : undefined)
  const app = await inboxApp(t, database, () => t.fail('it was run'), {
    url: '/webhooks/bank',
    plugin: { pool, storeTimeout: 200 },
    webhook: { name: newKey(), provider },
  })
  t.equal((await postBank(app, { n: 1 })).statusCode, 503)
  go.open()
  await pool.untilAnswered('fi_event_end', 1)
  t.match(await rowsOf(provider), [{ status: 'retrying', dueAt: null, attempts: 0 }])
})

test('what a person replays is repeated by the inbox when it fails', async (t) => {
  const provider = { ...unnamed(), mergesUnnamed: false }
  const app = await inboxApp(t, database, () => Promise.reject(new Error('it fails')), {
    url: '/webhooks/bank',
    webhook: { name: newKey(), provider },
  })
  t.equal((await postBank(app, { n: 1 })).statusCode, 500)
  const [failed] = await rowsOf(provider)
  t.match(failed, { status: 'retrying', dueAt: null })
  t.strictSame(await app.idempotency.replay(failed?.id ?? ''), { kind: 'failed' })
  t.match(await rowsOf(provider), [{ status: 'retrying', dueAt: Date }])
})

test('a worker runs a failed delivery that a person has queued', async (t) => {
  const events = collectEvents(t)
  const provider = { ...unnamed(), mergesUnnamed: false }
  const { app, runs } = await failingOnce(t, { provider })
  t.equal((await postBank(app, { n: 1 })).statusCode, 500)
  const [failed] = await rowsOf(provider)
  const other = await buildApp(t, database, { routes: () => {} })
  const queued = await other.idempotency.replay(failed?.id ?? '', { queue: true })
  t.strictSame(queued, { kind: 'queued' })
  await listen(app)
  await events.first('webhook_processed')
  t.equal(runs(), 2)
})

test('a provider that does not deliver again: the inbox runs its events, whatever names them', async (t) => {
  const events = collectEvents(t)
  const provider = { ...timed(), redelivers: false }
  const { app, runs } = await failingOnce(t, { provider, retry: { first: 1, most: 1 } })
  await listen(app)
  const body = '{"ping":true}'
  const answer = await app.inject({
    ...{ method: 'POST', url: '/webhooks/bank', payload: body },
    headers: signedAt(body, Date.now()),
  })
  t.equal(answer.statusCode, 200)
  await events.first('webhook_processed')
  t.equal(runs(), 2)
})

test('a duplicate with other bytes is a duplicate, told and counted', async (t) => {
  const events = collectEvents(t)
  const provider = bank({ name: `bank-${newKey()}` })
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    webhook: { name: newKey(), provider },
  })
  await postBank(app, { id: 'a', n: 1 })
  await postBank(app, { id: 'a', n: 1 })
  t.notOk(events.kinds().includes('webhook_other_body'))
  t.equal((await postBank(app, { id: 'a', n: 2 })).json().outcome, 'duplicate')
  t.match(await events.first('webhook_other_body'), { eventId: 'a' })
  t.match(await rowsOf(provider), [{ deliveries: 3, otherBodies: 1 }])
})

/** An inline event as a process leaves it behind that has died. */
function crashed(id: string, provider: string) {
  const past = new Date(Date.now() - 60_000)
  return {
    ...{ id, provider, tenantId: '', eventId: null, awaitsDelivery: true, endpoint: provider },
    ...{ status: 'processing', fence: 1, attempts: 1, dueAt: past, receivedAt: past },
    ...{ deliveredAt: [past.toISOString()], payload: Buffer.from('{"ping":true}'), headers: {} },
    ...{ bodyHash: id, steps: {}, errors: [] },
  }
}
