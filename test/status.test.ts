import t from 'tap'
import { type Client, statusContract } from './contracts/status.js'
import {
  mariadbDatabase,
  pgliteDatabase,
  postgresDatabase,
  sqliteDatabase,
} from './fixtures/database.js'
import { missing } from './fixtures/services.js'

const noPostgres = await missing('postgres')
const noMariadb = await missing('mariadb')

t.test('PostgreSQL', { skip: noPostgres }, async (t) => {
  const prisma = (await postgresDatabase(t)).prisma as Client
  await statusContract(t, prisma, { provider: 'postgresql', parallel: 100 })
})

t.test('PGlite', async (t) => {
  const prisma = (await pgliteDatabase(t)).prisma as Client
  await statusContract(t, prisma, { provider: 'postgresql', parallel: 20 })
})

t.test('MariaDB', { skip: noMariadb }, async (t) => {
  const prisma = (await mariadbDatabase(t)).prisma as Client
  await statusContract(t, prisma, { provider: 'mysql', parallel: 100 })
})

t.test('SQLite', async (t) => {
  const prisma = (await sqliteDatabase(t)).prisma as Client
  await statusContract(t, prisma, { provider: 'sqlite', parallel: 20 })
})
