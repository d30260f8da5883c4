import { PrismaPg } from '@prisma/adapter-pg'
import pg from 'pg'
import { type Test, test } from 'tap'
import { applyMigrations, schemaDrift } from '../scripts/migrate.js'
import type { AdapterFactory } from '../scripts/schema-engine.js'
import { mariadbDatabase } from './fixtures/mariadb.js'
import { emptyPgliteDatabase } from './fixtures/pglite.js'
import { emptyPostgresDatabase } from './fixtures/postgres.js'
import { missing } from './fixtures/services.js'

async function onPostgres(t: Test): Promise<AdapterFactory> {
  const { url } = await emptyPostgresDatabase(t)
  const pool = new pg.Pool({ connectionString: url })
  t.teardown(() => pool.end())
  return new PrismaPg(pool)
}

async function onPglite(t: Test): Promise<AdapterFactory> {
  return (await emptyPgliteDatabase(t)).adapterFactory
}

const databases = [
  { name: 'PostgreSQL', skip: await missing('postgres'), empty: onPostgres },
  { name: 'PGlite', skip: false, empty: onPglite },
]

for (const { name, skip, empty } of databases) {
  test(`on ${name}, the migrations and the schema agree`, { skip }, async (t) => {
    t.equal(await schemaDrift(await empty(t)), '')
  })

  test(`on ${name}, migrations can be applied twice`, { skip }, async (t) => {
    const database = await empty(t)
    t.not((await applyMigrations(database)).length, 0)
    t.same(await applyMigrations(database), [])
  })
}

test('MariaDB tells keys apart by case, accents and spaces', {
  skip: await missing('mariadb'),
}, async (t) => {
  const { prisma } = await mariadbDatabase(t)
  const at = new Date()
  const row = {
    tenantId: '',
    operationId: '',
    fingerprint: '',
    status: '',
    leaseUntil: at,
    expiresAt: at,
  }
  const keys = ['resume', 'Resume', 'résumé', 'resume ', 'r'.repeat(255)]
  for (const key of keys) await prisma.idempotencyRecord.create({ data: { ...row, key } })
  t.equal(await prisma.idempotencyRecord.count(), keys.length)
})
