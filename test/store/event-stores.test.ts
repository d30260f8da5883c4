import t, { type Test } from 'tap'
import type { ModelDelegate, PrismaClientLike, Provider } from '../../src/store/client.js'
import { databaseClock } from '../../src/store/clock.js'
import type { EventStore } from '../../src/store/event-store.js'
import { postgresEventStore } from '../../src/store/postgres-events.js'
import { prismaEventStore } from '../../src/store/prisma-events.js'
import { onPool, onPrisma } from '../../src/store/statements.js'
import { eventStoreContract } from '../contracts/event-store.js'
import {
  mariadbDatabase,
  pgliteDatabase,
  postgresDatabase,
  sqliteDatabase,
} from '../fixtures/database.js'
import { missing } from '../fixtures/services.js'

interface Client extends PrismaClientLike {
  readonly webhookEvent: ModelDelegate & { createMany: ModelDelegate['create'] }
  $executeRawUnsafe(statement: string): PromiseLike<unknown>
}

const portable = (prisma: Client, provider: Provider) =>
  prismaEventStore(prisma, databaseClock(prisma, provider))

function contract(
  t: Test,
  prisma: Client,
  store: EventStore,
  provider: Provider,
  hasOwnClock = true,
): Promise<void> {
  return eventStoreContract(t, {
    store,
    events: prisma.webhookEvent,
    sql: (statement) => prisma.$executeRawUnsafe(statement),
    hasOwnClock,
    dropIndex: (name) =>
      provider === 'mysql' ? `DROP INDEX ${name} ON webhook_event` : `DROP INDEX ${name}`,
  })
}

const noPostgres = await missing('postgres')
const noMariadb = await missing('mariadb')

t.test('PostgreSQL, statements on the pool', { skip: noPostgres }, async (t) => {
  const { prisma, pool } = await postgresDatabase(t)
  await contract(t, prisma, postgresEventStore(onPool(pool)), 'postgresql')
})

t.test('PostgreSQL, statements through Prisma', { skip: noPostgres }, async (t) => {
  const { prisma } = await postgresDatabase(t)
  await contract(t, prisma, postgresEventStore(onPrisma(prisma)), 'postgresql')
})

t.test('PostgreSQL, Prisma alone', { skip: noPostgres }, async (t) => {
  const { prisma } = await postgresDatabase(t)
  await contract(t, prisma, portable(prisma, 'postgresql'), 'postgresql')
})

t.test('PGlite, statements through Prisma', async (t) => {
  const { prisma } = await pgliteDatabase(t)
  await contract(t, prisma, postgresEventStore(onPrisma(prisma)), 'postgresql', false)
})

t.test('PGlite, Prisma alone', async (t) => {
  const { prisma } = await pgliteDatabase(t)
  await contract(t, prisma, portable(prisma, 'postgresql'), 'postgresql', false)
})

t.test('MariaDB, Prisma alone', { skip: noMariadb }, async (t) => {
  const { prisma } = await mariadbDatabase(t)
  await contract(t, prisma, portable(prisma, 'mysql'), 'mysql')
})

t.test('SQLite, Prisma alone', async (t) => {
  const { prisma } = await sqliteDatabase(t)
  await contract(t, prisma, portable(prisma, 'sqlite'), 'sqlite')
})
