// Statuses under what makes them go wrong elsewhere: events in any order, strict and lax isolation
// levels, a change at the worst moment, a pool of one connection, clients with extensions.
import fc from 'fast-check'
import t from 'tap'
import { createFlow } from '../../src/core/flow.js'
import { createStatuses } from '../../src/status/advance.js'
import { sayAgain } from '../../src/store/say-again.js'
import { type Client, flow, isChain, PATIENT, statusesOf } from '../contracts/status.js'
import { randomFlow } from '../fixtures/flows.js'
import { mariadbDatabase } from '../fixtures/mariadb.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'
import { sqliteDatabase } from '../fixtures/sqlite.js'

const noPostgres = await missing('postgres')
const noMariadb = await missing('mariadb')

t.test(
  'a payment’s events in any order, at once, end in the same status',
  { skip: noPostgres },
  async (t) => {
    const { prisma } = await postgresDatabase(t)
    const { payment, find, changes, advance } = statusesOf(prisma as Client, 'postgresql')
    const events = [
      'pending',
      'authorized',
      'authorized',
      'succeeded',
      'refunded',
      'refunded',
    ] as const
    const order = fc.shuffledSubarray([...events], { minLength: events.length })
    for (const tos of fc.sample(order, size({ full: 500, quick: 10 }))) {
      const id = await payment()
      await Promise.all(tos.map((to) => advance(id, to)))
      t.match(await find(id), { status: 'refunded' }, tos.join())
      t.ok(isChain(await changes(id), 'pending', 'refunded'))
    }
  },
)

for (const { name, provider, open, skip, runs } of [
  {
    name: 'PostgreSQL',
    provider: 'postgresql',
    open: postgresDatabase,
    skip: noPostgres,
    runs: 25,
  },
  { name: 'SQLite', provider: 'sqlite', open: sqliteDatabase, skip: false, runs: 10 },
] as const) {
  t.test(
    `${name}: on random flows, what is audited leads from the first status to the last`,
    { skip },
    async (t) => {
      const prisma = (await open(t)).prisma as Client
      const { payment, find, changes, advanceOf } = statusesOf(prisma, provider)
      await fc.assert(
        fc.asyncProperty(
          randomFlow,
          fc.array(fc.nat(), { maxLength: 12 }),
          async (definition, chance) => {
            const random = createFlow(definition)
            const [first = ''] = random.initial
            const id = await payment({ status: first })
            await Promise.all(
              chance.map((n) =>
                advanceOf(prisma.payment, {
                  where: { id },
                  flow: random,
                  to: random.statuses[n % random.statuses.length] ?? first,
                }),
              ),
            )
            const audit = await changes(id)
            const isForward = audit.every(({ from, to }) => random.sources(to).includes(from))
            return isForward && isChain(audit, first, (await find(id)).status)
          },
        ),
        { numRuns: size({ full: 10 * runs, quick: runs }) },
      )
    },
  )
}

for (const isolation of ['read committed', 'repeatable read', 'serializable'] as const) {
  t.test(`at ${isolation}, all who come at once are answered`, { skip: noPostgres }, async (t) => {
    const { prisma } = await postgresDatabase(t, { isolation })
    const { payment, find, changes, advance } = statusesOf(prisma as Client, 'postgresql')
    const id = await payment()
    const results = await Promise.all(
      Array.from({ length: 20 }, (_, n) =>
        advance(id, n % 2 ? 'authorized' : 'succeeded', { occurredAt: new Date(n) }),
      ),
    )
    t.ok(results.some(({ kind }) => kind === 'advanced'))
    const { status, statusAt } = await find(id)
    t.equal(status, 'succeeded')
    t.strictSame(statusAt, new Date(18), 'the latest time at which it was said')
    t.ok(isChain(await changes(id), 'pending', 'succeeded'))
  })
}

for (const { name, isolationLevel, open, provider, skip, answers } of [
  ...(['ReadCommitted', 'RepeatableRead', 'Serializable'] as const).map((isolationLevel) => ({
    ...{ name: 'PostgreSQL', isolationLevel, open: postgresDatabase },
    ...{ provider: 'postgresql' as const, skip: noPostgres },
    answers: isolationLevel === 'ReadCommitted',
  })),
  ...(['ReadCommitted', 'RepeatableRead'] as const).map((isolationLevel) => ({
    ...{ name: 'MariaDB', isolationLevel, open: mariadbDatabase },
    ...{ provider: 'mysql' as const, skip: noMariadb },
    answers: isolationLevel === 'ReadCommitted',
  })),
]) {
  const claim = answers ? 'is answered' : 'is to be repeated, and says so'
  t.test(
    `${name}, ${isolationLevel}: a transaction that began before somebody else’s change ${claim}`,
    { skip },
    async (t) => {
      const prisma = (await open(t)).prisma as Client
      const { payment, find, changes, advance } = statusesOf(prisma, provider)
      const id = await payment()
      let attempts = 0
      const work = () => {
        attempts += 1
        return prisma.$transaction(
          async (tx: Client) => {
            await tx.payment.findFirst({ where: { id } })
            await advance(id, 'succeeded')
            return advance(id, 'authorized', {}, tx.payment)
          },
          { isolationLevel },
        )
      }
      const blocked = { kind: 'blocked', why: 'backward', from: 'succeeded', to: 'authorized' }
      if (answers) t.strictSame(await work(), blocked)
      else {
        await t.rejects(Promise.resolve(work()), { code: 'P2034' })
        t.match(await find(id), { status: 'succeeded' })
        t.strictSame(await sayAgain(work), blocked, 'as event.transaction() does it')
      }
      t.equal(attempts, answers ? 1 : 2)
      t.equal((await changes(id)).length, 1)
    },
  )
}

