import pg from 'pg'
import { PrismaPg } from '@prisma/adapter-pg'
import { test } from 'tap'
import { applyMigrations, schemaDrift } from '../scripts/migrate.js'
import { emptyPgliteDatabase, emptyPostgresDatabase } from './fixtures/database.js'
import { missing } from './fixtures/services.js'

const databases = {
  PostgreSQL: {
    skip: await missing('postgres'),
    async empty(t: Parameters<typeof emptyPostgresDatabase>[0]) {
      const { url } = await emptyPostgresDatabase(t)
      const pool = new pg.Pool({ connectionString: url })
      t.teardown(() => pool.end())
      return new PrismaPg(pool)
    },
  },
  PGlite: {
    skip: false,
    async empty(t: Parameters<typeof emptyPgliteDatabase>[0]) {
      return (await emptyPgliteDatabase(t)).adapterFactory
    },
  },
}

for (const [name, { skip, empty }] of Object.entries(databases)) {
  test(`on ${name}`, { skip }, async (t) => {
    t.test('the migrations and the schema agree', async (t) => {
      t.equal(await schemaDrift(await empty(t)), '')
    })

    t.test('migrations can be applied twice', async (t) => {
      const database = await empty(t)
      t.not((await applyMigrations(database)).length, 0)
      t.same(await applyMigrations(database), [])
    })
  })
}
