// The database of the simulation keeps what every real one is asked to keep.
import t from 'tap'
import { databaseClock } from '../../src/store/clock.js'
import { prismaStore } from '../../src/store/prisma.js'
import { storeContract } from '../contracts/store.js'
import { ModelDatabase } from './model-database.js'
import { modelPrisma, recordsOver } from './model-prisma.js'
import { modelStore, type Send } from './model-store.js'

/** A database with a clock of its own, and nothing on the way to it. */
function openModel() {
  const startedAt = Date.UTC(2030, 0, 1)
  const database = new ModelDatabase(() => startedAt + performance.now())
  const send: Send = (_, statement) =>
    new Promise((resolve, reject) => database.runAlone(statement, resolve, reject))
  const transact = () => Promise.reject(new Error('no store asks for a transaction'))
  return { database, send, prisma: modelPrisma({ send, transact }) }
}

for (const way of ['statements', 'Prisma alone'] as const) {
  t.test(`the model database, ${way}`, async (t) => {
    const { database, send, prisma } = openModel()
    const clock = databaseClock(prisma, 'postgresql')
    await storeContract(t, {
      store: way === 'statements' ? modelStore(send) : prismaStore(prisma, clock),
      records: recordsOver(send),
      hasOwnClock: true,
      // All that the contract has for it: an index on another column comes, and goes.
      sql: async (statement) => {
        database.uniqueField = statement.startsWith('CREATE') ? 'fingerprint' : undefined
      },
      dropIndex: () => 'DROP',
    })
  })
}

t.test('who waits for a row looks at it again, and a rollback leaves nothing', async (t) => {
  const { database, send, prisma } = openModel()
  const store = modelStore(send)
  const ask = { tenantId: '', key: 'k', fingerprint: 'f', leaseMs: 1_000, retentionMs: 9_000 }
  await store.insert([ask])
  const { idempotencyRecord: records } = prisma
  const where = { tenantId: '', key: 'k', fence: 1, status: 'in_progress' }
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
