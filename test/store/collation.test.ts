import { randomUUID } from 'node:crypto'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { CHOSEN_BY_OTHERS } from '../../src/cli/models.js'
import idempotency, { type PluginOptions } from '../../src/index.js'
import type { PrismaClientLike } from '../../src/store/client.js'
import { findInexactColumns, NAMING_FIELDS } from '../../src/store/collation.js'
import { collectEvents } from '../fixtures/app.js'
import { mariadbDatabase } from '../fixtures/mariadb.js'
import { missing } from '../fixtures/services.js'

const skip = await missing('mariadb')

function appOn(t: Test, prisma: object) {
  const app = Fastify()
  t.teardown(() => app.close())
  app.register(idempotency, { prisma, tenant: false } as PluginOptions)
  return app
}

const REFUSED = 'IDEMPOTENCY_COLLATION_INVALID'

t.test(
  'a column that takes two names for one stops the start, and the message mends it',
  { skip },
  async (t) => {
    const { prisma } = await mariadbDatabase(t)
    await appOn(t, prisma).ready()
    for (const [table, column, nullability] of [
      ['idempotency_record', 'tenant_id', 'NOT NULL'],
      ['idempotency_record', 'key', 'NOT NULL'],
      ['webhook_event', 'event_id', 'NULL'],
      ['named_lock', 'name', 'NOT NULL'],
      ['slot_reservation', 'slot', 'NOT NULL'],
      ['slot_reservation', 'holder', 'NOT NULL'],
    ] as const) {
      // The second tells case apart, and still takes 'a ' for 'a'.
      for (const collation of ['utf8mb4_unicode_ci', 'utf8mb4_bin', 'utf8mb4_general_nopad_ci']) {
        await prisma.$executeRawUnsafe(
          `ALTER TABLE ${table} MODIFY \`${column}\` VARCHAR(255) COLLATE ${collation} ${nullability}`,
        )
        const error = await appOn(t, prisma)
          .ready()
          .then(
            () => new Error('it started'),
            (error: Error) => error,
          )
        t.match(error, { code: REFUSED, message: `\`${column}\`` })
        const [statement = ''] = /ALTER TABLE .*;/.exec(error.message) ?? []
        t.match(statement, 'utf8mb4_nopad_bin')
        await prisma.$executeRawUnsafe(statement.replace(/;$/, ''))
        await appOn(t, prisma).ready()
      }
    }
  },
)

t.test(
  'reservations wait for the answer of a database that was away at the start',
  { skip },
  async (t) => {
    const { prisma } = await mariadbDatabase(t)
    await prisma.$executeRawUnsafe(
      'ALTER TABLE slot_reservation MODIFY slot VARCHAR(255) COLLATE utf8mb4_unicode_ci NOT NULL',
    )
    let isAway = true
    const client = new Proxy(prisma, {
      get(target, name) {
        if (name !== '$queryRawUnsafe') return Reflect.get(target, name)
        return async (...query: [string]) => {
          if (isAway) throw new Error('away')
          return target.$queryRawUnsafe(...query)
        }
      },
    })
    const events = collectEvents(t)
    const app = appOn(t, client)
    await app.ready()
    t.match(events.all, [{ kind: 'store_unavailable' }])
    isAway = false
    const slots = { resource: randomUUID(), slots: 'a', holder: 'ann' }
    for (const call of ['reserve', 'confirm', 'cancel'] as const) {
      const called: Promise<unknown> = app.idempotency[call](slots)
      await t.rejects(called, { code: REFUSED })
    }
  },
)

t.test(
  'tables and columns are looked for under the names that the schema gives them',
  async (t) => {
    const asked: unknown[] = []
    const client = (version: string) =>
      ({
        idempotencyRecord: {},
        slotReservation: {},
        _runtimeDataModel: {
          models: {
            IdempotencyRecord: { dbName: 'keys', fields: [{ name: 'key', dbName: 'name' }] },
          },
        },
        async $queryRawUnsafe(_: string, ...tables: unknown[]) {
          asked.push(tables)
          const column = { nullable: 'NO', version }
          return [
            { ...column, table: 'keys', column: 'name', collation: 'utf8mb4_0900_ai_ci' },
            { ...column, table: 'keys', column: 'fingerprint', collation: 'utf8mb4_0900_ai_ci' },
            { ...column, table: 'slot_reservation', column: 'slot', collation: 'utf8mb4_0900_bin' },
            { ...column, table: 'slot_reservation', column: 'holder', collation: null },
          ]
        },
      }) as unknown as PrismaClientLike
    t.strictSame(await findInexactColumns(client('8.4.2')), [
      'ALTER TABLE `keys` MODIFY `name` VARCHAR(255) COLLATE utf8mb4_0900_bin NOT NULL;',
    ])
    t.strictSame(asked, [['keys', 'slot_reservation']])
    t.match(await findInexactColumns(client('11.4.1-MariaDB')), [/utf8mb4_nopad_bin/])
  },
)

t.test('init gives a binary collation to every column that is checked', async (t) => {
  for (const field of Object.values(NAMING_FIELDS).flat()) t.ok(CHOSEN_BY_OTHERS.has(field), field)
})
