import { test } from 'tap'
import { adaptModels } from '../../src/cli/models.js'

const models = `
/// Says key String, and is left alone.
model Thing {
  tenantId  String   @map("tenant_id")
  key       String
  eventId   String?  @map("event_id")
  note      String?  @db.Text
  seenAt    DateTime @default(now()) @map("seen_at") @db.Timestamptz(3)

  @@id([tenantId, key])
  @@index([seenAt], type: Brin)
  @@map("thing")
}
`

test('leaves models for PostgreSQL as they are', async (t) => {
  t.equal(adaptModels(models, 'postgresql'), models)
})

test('gives MySQL key columns room for 255 characters, laid out as prisma format does', async (t) => {
  const adapted = adaptModels(models, 'mysql')
  t.match(adapted, '  tenantId  String   @map("tenant_id") @db.VarChar(255)\n')
  t.match(adapted, '  key       String   @db.VarChar(255)\n')
  t.match(adapted, '  eventId   String?  @map("event_id") @db.VarChar(255)\n')
  t.match(adapted, '/// Says key String, and is left alone.')
})

test('drops what only PostgreSQL knows', async (t) => {
  for (const provider of ['mysql', 'sqlite'] as const) {
    const adapted = adaptModels(models, provider)
    t.notMatch(adapted, /@db\.(Text|Timestamptz)/)
    t.match(adapted, 'seenAt    DateTime @default(now()) @map("seen_at")\n')
    t.match(adapted, '@@index([seenAt])\n')
    t.match(adapted, '@@map("thing")')
  }
  t.notMatch(adaptModels(models, 'sqlite'), '@db.')
})

test("replaces the datasource's provider, not the generator's", async (t) => {
  const source = `generator client {
  provider = "prisma-client"
}

datasource db {
  provider = "postgresql"
}
`
  t.equal(adaptModels(source, 'sqlite'), source.replace('"postgresql"', '"sqlite"'))
})
