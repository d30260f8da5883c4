import { readFile } from 'node:fs/promises'
import { test } from 'tap'
import { readModel } from '../../src/cli/model-declaration.js'
import { readBlocks } from '../../src/cli/schema-text.js'
import { missingFromClient } from '../../src/store/client.js'

test('a client is asked for exactly the models and fields that init adds', async (t) => {
  const text = await readFile(new URL('../../prisma/idempotency.prisma', import.meta.url), 'utf8')
  const reading = readBlocks(text)
  if (reading.kind !== 'read') throw new Error('prisma/idempotency.prisma is cut off')
  const shipped = reading.blocks.filter(({ kind }) => kind === 'model').map(readModel)

  const names = shipped.map(({ name }) => name)
  t.same(
    missingFromClient({}),
    names.map((name) => `model ${name}`),
  )

  const delegate = (name: string) => name.charAt(0).toLowerCase() + name.slice(1)
  const clientWithoutFields = Object.fromEntries(
    names.map((name) => [delegate(name), { fields: {} }]),
  )
  t.same(
    missingFromClient(clientWithoutFields).sort(),
    shipped
      .flatMap(({ name, fields }) => fields.map((field) => `field ${name}.${field.name}`))
      .sort(),
  )
})

test('a client is asked for the models that are used, and no others', async (t) => {
  t.same(missingFromClient({}, ['idempotencyRecord']), ['model IdempotencyRecord'])
  t.same(missingFromClient({ webhookEvent: {} }, ['webhookEvent']), [])
  t.same(missingFromClient({}, []), [])
})
