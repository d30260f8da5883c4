// A database may be set to a stricter isolation level than usual. Then PostgreSQL refuses statements
// that met each other, and says to repeat them.
import { randomUUID } from 'node:crypto'
import t from 'tap'
import { onPool } from '../../src/store/pool.js'
import { postgresStore } from '../../src/store/postgres.js'
import type { Ask } from '../../src/store/store.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'

const skip = await missing('postgres')

const ask = (): Ask => ({
  tenantId: 'acme',
  key: randomUUID(),
  operationId: randomUUID(),
  fingerprint: 'f',
  leaseMs: 30_000,
  retentionMs: 86_400_000,
})
const held = (list: readonly Ask[]) => list.map((a) => ({ ...a, attempt: 1, response: null }))

for (const isolation of ['read committed', 'repeatable read', 'serializable'] as const) {
  t.test(`at ${isolation}, lists that meet in any order are all answered`, { skip }, async (t) => {
    const { pool } = await postgresDatabase(t, { isolation })
    const { rows } = await pool.query('SHOW transaction_isolation')
    t.equal(rows[0].transaction_isolation, isolation)
    const store = postgresStore(onPool(pool, 30_000))
    for (let round = 0; round < 5; round += 1) {
      const asks = Array.from({ length: 40 }, ask)
      const orders = Array.from({ length: 8 }, (_, n) => (n % 2 ? asks : [...asks].reverse()))
      const inserted = await Promise.all(orders.map((list) => store.insert(list)))
      t.equal(inserted.flat().filter(({ kind }) => kind === 'made').length, asks.length)
      await Promise.all(
        orders.map((list) => store.extend(held(list).map((h) => ({ ...h, leaseMs: 1_000 })))),
      )
      const kept = await Promise.all(
        orders.map((list, n) =>
          store.keepSteps(held(list).map((h) => ({ ...h, steps: { step: `${n}` } }))),
        ),
      )
      t.ok(kept.flat().every(Boolean))
      const released = await Promise.all(orders.map((list) => store.finish(held(list))))
      t.ok(released.flat().every(Boolean), 'saying it again is fine')
      const taken = await Promise.all(
        orders.map((list) =>
          store.takeOver(list.map((a) => ({ ...a, seen: { ...a, attempt: 1 }, resumed: true }))),
        ),
      )
      const count = taken.flat().filter(Boolean).length
      t.equal(count, asks.length, 'each is taken over once')
      await Promise.all(orders.map((list) => store.forget(list.map((a) => ({ ...a, attempt: 2 })))))
    }
  })
}
