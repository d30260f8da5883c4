// What a caller may get wrong in each public method: types, text that no database stores, numbers
// that no column holds, lists without end. All of it is refused before anything is run or written.
import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import t, { type Test, test } from 'tap'
import { defineFlow, type Guards, type WebhookEvent } from '../src/index.js'
import { buildApp, send } from './fixtures/app.js'
import { anyDatabase } from './fixtures/database.js'
import { bank, inboxApp, postStripe, stripeEvent } from './fixtures/webhooks.js'

// So much at once, on a machine that does other things as well.
const PATIENT = { storeTimeout: '60s' } as const

const database = await anyDatabase(t)
const { prisma } = database

// Anything goes in here: that is what is tested.
// biome-ignore lint/suspicious/noExplicitAny: as above
type Anything = any

const cyclic: Record<string, unknown> = {}
cyclic.self = cyclic
const nested = (depth: number) => {
  let value: unknown = 'deep'
  for (let n = 0; n < depth; n += 1) value = { value }
  return value
}

/** Of no use for anything. */
const levels = Object.fromEntries(new Array(100_000).fill(0).map((_, n) => [`status ${n}`, n]))

const ODD: Record<string, Anything> = {
  undefined: undefined,
  null: null,
  true: true,
  '-1': -1,
  NaN: Number.NaN,
  '2 ** 31': 2 ** 31,
  '1e17': 1e17,
  '1e308': 1e308,
  bigint: 10n ** 30n,
  symbol: Symbol('odd'),
  'empty text': '',
  NUL: 'a\0b',
  'lone surrogate': 'a\ud800b',
  'long text': 'x'.repeat(1_000_000),
  'fifteen thousand spaces': `a${' '.repeat(15_000)}b`,
  __proto__key: JSON.parse('{"__proto__": {"polluted": true}}'),
  'no prototype': Object.create(null),
  function: () => {},
  'list of a million': new Array(1_000_000).fill('a'),
  'object of a hundred thousand': levels,
  'cyclic object': cyclic,
  'deep object': nested(100_000),
  'date of no time': new Date(Number.NaN),
  'last date': new Date(8.64e15),
  'first date': new Date(-8.64e15),
  'object with a getter': Object.defineProperty({}, 'kind', {
    enumerable: true,
    get: () => 'read',
  }),
}

/** Those of them that a call takes, by the name of the call. All calls refuse the others. */
const TAKEN: Record<string, string[]> = JSON.parse(
  await readFile(new URL('fixtures/taken-arguments.json', import.meta.url), 'utf8'),
)

/** What no text column takes as it is, or no two of which can be told apart once stored. */
const UNSTORABLE = ['', 'a\0b', '\ud800', '\udc00a', 'x'.repeat(256)]

const STORABLE = ['__proto__', 'constructor', ' ', 'x'.repeat(255), '𝒳']

const flow = defineFlow({ levels: { pending: 0, paid: 1 }, terminal: ['paid'] })
const TWO = { levels: { new: 0, paid: 1 }, terminal: ['paid' as const] }
const slots = () => ({ resource: randomUUID(), slots: 'friday', holder: 'ann' })
const payment = () => prisma.payment.create({ data: { tenantId: '', amount: 1, currency: 'EUR' } })
const advance = async (on: Guards, over: object) => {
  const { id } = await payment()
  return on.advance(prisma.payment, { where: { id }, flow, to: 'paid', ...over } as never)
}

/** Each call, with one value in one place; `text`: the value is a name, and so '__proto__' will do. */
interface Call<On> {
  call: (on: On, value: Anything) => unknown
  text?: true
  /** '' is the only tenant of an application with `tenant: false`. */
  isEmptyTaken?: true
}

