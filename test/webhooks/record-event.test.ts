// request.idempotency.recordEvent: the atomic record-and-check for routes that exist already.
import { once } from 'node:events'
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import t, { test } from 'tap'
import type { PluginOptions, WebhookEvent } from '../../src/index.js'
import {
  begin,
  buildApp,
  collectEvents,
  exchangeBytes,
  latch,
  listen,
  newKey,
  openSocket,
  postText,
  recordOf,
  send,
  WatchedPool,
  withoutDate,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { eventOf } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

type Teardown = Parameters<typeof buildApp>[0]
type Recorded = Awaited<ReturnType<FastifyRequest['idempotency']['recordEvent']>>
type Process = (recorded: Recorded, request: FastifyRequest, reply: FastifyReply) => unknown

/** A route of the application's own, at /hook, which records `body.id` and then does as it is told. */
function recordingApp(t: Teardown, process: Process, plugin: Partial<PluginOptions> = {}) {
  return buildApp(t, database, {
    plugin,
    routes: (app) =>
      app.post('/hook', async (request, reply) => {
        const payload = request.body as { id: string | null }
        const event = { provider: 'own', eventId: payload.id, type: 'thing.made', payload }
        return process(await request.idempotency.recordEvent(event), request, reply)
      }),
  })
}

const own = (id: string, tenantId = '') => eventOf(database, id, tenantId, 'own')

const post = (app: FastifyInstance, id: string | null, more: object = {}) =>
  begin(app, '/hook', { payload: { id }, ...more })

test('the first delivery is no duplicate, and every later one is', async (t) => {
  const seen: Recorded[] = []
  const app = await recordingApp(t, (recorded) => {
    seen.push(recorded)
    return { ok: true }
  })
  const id = newKey()
  for (let delivery = 1; delivery <= 3; delivery += 1) await post(app, id)
  const stored = await own(id)
  t.match(stored, {
    status: 'processed',
    type: 'thing.made',
    endpoint: 'POST /hook',
    deliveries: 3,
    fence: 1,
    headers: {},
  })
  t.strictSame(JSON.parse(Buffer.from(stored?.payload ?? []).toString()), { id })
  t.match(seen[0], {
    duplicate: false,
    event: { id: stored?.id, provider: 'own', eventId: id, attempt: 1, payload: { id } },
  })
  const known = { id: stored?.id, provider: 'own', eventId: id, status: 'processed' }
  t.strictSame(seen.slice(1), [
    { duplicate: true, event: { ...known, deliveries: 2 } },
    { duplicate: true, event: { ...known, deliveries: 3 } },
  ])
})

test('of 50 parallel deliveries exactly one is no duplicate', async (t) => {
  const app = await recordingApp(t, ({ duplicate }) => ({ duplicate }))
  for (let round = 0; round < 10; round += 1) {
    const id = newKey()
    const answers = await Promise.all(Array.from({ length: 50 }, () => post(app, id)))
    t.ok(answers.every(({ statusCode }) => statusCode === 200))
    t.equal(answers.filter((answer) => answer.json().duplicate === false).length, 1)
    t.match(await own(id), { status: 'processed', deliveries: 50, fence: 1 })
  }
})

test('while one runs, another is a duplicate of something that is not processed', async (t) => {
  const began = latch()
  const go = latch()
  const app = await recordingApp(t, async (recorded) => {
    if (recorded.duplicate) return recorded.event
    began.open()
    await go.opened
    return 'done'
  })
  const id = newKey()
  const first = post(app, id)
  await began.opened
  t.match((await post(app, id)).json(), { deliveries: 2, status: 'processing' })
  go.open()
  t.equal((await first).body, 'done')
  t.match((await post(app, id)).json(), { deliveries: 3, status: 'processed' })
})

test('an event without a name is never a duplicate', async (t) => {
  const app = await recordingApp(t, ({ duplicate }) => ({ duplicate }))
  for (let delivery = 1; delivery <= 3; delivery += 1) {
    t.equal((await post(app, null)).json().duplicate, false)
  }
})

interface Answering {
  name: string
  answer: (request: FastifyRequest, reply: FastifyReply) => unknown
}

const ANSWERS: Answering[] = [
  { name: 'an object', answer: () => ({ a: 1, ü: '€' }) },
  { name: 'text', answer: () => 'text' },
  { name: 'bytes', answer: () => Buffer.from([0, 255, 128]) },
  { name: 'nothing', answer: (_request, reply) => reply.code(204).send() },
  {
    name: 'a status, cookies and headers of its own',
    answer: (_request, reply) =>
      reply
        .code(202)
        .header('x-own', 'y')
        .header('set-cookie', ['a=1', 'b=2'])
        .type('text/csv')
        .send('a,b'),
  },
  { name: 'a stream', answer: () => Readable.from(['some ', 'parts']) },
  { name: 'a redirect', answer: (_request, reply) => reply.redirect('/elsewhere') },
  { name: 'a refusal', answer: (_request, reply) => reply.code(422).send({ wrong: true }) },
  {
    name: 'an error with a status',
    answer: () => {
      throw Object.assign(new Error('not now'), { statusCode: 409, code: 'OWN' })
    },
  },
  {
    name: 'an error',
    answer: () => {
      throw new Error('broken')
    },
  },
  {
    name: 'a hijacked reply',
    answer(_request, reply) {
      reply.hijack()
      reply.raw.writeHead(201, { 'x-own': 'y', connection: 'close', date: 'x' }).end('raw')
    },
  },
  {
    name: 'what is written to reply.raw',
    answer(_request, reply) {
      reply.raw.writeHead(500, { connection: 'close', date: 'x' })
      reply.raw.write('some ')
      reply.raw.end('parts')
      return reply
    },
  },
]

for (const { name, answer } of ANSWERS) {
  test(`${name}: the answer is what it was without it, byte for byte, also for a duplicate`, async (t) => {
    const app = await buildApp(t, database, {
      routes(app) {
        app.addHook('onRequest', async (_request, reply) => {
          reply.header('date', 'x')
        })
        app.post('/plain', async (request, reply) => answer(request, reply))
        app.post('/recording', async (request, reply) => {
          const { id } = request.body as { id: string }
          await request.idempotency.recordEvent({ provider: 'own', eventId: id })
          return answer(request, reply)
        })
      },
    })
    const port = await listen(app)
    const body = JSON.stringify({ id: newKey() })
    const plain = await exchangeBytes(t, port, postText('/plain', [], body))
    for (const what of ['the first', 'a duplicate']) {
      const recording = await exchangeBytes(t, port, postText('/recording', [], body))
      t.equal(withoutDate(recording), withoutDate(plain), what)
      t.ok(recording.body.equals(plain.body), what)
    }
  })
}

const FAILURES: Answering[] = ANSWERS.filter(({ name }) =>
  ['a refusal', 'an error with a status', 'an error', 'what is written to reply.raw'].includes(
    name,
  ),
)

for (const { name, answer } of FAILURES) {
  test(`${name}: the next delivery is no duplicate`, async (t) => {
    const pool = new WatchedPool(database)
    const seen: unknown[] = []
    const process: Process = (recorded, request, reply) => {
      seen.push(recorded.duplicate || recorded.event.attempt)
      return seen.length === 1 ? answer(request, reply) : 'done'
    }
    const app = await recordingApp(t, process, { pool })
    const id = newKey()
    t.ok((await post(app, id)).statusCode >= 400)
    // What was written past Fastify's hooks is known once it is written.
    await pool.untilAnswered('fi_event_end', 1)
    t.match(await own(id), { status: 'retrying', errors: [{ message: /did not answer/ }] })
    t.equal((await post(app, id)).body, 'done')
    await post(app, id)
    t.strictSame(seen, [1, 2, true])
    t.match(await own(id), { status: 'processed', fence: 2, deliveries: 3 })
  })
}

test('a route that fails for ever may try for ever', async (t) => {
  const app = await recordingApp(t, ({ duplicate }, _request, reply) =>
    reply.code(500).send({ duplicate }),
  )
  const id = newKey()
  for (let delivery = 1; delivery <= 30; delivery += 1) {
    const answer = await post(app, id)
    t.strictSame([answer.statusCode, answer.json()], [500, { duplicate: false }])
  }
})

test('a handler whose client has left goes on, and its answer says how it went', async (t) => {
  const pool = new WatchedPool(database)
  const began = latch()
  const left = latch()
  const seen: boolean[] = []
  const process: Process = async ({ duplicate }, _request, reply) => {
    seen.push(duplicate)
    if (seen.length === 1) {
      reply.raw.once('close', () => left.open())
      began.open()
      await left.opened
    }
    return 'done'
  }
  const app = await recordingApp(t, process, { pool })
  const id = newKey()
  const text = postText('/hook', [], JSON.stringify({ id }))
  const socket = await openSocket(t, await listen(app), text)
  await began.opened
  socket.destroy()
  await pool.untilAnswered('fi_event_end', 1)
  t.equal((await post(app, id)).body, 'done')
  t.strictSame(seen, [false, true])
})

test('a hijacked reply that its client did not get is no success: the next delivery is no duplicate', async (t) => {
  const pool = new WatchedPool(database)
  const seen: boolean[] = []
  const process: Process = ({ duplicate }, _request, reply) => {
    seen.push(duplicate)
    if (seen.length > 1) return 'done'
    reply.hijack()
    reply.raw.write('half of it')
    return reply
  }
  const app = await recordingApp(t, process, { pool })
  const id = newKey()
  const text = postText('/hook', [], JSON.stringify({ id }))
  const socket = await openSocket(t, await listen(app), text)
  await once(socket, 'data')
  socket.destroy()
  await pool.untilAnswered('fi_event_end', 1)
  t.equal((await post(app, id)).body, 'done')
  t.strictSame(seen, [false, false])
})

test('an event whose process died is no duplicate once its lease has run out', async (t) => {
  const app = await recordingApp(t, ({ duplicate }) => ({ duplicate }))
  const id = newKey()
  await post(app, id)
  await prisma.webhookEvent.updateMany({
    where: { eventId: id },
    data: { status: 'processing', dueAt: new Date(0) },
  })
  t.equal((await post(app, id)).json().duplicate, false)
  t.match(await own(id), { status: 'processed', fence: 2 })
})

test('no worker runs such an event: its handler is a request', async (t) => {
  const events = collectEvents(t)
  const app = await recordingApp(t, (_recorded, _request, reply) => reply.code(500).send('no'))
  app.idempotency.work()
  await listen(app)
  const id = newKey()
  await post(app, id)
  await events.first('webhook_failed')
  await prisma.webhookEvent.updateMany({ where: { eventId: id }, data: { dueAt: new Date(0) } })
  app.idempotency.work()
  t.match(await own(id), { status: 'retrying', fence: 1 })
})

test('a store that does not answer is 503, and the application answers it', async (t) => {
  const pool = new WatchedPool(database)
  const events = collectEvents(t)
  let runs = 0
  const app = await recordingApp(t, () => ++runs, { pool, storeTimeout: 400 })
  pool.before = () => {
    throw Object.assign(new Error('canary'), { code: 'ECONNREFUSED' })
  }
  const id = newKey()
  const down = await post(app, id)
  t.equal(down.statusCode, 503)
  t.equal(down.json().code, 'IDEMPOTENCY_INBOX_UNAVAILABLE')
  t.notMatch(down.body, 'canary')
  t.match(events.all, [{ kind: 'inbox_unavailable', route: 'POST /hook' }])
  const go = latch()
  pool.before = () => {}
  pool.after = () => go.opened
  t.equal((await post(app, id)).statusCode, 503, 'slow')
  go.open()
  await pool.untilAnswered('fi_event_end', 1)
  t.equal(runs, 0)
  pool.after = () => {}
  t.equal((await post(app, id)).statusCode, 200)
  t.equal(runs, 1)
})

test('an ending that cannot be stored keeps the answer back no longer than storeTimeout', async (t) => {
  const pool = new WatchedPool(database)
  const app = await recordingApp(t, () => 'done', { pool, storeTimeout: 400 })
  const go = latch()
  pool.before = (name) => (name === 'fi_event_end' ? go.opened : undefined)
  const id = newKey()
  const startedAt = performance.now()
  const answer = await post(app, id)
  t.equal(answer.body, 'done')
  t.ok(performance.now() - startedAt < 2_000)
  t.match(await own(id), { status: 'processing' })
  go.open()
  await pool.untilAnswered('fi_event_end', 1)
  t.match(await own(id), { status: 'processed' })
})

test('it works beside an Idempotency-Key of the same request', async (t) => {
  const seen: boolean[] = []
  const app = await recordingApp(t, ({ duplicate }, _request, reply) => {
    seen.push(duplicate)
    return seen.length === 1 ? reply.code(500).send('broken') : { duplicate }
  })
  const id = newKey()
  const key = newKey()
  t.equal((await post(app, id, { key })).statusCode, 500)
  t.match(await recordOf(database, key), { status: 'released' })
  t.same((await post(app, id, { key })).json(), { duplicate: false })
  const replay = await post(app, id, { key })
  t.same(replay.json(), { duplicate: false })
  t.equal(replay.headers['idempotent-replayed'], 'true')
  t.same((await post(app, id, { key: newKey() })).json(), { duplicate: true })
  t.strictSame(seen, [false, false, true])
})

test('event.transaction commits the effect with a note that it was done', async (t) => {
  let runs = 0
  const app = await recordingApp(t, async (recorded, _request, reply) => {
    if (recorded.duplicate) return 'duplicate'
    runs += 1
    const { event } = recorded
    await event.transaction((tx) =>
      tx.payment.create({ data: { tenantId: event.id, amount: 1, currency: 'EUR' } }),
    )
    return runs === 1 ? reply.code(500).send('broken') : 'done'
  })
  const id = newKey()
  t.equal((await post(app, id)).statusCode, 500)
  t.equal((await post(app, id)).body, 'done')
  t.equal((await post(app, id)).body, 'duplicate')
  t.equal(runs, 2)
  const tenantId = (await own(id))?.id as string
  t.equal(await prisma.payment.count({ where: { tenantId } }), 1)
})

test('a final transaction has processed the event, whatever the route answers', async (t) => {
  const app = await recordingApp(t, async (recorded, _request, reply) => {
    if (recorded.duplicate) return recorded.event
    await recorded.event.transaction(async () => {}, { final: true })
    return reply.code(500).send('broken')
  })
  const id = newKey()
  t.equal((await post(app, id)).statusCode, 500)
  t.match((await post(app, id)).json(), { status: 'processed' })
})

for (const [status, decide] of [
  ['ignored', (event: WebhookEvent) => event.ignore()],
  ['dead', (event: WebhookEvent) => event.reject('unknown currency')],
] as const) {
  test(`an event that its route has ${status === 'dead' ? 'rejected' : status} is a duplicate with that status`, async (t) => {
    const app = await recordingApp(t, async (recorded) => {
      if (recorded.duplicate) return recorded.event
      decide(recorded.event)
      return 'done'
    })
    const id = newKey()
    t.equal((await post(app, id)).body, 'done')
    t.match((await post(app, id)).json(), { deliveries: 2, status })
  })
}

test('an event that no worker runs cannot be put back', async (t) => {
  let isEarly = true
  const app = await recordingApp(t, async (recorded, _request, reply) => {
    if (recorded.duplicate) return recorded.event
    if (!isEarly) return 'done'
    isEarly = false
    t.throws(() => recorded.event.defer(), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      message: /defer\(\) has no effect on an event of recordEvent/,
    })
    return reply.code(503).send()
  })
  const id = newKey()
  t.equal((await post(app, id)).statusCode, 503)
  t.equal((await post(app, id)).body, 'done')
})

