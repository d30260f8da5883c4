// A server that closes while requests are in flight: Fastify lets those finish first, however long
// they take, and what runs beside them or in them has the time of `drain` from the beginning.
import { randomUUID } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import type { Dispatch } from '../../src/dispatch/dispatch.js'
import type { WebhookHandler, WebhookOptions } from '../../src/index.js'
import { storedKey } from '../../src/operations/stored.js'
import {
  buildApp,
  collectEvents,
  exchangeBytes,
  latch,
  listen,
  newKey,
  openSocket,
  postText,
  readAnswer,
  recordOf,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import {
  eventOf,
  inboxApp,
  postStripe,
  type StripeEvent,
  signedByStripe,
  stripeEvent,
} from '../fixtures/webhooks.js'

const DRAIN_MS = 300

/** A connection that is kept alive after its answer keeps a server from closing, too. */
const CLOSE = { connection: 'close' }

const database = await anyDatabase(t)
const { prisma } = database

const forEver = () => new Promise<never>(() => {})

/** One that waits for its requests, as a server in production does. */
async function listening(
  t: Test,
  handler: WebhookHandler,
  {
    webhook,
    routes,
    recoverEvery,
  }: {
    webhook?: Partial<WebhookOptions>
    routes?: (app: FastifyInstance) => unknown
    recoverEvery?: string
  } = {},
) {
  const events = collectEvents(t)
  const inRequest = latch()
  const go = latch()
  const app = await inboxApp(t, database, handler, {
    plugin: { drain: DRAIN_MS, recoverEvery } as never,
    server: { forceCloseConnections: false },
    // Of a name of its own: it runs nothing that another test has left behind.
    webhook: { name: `stripe of ${newKey()}`, ...webhook },
    async routes(app) {
      app.post('/slow', { config: { idempotency: false } }, async () => {
        inRequest.open()
        await go.opened
        return 'done'
      })
      await routes?.(app)
    },
  })
  const port = await listen(app)
  const url = `http://127.0.0.1:${port}`
  /** A request that is in flight until the test lets it go. */
  const slowRequest = async () => {
    const answer = fetch(`${url}/slow`, { method: 'POST', headers: CLOSE })
    await inRequest.opened
    return { answer, go: () => go.open() }
  }
  const deliver = (event: StripeEvent) => {
    const body = JSON.stringify(event)
    const headers = { ...signedByStripe(body), ...CLOSE }
    return fetch(`${url}/webhooks/stripe`, { method: 'POST', headers, body })
  }
  return { app, port, events, slowRequest, deliver }
}

t.test(
  'an inline event that does not return is handed back, and its delivery answered',
  async (t) => {
    const began = latch()
    const { app, events, deliver } = await listening(t, async () => {
      began.open()
      await forEver()
    })
    const event = stripeEvent()
    const answering = deliver(event)
    await began.opened
    const closing = app.close()
    t.match(await events.first('webhook_handed_back'), { eventId: event.id })
    const answer = await answering
    t.equal(answer.status, 503)
    t.equal(answer.headers.get('retry-after'), '5')
    t.same(await answer.json(), { outcome: 'running' })
    await closing
    t.match(await eventOf(database, event.id), { status: 'retrying', attempts: 0, errors: [] })
  },
)

t.test(
  'an inline event that is processed, but does not return, is answered as processed',
  async (t) => {
    const isDone = latch()
    const { app, deliver } = await listening(t, async (event) => {
      const tenantId = randomUUID()
      await event.transaction(
        (tx) => tx.payment.create({ data: { tenantId, amount: 1, currency: 'EUR' } }),
        { final: true },
      )
      isDone.open()
      await forEver()
    })
    const event = stripeEvent()
    const answering = deliver(event)
    await isDone.opened
    const closing = app.close()
    const answer = await answering
    t.equal(answer.status, 200)
    t.same(await answer.json(), { outcome: 'processed' })
    await closing
    t.match(await eventOf(database, event.id), { status: 'processed' })
  },
)

t.test('a deferred event is handed back while a request is in flight', async (t) => {
  const began = latch()
  const { app, events, slowRequest, deliver } = await listening(
    t,
    async () => {
      began.open()
      await forEver()
    },
    { webhook: { mode: 'deferred' } },
  )
  const slow = await slowRequest()
  const event = stripeEvent()
  t.equal((await deliver(event)).status, 200)
  await began.opened
  const closing = app.close()
  t.match(await events.first('webhook_handed_back'), { eventId: event.id })
  t.match(await eventOf(database, event.id), { status: 'retrying', attempts: 0 })
  slow.go()
  t.equal(await (await slow.answer).text(), 'done')
  await closing
})

t.test('run() is told while a request is in flight, and begins nothing after it', async (t) => {
  const began = latch()
  const { app, events, slowRequest } = await listening(t, () => {})
  const slow = await slowRequest()
  const key = newKey()
  const isTold = latch<Error>()
  app.idempotency
    .run(key, ({ signal }) => {
      signal.addEventListener('abort', () => isTold.open(signal.reason))
      began.open()
      return forEver()
    })
    .catch(() => {})
  await began.opened
  const closing = app.close()
  t.match(await isTold.opened, { message: /closed/ })
  t.match(await events.first('abandoned'), { attempt: 1 })
  await t.rejects(
    app.idempotency.run(newKey(), () => t.fail('it ran')),
    { code: 'IDEMPOTENCY_CLOSING' },
  )
  slow.go()
  t.equal(await (await slow.answer).text(), 'done')
  await closing
  t.match(await recordOf(database, storedKey(key)), { status: 'in_progress' })
})

for (const every of [undefined, '1s']) {
  const name = every === undefined ? 'recover()' : 'recoverEvery'
  t.test(`what ${name} runs is told while a request is in flight`, async (t) => {
    const began = latch()
    const handler = `stuck ${randomUUID()}`
    const { app, events, slowRequest } = await listening(t, () => {}, {
      ...(every && { recoverEvery: every }),
      routes(app) {
        app.idempotency.handler(handler, () => {
          began.open()
          return forEver()
        })
      },
    })
    const slow = await slowRequest()
    const key = newKey()
    await prisma.idempotencyRecord.create({
      data: {
        ...{ tenantId: '', key: storedKey(key), operationId: key, fingerprint: 'f', handler },
        ...{ status: 'in_progress', leaseUntil: new Date(0), input: '[1]' },
        expiresAt: new Date(Date.now() + 60_000),
      },
    })
    if (every === undefined) void app.idempotency.recover()
    await began.opened
    const closing = app.close()
    t.match(await events.first('abandoned'), { attempt: 2, why: /closed/ })
    slow.go()
    t.equal(await (await slow.answer).text(), 'done')
    await closing
  })
}

t.test('a delivery that arrives whole after the drain is for another process', async (t) => {
  const began = latch()
  const { app, port, events, deliver } = await listening(t, async ({ eventId }) => {
    if (eventId === late.id) t.fail('it ran')
    began.open()
    await forEver()
  })
  const late = stripeEvent()
  const body = JSON.stringify(late)
  const headers = Object.entries(signedByStripe(body)).map((line) => line.join(': '))
  const request = postText(
    '/webhooks/stripe',
    headers.filter((line) => !line.startsWith('content-type')),
    body,
  )
  const hasBegun = latch()
  app.server.once('request', () => hasBegun.open())
  const socket = await openSocket(t, port, request.subarray(0, -1))
  const answering = readAnswer(socket)
  await hasBegun.opened
  const early = stripeEvent()
  const answer = deliver(early)
  await began.opened
  const closing = app.close()
  await events.first('webhook_handed_back')
  socket.write(request.subarray(-1))
  t.match(await answering, { statusCode: 503, head: /retry-after: 5/i })
  t.equal((await answer).status, 503)
  await closing
  t.match(await eventOf(database, late.id), { status: 'retrying', attempts: 0 })
})

for (const [what, ends] of [
  ['is stored if it ends within the drain', true],
  ['keeps its lease if it does not', false],
] as const) {
  t.test(`a handler whose connection was cut ${what}`, async (t) => {
    const began = latch()
    const go = latch()
    const key = newKey()
    const app = await buildApp(t, database, {
      // What is in flight is cut off as soon as the server closes.
      server: { forceCloseConnections: true },
      plugin: { drain: ends ? '60s' : DRAIN_MS },
      routes: (app) =>
        app.post('/keyed', async (_request, reply) => {
          began.open()
          await go.opened
          return reply.code(201).send({ is: 'done' })
        }),
    })
    const port = await listen(app)
    const answering = exchangeBytes(t, port, postText('/keyed', [`idempotency-key: ${key}`]))
    await began.opened
    const closing = app.close()
    const cut = await answering.catch(() => undefined)
    t.notOk(cut?.statusCode)
    if (ends) go.open()
    await closing
    const { status, statusCode } = (await recordOf(database, key)) ?? {}
    t.strictSame([status, statusCode], ends ? ['completed', 201] : ['in_progress', null])
    go.open()
  })
}

t.test('a request that recorded an event finishes, however long that takes', async (t) => {
  const began = latch()
  const isRecorded = latch()
  const go = latch()
  const { app, port, events, deliver } = await listening(
    t,
    async () => {
      began.open()
      await forEver()
    },
    {
      routes: (app) =>
        app.post('/own', { config: { idempotency: false } }, async ({ idempotency, body }) => {
          const { id } = body as { id: string }
          await idempotency.recordEvent({ provider: 'own', eventId: id })
          isRecorded.open()
          await go.opened
          return 'booked'
        }),
    },
  )
  const id = randomUUID()
  const answering = exchangeBytes(t, port, postText('/own', [], JSON.stringify({ id })))
  await isRecorded.opened
  const answer = deliver(stripeEvent())
  await began.opened
  const closing = app.close()
  await events.first('webhook_handed_back')
  go.open()
  t.equal((await answering).statusCode, 200)
  t.equal((await answer).status, 503)
  await closing
  t.match(await eventOf(database, id, '', 'own'), { status: 'processed', attempts: 1 })
})

t.test('a delivery that comes while the server closes starts no worker', async (t) => {
  const told: string[] = []
  const arrived = latch()
  const stopped = latch()
  const go = latch()
  const dispatch: Dispatch = {
    start: () => void told.push('start'),
    enqueue: () => {},
    lookAgain: () => {},
    async stop() {
      told.push('stop')
      stopped.open()
    },
    async close() {},
  }
  const app = await inboxApp(t, database, () => t.fail('it ran'), {
    plugin: { dispatch },
    webhook: {
      mode: 'deferred',
      async tenant() {
        arrived.open()
        await go.opened
        return 'acme'
      },
    },
  })
  const answering = postStripe(app, stripeEvent())
  await arrived.opened
  const closing = app.close()
  await stopped.opened
  go.open()
  t.equal((await answering).statusCode, 200)
  await closing
  t.strictSame(told, ['stop'])
})
