// What advance() promises, on each database.
import { randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import type { Happening } from '../../src/events.js'
import { type AdvanceResult, createStatuses } from '../../src/status/advance.js'
import { defineFlow } from '../../src/status/define-flow.js'
import type { AdvanceOptions } from '../../src/status/options.js'
import type { ModelDelegate, PrismaClientLike, Provider } from '../../src/store/client.js'
import { databaseClock } from '../../src/store/clock.js'
import { createStatementLimit } from '../../src/store/statement-limit.js'

export interface Client extends PrismaClientLike {
  readonly payment: ModelDelegate
  readonly statusChange: ModelDelegate
}

export interface Change {
  tenantId: string
  entity: string
  from: string
  to: string
  occurredAt: Date | null
  reason: string | null
  actor: string | null
  createdAt: Date
}

export const flow = defineFlow({
  name: 'payment',
  levels: { pending: 0, authorized: 1, succeeded: 2, failed: 2, refunded: 3 },
  terminal: ['failed', 'refunded'],
})

const at = (second: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, second))

/** A hundred calls at once, on a machine that may be busy. */
export const PATIENT = { limit: createStatementLimit(10, 60_000), timeoutMs: 60_000 }

/** Statuses of a client, what was told of them, and payments to give them to. */
export function statusesOf(prisma: Client, provider: Provider) {
  const told: Happening[] = []
  const statuses = createStatuses({ prisma, provider, bounds: PATIENT })
  const report = (happening: Happening) => void told.push(happening)
  return {
    told,
    async payment(over: object = {}): Promise<string> {
      const data = { tenantId: 'acme', amount: 1, currency: 'EUR', ...over }
      return (await prisma.payment.create({ data })).id
    },
    find: (id: string) => prisma.payment.findUnique({ where: { id } }),
    changes: (entityId: string): PromiseLike<Change[]> =>
      prisma.statusChange.findMany({ where: { entityId }, orderBy: { createdAt: 'asc' } }),
    advance: (
      id: string,
      to: (typeof flow.statuses)[number],
      over: Partial<AdvanceOptions<(typeof flow.statuses)[number], ModelDelegate>> = {},
      payments = prisma.payment,
    ) => statuses.advance('acme', report, payments, { where: { id }, flow, to, ...over }),
    advanceOf: statuses.advance.bind(statuses, 'acme', report),
  }
}

/**
 * The changes as a chain from one status to another, each beginning where the one before ended; those
 * of one millisecond in any order. Undefined when they are none.
 */
export function isChain(changes: readonly Change[], from: string, to: string): boolean {
  const left = [...changes]
  let status = from
  while (left.length > 0) {
    const earliest = left[0]?.createdAt.getTime()
    const next = left.findIndex(
      (change) => change.from === status && change.createdAt.getTime() === earliest,
    )
    const [change] = next === -1 ? [] : left.splice(next, 1)
    if (change === undefined) return false
    status = change.to
  }
  return status === to
}

