// What every store promises, run against each of them on each database.
import { randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import type { AttemptToken, StoredResponse } from '../../src/core/record.js'
import type { ModelDelegate } from '../../src/store/client.js'
import type { Ask, Store, TakeOver } from '../../src/store/store.js'
import type { Way } from '../fixtures/ways.js'

export interface StoreUnderTest extends Pick<Way, 'sql' | 'dropIndex' | 'hasOwnClock'> {
  readonly store: Store
  /** The same table, for looking at it and for moving its times. */
  readonly records: ModelDelegate
}

const PAST = new Date('2001-01-01T00:00:00Z')

const ask = (over: Partial<Ask> = {}): Ask => ({
  tenantId: 'acme',
  key: randomUUID(),
  operationId: randomUUID(),
  fingerprint: 'f',
  leaseMs: 30_000,
  retentionMs: 86_400_000,
  ...over,
})

const response = (over: Partial<StoredResponse> = {}): StoredResponse => ({
  statusCode: 201,
  headers: { 'content-type': 'application/json', link: ['<a>', '<b>'] },
  body: Uint8Array.from({ length: 256 }, (_, n) => n),
  ...over,
})

/** An attempt at the operation that the request began. */
const held = (a: Ask, attempt = 1) => ({ ...a, attempt })

const where = ({ tenantId, key }: Ask) => ({ where: { tenantId_key: { tenantId, key } } })
/** Prisma alone writes `{}` for it. */
const isNothing = (json: unknown) => json === null || Object.keys(json as object).length === 0
const only = async <T>(results: Promise<T[]>) => (await results)[0] as T

export async function storeContract(
  t: Test,
  { store, records, sql, dropIndex, hasOwnClock }: StoreUnderTest,
): Promise<void> {
  const insert = (a: Ask) => only(store.insert([a]))
  const seen = async (a: Ask) => {
    const inserted = await insert(a)
    if (inserted.kind !== 'seen') throw new Error('the key was free')
    return inserted.record
  }
  const takeOver = (a: Ask, seen: AttemptToken, resumed = true): TakeOver => ({
    ...a,
    seen,
    resumed,
  })
  /** Takes over attempt number `attempt` at the operation of `a`. */
  const take = (a: Ask, attempt: number, resumed = true, by = a) =>
    only(store.takeOver([takeOver(by, held(a, attempt), resumed)]))
  const move = ({ tenantId, key }: Ask, data: object) =>
    records.updateMany({ where: { tenantId, key }, data })

  /** The stored response, its body read apart where it is large. */
  const responseOf = async (a: Ask): Promise<StoredResponse | null> => {
    const { response: read, unreadBodyBytes: bytes } = await seen(a)
    if (read === null || bytes === 0) return read
    return { ...read, body: (await only(store.readBodies([{ ...held(a), bytes }]))) ?? null }
  }

  await t.test('the first to ask gets a key, later ones see its record', async (t) => {
    const a = ask()
    t.match(await insert(a), { kind: 'made' })
    const record = await seen({ ...a, fingerprint: 'another' })
    t.match(record, { fingerprint: 'f', status: 'in_progress', attempt: 1, isExpired: false })
    t.equal(record.response, null)
    t.ok(record.leaseLeftMs > 20_000 && record.leaseLeftMs <= 30_100, 'the lease is what was asked')
  })

  await t.test('of 100 who ask at once, one gets the key', async (t) => {
    const a = ask()
    const results = await Promise.all(Array.from({ length: 100 }, () => insert(a)))
    t.equal(results.filter(({ kind }) => kind === 'made').length, 1)
  })

  await t.test(
    'of one key many times in a list, the record is that of the one told to run',
    async (t) => {
      // In lists this long, PostgreSQL does not keep the order of equal keys.
      for (const length of [2, 8, 9, 16, 33, 64]) {
        const [x, y] = [randomUUID(), randomUUID()]
        const asks = Array.from({ length }, (_, n) =>
          ask({
            key: n % 2 ? x : y,
            fingerprint: `f${n}`,
            recovery: { handler: `h${n}`, input: `${n}` },
          }),
        )
        const results = await store.insert(asks)
        for (const key of [x, y]) {
          const mine = asks.flatMap((a, n) => (a.key === key ? [{ a, result: results[n] }] : []))
          const made = mine.filter(({ result }) => result?.kind === 'made')
          t.equal(made.length, 1, `one of ${mine.length} in a list of ${length}`)
          const { operationId, fingerprint, recovery } = (made[0] as { a: Ask }).a
          const row = await records.findUnique(where(mine[0]?.a as Ask))
          t.match(row, { operationId, fingerprint, ...recovery, attempt: 1 })
          for (const { result } of mine) {
            if (result?.kind === 'seen') t.match(result.record, { operationId, fingerprint })
          }
        }
      }
    },
  )

  await t.test(
    'lists that name the same keys in other orders do not block each other',
    async (t) => {
      const asks = Array.from({ length: 20 }, () => ask())
      const results = await Promise.all(
        Array.from({ length: 10 }, (_, n) => store.insert(n % 2 ? asks : [...asks].reverse())),
      )
      t.equal(results.flat().filter(({ kind }) => kind === 'made').length, asks.length)
    },
  )

  await t.test('tenants, and keys that differ in case or a space, are apart', async (t) => {
    const a = ask({ key: `Key-${randomUUID()}` })
    for (const other of [
      a,
      { ...a, tenantId: 'ACME' },
      { ...a, tenantId: '' },
      { ...a, tenantId: 'ünïcode ✓' },
      { ...a, key: a.key.toUpperCase() },
      { ...a, key: `${a.key} ` },
      { ...a, key: 'k'.repeat(255) },
    ]) {
      t.match(await insert(other), { kind: 'made' }, JSON.stringify(other))
    }
  })

  await t.test('a response comes back as it was stored', async (t) => {
    for (const stored of [
      response(),
      response({ body: new Uint8Array(0), headers: {} }),
      response({ body: null }),
      response({ body: new Uint8Array(1024 * 1024).fill(0x5c), statusCode: 404 }),
      response({ headers: { 'x-odd': 'quote " backslash \\ comma , brace } ünï' } }),
    ]) {
      const a = ask()
      await insert(a)
      t.equal(await only(store.finish([{ ...held(a), response: stored }])), true)
      t.match(await seen(a), { status: 'completed', attempt: 1, operationId: a.operationId })
      const found = await responseOf(a)
      t.equal(found?.statusCode, stored.statusCode)
      t.strictSame(found?.headers, stored.headers)
      t.equal(found?.body === null, stored.body === null)
      t.ok(Buffer.from(found?.body ?? []).equals(stored.body ?? new Uint8Array()), 'byte for byte')
    }
  })

  await t.test('a body is read for the attempt that stored it, and for no other', async (t) => {
    const a = ask()
    await insert(a)
    const body = new Uint8Array(1024 * 1024).fill(0x5c)
    await store.finish([{ ...held(a), response: response({ body }) }])
    const read = { ...held(a), bytes: body.byteLength }
    const bodies = await store.readBodies([
      read,
      { ...read, operationId: randomUUID() },
      { ...read, attempt: 2 },
      { ...read, tenantId: 'other' },
      { ...read, key: randomUUID() },
    ])
    t.strictSame(
      bodies.map((found) => found?.byteLength),
      [body.byteLength, undefined, undefined, undefined, undefined],
    )
  })

  await t.test(
    'only the attempt that holds the record finishes it, and it ends in one way',
    async (t) => {
      const a = ask()
      await insert(a)
      const finish = (attempt: number, response_: StoredResponse | null) =>
        only(store.finish([{ ...held(a, attempt), response: response_ }]))
      t.equal(await finish(2, response()), false, 'an attempt that was never granted')
      const another = { ...held(a), operationId: randomUUID(), response: response() }
      t.equal(await only(store.finish([another])), false, 'another operation under the key')
      t.equal(await finish(1, response()), true)
      t.equal(await finish(1, response()), true, 'saying it again is fine: the reply may get lost')
      const bare = { statusCode: 500, headers: {}, body: null }
      t.equal(await finish(1, bare), true, 'the same, whatever it ends with this time')
      const kept = await responseOf(a)
      t.match(kept, { statusCode: 201, headers: response().headers }, 'the first response stays')
      t.ok(Buffer.from(kept?.body ?? []).equals(response().body ?? new Uint8Array()))
      t.equal(await finish(1, null), false, 'a completed record is not released')
      t.equal(await only(store.finish([{ ...held(ask()), response: null }])), false, 'no record')

      const released = ask()
      await insert(released)
      t.equal(await only(store.finish([{ ...held(released), response: null }])), true)
      t.equal(await only(store.finish([{ ...held(released), response: response() }])), false)
    },
  )

  await t.test('a lease that runs and a response that is kept are not taken over', async (t) => {
    const running = ask()
    const completed = ask()
    await store.insert([running, completed])
    await store.finish([{ ...held(completed), response: response() }])
    t.strictSame(
      await store.takeOver([
        takeOver(running, held(running, 1)),
        takeOver(completed, held(completed, 1)),
      ]),
      [undefined, undefined],
    )
    await move(completed, { leaseUntil: PAST })
    t.equal(await take(completed, 1), undefined)
    await move(running, { expiresAt: PAST })
    t.equal(await take(running, 1), undefined, 'a lease beats expiry')
  })

  for (const [name, free] of [
    ['released', (a: Ask) => store.finish([{ ...held(a), response: null }])],
    ['whose lease ran out', (a: Ask) => move(a, { leaseUntil: PAST })],
    [
      'that is expired',
      async (a: Ask) => {
        await store.finish([{ ...held(a), response: response() }])
        await move(a, { expiresAt: PAST })
      },
    ],
  ] as const) {
    await t.test(`a record ${name} is taken over by one of many`, async (t) => {
      const a = ask()
      await insert(a)
      await free(a)
      // An expired key names another operation; any other record is resumed by its next attempt.
      const isExpired = name === 'that is expired'
      const fingerprint = isExpired ? 'g' : 'f'
      const next = { ...ask({ key: a.key }), fingerprint }
      const taking = takeOver(next, held(a), !isExpired)
      t.equal(await take(a, 7, !isExpired, next), undefined, 'not at another attempt')
      const unseen = { ...taking, seen: { operationId: randomUUID(), attempt: 1 } }
      t.equal(await only(store.takeOver([unseen])), undefined, 'not as another operation')
      const other = { ...taking, fingerprint: 'other', resumed: true }
      t.equal(await only(store.takeOver([other])), undefined, 'not to be resumed with another body')
      if (!isExpired) t.equal(await take(a, 1, false, next), undefined, 'not as an expired one')
      // An attempt that was interrupted completed after all, and its key expired since it was seen.
      else t.equal(await take(a, 1, true), undefined, 'a completed operation is not resumed')
      const results = await Promise.all(Array.from({ length: 20 }, () => store.takeOver([taking])))
      t.equal(results.flat().filter(Boolean).length, 1)
      const token = isExpired
        ? { operationId: next.operationId, attempt: 1 }
        : { operationId: a.operationId, attempt: 2 }
      const record = await seen(a)
      t.match(record, { fingerprint, ...token, status: 'in_progress', isExpired: false })
      t.ok(record.leaseLeftMs > 20_000)
      t.equal(record.response, null)
      t.equal((await records.findUnique(where(a))).body, null, 'nothing is left of an old response')
      const late = { ...held(a), response: response() }
      t.equal(
        await only(store.finish([late])),
        false,
        'the attempt that was replaced writes nothing',
      )
      t.equal(await only(store.extend([held(a)])), false)
      t.equal(await only(store.forget([held(a)])), false)
      t.equal(await only(store.finish([{ ...a, ...token, response: response() }])), true)
    })
  }

  await t.test('a record says which process began its attempt, and when', async (t) => {
    const a = ask({ holder: 'first' })
    const startedAt = performance.now()
    const before = await insert(a).then(() => seen(a))
    // Both times are taken while the record is inserted, which may take long on a busy machine.
    const tookMs = performance.now() - startedAt
    t.match(before, { holder: 'first' })
    const { createdAt } = await records.findUnique(where(a))
    const apartMs = Math.abs(Number(before.since) - createdAt.getTime())
    t.ok(apartMs <= 5 + tookMs, 'by the database’s clock')
    await only(store.extend([{ ...held(a), leaseMs: 60_000 }]))
    t.strictSame((await seen(a)).since, before.since, 'a renewal changes nothing of it')
    await move(a, { leaseUntil: PAST, claimedAt: PAST })
    await take(a, 1, true, { ...a, holder: 'second' })
    const after = await seen(a)
    t.match(after, { holder: 'second', attempt: 2 })
    t.ok(Number(after.since) >= Number(before.since))
    await move(a, { leaseUntil: PAST, expiresAt: PAST })
    await take(a, 2, false, ask({ key: a.key, holder: 'third' }))
    t.match(await seen(a), { holder: 'third', attempt: 1 })
    const nameless = ask()
    await insert(nameless)
    t.equal((await seen(nameless)).holder, undefined)
  })

  await t.test('a lease that runs is taken over by force, by one of many', async (t) => {
    const a = ask({ holder: 'stuck' })
    await insert(a)
    await move(a, { steps: { charge: '1' } })
    const forced = { ...takeOver({ ...a, holder: 'operator' }, held(a)), forced: true }
    const otherAttempt = { ...forced, seen: held(a, 2) }
    t.equal(await only(store.takeOver([otherAttempt])), undefined, 'not at another attempt')
    const otherOperation = { ...forced, seen: { operationId: randomUUID(), attempt: 1 } }
    t.equal(await only(store.takeOver([otherOperation])), undefined, 'not as another operation')
    const otherBody = { ...forced, fingerprint: 'other' }
    t.equal(await only(store.takeOver([otherBody])), undefined, 'not with another body')
    const results = await Promise.all(Array.from({ length: 20 }, () => store.takeOver([forced])))
    t.strictSame(results.flat().filter(Boolean), [{ steps: { charge: '1' } }])
    t.match(await seen(a), { holder: 'operator', attempt: 2, status: 'in_progress' })
    t.equal(await only(store.extend([held(a)])), false, 'its holder keeps nothing')
    t.equal(await only(store.finish([{ ...held(a), response: response() }])), false)
    t.equal(await only(store.finish([{ ...held(a, 2), response: response() }])), true)
    const completed = { ...forced, seen: held(a, 2) }
    t.equal(await only(store.takeOver([completed])), undefined, 'a response stays')
  })

  await t.test('only the attempt that holds the record stores what it has done', async (t) => {
    const steps = { '["charge"]': '["ch_1"]', 'quote " and \\': '[{"ü":1},2]' }
    const [a, b, none] = [ask(), ask(), ask()]
    await store.insert([a, b])
    const of = async (a: Ask) => (await records.findUnique(where(a))).steps
    const keep = (a: Ask, attempt: number, results: object = steps) =>
      only(store.keepSteps([{ ...held(a, attempt), steps: { ...results } }]))
    const another = { ...held(b), operationId: randomUUID(), steps }
    const list = [another, { ...held(none), steps }, { ...held(a), steps }]
    t.strictSame(await store.keepSteps(list), [false, false, true], 'each is told for itself')
    t.strictSame(await of(a), steps)
    t.ok(isNothing(await of(b)), 'not of another operation under the key')
    t.equal(await keep(a, 1), true, 'saying it again is fine: the reply may get lost')
    t.equal(await keep(a, 1, { other: '[]' }), true)
    t.strictSame(await of(a), { other: '[]' }, 'all of them each time')
    await move(a, { leaseUntil: PAST })
    t.equal(await keep(a, 1), true, 'nobody came, so it is still its holder’s')
    t.strictSame(await take(a, 1), { steps })
    t.equal(await keep(a, 1, {}), false, 'taken over')
    t.equal(await keep(a, 2, { mine: '[]' }), true)
    await only(store.finish([{ ...held(a, 2), response: null }]))
    t.equal(await keep(a, 2), false, 'ended')
    t.strictSame(await of(a), { mine: '[]' })
  })

  await t.test('what was done step by step goes to the attempt that resumes it', async (t) => {
    const done = { charge: '["ch_1"]', 'quote " and \\': '[{"ü":1},2]' }
    const waiting = { steps: done, handler: 'settle', input: '["2026-11-22"]' }
    const a = ask()
    await insert(a)
    await move(a, waiting)
    await only(store.finish([{ ...held(a), response: null }]))
    t.match(await records.findUnique(where(a)), waiting, 'it may be resumed')
    t.strictSame(await take(a, 1), { steps: done }, 'released')

    await move(a, { ...waiting, leaseUntil: PAST })
    const list = [takeOver(ask(), held(ask())), takeOver(a, held(a, 2))]
    t.strictSame(await store.takeOver(list), [undefined, { steps: done }], 'its lease ran out')
    t.match(await records.findUnique(where(a)), waiting, 'it is still to be resumed')

    await only(store.finish([{ ...held(a, 3), response: response() }]))
    const { steps, handler, input } = await records.findUnique(where(a))
    t.strictSame([steps ?? {}, handler, input ?? {}], [{}, null, {}], 'a response is all of it')
    await move(a, { ...waiting, expiresAt: PAST })
    t.strictSame(
      await take(a, 3, false, ask({ key: a.key })),
      { steps: {} },
      'expired: another operation',
    )
    const fresh = await records.findUnique(where(a))
    t.strictSame([fresh.steps ?? {}, fresh.handler, fresh.input ?? {}], [{}, null, {}])
  })

  await t.test(
    'who is to finish it is noted with the claim, and stays until it is over',
    async (t) => {
      const settle = { handler: 'settle', input: '["quote \\" and ü"]' }
      const refund = { handler: 'refund', input: '[1]' }
      const a = ask()
      const noted = async () => {
        const { handler, input } = await records.findUnique(where(a))
        return { handler, input }
      }
      const nobody = { handler: null, input: null }
      const [first, second] = await store.insert([ask(), { ...a, recovery: settle }])
      t.match([first, second], [{ kind: 'made' }, { kind: 'made' }])
      t.strictSame(await noted(), settle)
      await insert({ ...a, recovery: refund })
      t.strictSame(await noted(), settle, 'of the first')
      await move(a, { leaseUntil: PAST })
      t.ok(await take(a, 1))
      t.strictSame(await noted(), settle, 'resumed')
      await move(a, { leaseUntil: PAST, expiresAt: PAST })
      const b = ask({ key: a.key, recovery: refund })
      t.ok(await take(a, 2, false, b))
      t.strictSame(await noted(), refund, 'another operation')
      await move(a, { leaseUntil: PAST, expiresAt: PAST })
      t.ok(await take(b, 1, false, ask({ key: a.key })))
      const { handler, input } = await noted()
      t.strictSame({ handler, input: isNothing(input) ? null : input }, nobody)
    },
  )

  await t.test('only the holder renews its lease, counted from now', async (t) => {
    const a = ask({ leaseMs: 1_000 })
    await insert(a)
    t.equal(await only(store.extend([{ ...held(a), leaseMs: 60_000 }])), true)
    const { leaseLeftMs } = await seen(a)
    t.ok(leaseLeftMs > 50_000 && leaseLeftMs <= 60_100)
    t.equal(await only(store.extend([{ ...held(a, 2), leaseMs: 60_000 }])), false)
    await store.finish([{ ...held(a), response: response() }])
    t.equal(await only(store.extend([{ ...held(a), leaseMs: 60_000 }])), false)
  })

  await t.test(
    'a record that is forgotten leaves nothing, and only its holder forgets it',
    async (t) => {
      const a = ask()
      await insert(a)
      t.equal(await only(store.forget([held(a, 2)])), false)
      t.equal(await only(store.forget([held(a)])), true)
      t.equal(await records.findUnique(where(a)), null)
      t.match(await insert(a), { kind: 'made' })
      await store.finish([{ ...held(a), response: response() }])
      t.equal(await only(store.forget([held(a)])), false, 'a completed one stays')
    },
  )

  await t.test('what is expired says so, whatever the clock of this process says', async (t) => {
    const { now } = Date
    t.teardown(() => {
      Date.now = now
    })
    for (const offMs of hasOwnClock ? [-3_600_000, 3_600_000] : [0]) {
      Date.now = () => now() + offMs
      const a = ask()
      await insert(a)
      const record = await seen(a)
      t.equal(record.isExpired, false)
      t.ok(record.leaseLeftMs > 20_000 && record.leaseLeftMs <= 30_100, `clock off by ${offMs}`)
      t.equal(await take(a, 1), undefined)
    }
    Date.now = now
    const expired = ask()
    await insert(expired)
    await move(expired, { expiresAt: PAST })
    t.equal((await seen(expired)).isExpired, true)
  })

  await t.test(
    'prune deletes what is expired, no more at a time than asked, and nothing else',
    async (t) => {
      await records.deleteMany({})
      const expired = Array.from({ length: 25 }, () => ask())
      const running = ask()
      const kept = ask()
      await store.insert([...expired, running, kept])
      await store.finish([...expired, kept].map((a) => ({ ...held(a), response: response() })))
      for (const a of [...expired, running]) await move(a, { expiresAt: PAST })
      t.equal(await store.prune(10), 10)
      const counts = await Promise.all([store.prune(10), store.prune(10), store.prune(10)])
      const rest = await store.prune(100)
      t.equal(
        counts.reduce((a, b) => a + b, rest),
        15,
        'side by side, each row is deleted once',
      )
      const left: { key: string }[] = await records.findMany({})
      t.strictSame(left.map(({ key }) => key).sort(), [running.key, kept.key].sort())
      await move(running, { leaseUntil: PAST })
      t.equal(await store.prune(10), 1, 'a lease that ran out holds nothing')
    },
  )

  await t.test(
    'a unique constraint other than the key is no duplicate, but an error',
    async (t) => {
      await records.deleteMany({})
      await sql('CREATE UNIQUE INDEX other_constraint ON idempotency_record (fingerprint)')
      try {
        t.match(await insert(ask({ fingerprint: 'same' })), { kind: 'made' })
        await t.rejects(store.insert([ask({ fingerprint: 'same' })]))
      } finally {
        await records.deleteMany({})
        await sql(dropIndex('other_constraint', 'idempotency_record'))
      }
    },
  )
}