const GUARDS: Record<string, Call<Guards>> = {
  'lock, names': { call: (on, value) => on.lock(value, {}, () => {}), text: true },
  'lock, one of its names': {
    call: (on, value) => on.lock(['a', value], {}, () => {}),
    text: true,
  },
  'lock, options': { call: (on, value) => on.lock(randomUUID(), value, () => {}) },
  'lock, ttl': { call: (on, ttl) => on.lock(randomUUID(), { ttl }, () => {}) },
  'lock, wait': { call: (on, wait) => on.lock(randomUUID(), { wait }, () => {}) },
  'lock, holder': { call: (on, holder) => on.lock(randomUUID(), { holder }, () => {}), text: true },
  'lock, routine': { call: (on, value) => on.lock(randomUUID(), {}, value) },
  'reserve, options': { call: (on, value) => on.reserve(value) },
  'reserve, resource': {
    call: (on, resource) => on.reserve({ ...slots(), resource }),
    text: true,
  },
  'reserve, slots': { call: (on, value) => on.reserve({ ...slots(), slots: value }), text: true },
  'reserve, one of its slots': {
    call: (on, value) => on.reserve({ ...slots(), slots: ['a', value] }),
    text: true,
  },
  'reserve, holder': { call: (on, holder) => on.reserve({ ...slots(), holder }), text: true },
  'reserve, hold': { call: (on, hold) => on.reserve({ ...slots(), hold }) },
  'reserve, tx': { call: (on, tx) => on.reserve({ ...slots(), tx }) },
  'confirm, options': { call: (on, value) => on.confirm(value) },
  'confirm, holder': { call: (on, holder) => on.confirm({ ...slots(), holder }), text: true },
  'confirm, slots': { call: (on, value) => on.confirm({ ...slots(), slots: value }), text: true },
  'confirm, tx': { call: (on, tx) => on.confirm({ ...slots(), tx }) },
  'cancel, options': { call: (on, value) => on.cancel(value) },
  'cancel, resource': { call: (on, resource) => on.cancel({ ...slots(), resource }), text: true },
  'cancel, tx': { call: (on, tx) => on.cancel({ ...slots(), tx }) },
  'availability, options': { call: (on, value) => on.availability(value) },
  'availability, resource': { call: (on, resource) => on.availability({ resource }), text: true },
  'availability, slots': {
    call: (on, value) => on.availability({ resource: 'r', slots: value }),
  },
  'advance, delegate': {
    call: (on, value) => on.advance(value, { where: { id: '' }, flow, to: 'paid' } as never),
  },
  'advance, options': { call: (on, value) => on.advance(prisma.payment, value) },
  'advance, where': {
    call: (on, where) => advance(on, { where }),
  },
  'advance, flow': {
    call: (on, value) => advance(on, { flow: value }),
  },
  'advance, part of a flow': {
    call: (on, statuses) => advance(on, { flow: { decide() {}, statuses } }),
  },
  'advance, to': {
    call: (on, to) => advance(on, { to }),
  },
  'advance, occurredAt': {
    call: (on, occurredAt) => advance(on, { occurredAt }),
  },
  'advance, override': {
    call: (on, override) => advance(on, { override }),
  },
  'advance, reason': {
    call: (on, reason) => advance(on, { override: { reason } }),
  },
  'advance, actor': {
    call: (on, actor) => advance(on, { override: { reason: 'r', actor } }),
  },
  'advance, data': { call: (on, data) => advance(on, { data }) },
  'advance, fields': {
    call: (on, fields) => advance(on, { fields }),
  },
  'advance, name of a field': {
    call: (on, status) => advance(on, { fields: { status } }),
  },
  'once, create': { call: (on, value) => on.once(value, { find: async () => 1 }) },
  'once, options': { call: (on, value) => on.once(async () => 1, value) },
  'once, find': { call: (on, find) => on.once(async () => 1, { find }) },
  'once, tx': { call: (on, tx) => on.once(async () => 1, { find: async () => 1, tx }) },
}

const FLOWS: Record<string, Call<unknown>> = {
  'defineFlow, options': { call: (_, value) => defineFlow(value) },
  'defineFlow, name': { call: (_, name) => defineFlow({ name, ...TWO }) },
  'defineFlow, levels': { call: (_, levels) => defineFlow({ levels }) },
  'defineFlow, a level': { call: (_, paid) => defineFlow({ ...TWO, levels: { new: 0, paid } }) },
  'defineFlow, transitions': { call: (_, transitions) => defineFlow({ transitions }) },
  'defineFlow, a transition': {
    call: (_, to) => defineFlow({ transitions: { new: to }, terminal: ['paid'] as never[] }),
  },
  'defineFlow, a status': {
    call: (_, to) => defineFlow({ transitions: { new: [to] }, terminal: [to] }),
  },
  'defineFlow, initial': { call: (_, initial) => defineFlow({ ...TWO, initial }) },
  'defineFlow, terminal': { call: (_, terminal) => defineFlow({ ...TWO, terminal }) },
}