export async function statusContract(
  t: Test,
  prisma: Client,
  { provider, parallel }: { provider: Provider; parallel: number },
): Promise<void> {
  const { payment, find, changes, advance, advanceOf, told } = statusesOf(prisma, provider)

  await t.test('a change is made, audited and told', async (t) => {
    const id = await payment()
    const clock = databaseClock(prisma, provider)
    const before = await clock.ask()
    told.length = 0
    const result = await advance(id, 'authorized')
    const advanced = { from: 'pending', to: 'authorized', entityId: id, overridden: false }
    t.strictSame(result, { kind: 'advanced', ...advanced })
    t.strictSame(told, [{ kind: 'status_advanced', entity: 'Payment', ...advanced }])
    t.match(await find(id), { status: 'authorized', statusAt: null, amount: 1 })
    const [change, ...others] = await changes(id)
    t.match(change, {
      ...{ tenantId: 'acme', entity: 'Payment', from: 'pending', to: 'authorized' },
      ...{ occurredAt: null, reason: null, actor: null },
    })
    t.strictSame(others, [])
    const createdAt = change?.createdAt.getTime() ?? 0
    t.ok(createdAt >= before.getTime() - 1, 'by the clock of the database')
    t.ok(createdAt <= (await clock.ask()).getTime() + 1)
  })

  await t.test('the same status again is unchanged, and not audited', async (t) => {
    const id = await payment()
    told.length = 0
    t.strictSame(await advance(id, 'pending'), { kind: 'unchanged', status: 'pending' })
    t.strictSame(told, [])
    t.strictSame(await changes(id), [])
  })

  await t.test(
    'what the flow does not allow is blocked and told, and nothing changes',
    async (t) => {
      for (const [from, to, why] of [
        ['succeeded', 'authorized', 'backward'],
        ['succeeded', 'failed', 'not allowed'],
        ['refunded', 'succeeded', 'terminal'],
        ['invented', 'succeeded', 'not allowed'],
      ] as const) {
        const id = await payment({ status: from })
        told.length = 0
        t.strictSame(await advance(id, to, { data: { amount: 9 } }), {
          kind: 'blocked',
          why,
          from,
          to,
        })
        const subject = { entity: 'Payment', entityId: id }
        t.strictSame(told, [{ kind: 'status_blocked', ...subject, from, to, why }])
        t.match(await find(id), { status: from, amount: 1 })
        t.strictSame(await changes(id), [])
      }
    },
  )

  await t.test('what is not there is missing', async (t) => {
    told.length = 0
    t.strictSame(await advance(randomUUID(), 'succeeded'), { kind: 'missing' })
    const id = await payment()
    t.strictSame(await advance(id, 'succeeded', { where: { id, tenantId: 'other' } }), {
      kind: 'missing',
    })
    t.strictSame(told, [])
  })

  await t.test('a where that fits several is refused, and nothing changes', async (t) => {
    const currency = randomUUID()
    const ids = [await payment({ currency }), await payment({ currency })]
    const error = advance('', 'succeeded', { where: { currency } })
    await t.rejects(error, { code: 'IDEMPOTENCY_OPTION_INVALID', message: /fits more than one/ })
    for (const id of ids) t.match(await find(id), { status: 'pending' })
  })

  await t.test('other columns are set in the same update', async (t) => {
    const id = await payment()
    await advance(id, 'authorized', { data: { amount: 5 } })
    t.match(await find(id), { status: 'authorized', amount: 5 })
    await advance(id, 'authorized', { data: { amount: 6 } })
    t.match(await find(id), { amount: 5 }, 'and only when the status changes')
    const isPaid = { where: { id, amount: { lt: 5 } } }
    t.strictSame(await advance(id, 'succeeded', isPaid), { kind: 'missing' })
  })

  await t.test('a model may call its columns as it likes', async (t) => {
    const tenantId = randomUUID()
    await payment({ tenantId, amount: 77, currency: 'pending' })
    const result = await advance('', 'succeeded', {
      where: { tenantId },
      fields: { id: 'amount', status: 'currency', occurredAt: 'createdAt' },
      occurredAt: new Date('2101-01-01T00:00:00Z'),
    })
    t.match(result, { kind: 'advanced', entityId: '77' })
    t.match(await prisma.payment.findFirst({ where: { tenantId } }), {
      ...{ status: 'pending', currency: 'succeeded', statusAt: null },
      createdAt: new Date('2101-01-01T00:00:00Z'),
    })
    t.match(await changes('77'), [{ from: 'pending', to: 'succeeded' }])
  })

  await t.test(
    'what happened before the last change is older, however late it arrives',
    async (t) => {
      const id = await payment()
      await advance(id, 'authorized', { occurredAt: at(5) })
      t.match(await find(id), { statusAt: at(5) })
      t.match(await changes(id), [{ occurredAt: at(5) }])
      t.match(await advance(id, 'succeeded', { occurredAt: at(4) }), { why: 'older' })
      t.match(await find(id), { status: 'authorized', statusAt: at(5) })
      t.match(await advance(id, 'succeeded', { occurredAt: at(5) }), { kind: 'advanced' }, 'as old')
      t.match(await advance(id, 'refunded'), { kind: 'advanced' }, 'nobody says when')
      t.match(await find(id), { statusAt: at(5) })
    },
  )

  await t.test('the same status told again moves the time on, and only on', async (t) => {
    const id = await payment({ status: 'authorized' })
    for (const [second, expected] of [
      [3, 3],
      [2, 3],
      [6, 6],
    ] as const) {
      const result = await advance(id, 'authorized', { occurredAt: at(second) })
      t.match(result, { kind: 'unchanged' })
      t.match(await find(id), { statusAt: at(expected) })
    }
    t.match(await advance(id, 'succeeded', { occurredAt: at(5) }), { why: 'older' })
    t.strictSame(await changes(id), [])
  })

  await t.test('an override goes anywhere, with its reason in the audit', async (t) => {
    const id = await payment({ status: 'refunded', statusAt: at(9) })
    const override = { reason: 'refunded by mistake', actor: 'ann' }
    told.length = 0
    t.match(await advance(id, 'pending', { override }), { kind: 'advanced', overridden: true })
    t.match(told, [{ kind: 'status_advanced', from: 'refunded', to: 'pending', overridden: true }])
    t.notMatch(JSON.stringify(told), /mistake|ann/, 'the reason is nobody else’s business')
    t.match(await changes(id), [{ from: 'refunded', to: 'pending', ...override }])
    t.match(await find(id), { status: 'pending', statusAt: at(9) })
    t.match(await advance(id, 'pending', { override }), { kind: 'unchanged' })
    const reason = { override: { reason: 'it came late' } }
    await advance(id, 'succeeded', { ...reason, occurredAt: at(1) })
    t.match(await find(id), { status: 'succeeded', statusAt: at(1) })
    t.match((await changes(id))[1], { reason: 'it came late', actor: null })
  })

  await t.test('an override mends a status that the flow does not know', async (t) => {
    const id = await payment({ status: 'Pending?' })
    await advance(id, 'pending', { override: { reason: 'imported' } })
    t.match(await changes(id), [{ from: 'Pending?', to: 'pending' }])
  })

  await t.test('of a transaction that is rolled back nothing is left', async (t) => {
    const id = await payment()
    const work = prisma.$transaction(async (tx: Client) => {
      t.match(await advance(id, 'succeeded', {}, tx.payment), { kind: 'advanced' })
      throw new Error('changed my mind')
    })
    await t.rejects(Promise.resolve(work), /changed my mind/)
    t.match(await find(id), { status: 'pending' })
    t.strictSame(await changes(id), [])
  })

  await t.test('in a transaction, all answers leave it usable', async (t) => {
    const [id, other, third] = [await payment(), await payment(), await payment()]
    const results = await prisma.$transaction(async (tx: Client) => {
      await tx.payment.updateMany({ where: { id }, data: { amount: 8 } })
      const answers = [
        await advance(randomUUID(), 'failed', {}, tx.payment),
        await advance(id, 'failed', {}, tx.payment),
        await advance(id, 'succeeded', {}, tx.payment),
        await advance(id, 'failed', { occurredAt: at(1) }, tx.payment),
        ...(await Promise.all([
          advance(other, 'succeeded', {}, tx.payment),
          advance(third, 'succeeded', {}, tx.payment),
        ])),
      ]
      await tx.payment.updateMany({ where: { id }, data: { amount: 9 } })
      return answers
    })
    const kinds = results.map(({ kind }: { kind: string }) => kind)
    const expected = ['missing', 'advanced', 'blocked', 'unchanged', 'advanced', 'advanced']
    t.strictSame(kinds, expected)
    t.match(await find(id), { status: 'failed', amount: 9, statusAt: at(1) })
    t.equal((await changes(id)).length, 1)
    t.equal((await changes(third)).length, 1)
  })

  await t.test(`${parallel} at once leave one audit row for each change`, async (t) => {
    const id = await payment()
    const { statuses } = flow
    const results = await Promise.all(
      Array.from({ length: parallel }, (_, n) =>
        advance(id, statuses[n % statuses.length] ?? 'pending', { data: { amount: n } }),
      ),
    )
    const advanced = results.filter(({ kind }) => kind === 'advanced')
    const audit = await changes(id)
    const { status } = await find(id)
    t.ok(flow.terminal.includes(status), status)
    t.equal(audit.length, advanced.length)
    t.ok(audit.length >= 1 && audit.length <= 3, `${audit.length} changes`)
    t.ok(isChain(audit, 'pending', status), 'from the first status to the last')
  })

  await t.test('ten who turn it back and forth leave an audit row for each turn', async (t) => {
    const id = await payment({ status: 'active' })
    const round = defineFlow({ transitions: { active: ['paused'], paused: ['active'] } })
    const turn = (to: 'active' | 'paused') =>
      advanceOf(prisma.payment, { where: { id }, flow: round, to })
    const results: AdvanceResult[] = []
    await Promise.all(
      Array.from({ length: 10 }, async (_, n) => {
        for (let times = 0; times < parallel / 10; times += 1) {
          results.push(await turn((n + times) % 2 ? 'active' : 'paused'))
        }
      }),
    )
    const audit = await changes(id)
    t.equal(audit.length, results.filter(({ kind }) => kind === 'advanced').length)
    t.ok(results.every(({ kind }) => kind === 'advanced' || kind === 'unchanged'))
    t.ok(isChain(audit, 'active', (await find(id)).status), `${audit.length} changes`)
  })
}
