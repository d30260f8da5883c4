// A SQLite file that another process is writing to. The application of a file is one process; a script,
// a backup or a migration may be beside it for a moment.
import { randomUUID } from 'node:crypto'
import t, { type Test } from 'tap'
import { defineFlow, type Idempotency } from '../../src/index.js'
import { buildApp, collectEvents, latch, newKey, send } from '../fixtures/app.js'
import type { Database } from '../fixtures/database.js'
import { anotherSqliteClient, sqliteDatabase } from '../fixtures/sqlite.js'
import { bank, postBank } from '../fixtures/webhooks.js'

/**
 * An application on a file, and a client of another process on the same file. One each time: a
 * connection of libSQL's that has met a locked file keeps the lock that it gets next, until its
 * statement is collected, and nobody else can write then.
 */
async function twoOnOneFile(t: Test) {
  const { prisma, url } = await sqliteDatabase(t)
  const other = anotherSqliteClient(t, url)
  const busy = latch()
  let wasBusy = false
  const watched = prisma.$extends({
    query: {
      async $allOperations({ args, query }) {
        try {
          return await query(args)
        } catch (error) {
          wasBusy = true
          busy.open()
          throw error
        }
      },
    },
  })
  /** The other process locks the file until a statement of the application has found it locked. */
  async function lock(): Promise<void> {
    const locked = latch()
    const transaction = other.$transaction(async (tx) => {
      await tx.payment.create({ data: { tenantId: 'other', amount: 1, currency: 'EUR' } })
      locked.open()
      await busy.opened
    })
    t.teardown(() => transaction)
    await locked.opened
  }
  const database = { kind: 'sqlite', prisma: watched } as unknown as Database
  return { database, prisma: watched, lock, hasFoundItLocked: () => wasBusy }
}

const payment = { tenantId: '', amount: 1, currency: 'EUR' }
const flow = defineFlow({ levels: { pending: 0, paid: 1 }, terminal: ['paid'] })

/** What an application does, after something that is not held up. */
type Call = (idempotency: Idempotency, lock: () => Promise<void>) => Promise<unknown>

const one = { resource: 'hall', slots: 'a', holder: 'ann' }
const two = { resource: 'hall', slots: ['b', 'c'], holder: 'ann' }
const CALLS: Record<string, { kind: string; call: Call }> = {}
for (const [name, slots] of Object.entries({ 'one slot': one, 'two slots': two })) {
  CALLS[`reserve of ${name}`] = {
    kind: 'reserved',
    call: async (idempotency, lock) => {
      await lock()
      return idempotency.reserve(slots)
    },
  }
  for (const [call, kind] of [
    ['confirm', 'confirmed'],
    ['cancel', 'cancelled'],
  ] as const) {
    CALLS[`${call} of ${name}`] = {
      kind,
      call: async (idempotency, lock) => {
        await idempotency.reserve(slots)
        await lock()
        return idempotency[call](slots)
      },
    }
  }
}
CALLS.lock = {
  kind: 'done',
  call: async (idempotency, lock) => {
    await lock()
    return idempotency.lock(['a', 'b'], {}, () => 1)
  },
}
CALLS['release of a lock'] = {
  kind: 'done',
  call: (idempotency, lock) => idempotency.lock('a', {}, lock),
}
CALLS.run = {
  kind: 'ran',
  call: async (idempotency, lock) => {
    await lock()
    return idempotency.run('payout', () => 'done')
  },
}
CALLS['a later attempt of run'] = {
  kind: 'ran',
  call: async (idempotency, lock) => {
    await idempotency.run('payout', () => Promise.reject(new Error('failed'))).catch(() => {})
    await lock()
    return idempotency.run('payout', () => 'done')
  },
}
CALLS['a step of run'] = {
  kind: 'ran',
  call: (idempotency, lock) => idempotency.run('payout', ({ step }) => step('call', lock)),
}

for (const [name, { kind, call }] of Object.entries(CALLS)) {
  t.test(`${name} waits for a file that is locked for a moment`, async (t) => {
    const { database, lock, hasFoundItLocked } = await twoOnOneFile(t)
    const { idempotency } = await buildApp(t, database, { routes: () => {} })
    t.match(await call(idempotency, lock), { kind })
    t.ok(hasFoundItLocked())
  })
}

t.test('advance waits for a file that is locked for a moment', async (t) => {
  const { database, prisma, lock, hasFoundItLocked } = await twoOnOneFile(t)
  const { idempotency } = await buildApp(t, database, { routes: () => {} })
  const { id } = await prisma.payment.create({ data: payment })
  await lock()
  t.match(await idempotency.advance(prisma.payment, { where: { id }, flow, to: 'paid' }), {
    kind: 'advanced',
  })
  t.ok(hasFoundItLocked())
})

for (const moment of ['before', 'within'] as const) {
  t.test(
    `a file that is locked ${moment} a handler holds up its request, and its event`,
    async (t) => {
      for (const post of [
        (app: Parameters<typeof send>[0]) => send(app, '/pay', { key: newKey() }),
        (app: Parameters<typeof send>[0]) => postBank(app, { id: randomUUID() }),
      ]) {
        const { database, lock, hasFoundItLocked } = await twoOnOneFile(t)
        const handler = async () => (moment === 'within' ? lock() : undefined)
        const app = await buildApp(t, database, {
          routes(app) {
            app.post('/pay', async () => {
              await handler()
              return {}
            })
            app.webhook('/webhooks/bank', { provider: bank() }, handler)
          },
        })
        if (moment === 'before') await lock()
        t.equal((await post(app)).statusCode, 200)
        t.ok(hasFoundItLocked())
      }
    },
  )
}

t.test('a file that stays locked is an error, whose hint says what SQLite is for', async (t) => {
  const { prisma, url } = await sqliteDatabase(t)
  const other = anotherSqliteClient(t, url)
  const database = { kind: 'sqlite', prisma } as unknown as Database
  const app = await buildApp(t, database, { routes: (app) => app.post('/pay', () => ({})) })
  const events = collectEvents(t)
  await other.$transaction(async (tx) => {
    await tx.payment.create({ data: payment })
    t.equal((await send(app, '/pay', { key: newKey() })).statusCode, 503)
  })
  const { failure } = (await events.first('store_unavailable')) as { failure: { hint: string } }
  t.match(failure.hint, /one process/)
  t.equal((await send(app, '/pay', { key: newKey() })).statusCode, 200)
})