/** `undefined` when it was done; otherwise what it was refused with. */
async function refusalOf(call: () => unknown): Promise<unknown> {
  try {
    await call()
    return undefined
  } catch (error) {
    return error
  }
}

/** Errors of their own for what is not there, and for the name and the result of a step. */
const OTHER_REFUSALS = new Set<unknown>([
  'IDEMPOTENCY_EVENT_MISSING',
  'IDEMPOTENCY_STEP_NAME_INVALID',
  'IDEMPOTENCY_STEP_NAME_USED',
  'IDEMPOTENCY_STEP_NOT_STORABLE',
])
const REFUSED = 'IDEMPOTENCY_OPTION_INVALID'
const short = (error: unknown) => (error === undefined ? 'was taken' : `${error}`.slice(0, 200))
const codeOf = (error: unknown): unknown => Reflect.get(Object(error), 'code')

const WEBHOOKS: Record<string, Call<FastifyInstance>> = {
  'for, tenant': {
    call: (app, tenant) => app.idempotency.for(tenant),
    text: true,
    isEmptyTaken: true,
  },
  'ingest, options': { call: (app, value) => app.idempotency.ingest(value) },
  'ingest, endpoint': { call: (app, endpoint) => ingest(app, { endpoint }) },
  'ingest, tenantId': {
    call: (app, tenantId) => ingest(app, { tenantId }),
    text: true,
    isEmptyTaken: true,
  },
  'ingest, payload': { call: (app, payload) => ingest(app, { payload, eventId: null }) },
  'ingest, headers': { call: (app, headers) => ingest(app, { headers }) },
  'ingest, a header': { call: (app, value) => ingest(app, { headers: { 'x-note': value } }) },
  'ingest, eventId': { call: (app, eventId) => ingest(app, { eventId }) },
  'replay, event': { call: (app, value) => app.idempotency.replay(value) },
  'replay, tenantId': {
    call: (app, tenantId) => app.idempotency.replay({ provider: 'a', eventId: 'a', tenantId }),
    text: true,
    isEmptyTaken: true,
  },
  'replay, provider': {
    call: (app, provider) => app.idempotency.replay({ provider, eventId: 'a' }),
  },
  'replay, eventId': {
    call: (app, eventId) => app.idempotency.replay({ provider: 'a', eventId }),
  },
  'replay, options': { call: (app, value) => app.idempotency.replay('a', value) },
  'replay, force': { call: (app, force) => app.idempotency.replay('a', { force }) },
  'replay, queue': { call: (app, queue) => app.idempotency.replay('a', { queue }) },
}

/** Within a request, whose answer is a success: an event that was recorded is processed by it. */
const REQUESTS: Record<string, Call<FastifyRequest>> = {
  'recordEvent, event': { call: ({ idempotency }, value) => idempotency.recordEvent(value) },
  'recordEvent, provider': { call: (request, provider) => recordEvent(request, { provider }) },
  'recordEvent, eventId': { call: (request, eventId) => recordEvent(request, { eventId }) },
  'recordEvent, type': { call: (request, type) => recordEvent(request, { type }) },
  'recordEvent, payload': { call: (request, payload) => recordEvent(request, { payload }) },
}

const EVENTS: Record<string, Call<WebhookEvent>> = {
  'defer, options': { call: (event, value) => event.defer(value) },
  'defer, after': { call: (event, after) => event.defer({ after }) },
  'reject, reason': { call: (event, reason) => event.reject(reason) },
}

let handlers = 0
const handler = (app: FastifyInstance) => {
  handlers += 1
  return app.idempotency.handler(`handler ${handlers}`, async () => 1)
}