test('two events of one request end with it', async (t) => {
  let isBroken = true
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/hooks', async (request, reply) => {
        const { ids } = request.body as { ids: string[] }
        const duplicates: boolean[] = []
        for (const eventId of ids) {
          const { duplicate } = await request.idempotency.recordEvent({ provider: 'own', eventId })
          duplicates.push(duplicate)
        }
        return reply.code(isBroken ? 500 : 200).send(duplicates)
      }),
  })
  const ids = [newKey(), newKey()]
  const both = () => send(app, '/hooks', { payload: { ids } }).then((answer) => answer.json())
  t.strictSame(await both(), [false, false])
  isBroken = false
  t.strictSame(await both(), [false, false])
  t.strictSame(await both(), [true, true])
})

test('each tenant has events of its own, and nobody has none', async (t) => {
  const app = await recordingApp(t, ({ duplicate }) => ({ duplicate }), {
    tenant: ({ headers }) => headers['x-tenant'] as string | undefined,
  })
  const id = newKey()
  const as = (tenant: string) => post(app, id, { headers: { 'x-tenant': tenant } })
  t.same((await as('a')).json(), { duplicate: false })
  t.same((await as('b')).json(), { duplicate: false })
  t.same((await as('a')).json(), { duplicate: true })
  t.match(await own(id, 'a'), { deliveries: 2 })
  const nobody = await post(app, id)
  t.equal(nobody.statusCode, 403)
  t.equal(nobody.json().code, 'IDEMPOTENCY_TENANT_UNKNOWN')
})

