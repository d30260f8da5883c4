import { PrismaMariaDb } from '@prisma/adapter-mariadb'
import { PrismaPg } from '@prisma/adapter-pg'
import t from 'tap'
import { PrismaClient as MysqlClient } from '../../prisma/generated/mysql/client.js'
import { PrismaClient } from '../../prisma/generated/postgresql/client.js'
import { createStatuses } from '../../src/status/advance.js'
import { defineFlow } from '../../src/status/define-flow.js'
import type { AdvanceOptions, Override } from '../../src/status/options.js'
import { type Client, flow, PATIENT, statusContract } from '../contracts/status.js'
import { mariadbDatabase } from '../fixtures/mariadb.js'
import { pgliteDatabase } from '../fixtures/pglite.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'
import { sqliteDatabase } from '../fixtures/sqlite.js'

const noPostgres = await missing('postgres')
const noMariadb = await missing('mariadb')

// A hundred wait for ten connections, on a machine that may be busy: Prisma's 2 s are not enough.
const transactionOptions = { maxWait: 30_000 }

t.test('PostgreSQL', { skip: noPostgres }, async (t) => {
  const { pool } = await postgresDatabase(t)
  const prisma = new PrismaClient({ adapter: new PrismaPg(pool), transactionOptions })
  t.teardown(() => prisma.$disconnect())
  await statusContract(t, prisma as Client, { provider: 'postgresql', parallel: 100 })
})

t.test('PGlite', async (t) => {
  const prisma = (await pgliteDatabase(t)).prisma as Client
  await statusContract(t, prisma, { provider: 'postgresql', parallel: 20 })
})

t.test('MariaDB', { skip: noMariadb }, async (t) => {
  const { url } = await mariadbDatabase(t)
  const prisma = new MysqlClient({ adapter: new PrismaMariaDb(url), transactionOptions })
  t.teardown(() => prisma.$disconnect())
  await statusContract(t, prisma as Client, { provider: 'mysql', parallel: 100 })
})

t.test('SQLite', async (t) => {
  const prisma = (await sqliteDatabase(t)).prisma as Client
  await statusContract(t, prisma, { provider: 'sqlite', parallel: 20 })
})

t.test('what cannot be asked for is refused with what to write instead', async (t) => {
  const { prisma } = await pgliteDatabase(t)
  const id = (await prisma.payment.create({ data: { tenantId: 'a', amount: 1, currency: 'EUR' } }))
    .id
  const statuses = createStatuses({ prisma, provider: 'postgresql', bounds: PATIENT })
  const advance = (over: object, payments: object = prisma.payment) =>
    statuses.advance('acme', () => {}, payments as Client['payment'], {
      ...{ where: { id }, flow, to: 'succeeded' },
      ...over,
    })
  for (const [over, message] of [
    [{ where: undefined }, /"where" of advance\(\) must be what findFirst takes/],
    [{ where: {} }, /name one entity/],
    [{ where: { id: undefined } }, /nothing in it may be undefined/],
    [{ where: { id: { equals: undefined } } }, /nothing in it may be undefined/],
    [{ flow: {} }, /"flow" of advance\(\) must be what defineFlow returned/],
    [{ to: 'paid' }, /must be a status of the flow; these are pending, authorized/],
    [{ to: undefined }, /must be a status of the flow/],
    [{ occurredAt: '2026-01-01' }, /must be a Date/],
    [{ occurredAt: new Date('never') }, /must be a Date/],
    [{ override: {} }, /a reason of 1 to 191 characters/],
    [{ override: { reason: ' ' } }, /a reason of 1 to 191 characters/],
    [{ override: { reason: 'x'.repeat(192) } }, /a reason of 1 to 191 characters/],
    [{ override: { reason: 'mistake', actor: '' } }, /a reason of 1 to 191 characters/],
    [{ override: true }, /a reason of 1 to 191 characters/],
    [{ data: { status: 'refunded' } }, /must not set status/],
    [{ data: { statusAt: null } }, /must not set statusAt/],
    [{ data: { id: 'another' } }, /must not set id/],
    [{ fields: { state: 'state' } }, /must be the names of columns/],
    [{ fields: { status: 'state' } }, /needs the column state in this model: add it, or say/],
    [{ fields: { occurredAt: 'when' }, occurredAt: new Date(0) }, /needs the column when/],
    [{ force: true }, /option "force" of advance\(\) is not known/],
  ] as const) {
    const refused = { code: 'IDEMPOTENCY_OPTION_INVALID', message }
    await t.rejects(advance(over), refused, `${message}`)
  }
  await t.rejects(advance({}, prisma), { message: /takes a model of your Prisma client first/ })
  t.match(await prisma.payment.findFirst({ where: { id } }), { status: 'pending' })
  t.equal(await prisma.statusChange.count(), 0)
})

t.test('without the audit’s model nothing changes', async (t) => {
  const { prisma } = await pgliteDatabase(t)
  const id = (await prisma.payment.create({ data: { tenantId: 'a', amount: 1, currency: 'EUR' } }))
    .id
  const payment = { updateMany: () => t.fail('nothing is written') }
  const tx = { payment, statusChange: undefined }
  const poor = {
    ...{ payment: prisma.payment, idempotencyRecord: prisma.idempotencyRecord },
    $queryRawUnsafe: prisma.$queryRawUnsafe,
    $transaction: (fn: (client: object) => Promise<unknown>) => fn(tx),
  }
  const statuses = createStatuses({
    prisma: poor as never,
    provider: 'postgresql',
    bounds: PATIENT,
  })
  const work = statuses.advance('acme', () => {}, prisma.payment, {
    ...{ where: { id }, flow },
    to: 'succeeded',
  })
  await t.rejects(work, { code: 'IDEMPOTENCY_MODELS_MISSING', message: /model StatusChange/ })
})

t.test('statuses, where and data are known to the compiler', async (t) => {
  const { prisma } = await pgliteDatabase(t)
  const statuses = createStatuses({ prisma, provider: 'postgresql', bounds: PATIENT })
  const report = () => {}
  const { payment } = prisma
  type Where = AdvanceOptions<string, typeof payment>['where']
  const where = { id: 'none' }
  const round = defineFlow({
    transitions: { on: ['off'], off: ['on', 'gone'] },
    terminal: ['gone'],
  })
  // @ts-expect-error: no status of the flow
  await t.rejects(statuses.advance('', report, payment, { where, flow, to: 'paid' }))
  // @ts-expect-error: no column of the model
  const misspelt: Where = { ident: '' }
  await t.rejects(statuses.advance('', report, payment, { where: misspelt, flow, to: 'failed' }))
  // @ts-expect-error: an amount is a number
  await statuses.advance('', report, payment, { where, flow, to: 'failed', data: { amount: '1' } })
  // @ts-expect-error: a reason is needed
  const override: Override = {}
  await t.rejects(statuses.advance('', report, payment, { where, flow, to: 'failed', override }))
  const result = await statuses.advance('', report, payment, { where, flow: round, to: 'gone' })
  if (result.kind === 'unchanged') {
    const status: 'on' | 'off' | 'gone' = result.status
    t.fail(status)
  }
  t.strictSame(result, { kind: 'missing' })
})
