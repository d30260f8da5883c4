// What counts as the same request, and what it costs to find out.
import multipart from '@fastify/multipart'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import t, { test } from 'tap'
import { buildApp, collectEvents, newKey, recordOf, send, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

const headers = { 'content-type': 'text/odd' }

/** Has a parser make something of each body that JSON does not know. */
const parsedAs = (make: (text: string) => unknown) => (app: FastifyInstance) =>
  app.addContentTypeParser('text/odd', { parseAs: 'string' }, (_request, body, done) =>
    done(null, make(body as string)),
  )

class Money {
  readonly #amount: string
  constructor(amount: string) {
    this.#amount = amount
  }
  get amount() {
    return this.#amount
  }
}

test('another amount is another request, in whatever the body holds it', async (t) => {
  const makers: Record<string, (amount: string) => unknown> = {
    'a nested Map': (amount) => ({ order: new Map([['amount', { amount }]]) }),
    'a Map of Maps': (amount) => new Map([['order', new Map([['amount', amount]])]]),
    'a Set': (amount) => new Set([amount]),
    'a nested Set': (amount) => [{ amounts: new Set([[amount]]) }],
    'a nested RegExp': (amount) => ({ pattern: new RegExp(amount) }),
    'a nested Error': (amount) => ({ error: new RangeError(amount) }),
    'a nested URL': (amount) => ({ url: new URL(`https://psp.example/?amount=${amount}`) }),
    'a nested URLSearchParams': (amount) => ({ form: new URLSearchParams({ amount }) }),
    'a nested ArrayBuffer': (amount) => ({ bytes: new TextEncoder().encode(amount).buffer }),
    'a nested Buffer': (amount) => ({ file: Buffer.from(amount) }),
    'a Date': (amount) => ({ due: new Date(Number(amount)) }),
    'a bigint': (amount) => ({ amount: BigInt(amount) }),
  }
  for (const [name, make] of Object.entries(makers)) {
    let runs = 0
    const app = await buildApp(t, database, {
      before: parsedAs(make),
      routes: (app) => app.post('/pay', () => `run ${++runs}`),
    })
    const key = newKey()
    t.equal((await send(app, '/pay', { key, headers, payload: '10' })).body, 'run 1', name)
    t.equal((await send(app, '/pay', { key, headers, payload: '10' })).body, 'run 1', name)
    t.equal((await send(app, '/pay', { key, headers, payload: '1000' })).statusCode, 422, name)
    t.equal(runs, 1)
  }
})

test('another query is another request, whatever the application parses it to', async (t) => {
  const parsers: Record<string, (text: string) => unknown> = {
    'a URLSearchParams': (text) => new URLSearchParams(text),
    'a Map': (text) => new Map(new URLSearchParams(text)),
    'an instance of a class': (text) => new Money(text),
  }
  for (const [name, parse] of Object.entries(parsers)) {
    let runs = 0
    const app = await buildApp(t, database, {
      server: { routerOptions: { querystringParser: parse as never } },
      routes: (app) => app.post('/pay', () => `run ${++runs}`),
    })
    const key = newKey()
    t.equal((await send(app, '/pay?amount=1', { key })).body, 'run 1', name)
    t.equal((await send(app, '/pay?amount=1', { key })).body, 'run 1', name)
    t.equal((await send(app, '/pay?amount=9', { key })).statusCode, 422, name)
    t.equal((await send(app, '/pay?amount=1', { key, payload: { a: 1 } })).statusCode, 422, name)
  }
})

test('a body that holds what cannot be read is compared but for that, and the log says so', async (t) => {
  const makers: Record<string, (amount: string) => unknown> = {
    'an instance of Money': (amount) => new Money(amount),
    'an instance of FormData': (amount) =>
      new (class FormData extends Map<string, string> {})([['a', amount]]),
    'a function': (amount) => ({ read: () => amount }),
    'a symbol': (amount) => [Symbol(amount)],
  }
  for (const [what, make] of Object.entries(makers)) {
    const nested = {
      'in a list in an object': (amount: string) => ({ items: [1, make(amount)] }),
      'in a Map': (amount: string) => new Map([['price', make(amount)]]),
      'at its top': make,
    }
    for (const [where, make] of Object.entries(nested)) {
      const events = collectEvents(t)
      let runs = 0
      const app = await buildApp(t, database, {
        before: parsedAs((text) => (text === '+' ? { beside: make(text) } : make(text))),
        routes: (app) => app.post('/pay/:id', () => `run ${++runs}`),
      })
      const key = newKey()
      t.equal((await send(app, '/pay/1', { key, headers, payload: '10' })).body, 'run 1', what)
      t.equal((await send(app, '/pay/1', { key, headers, payload: '1000' })).body, 'run 1', where)
      t.equal((await send(app, '/pay/2', { key, headers, payload: '10' })).statusCode, 422)
      t.equal((await send(app, '/pay/1', { key, headers, payload: '+' })).statusCode, 422)
      t.equal((await send(app, '/pay/1', { key })).statusCode, 422, 'one that is compared')
      const warnings = events.all.filter(({ kind }) => kind === 'body_not_compared')
      t.match(warnings, [{ what }])
      t.equal(warnings.length, 1)
    }
  }
})

test('a body that is null is compared as any other', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/pay', () => `run ${++runs}`),
  })
  const key = newKey()
  const json = { 'content-type': 'application/json; charset=utf-8' }
  const post = (payload: string) => send(app, '/pay', { key, headers: json, payload })
  t.equal((await post('null')).body, 'run 1')
  t.equal((await post('null')).body, 'run 1')
  for (const other of ['{}', 'false', '0']) t.equal((await post(other)).statusCode, 422, other)
  t.notOk(events.kinds().includes('body_not_compared'))
})