test('what cannot be recorded is refused with a word on what to do', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/hook', ({ idempotency, body }) => idempotency.recordEvent(body as never)),
  })
  for (const [payload, says] of [
    [{}, /"provider" of recordEvent must be/],
    [{ provider: '' }, /"provider" of recordEvent must be/],
    [{ provider: 'a b', eventId: 'x' }, /letters, digits/],
    [{ provider: 'x' }, /"eventId" of recordEvent must be .*or null/],
    [{ provider: 'x', eventId: '' }, /"eventId" of recordEvent must be/],
    [{ provider: 'x', eventId: 5 }, /"eventId" of recordEvent must be/],
    [{ provider: 'x', eventId: 'y', type: 5 }, /"type" of recordEvent must be text/],
    [{ provider: 'x', eventId: 'y', id: 5 }, /"id" of recordEvent is not known/],
  ] as const) {
    const answer = await send(app, '/hook', { payload })
    t.equal(answer.json().code, 'IDEMPOTENCY_OPTION_INVALID')
    t.match(answer.json().detail, says)
  }
})

test('an event that is recorded without await, after the answer, is refused with what to write', async (t) => {
  let recording: Promise<unknown> = Promise.resolve()
  const id = newKey()
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/hook', (request, reply) => {
        recording = request.idempotency.recordEvent({ provider: 'own', eventId: id })
        reply.send('done')
      }),
  })
  t.equal((await post(app, id)).body, 'done')
  await t.rejects(recording, {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message: /nothing was recorded: write await request\.idempotency\.recordEvent\(…\)/,
  })
  t.equal(await own(id), null)
})

