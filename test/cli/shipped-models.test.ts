import { readFile } from 'node:fs/promises'
import { test } from 'tap'
import { readModel } from '../../src/cli/model-declaration.js'
import { readBlocks } from '../../src/cli/schema-text.js'
import { type ModelName, missingFromClient } from '../../src/store/client.js'

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
  for (const model of shipped) {
    for (const left of model.fields) {
      const fields = Object.fromEntries(
        model.fields.filter((field) => field !== left).map(({ name }) => [name, {}]),
      )
      const client = { [delegate(model.name)]: { fields } }
      const missing = missingFromClient(client, [delegate(model.name) as ModelName])
      t.same(missing, [`field ${model.name}.${left.name}`])
    }
  }
})

test('a client is asked for the models that are used, and no others', async (t) => {
  t.same(missingFromClient({}, ['idempotencyRecord']), ['model IdempotencyRecord'])
  t.same(missingFromClient({ webhookEvent: {} }, ['webhookEvent']), [])
  t.same(missingFromClient({}, []), [])
})

test('a model that lacks most fields is another one of that name', (t) => {
  const fields = { id: {}, provider: {}, eventId: {}, status: {}, payload: {} }
  t.same(missingFromClient({ webhookEvent: { fields } }, ['webhookEvent']), [
    'model WebhookEvent (another model has that name)',
  ])
  t.end()
})
