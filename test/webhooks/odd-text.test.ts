// Text that no database takes as it is, on its way through the inbox: step results, headers, errors.
import { randomUUID } from 'node:crypto'
import t, { type Test } from 'tap'
import type { WebhookHandler } from '../../src/index.js'
import { buildApp } from '../fixtures/app.js'
import { anyDatabase, type Database } from '../fixtures/database.js'
import { mariadbDatabase } from '../fixtures/mariadb.js'
import { missing } from '../fixtures/services.js'
import { sqliteDatabase } from '../fixtures/sqlite.js'
import { bank, eventOf, postBank } from '../fixtures/webhooks.js'

const ODD = ['a\0b', '\ud800', 'b\udc00', '\u2028', '\\u0000', '"\\', '𝒳\uffff']

async function contract(t: Test, database: Database): Promise<void> {
  const appOf = (t: Test, handler: WebhookHandler) =>
    buildApp(t, database, {
      routes: (app) =>
        app.webhook('/webhooks/bank', { provider: bank(), headers: ['x-note'] }, handler),
    })

  await t.test('a later attempt gets the results of steps as they were', async (t) => {
    const result = { list: ODD, map: new Map(ODD.map((text) => [text, text])), date: new Date(0) }
    const seen: unknown[] = []
    let runs = 0
    const app = await appOf(t, async (event) => {
      seen.push(
        await event.step('look', () => {
          runs += 1
          return result
        }),
      )
      if (event.attempt === 1) throw new Error(`failed${ODD.join('')}`)
    })
    const id = randomUUID()
    t.equal((await postBank(app, { id })).json().outcome, 'failed')
    t.equal((await postBank(app, { id })).json().outcome, 'processed')
    t.strictSame(seen, [result, result])
    t.equal(runs, 1)
    const stored = await eventOf(database, id, '', 'bank')
    t.match(stored?.errors, [{ message: /^Error: failedab/ }])
  })

  await t.test('a header with NUL is kept with a space in its place', async (t) => {
    const app = await appOf(t, () => {})
    const id = randomUUID()
    const headers = { 'x-note': 'a\0b\ud800' }
    const { outcome } = await app.idempotency.ingest({
      endpoint: '/webhooks/bank',
      payload: { id },
      headers,
    })
    t.equal(outcome, 'processed')
    const stored = await eventOf(database, id, '', 'bank')
    t.match(stored?.headers, { 'x-note': 'a b\ufffd' })
  })
}

t.test('PostgreSQL', async (t) => contract(t, await anyDatabase(t)))
t.test('MariaDB', { skip: await missing('mariadb') }, async (t) =>
  contract(t, (await mariadbDatabase(t)) as never),
)
t.test('SQLite', async (t) => contract(t, (await sqliteDatabase(t)) as never))