test('payloads are kept as bytes, as text, as JSON, or not at all', async (t) => {
  const payloads = [Buffer.from([0, 255]), 'text', { a: 1 }, undefined, [1, 'ü']]
  const stored = [Buffer.from([0, 255]), 'text', '{"a":1}', '', '[1,"ü"]']
  let next = 0
  const seen: unknown[] = []
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.post('/hook', async ({ idempotency, body }) => {
        const { id } = body as { id: string }
        const payload = payloads[next]
        const recorded = await idempotency.recordEvent({ provider: 'own', eventId: id, payload })
        if (!recorded.duplicate) seen.push(recorded.event.payload)
        return 'done'
      }),
  })
  for (const [n, bytes] of stored.entries()) {
    next = n
    const id = newKey()
    t.equal((await post(app, id)).body, 'done')
    t.ok(Buffer.from((await own(id))?.payload ?? []).equals(Buffer.from(bytes)))
  }
  t.strictSame(seen, payloads)
})

test('an event without an id has none, for its route and in the table', async (t) => {
  const seen: Recorded[] = []
  const app = await recordingApp(t, (recorded) => {
    seen.push(recorded)
    return { ok: true }
  })
  for (let delivery = 1; delivery <= 2; delivery += 1) await post(app, null)
  t.match(seen, [
    { duplicate: false, event: { eventId: null } },
    { duplicate: false, event: { eventId: null } },
  ])
  for (const { event } of seen) {
    const stored = await prisma.webhookEvent.findUnique({ where: { id: event.id } })
    t.match(stored, { eventId: null, status: 'processed' })
  }
})