const OPERATIONS: Record<string, Call<FastifyInstance>> = {
  'run, key': { call: (app, key) => app.idempotency.run(key, () => 1) },
  'run, work': { call: (app, work) => app.idempotency.run(randomUUID(), work) },
  'run, options': {
    call: (app, options) => app.idempotency.run(randomUUID(), () => 1, options),
  },
  'run, wait': { call: (app, wait) => app.idempotency.run(randomUUID(), () => 1, { wait }) },
  'run, lease': { call: (app, lease) => app.idempotency.run(randomUUID(), () => 1, { lease }) },
  'run, retention': {
    call: (app, retention) => app.idempotency.run(randomUUID(), () => 1, { retention }),
  },
  'run, onLeaseExpired': {
    call: (app, onLeaseExpired) => app.idempotency.run(randomUUID(), () => 1, { onLeaseExpired }),
  },
  'run, input': { call: (app, input) => app.idempotency.run(randomUUID(), () => 1, { input }) },
  'run, input of a handler': {
    call: (app, input) => app.idempotency.run(randomUUID(), handler(app) as never, { input }),
  },
  'handler, name': { call: (app, name) => app.idempotency.handler(name, async () => 1) },
  'handler, work': { call: (app, work) => app.idempotency.handler(randomUUID(), work) },
  'handler, times': {
    call: (app, times) => app.idempotency.handler(randomUUID(), async () => 1, times),
  },
  'handler, lease': {
    call: (app, lease) => app.idempotency.handler(randomUUID(), async () => 1, { lease }),
  },
  'recover, options': { call: (app, options) => app.idempotency.recover(options) },
  'recover, limit': { call: (app, limit) => app.idempotency.recover({ limit }) },
  'recover, attempts': { call: (app, attempts) => app.idempotency.recover({ attempts }) },
  'resolve, name': { call: (app, name) => app.idempotency.resolve(name, { release: true }) },
  'resolve, run': { call: (app, run) => app.idempotency.resolve({ run }, { release: true }) },
  'resolve, decision': { call: (app, decision) => app.idempotency.resolve('a', decision) },
  'resolve, release': { call: (app, release) => app.idempotency.resolve('a', { release }) },
  'resolve, response': { call: (app, response) => app.idempotency.resolve('a', { response }) },
  'resolve, status': { call: (app, statusCode) => respond(app, { statusCode }) },
  'resolve, headers': { call: (app, headers) => respond(app, { headers }) },
  'resolve, a header': { call: (app, value) => respond(app, { headers: { 'x-note': value } }) },
  'resolve, body': { call: (app, body) => respond(app, { body }) },
  'resolve, result': { call: (app, result) => app.idempotency.resolve({ run: 'a' }, { result }) },
  'resolve, options': {
    call: (app, options) => app.idempotency.resolve('a', { release: true }, options),
  },
  'resolve, attempt': {
    call: (app, attempt) =>
      app.idempotency.resolve('a', { release: true }, { operationId: 'a', attempt }),
  },
  'resolve, operationId': {
    call: (app, operationId) =>
      app.idempotency.resolve('a', { release: true }, { operationId, attempt: 1 }),
  },
}

const respond = (app: FastifyInstance, over: Anything) =>
  app.idempotency.resolve('a', { response: { statusCode: 200, ...over } })

/** A request and an event have these, and so has an operation of `run`. */
const STEPS: Record<string, Call<Anything>> = {
  'step, name': { call: (on, name) => on.step(name, () => 1) },
  'step, function': { call: (on, fn) => on.step(randomUUID(), fn) },
  'step, result': { call: (on, result) => on.step(randomUUID(), () => result) },
  'transaction, function': { call: (on, fn) => on.transaction(fn, { name: randomUUID() }) },
  'transaction, options': { call: (on, options) => on.transaction(async () => 1, options) },
  'transaction, name': { call: (on, name) => on.transaction(async () => 1, { name }) },
  'transaction, timeout': {
    call: (on, timeout) => on.transaction(async () => 1, { name: randomUUID(), timeout }),
  },
  'transaction, maxWait': {
    call: (on, maxWait) => on.transaction(async () => 1, { name: randomUUID(), maxWait }),
  },
  'transaction, isolationLevel': {
    call: (on, isolationLevel) =>
      on.transaction(async () => 1, { name: randomUUID(), isolationLevel }),
  },
  'transaction, result': {
    call: (on, result) => on.transaction(async () => result, { name: randomUUID() }),
  },
  'keyFor, name': { call: (on, name) => on.keyFor(name) },
}