test('a body that refers to itself is compared', async (t) => {
  const events = collectEvents(t)
  let runs = 0
  const app = await buildApp(t, database, {
    // As @fastify/multipart makes it with attachFieldsToBody: each part refers to all of them.
    before: parsedAs((amount) => {
      const body: Record<string, unknown> = {}
      body.amount = { type: 'field', value: amount, fields: body }
      body.tags = [
        { type: 'field', value: 'a', fields: body },
        { type: 'field', fields: body },
      ]
      return body
    }),
    routes: (app) => app.post('/pay', () => `run ${++runs}`),
  })
  const key = newKey()
  t.equal((await send(app, '/pay', { key, headers, payload: '10' })).body, 'run 1')
  t.equal((await send(app, '/pay', { key, headers, payload: '10' })).body, 'run 1')
  t.equal((await send(app, '/pay', { key, headers, payload: '1000' })).statusCode, 422)
  t.notOk(events.kinds().includes('body_not_compared'))
})

for (const attachFieldsToBody of [true, 'keyValues'] as const) {
  for (const isOwn of [false, true]) {
    test(`a form is compared where a later hook reads it: ${attachFieldsToBody}, ${isOwn ? 'by a fingerprint' : 'as a whole'}`, async (t) => {
      let runs = 0
      type Form = { amount: { value: string } | string }
      const amountOf = ({ amount }: Form) => (typeof amount === 'string' ? amount : amount.value)
      const own = { fingerprint: (request: FastifyRequest) => amountOf(request.body as Form) }
      const app = await buildApp(t, database, {
        routes: async (app) => {
          await app.register(multipart, { attachFieldsToBody })
          app.post('/pay', { config: { idempotency: isOwn ? own : true } }, () => `run ${++runs}`)
        },
      })
      const pay = async (key: string, amount: string, file: string) => {
        const form = new FormData()
        form.append('amount', amount)
        form.append('file', new Blob([file]), 'invoice.txt')
        const { headers, body } = new Response(form) as Response & { body: ReadableStream }
        const payload = Buffer.from(await new Response(body).arrayBuffer())
        return send(app, '/pay', { key, payload, headers: Object.fromEntries(headers) })
      }
      const key = newKey()
      t.equal((await pay(key, '10', 'a')).body, 'run 1')
      t.equal((await pay(key, '10', 'a')).body, 'run 1')
      t.equal((await pay(key, '1000', 'a')).statusCode, 422)
      t.equal((await pay(key, '10', 'b')).statusCode, isOwn ? 200 : 422)
    })
  }
}

test('a body that repeats itself beyond all measure is answered 400 and leaves the key free', async (t) => {
  const pool = new WatchedPool(database)
  const app = await buildApp(t, database, {
    plugin: { pool },
    // As a YAML parser makes it of aliases: each level holds the one below it ten times.
    before: parsedAs((levels) => {
      let body: unknown = ['lol']
      for (let level = 0; level < Number(levels); level += 1) body = Array(10).fill(body)
      return body
    }),
    routes: (app) => app.post('/things', () => 'ran'),
  })
  const key = newKey()
  const refused = await send(app, '/things', { key, headers, payload: '100' })
  t.equal(refused.statusCode, 400)
  t.equal(refused.json().code, 'IDEMPOTENCY_BODY_UNUSABLE')
  t.same(pool.asked, [])
  t.equal((await send(app, '/things', { headers, payload: '100' })).body, 'ran', 'without a key')
  t.equal((await send(app, '/things', { key, headers, payload: '4' })).body, 'ran')
})

