// Whatever application code throws, also what cannot be read: the operation ends as for any other error.
import { randomUUID } from 'node:crypto'
import t, { test } from 'tap'
import { failureOf } from '../src/events.js'
import { hasStatus, seal } from '../src/sealed.js'
import { errorCode, isUniqueViolation } from '../src/store/client.js'
import { isRolledBack } from '../src/store/say-again.js'
import { buildApp, newKey, recordOf, send } from './fixtures/app.js'
import { anyDatabase } from './fixtures/database.js'
import { eventOf, inboxApp, postStripe, stripeEvent } from './fixtures/webhooks.js'

const database = await anyDatabase(t)

function trap(): never {
  throw new Error('of a trap')
}
const traps = {
  get: trap,
  has: trap,
  getPrototypeOf: trap,
  getOwnPropertyDescriptor: trap,
  ownKeys: trap,
}

const unreadable = (names: string[]) =>
  Object.defineProperties(
    new Error('x'),
    Object.fromEntries(names.map((name) => [name, { get: trap }])),
  )

const revoked = () => {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
}

const THROWN: Record<string, () => unknown> = {
  'a Proxy whose traps throw': () => new Proxy({}, traps),
  'a Proxy of an error whose traps throw': () => new Proxy(new Error('x'), traps),
  'a Proxy of a function': () => new Proxy(() => {}, traps),
  'a revoked Proxy': revoked,
  'an error whose getters throw': () => unreadable(['stack', 'name', 'message', 'code', 'cause']),
  'an error whose status cannot be read': () => unreadable(['statusCode', 'meta', 'originalCode']),
  'an error without text': () =>
    Object.assign(new Error(), { name: Symbol('x'), message: {}, stack: 5, code: Symbol('y') }),
  'an error whose cause is hostile': () => new Error('x', { cause: new Proxy({}, traps) }),
  'an error that is its own cause': () => {
    const error = new Error('x')
    error.cause = error
    return error
  },
  null: () => null,
  undefined: () => undefined,
  'a symbol': () => Symbol('x'),
  'an object without a prototype': () => Object.create(null),
}

for (const [name, make] of Object.entries(THROWN)) {
  test(`${name}: what reads errors never throws`, async (t) => {
    const thrown = make()
    t.type(failureOf(thrown).name, 'string')
    t.equal(errorCode(thrown), undefined)
    t.notOk(isUniqueViolation(thrown) || isRolledBack(thrown) || hasStatus(thrown))
    t.doesNotThrow(() => seal('step()', thrown))
  })

  test(`${name}, thrown by the handler of an event: it is run again`, async (t) => {
    let runs = 0
    const app = await inboxApp(t, database, async (event) => {
      runs += 1
      if (runs === 1) throw make()
      if (runs === 2) {
        await event.step('s', () => {
          throw make()
        })
      }
      if (runs === 3) {
        await event.transaction(() => Promise.reject(make()))
      }
    })
    const event = stripeEvent()
    for (let turn = 1; turn <= 3; turn += 1) {
      t.equal((await postStripe(app, event)).statusCode, 500)
      const stored = await eventOf(database, event.id)
      t.match(stored, { status: 'retrying', attempts: turn })
      t.equal(Object(stored?.errors).length, turn)
    }
    t.equal((await postStripe(app, event)).json().outcome, 'processed')
  })

  test(`${name}, thrown in run(): thrown on unchanged, and the key is free`, async (t) => {
    const thrown = make()
    const app = await buildApp(t, database, { routes: () => {} })
    const key = randomUUID()
    const inside: unknown[] = []
    const caught = await app.idempotency
      .run(key, async (operation) => {
        await operation.step('s', () => Promise.reject(thrown)).catch((error) => inside.push(error))
        await operation
          .transaction(() => Promise.reject(thrown))
          .catch((error) => inside.push(error))
        throw thrown
      })
      .then(
        () => t.fail('it succeeded'),
        (error) => ({ error }),
      )
    t.ok(inside.every((error) => Object.is(error, thrown)))
    t.equal(inside.length, 2)
    t.ok(Object.is((caught as { error: unknown }).error, thrown))
    t.match(await recordOf(database, `run\t${key}`), { status: 'released' })
  })

  test(`${name}, thrown by a function of an option: as any other error of it`, async (t) => {
    const fail = () => {
      throw make()
    }
    const app = await buildApp(t, database, {
      routes: (app) => {
        app.post('/caller', { config: { idempotency: { principal: fail } } }, () => 'x')
        app.post('/redact', { config: { idempotency: { redact: fail } } }, () => 'x')
        app.post('/keep', { config: { idempotency: { keepStatus: fail } } }, () => 'x')
      },
    })
    const caller = await send(app, '/caller', { key: newKey() })
    t.match(caller.json(), { code: 'IDEMPOTENCY_PRINCIPAL_FAILED' })
    t.equal((await send(app, '/redact', { key: newKey() })).body, 'x')
    t.equal((await send(app, '/keep', { key: newKey() })).body, 'x')
  })
}
