// Steps, transactions, parts and keys of a request in the hooks around its handler: under its claim, or
// refused, but never unprotected while the route protects the request.
import { randomUUID } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import t, { test } from 'tap'
import type { OperationHandler, RouteOptions } from '../../src/index.js'
import { type AppSetup, buildApp, latch, newKey, send, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

const noPostgres = database.kind === 'postgres' ? false : 'needs PostgreSQL'

const BEFORE = ['onRequest', 'preParsing', 'preValidation', 'preHandler'] as const
const AFTER = ['onSend', 'onResponse'] as const
type Hook = (typeof BEFORE)[number] | (typeof AFTER)[number]
const CALLS = ['step', 'transaction', 'keyFor', 'run'] as const

interface Setup {
  route?: RouteOptions
  plugin?: AppSetup['plugin']
  /** What else happens before the handler. */
  before?: (app: FastifyInstance) => unknown
  handler?: (request: FastifyRequest) => unknown
}

/** An application that calls each helper in one hook: what ran, and the code of each that did not. */
async function serve(t: Parameters<typeof buildApp>[0], hook: Hook, setup: Setup = {}) {
  const ran: string[] = []
  const refused: (string | undefined)[] = []
  let handled = 0
  let over = latch()
  let part: OperationHandler | undefined
  const call = async ({ idempotency }: FastifyRequest) => {
    const noted = (name: string) => async () => void ran.push(name)
    const calls = {
      step: () => idempotency.step('s', noted('step')),
      transaction: () => idempotency.transaction(noted('transaction')),
      run: () => idempotency.run(part as OperationHandler, {}),
      keyFor: () => void (idempotency.keyFor('s') && ran.push('keyFor')),
    }
    for (const name of CALLS) {
      try {
        await calls[name]()
      } catch (error) {
        refused.push((error as { code?: string }).code)
      }
    }
  }
  const app = await buildApp(t, database, {
    plugin: setup.plugin ?? {},
    routes: async (app) => {
      part = app.idempotency.handler('part', async () => void ran.push('run'))
      await setup.before?.(app)
      // biome-ignore lint/suspicious/noExplicitAny: each hook has a type of its own
      app.addHook(hook as any, async (request: FastifyRequest) => {
        await call(request)
      })
      app.addHook('onResponse', async () => over.open())
      app.post('/things', { config: { idempotency: setup.route ?? {} } }, (request) => {
        handled += 1
        return setup.handler?.(request) ?? { handled }
      })
    },
  })
  return {
    /** Sends one, and tells what the hook could do. */
    async send(key?: string) {
      over = latch()
      ran.length = 0
      refused.length = 0
      const answer = await send(app, '/things', key === undefined ? {} : { key })
      await over.opened
      return { answer, ran: [...ran], refused: [...refused] }
    },
    handled: () => handled,
  }
}

const all = (code: string) => CALLS.map(() => `IDEMPOTENCY_${code}`)

for (const hook of BEFORE) {
  test(`${hook}: nothing of a request with a key runs before the key is claimed`, async (t) => {
    const app = await serve(t, hook)
    const key = newKey()
    for (const replayed of [undefined, 'true']) {
      const { answer, ran, refused } = await app.send(key)
      t.equal(answer.headers['idempotent-replayed'], replayed)
      t.strictSame(ran, [])
      t.strictSame(refused, all('STEP_TOO_EARLY'))
    }
    t.equal(app.handled(), 1)
  })

  test(`${hook}: nothing of a request runs that is refused for its key`, async (t) => {
    const app = await serve(t, hook, { route: { required: true } })
    for (const key of [undefined, '', '"half', 'x'.repeat(300)]) {
      const { answer, ran, refused } = await app.send(key)
      t.equal(answer.statusCode, 400)
      t.strictSame(ran, [])
      t.strictSame(refused, all('STEP_TOO_EARLY'))
    }
  })

  test(`${hook}: without a key, on a route that requires none, all run as they are`, async (t) => {
    const app = await serve(t, hook)
    const { answer, ran, refused } = await app.send()
    t.equal(answer.statusCode, 200)
    t.strictSame(ran, CALLS)
    t.strictSame(refused, [])
  })

  test(`${hook}: on a route that is not protected, a key changes nothing`, async (t) => {
    const app = await serve(t, hook, { plugin: { global: false } })
    const { ran, refused } = await app.send(newKey())
    t.strictSame([ran, refused], [[], all('STEP_TOO_EARLY')], 'this route is protected')
    const open = await serve(t, hook, { route: false as never })
    t.strictSame((await open.send(newKey())).ran, CALLS)
  })
}

test('a hook that throws the refusal answers with it, and the handler does not run', async (t) => {
  const app = await buildApp(t, database, {
    routes: (app) => {
      app.addHook('preHandler', async ({ idempotency }) => {
        await idempotency.step('s', () => t.fail('it ran'))
      })
      app.post('/things', () => t.fail('it ran'))
    },
  })
  const answer = await send(app, '/things', { key: newKey() })
  t.equal(answer.statusCode, 500)
  t.match(answer.json(), { code: 'IDEMPOTENCY_STEP_TOO_EARLY', detail: /in the handler/ })
})

test('a hook that adds the header after the key was read protects nothing', async (t) => {
  const app = await serve(t, 'preHandler', {
    before: (app) => {
      app.addHook('preHandler', async ({ headers }) => {
        headers['idempotency-key'] = newKey()
      })
    },
    handler: ({ idempotency }) => idempotency.step('own', () => 'done'),
  })
  const { answer, ran } = await app.send()
  t.strictSame(ran, CALLS)
  t.equal(answer.body, 'done')
})

for (const hook of AFTER) {
  const late = ['STEP_TOO_LATE', 'STEP_TOO_LATE', 'STEP_TOO_LATE'].map((c) => `IDEMPOTENCY_${c}`)

  test(`${hook}: nothing begins after the handler, nor in a replay`, async (t) => {
    const app = await serve(t, hook)
    const key = newKey()
    const first = await app.send(key)
    t.strictSame(first.ran, ['keyFor'], 'what the handler could have called it with')
    t.strictSame(first.refused, late)
    const replay = await app.send(key)
    t.equal(replay.answer.headers['idempotent-replayed'], 'true')
    t.strictSame(replay.ran, [])
    t.strictSame(replay.refused, all('STEP_TOO_LATE'))
  })

  test(`${hook}: nothing begins in a retry that is refused`, async (t) => {
    const app = await serve(t, hook, { route: { store: false } })
    const key = newKey()
    t.strictSame((await app.send(key)).refused, late)
    const { answer, ran, refused } = await app.send(key)
    t.match(answer.json(), { code: 'IDEMPOTENCY_NOT_REPLAYABLE' })
    t.strictSame([ran, refused], [[], all('STEP_TOO_LATE')])
  })

  test(`${hook}: nothing begins after a refusal by a hook before the handler`, async (t) => {
    for (const before of BEFORE) {
      const app = await serve(t, hook, {
        before: (app) => {
          // biome-ignore lint/suspicious/noExplicitAny: each hook has a type of its own
          app.addHook(before as any, async () => {
            throw Object.assign(new Error('who are you?'), { statusCode: 401 })
          })
        },
      })
      const { answer, ran, refused } = await app.send(newKey())
      t.equal(answer.statusCode, 401)
      t.strictSame(ran, [], before)
      t.equal(refused.length, CALLS.length)
    }
  })

  test(`${hook}: without a key, all run as they are`, async (t) => {
    const app = await serve(t, hook)
    t.strictSame((await app.send()).ran, CALLS)
  })
}

test('once the store is bypassed, steps run as they are; before that is known, they are refused', {
  skip: noPostgres,
}, async (t) => {
  const pool = new WatchedPool(database)
  const go = latch()
  t.teardown(() => go.open())
  pool.before = () => go.opened
  for (const hook of [...BEFORE, ...AFTER]) {
    const app = await serve(t, hook, {
      route: { onStoreError: 'bypass' },
      plugin: { pool, storeTimeout: 50 },
      handler: ({ idempotency }) => idempotency.step('own', () => 'done'),
    })
    const { answer, ran, refused } = await app.send(newKey())
    t.equal(answer.body, 'done')
    const isBefore = (BEFORE as readonly string[]).includes(hook)
    t.strictSame(ran, isBefore ? [] : CALLS, hook)
    t.strictSame(refused, isBefore ? all('STEP_TOO_EARLY') : [])
  }
})

test('a key that is ignored, because its caller is unknown, protects nothing', async (t) => {
  const app = await serve(t, 'onSend', {
    route: { onUnknownCaller: 'bypass' },
    plugin: { principal: () => undefined },
  })
  t.strictSame((await app.send(newKey())).ran, CALLS)
})

test('on an atomic route, all are refused in every hook, with and without a key', {
  skip: noPostgres,
}, async (t) => {
  for (const hook of [...BEFORE, ...AFTER]) {
    const app = await serve(t, hook, { route: { atomic: true } })
    const key = newKey()
    for (const one of [undefined, key, key]) {
      const { answer, ran, refused } = await app.send(one)
      t.equal(answer.statusCode, 200)
      t.strictSame(ran, [], hook)
      t.strictSame(refused, all('NOT_IN_ATOMIC'), hook)
    }
  }
})

test('while the key is being claimed, what the tenant function begins is refused', async (t) => {
  const codes: unknown[] = []
  const tenant = async ({ idempotency }: FastifyRequest) => {
    await idempotency
      .step(randomUUID(), () => t.fail('it ran'))
      .catch(({ code }) => codes.push(code))
    return 'one'
  }
  const app = await serve(t, 'onResponse', { plugin: { tenant } })
  t.equal((await app.send(newKey())).answer.statusCode, 200)
  t.strictSame(codes, ['IDEMPOTENCY_STEP_TOO_EARLY'])
})