test('a fingerprint function that returns what cannot be compared protects nothing, so nothing runs', async (t) => {
  for (const value of [new Money('1'), { price: new Money('1') }, () => 1]) {
    let runs = 0
    const app = await buildApp(t, database, {
      plugin: { fingerprint: () => value },
      routes: (app) => app.post('/things', () => ({ runs: ++runs })),
    })
    const key = newKey()
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 500)
    t.match(answer.json(), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      detail: /fingerprint function of POST \/things/,
    })
    t.equal(runs, 0)
    t.equal(await recordOf(database, key), null)
  }
})

test('a fingerprint function may return a Map, a Set, a Date or bytes', async (t) => {
  const makers: ((amount: string) => unknown)[] = [
    (amount) => new Map([['amount', amount]]),
    (amount) => [new Set([amount])],
    (amount) => ({ at: new Date(Number(amount)) }),
    (amount) => ({ bytes: Buffer.from(amount) }),
  ]
  for (const make of makers) {
    const app = await buildApp(t, database, {
      plugin: { fingerprint: ({ body }) => make((body as { amount: string }).amount) },
      routes: (app) => app.post('/things', () => 'ran'),
    })
    const key = newKey()
    t.equal((await send(app, '/things', { key, payload: { amount: '1' } })).body, 'ran')
    const same = await send(app, '/things', { key, payload: { amount: '1', other: 1 } })
    t.equal(same.body, 'ran')
    t.equal((await send(app, '/things', { key, payload: { amount: '9' } })).statusCode, 422)
  }
})

test('no fingerprint is taken of a request without a key, or with one that is refused', async (t) => {
  let calls = 0
  const app = await buildApp(t, database, {
    plugin: { fingerprint: () => ++calls },
    routes(app) {
      app.post('/required', { config: { idempotency: { required: true } } }, () => 'ran')
      app.post('/optional', () => 'ran')
    },
  })
  for (const url of ['/required', '/optional']) {
    for (const key of ['', '"half', 'a b', 'k'.repeat(256)]) {
      t.equal((await send(app, url, { key })).json().code, 'IDEMPOTENCY_KEY_MALFORMED')
    }
  }
  t.equal((await send(app, '/required')).json().code, 'IDEMPOTENCY_KEY_MISSING')
  t.equal((await send(app, '/optional')).body, 'ran')
  t.equal(calls, 0)
  t.equal((await send(app, '/required', { key: newKey() })).body, 'ran')
  t.equal(calls, 1)
})

test('no fingerprint is taken of a request that an onRequest hook refuses', async (t) => {
  let calls = 0
  const app = await buildApp(t, database, {
    plugin: { fingerprint: () => ++calls },
    routes(app) {
      app.addHook('onRequest', async (request, reply) =>
        request.headers.authorization === undefined ? reply.code(401).send() : undefined,
      )
      app.post('/things', () => 'ran')
    },
  })
  t.equal((await send(app, '/things', { key: newKey() })).statusCode, 401)
  t.equal(calls, 0)
})

/** A router that tells routes apart by a header, with constraints of any value. */
const byPlan = {
  routerOptions: {
    constraints: {
      plan: {
        name: 'plan',
        mustMatchWhenDerived: false,
        deriveConstraint: (request: { headers: Record<string, unknown> }) => request.headers.plan,
        storage() {
          const handlers: [{ name: string }, unknown][] = []
          return {
            get: (plan: unknown) => handlers.find(([{ name }]) => name === plan)?.[1] ?? null,
            set: (plan: never, handler: unknown) => void handlers.push([plan, handler]),
          }
        },
      },
    },
  },
} as never

test('routes whose constraints are objects are told apart by their values', async (t) => {
  const app = await buildApp(t, database, {
    server: byPlan,
    routes(app) {
      for (const name of ['free', 'paid']) {
        app.post('/things', { constraints: { plan: { name } } }, () => name)
      }
    },
  })
  const key = newKey()
  const call = (plan: string) => send(app, '/things', { key, headers: { plan } })
  t.equal((await call('free')).body, 'free')
  t.equal((await call('free')).headers['idempotent-replayed'], 'true')
  t.equal((await call('paid')).statusCode, 422)
})

test('a constraint that cannot be compared is refused when its route is added', async (t) => {
  class Plan {
    readonly name = 'free'
  }
  const constraints = { plan: new Plan() }
  await t.rejects(
    buildApp(t, database, {
      server: byPlan,
      routes: (app) => app.post('/things', { constraints }, () => 'ran'),
    }),
    { code: 'IDEMPOTENCY_OPTION_INVALID', message: /"plan" of route POST \/things.*Plan.*text/ },
  )
  await buildApp(t, database, {
    server: byPlan,
    routes: (app) =>
      app.post('/things', { constraints, config: { idempotency: false } }, () => 'ran'),
  })
})