const ingest = (app: FastifyInstance, over: Anything) =>
  app.idempotency.ingest({ endpoint: '/bank', payload: { id: randomUUID() }, ...over })
const recordEvent = ({ idempotency }: FastifyRequest, over: Anything) =>
  idempotency.recordEvent({ provider: 'own', eventId: randomUUID(), ...over })

async function refuses<On>(t: Test, on: On, calls: Record<string, Call<On>>): Promise<void> {
  for (const [name, { call, text, isEmptyTaken }] of Object.entries(calls)) {
    const unexpected: string[] = []
    const taken: string[] = []
    const isRefusal = (error: unknown) =>
      codeOf(error) === REFUSED || OTHER_REFUSALS.has(codeOf(error))
    for (const [kind, value] of Object.entries(ODD)) {
      const error = await refusalOf(() => call(on, value))
      if (error === undefined) {
        taken.push(kind)
        continue
      }
      const isShort = `${error}`.length < 1_000
      if (!isRefusal(error) || !isShort) unexpected.push(`${kind}: ${short(error)}`)
    }
    for (const value of text ? UNSTORABLE : []) {
      const error = await refusalOf(() => call(on, value))
      const isRight = value === '' && isEmptyTaken ? error === undefined : isRefusal(error)
      if (!isRight) unexpected.push(`${JSON.stringify(value)}: ${short(error)}`)
    }
    for (const value of text ? STORABLE : []) {
      const error = await refusalOf(() => call(on, value))
      if (error !== undefined) unexpected.push(`${JSON.stringify(value)}: ${short(error)}`)
    }
    t.strictSame(unexpected, [], name)
    t.strictSame(taken, TAKEN[name] ?? [], `${name}: what is taken`)
  }
  t.equal(Reflect.get({}, 'polluted'), undefined)
}

test('what cannot be used is refused with a message that says what to write', async (t) => {
  const app = await buildApp(t, database, {
    plugin: PATIENT,
    routes(app) {
      app.webhook('/bank', { provider: bank(), headers: ['x-note'] }, () => {})
      app.post('/calls', async (request) => {
        await refuses(t, request, REQUESTS)
        await refuses(t, request.idempotency, STEPS)
        return {}
      })
    },
  })
  await refuses(t, app.idempotency, GUARDS)
  await refuses(t, app.idempotency, FLOWS)
  await refuses(t, app, WEBHOOKS)
  await refuses(t, app, OPERATIONS)
  t.equal((await send(app, '/calls', { key: randomUUID() })).statusCode, 200)
})

test('so it is of an event', async (t) => {
  const app = await inboxApp(
    t,
    database,
    async (event) => {
      await refuses(t, event, STEPS)
      await refuses(t, event, EVENTS)
      event.ignore()
    },
    { plugin: PATIENT },
  )
  t.equal((await postStripe(app, stripeEvent())).json().outcome, 'ignored')
})

test('an event whose name no column holds is found again by that name', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) =>
      app.webhook('/bank', { provider: bank() }, () => {
        runs += 1
      }),
  })
  const names = ['a\0b', '\ud800', '\ud801', 'x'.repeat(1_000)].map((id) => id + randomUUID())
  for (const eventId of names) {
    t.match(await ingest(app, { eventId }), { outcome: 'processed', deliveries: 1 })
    t.match(await ingest(app, { eventId }), { outcome: 'duplicate', deliveries: 2 })
    const name = { provider: 'bank', eventId }
    t.strictSame(await app.idempotency.replay(name), { kind: 'refused' })
    t.strictSame(await app.idempotency.replay(name, { force: true }), { kind: 'processed' })
  }
  t.equal(runs, 2 * names.length)
})