t.test('a change between the look and the write is looked at', { skip: noPostgres }, async (t) => {
  const { prisma } = await postgresDatabase(t)
  const plain = statusesOf(prisma as Client, 'postgresql')
  for (const [between, to, expected] of [
    ['authorized', 'succeeded', { kind: 'advanced', from: 'authorized' }],
    ['failed', 'succeeded', { kind: 'blocked', why: 'terminal', from: 'failed' }],
    ['succeeded', 'succeeded', { kind: 'unchanged' }],
    ['succeeded', 'pending', { kind: 'blocked', why: 'older', from: 'succeeded' }],
  ] as const) {
    const id = await plain.payment()
    let looks = 0
    const interrupted = prisma.$extends({
      query: {
        payment: {
          async findMany({ args, query }) {
            const rows = await query(args)
            looks += 1
            if (looks === 1) await plain.advance(id, between, { occurredAt: new Date(2) })
            return rows
          },
        },
      },
    })
    const { advance } = statusesOf(interrupted as unknown as Client, 'postgresql')
    const occurredAt = new Date(to === 'pending' ? 1 : 3)
    t.match(await advance(id, to, { occurredAt }), expected)
    t.equal(looks, 2)
  }
})

t.test(
  'an entity that no longer fits where it was looked for stays as it is',
  { skip: noPostgres },
  async (t) => {
    const { prisma } = await postgresDatabase(t)
    const { payment, find } = statusesOf(prisma as Client, 'postgresql')
    const id = await payment()
    const interrupted = prisma.$extends({
      query: {
        payment: {
          async findMany({ args, query }) {
            const rows = await query(args)
            await prisma.payment.updateMany({ where: { id }, data: { tenantId: 'another' } })
            return rows
          },
        },
      },
    })
    const { advance } = statusesOf(interrupted as unknown as Client, 'postgresql')
    const where = { id, tenantId: 'acme' }
    t.strictSame(await advance(id, 'succeeded', { where }), { kind: 'missing' })
    t.match(await find(id), { status: 'pending' })
  },
)

t.test(
  'an entity that others change all the time is given up, and nothing was done',
  { skip: noPostgres },
  async (t) => {
    const { prisma } = await postgresDatabase(t)
    const plain = statusesOf(prisma as Client, 'postgresql')
    const id = await plain.payment()
    const override = { reason: 'back and forth' }
    const interrupted = prisma.$extends({
      query: {
        payment: {
          async findMany({ args, query }) {
            const rows = await query(args)
            const isPending = rows[0]?.status === 'pending'
            await plain.advance(id, isPending ? 'authorized' : 'pending', { override })
            return rows
          },
        },
      },
    })
    const { advance } = statusesOf(interrupted as unknown as Client, 'postgresql')
    await t.rejects(advance(id, 'succeeded'), { name: 'WriteConflict', code: 'P2034' })
    const reasons = (await plain.changes(id)).map(({ reason }) => reason)
    t.ok(reasons.length > 2 && reasons.every((reason) => reason === override.reason))
  },
)

t.test('a pool of one connection is enough', { skip: noPostgres }, async (t) => {
  const { prisma } = await postgresDatabase(t, { max: 1 })
  const { payment, changes, advance } = statusesOf(prisma as Client, 'postgresql')
  const id = await payment()
  await Promise.all([advance(id, 'authorized'), advance(id, 'authorized')])
  await prisma.$transaction(async (tx) => {
    t.match(await advance(id, 'succeeded', {}, tx.payment), { kind: 'advanced' })
  })
  t.equal((await changes(id)).length, 2)
})

t.test('the extensions of a client are not left out', { skip: noPostgres }, async (t) => {
  const { prisma } = await postgresDatabase(t)
  const hers = prisma.$extends({
    query: {
      payment: {
        updateMany: ({ args, query }) =>
          query({ ...args, data: { ...args.data, currency: 'CHF' } }),
      },
    },
  })
  const { payment, find, advance } = statusesOf(hers as unknown as Client, 'postgresql')
  const id = await payment()
  t.match(await advance(id, 'authorized'), { kind: 'advanced' })
  t.match(await find(id), { currency: 'CHF' })

  const ours = createStatuses({ prisma, provider: 'postgresql', bounds: PATIENT })
  const ask = { where: { id }, flow, to: 'refunded' } as const
  const refused = ours.advance('acme', () => {}, hers.payment, ask)
  const message = /made by \$extends\. Give that client as option "prisma"/
  await t.rejects(refused, { code: 'IDEMPOTENCY_OPTION_INVALID', message })
  await prisma.payment.updateMany({ where: { id }, data: { currency: 'EUR' } })
  await hers.$transaction(async (tx) => {
    t.match(await ours.advance('acme', () => {}, tx.payment, ask), { kind: 'advanced' })
  })
  t.match(await find(id), { status: 'refunded', currency: 'CHF' })
})
