// `once` in a transaction that reads from an older snapshot: the duplicate may be one that it cannot see.
import { randomUUID } from 'node:crypto'
import t, { type Test } from 'tap'
import { once } from '../src/once.js'
import type { ModelDelegate } from '../src/store/client.js'
import { buildApp, newKey, send } from './fixtures/app.js'
import type { Database } from './fixtures/database.js'
import { mariadbDatabase } from './fixtures/mariadb.js'
import { postgresDatabase } from './fixtures/postgres.js'
import { missing } from './fixtures/services.js'

const noPostgres = await missing('postgres')
const noMariadb = await missing('mariadb')

// slot_reservation stands in for a table of the application's: unique by its id, and by the other three.
interface Models {
  readonly slotReservation: ModelDelegate
}
interface Client extends Models {
  $transaction<T>(fn: (tx: Models) => Promise<T>, options: object): Promise<T>
}

const names = (slot: string) => ({ tenantId: 'acme', resource: 'hall', slot })
const row = (slot: string, holder: string, id: string = randomUUID()) => ({
  data: { ...names(slot), id, holder, heldUntil: null, createdAt: new Date() },
})
const bySlot = (slot: string) => ({ where: { tenantId_resource_slot: names(slot) } })

/** Books the slot within `tx`, after `before` has happened elsewhere. */
async function book(tx: Models, slot: string, before: () => Promise<unknown>, id?: string) {
  // The snapshot of the transaction begins here, at the latest.
  await tx.slotReservation.findFirst({ where: { slot: 'another' } })
  await before()
  const { duplicate, value } = await once(
    (nested: Models) => nested.slotReservation.create(row(slot, 'ann', id)),
    { tx, find: (tx) => tx.slotReservation.findUnique(bySlot(slot)) },
  )
  return { duplicate, holder: value.holder }
}

/** Runs it the first time it is called. */
function firstTime(fn: () => Promise<unknown>): () => Promise<unknown> {
  let calls = 0
  return async () => {
    calls += 1
    if (calls === 1) await fn()
  }
}

interface Level {
  readonly isolationLevel: string
  /** Whether what others commit after the first read is hidden from the transaction. */
  readonly hides: boolean
  /** Whether that is known of the transaction, so that another constraint is told apart. */
  readonly isKnown: boolean
}

async function contract(t: Test, database: Database, { isolationLevel, hides, isKnown }: Level) {
  const prisma = database.prisma as unknown as Client
  const options = { isolationLevel }
  const taken = (slot: string) => async () => prisma.slotReservation.create(row(slot, 'bob'))
  const nothing = async () => {}
  const hidden = { code: 'P2034', cause: { code: 'P2002' }, message: /repeat the transaction/ }

  await t.test('a duplicate is found, or the transaction is to be repeated', async (t) => {
    const slot = randomUUID()
    const begin = (before: () => Promise<unknown>) =>
      prisma.$transaction((tx) => book(tx, slot, before), options)
    const first = begin(taken(slot))
    if (hides) await t.rejects(first, hidden)
    else t.strictSame(await first, { duplicate: true, holder: 'bob' })
    t.strictSame(await begin(nothing), { duplicate: true, holder: 'bob' })
  })

  await t.test('another constraint is an error, as it was where that is known', async (t) => {
    const id = randomUUID()
    await prisma.slotReservation.create(row(randomUUID(), 'bob', id))
    const called = prisma.$transaction((tx) => book(tx, randomUUID(), nothing, id), options)
    await t.rejects(called, isKnown ? { code: 'P2002' } : hidden)
  })

  await t.test('transaction() repeats it once, and tells another constraint', async (t) => {
    const app = await buildApp(t, database, { routes: () => {} })
    let runs = 0
    const booked = (slot: string, before: () => Promise<unknown>, id?: string) =>
      app.idempotency.run(randomUUID(), ({ transaction }) =>
        transaction((tx) => {
          runs += 1
          return book(tx, slot, before, id)
        }, options),
      )
    const slot = randomUUID()
    t.match(await booked(slot, firstTime(taken(slot))), {
      value: { duplicate: true, holder: 'bob' },
    })
    t.equal(runs, hides ? 2 : 1)
    runs = 0
    const id = randomUUID()
    await prisma.slotReservation.create(row(randomUUID(), 'bob', id))
    await t.rejects(booked(randomUUID(), nothing, id), { code: 'P2002' })
    t.equal(runs, isKnown ? 1 : 2)
  })
}

t.test('PostgreSQL', { skip: noPostgres }, async (t) => {
  const database = await postgresDatabase(t)
  for (const [isolationLevel, hides] of [
    ['ReadUncommitted', false],
    ['ReadCommitted', false],
    ['RepeatableRead', true],
    ['Serializable', true],
  ] as const) {
    await t.test(isolationLevel, (t) =>
      contract(t, database, { isolationLevel, hides, isKnown: !hides }),
    )
    await t.test(`${isolationLevel}, atomic routes`, (t) => atomic(t, database, isolationLevel))
  }
})

t.test('MariaDB', { skip: noMariadb }, async (t) => {
  const database = (await mariadbDatabase(t)) as never
  // What a transaction is set to is told to nobody who has no privilege to look.
  for (const [isolationLevel, hides] of [
    ['ReadUncommitted', false],
    ['ReadCommitted', false],
    ['RepeatableRead', true],
  ] as const) {
    await t.test(isolationLevel, (t) =>
      contract(t, database, { isolationLevel, hides, isKnown: false }),
    )
  }
})

async function atomic(t: Test, database: Database, isolationLevel: string): Promise<void> {
  const app = await buildApp(t, database, {
    routes: (app) => {
      const config = {
        idempotency: { atomic: { isolationLevel: isolationLevel as 'Serializable' } },
      }
      app.post<{ Body: { slot: string } }>('/bookings', { config }, async (request, reply) => {
        const { tx } = request.idempotency
        const { slot } = request.body
        const { duplicate } = await once(
          (nested: Models) => nested.slotReservation.create(row(slot, request.id)),
          { tx: tx as Models, find: (tx) => tx.slotReservation.findUnique(bySlot(slot)) },
        )
        return reply.code(duplicate ? 409 : 201).send({})
      })
    },
  })
  const slot = randomUUID()
  // A conflict at the very end, as Serializable has them, is a 503 that tells the client to repeat it.
  const answered = async (key: string): Promise<number> => {
    const { statusCode } = await send(app, '/bookings', { key, payload: { slot } })
    return statusCode === 503 ? answered(key) : statusCode
  }
  const answers = await Promise.all(Array.from({ length: 12 }, () => answered(newKey())))
  t.strictSame(answers.sort(), [201, ...Array(11).fill(409)])
}
