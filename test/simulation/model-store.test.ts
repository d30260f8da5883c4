// The database of the simulation keeps what every real one is asked to keep.
import t from 'tap'
import { databaseClock } from '../../src/store/clock.js'
import { postgresStore } from '../../src/store/postgres.js'
import { postgresEventStore } from '../../src/store/postgres-events.js'
import { prismaStore } from '../../src/store/prisma.js'
import { prismaEventStore } from '../../src/store/prisma-events.js'
import { eventStoreContract } from '../contracts/event-store.js'
import { storeContract } from '../contracts/store.js'
import { ModelDatabase } from './model-database.js'
import { eventsOver, modelPrisma, recordsOver } from './model-prisma.js'
import { modelStatements, type Send } from './model-statements.js'

/** A database with a clock of its own, and nothing on the way to it. */
function openModel() {
  const startedAt = Date.now() - performance.now()
  const database = new ModelDatabase(() => startedAt + performance.now())
  const send: Send = (_, statement) =>
    new Promise((resolve, reject) =>
      database.runAlone(database.begin(), statement, resolve, reject),
    )
  const transact = () => Promise.reject(new Error('no store asks for a transaction'))
  return { database, send, prisma: modelPrisma({ send, transact }) }
}

for (const way of ['statements', 'Prisma alone'] as const) {
  t.test(`the model database, ${way}`, async (t) => {
    const { database, send, prisma } = openModel()
    const clock = databaseClock(prisma, 'postgresql')
    // All that the contracts have for it: an index on another column comes, and goes.
    const sql = async (statement: string) => {
      const { records, events } = database
      if (statement.startsWith('DROP')) {
        Reflect.deleteProperty(records.uniques, 'other')
        Reflect.deleteProperty(events.uniques, 'other')
      } else if (statement.includes('webhook_event')) {
        events.uniques.other = ({ endpoint }) => endpoint
      } else records.uniques.other = ({ fingerprint }) => fingerprint
    }
    const shared = { sql, hasOwnClock: true, dropIndex: () => 'DROP' }
    const isOfStatements = way === 'statements'
    await t.test('keeps the contract of stores', async (t) => {
      const store = isOfStatements
        ? postgresStore(modelStatements(send))
        : prismaStore(prisma, clock)
      await storeContract(t, { ...shared, store, records: recordsOver(send) })
    })
    await t.test('keeps the contract of event stores', async (t) => {
      const store = isOfStatements
        ? postgresEventStore(modelStatements(send))
        : prismaEventStore(prisma, clock)
      await eventStoreContract(t, { ...shared, store, events: eventsOver(send) })
    })
  })
}

t.test('who waits for a row looks at it again, and a rollback leaves nothing', async (t) => {
  const { database, send, prisma } = openModel()
  const store = postgresStore(modelStatements(send))
  const begun = { operationId: 'o', fingerprint: 'f' }
  const ask = { tenantId: '', key: 'k', ...begun, leaseMs: 1_000, retentionMs: 9_000 }
  await store.insert([ask])
  const { idempotencyRecord: records } = prisma
  const where = { tenantId: '', key: 'k', attempt: 1, status: 'in_progress' }
  const inside = recordsOver(
    (_, statement) =>
      new Promise((resolve, reject) => database.run(transaction, statement, resolve, reject)),
  )
  const steps = async () =>
    (await records.findUnique({ where: { tenantId_key: { tenantId: '', key: 'k' } } })).steps

  let transaction = database.begin()
  t.strictSame(await inside.updateMany({ where, data: { steps: { a: '1' } } }), { count: 1 })
  t.equal(await steps(), null, 'nobody else sees it')
  database.rollback(transaction)
  t.equal(await steps(), null)

  transaction = database.begin()
  await inside.updateMany({ where, data: { steps: { a: '1' }, status: 'released' } })
  const late = records.updateMany({ where, data: { steps: { b: '2' } } })
  database.commit(transaction)
  t.strictSame(await late, { count: 0 }, 'it is not in progress any more')
  t.strictSame(await steps(), { a: '1' })
})
