// What every store of webhook events promises, run against each of them on each database.
import { createHash, randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import { KEPT_DELIVERIES, KEPT_ERRORS, NOT_ENDED } from '../../src/core/event.js'
import type { ModelDelegate } from '../../src/store/client.js'
import type {
  Arrival,
  EventStore,
  Recorded,
  RunEnd,
  StoredEvent,
} from '../../src/store/event-store.js'
import type { Way } from '../fixtures/ways.js'

export interface EventStoreUnderTest extends Pick<Way, 'sql' | 'dropIndex' | 'hasOwnClock'> {
  readonly store: EventStore
  /** The same table, for looking at it and for moving its times. */
  readonly events: ModelDelegate
}

const PAST = new Date('2001-01-01T00:00:00Z')
const FUTURE = new Date('2101-01-01T00:00:00Z')
const LEASE_MS = 30_000
const SERVED = { names: ['stripe', 'github'], leasesMs: [LEASE_MS, 60_000] }

const hash = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')

const arrival = (over: Partial<Arrival> = {}): Arrival => {
  const payload = over.payload ?? Buffer.from(randomUUID())
  return {
    id: randomUUID(),
    tenantId: 'acme',
    provider: 'stripe',
    eventId: randomUUID(),
    endpoint: 'stripe',
    type: 'payment.succeeded',
    headers: { 'content-type': 'application/json' },
    bodyHash: hash(payload),
    lane: null,
    status: 'received',
    awaitsDelivery: false,
    dueInMs: 0,
    errors: [],
    ...over,
    payload,
  }
}

const processing = (over: Partial<Arrival> = {}) =>
  arrival({ status: 'processing', dueInMs: LEASE_MS, ...over })

/** Another delivery of the same event. */
const again = (a: Arrival, over: Partial<Arrival> = {}): Arrival => ({
  ...a,
  id: randomUUID(),
  ...over,
})

const ending = (run: { id: string; fence: number }, over: Partial<RunEnd> = {}): RunEnd => ({
  id: run.id,
  fence: run.fence,
  status: 'processed',
  isAcknowledged: false,
  dueInMs: 86_400_000,
  attempts: 1,
  deferrals: 0,
  errors: [],
  wakes: null,
  ...over,
})

const many = <T>(count: number, make: (n: number) => T) =>
  Array.from({ length: count }, (_, n) => make(n))
const only = async <T>(results: Promise<T[]>) => (await results)[0] as T
const isNear = (ms: number | null, expected: number) =>
  ms !== null && ms > expected - 10_000 && ms <= expected + 1_000

export async function eventStoreContract(
  t: Test,
  { store, events, sql, dropIndex, hasOwnClock }: EventStoreUnderTest,
): Promise<void> {
  const record = (a: Arrival) => only(store.record([a]))
  const end = (e: RunEnd) => only(store.end([e]))
  const move = (id: string, data: object) => events.updateMany({ where: { id }, data })
  const row = (id: string) => events.findUnique({ where: { id } })
  const found = async (id: string) => {
    const event = await store.find(id)
    if (event === undefined) throw new Error('the event is gone')
    return event
  }
  const ids = (list: readonly { id: string }[]) => list.map(({ id }) => id)
  // Each test has the queue for itself.
  const test = (name: string, run: (t: Test) => Promise<void>) =>
    t.test(name, async (t) => {
      await events.deleteMany({})
      await run(t)
    })

  await test('the first delivery makes the event, later ones are counted', async (t) => {
    const a = arrival()
    const first = await record(a)
    t.match(first, { id: a.id, isNew: true, status: 'received', fence: 0, attempts: 0 })
    t.match(first, { deliveries: 1, sameBodyAs: null })
    t.ok(first.dueInMs !== null && Math.abs(first.dueInMs) < 10_000)
    const other = { payload: Buffer.from('other'), endpoint: 'github', type: null, headers: {} }
    const second = await record(again(a, other))
    t.match(second, { id: a.id, isNew: false, status: 'received', deliveries: 2, sameBodyAs: null })
    t.strictSame(second.receivedAt, first.receivedAt)
    const { deliveredAt, receivedAt, payload, ...stored } = await found(a.id)
    const { status: _, dueInMs: __, payload: sent, ...kept } = a
    t.strictSame(stored, {
      ...kept,
      ...{ status: 'received', fence: 0, attempts: 0, deferrals: 0, deliveries: 2 },
      ...{ sameBodyAs: null, otherBodies: 0, awaitsDelivery: false, steps: {}, errors: [] },
    })
    t.ok(Buffer.from(payload).equals(sent), 'the bytes of the first delivery')
    t.strictSame(receivedAt, first.receivedAt)
    t.equal(deliveredAt.length, 2)
    t.equal(await events.findMany({}).then((rows: unknown[]) => rows.length), 1)
  })

  await test('each event may start in its own way', async (t) => {
    for (const [status, dueInMs] of [
      ['received', 60_000],
      ['processed', 60_000],
      ['ignored', 60_000],
      ['dead', null],
    ] as const) {
      const a = arrival({ status, dueInMs })
      const made = await record(a)
      t.match(made, { isNew: true, status, fence: 0, attempts: 0 }, status)
      t.ok(dueInMs === null ? made.dueInMs === null : isNear(made.dueInMs, dueInMs), status)
      t.equal((await row(a.id)).dueAt === null, dueInMs === null)
      t.match(await record(again(a)), { isNew: false, status, deliveries: 2 })
    }
    const running = processing({ lane: 'l' })
    const made = await record(running)
    t.match(made, { isNew: true, status: 'processing', fence: 1, attempts: 1 })
    t.ok(isNear(made.dueInMs, LEASE_MS))
    t.equal((await row(running.id)).runningLane, 'l')
    const seen = await record(again(running))
    t.match(seen, { isNew: false, status: 'processing', fence: 1, attempts: 1 })
    t.ok(isNear(seen.dueInMs, LEASE_MS), 'a duplicate is told the rest of the lease')
  })

  await test('of 50 deliveries at once one is new, and all are counted, with their times', async (t) => {
    const a = processing({ lane: 'l' })
    const results = await Promise.all(many(50, () => record(again(a))))
    const made = results.filter(({ isNew }) => isNew)
    t.equal(made.length, 1)
    t.strictSame(new Set(ids(results)).size, 1, 'all are told the same event')
    t.strictSame(
      results.map(({ deliveries }) => deliveries).sort((x, y) => x - y),
      many(50, (n) => n + 1),
    )
    const event = await found((made[0] as Recorded).id)
    t.match(event, { deliveries: 50, fence: 1, attempts: 1, status: 'processing' })
    t.equal(event.deliveredAt.length, KEPT_DELIVERIES)
  })

  await test('the times of the last twenty deliveries are kept, in their order', async (t) => {
    const a = arrival()
    for (let n = 0; n < 3; n += 1) await record(again(a))
    const id = (await record(again(a))).id
    const { deliveredAt, receivedAt } = await found(id)
    t.equal(deliveredAt.length, 4)
    t.strictSame(deliveredAt, [...deliveredAt].sort())
    for (const time of deliveredAt) t.match(time, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
    t.ok(Math.abs(Date.parse(deliveredAt[0] as string) - receivedAt.getTime()) < 5_000)
    const marked = many(KEPT_DELIVERIES, (n) => `2001-01-01T00:00:${10 + n}.000Z`)
    await move(id, { deliveredAt: marked })
    t.equal((await record(again(a))).deliveries, 5)
    const later = (await found(id)).deliveredAt
    t.equal(later.length, KEPT_DELIVERIES)
    t.strictSame(later.slice(0, -1), marked.slice(1))
  })

  await test('the same event many times in one list is one, each delivery with its number', async (t) => {
    const [a, b] = [arrival(), processing()]
    const list = [a, b, again(a), again(a), again(b)]
    const results = await store.record(list)
    for (const [places, { id, status }] of [
      [[0, 2, 3], a],
      [[1, 4], b],
    ] as const) {
      const told = places.map((place) => results[place] as Recorded)
      t.equal(told.filter(({ isNew }) => isNew).length, 1)
      const made = told.find(({ isNew }) => isNew) as Recorded
      if (store.combinesLists) t.equal(made.id, id, 'the first of them')
      t.ok(told.every((one) => one.id === made.id && one.status === status))
      t.strictSame(
        told.map(({ deliveries }) => deliveries).sort(),
        places.map((_, n) => n + 1),
      )
      const event = await found(made.id)
      t.equal(event.deliveries, places.length)
      t.equal(event.deliveredAt.length, places.length)
    }
    const more = await store.record(many(25, () => again(a)))
    t.ok(more.every(({ isNew }) => !isNew))
    t.strictSame(
      more.map(({ deliveries }) => deliveries).sort((x, y) => x - y),
      many(25, (n) => n + 4),
    )
    const event = await found((more[0] as Recorded).id)
    t.equal(event.deliveries, 28)
    t.equal(event.deliveredAt.length, KEPT_DELIVERIES)
  })

  await test('lists that name the same events in other orders do not block each other', async (t) => {
    const list = many(10, (n) => processing(n % 2 ? { lane: `lane ${n % 5}` } : {}))
    const results = await Promise.all(
      many(5, (n) => store.record((n % 2 ? list : [...list].reverse()).map((a) => again(a)))),
    )
    t.equal(results.flat().filter(({ isNew }) => isNew).length, list.length)
    const rows: { deliveries: number; runningLane: string | null }[] = await events.findMany({})
    t.equal(rows.length, list.length)
    t.ok(rows.every(({ deliveries }) => deliveries === 5))
    t.equal(rows.filter(({ runningLane }) => runningLane !== null).length, 5, 'one of each lane')
  })

  await test('events without a name are never merged', async (t) => {
    const payload = Buffer.from('the same')
    const nameless = many(20, () => arrival({ eventId: null, payload }))
    const results = [
      ...(await store.record(nameless.slice(0, 10))),
      ...(await Promise.all(nameless.slice(10).map(record))),
    ]
    t.ok(results.every(({ isNew, deliveries }) => isNew && deliveries === 1))
    t.strictSame(ids(results), ids(nameless))
    t.equal((await events.findMany({})).length, 20)
  })

  await test('tenants, providers and names that differ in case or a space, are apart', async (t) => {
    const a = arrival({ eventId: `Evt-${randomUUID()}` })
    const name = a.eventId as string
    const others = [
      a,
      again(a, { tenantId: 'ACME' }),
      again(a, { tenantId: '' }),
      again(a, { tenantId: 'ünïcode ✓' }),
      again(a, { provider: 'Stripe' }),
      again(a, { eventId: name.toUpperCase() }),
      again(a, { eventId: `${name} ` }),
      again(a, { eventId: 'e'.repeat(255) }),
      again(a, { eventId: '' }),
      again(a, { eventId: '["quotes", \'and\', {braces}, \\, NULL]' }),
    ]
    for (const other of others) {
      t.match(await record(other), { isNew: true, id: other.id }, JSON.stringify(other.eventId))
    }
    for (const { id, tenantId, provider, eventId } of others) {
      const event = await store.find({ tenantId, provider, eventId: eventId as string })
      t.equal(event?.id, id, `found by its name ${eventId}`)
      t.equal((await found(id)).eventId, eventId)
    }
    t.equal(await store.find({ tenantId: 'acme', provider: 'stripe', eventId: 'none' }), undefined)
    t.equal(await store.find(randomUUID()), undefined)
  })

  await test('bytes and headers come back as they came', async (t) => {
    for (const payload of [
      Uint8Array.from({ length: 256 }, (_, n) => n),
      new Uint8Array(0),
      new Uint8Array(1024 * 1024).fill(0x5c),
      Buffer.from('xxinsidexx').subarray(2, 8),
    ]) {
      const headers = {
        'x-odd': 'quote " backslash \\ comma , brace } ünï ✓ \t',
        'x-empty': '',
        'stripe-signature': 't=1,v1=00',
      }
      const a = processing({ payload, headers })
      await record(a)
      const event = await found(a.id)
      t.ok(Buffer.from(event.payload).equals(payload), `${payload.length} bytes`)
      t.ok(event.payload instanceof Uint8Array)
      t.strictSame(event.headers, headers)
      await move(a.id, { dueAt: PAST })
      const claimed = await store.claim(a.id, LEASE_MS)
      t.ok(Buffer.from(claimed?.payload ?? []).equals(payload))
      t.strictSame(claimed?.headers, headers)
    }
  })

  await test('the same bytes under another name are told, of the same tenant and provider', async (t) => {
    const payload = Buffer.from(randomUUID())
    const a = arrival({ payload })
    t.equal((await record(a)).sameBodyAs, null)
    t.equal((await record(again(a))).sameBodyAs, null, 'a redelivery is not another name')
    for (const other of [{ tenantId: 'other' }, { provider: 'other' }]) {
      t.equal((await record(again(a, other))).sameBodyAs, null, JSON.stringify(other))
    }
    const copy = again(a, { eventId: randomUUID() })
    t.equal((await record(copy)).sameBodyAs, a.id)
    t.equal((await found(copy.id)).sameBodyAs, a.id, 'and kept')
    t.equal((await record(again(copy))).sameBodyAs, null, 'only the first delivery is told')
    t.equal((await found(copy.id)).sameBodyAs, a.id)
    const nameless = again(a, { eventId: null })
    t.ok([a.id, copy.id].includes((await record(nameless)).sameBodyAs ?? ''))
    const other = arrival({ eventId: null })
    t.equal((await record(other)).sameBodyAs, null)
    t.equal((await record(again(other))).sameBodyAs, other.id, 'two without a name')
    for (let event = 0; event < 2; event += 1) {
      const empty = arrival({ payload: Buffer.alloc(0) })
      t.equal((await record(empty)).sameBodyAs, null, 'no body is like no other')
    }
    if (store.combinesLists) {
      const [x, y] = [arrival(), arrival()]
      const twin = again(x, { eventId: randomUUID() })
      const told = await store.record([x, y, again(a), again(x), twin])
      t.strictSame(
        told.map(({ sameBodyAs }) => sameBodyAs),
        [null, null, null, null, x.id],
        'in one list, too',
      )
    }
  })

  await test('deliveries with other bytes than the first are told and counted', async (t) => {
    const a = arrival({ bodyHash: 'first' })
    const other = (bodyHash: string) => again(a, { bodyHash })
    t.equal((await record(a)).bodyHash, 'first')
    t.match(await record(other('first')), { isNew: false, bodyHash: 'first' })
    t.equal((await found(a.id)).otherBodies, 0)
    t.match(await record(other('second')), { isNew: false, bodyHash: 'first' })
    // Of the row, too: nothing of it changes.
    t.equal((await found(a.id)).otherBodies, 1)
    const told = await store.record([
      other('first'),
      other('third'),
      other('third'),
      other('first'),
    ])
    t.strictSame([...new Set(told.map(({ bodyHash }) => bodyHash))], ['first'])
    t.match(await found(a.id), { otherBodies: 3, deliveries: 7 })
    // Those that make the row, in one list: any of them may be the first.
    const b = arrival({ bodyHash: 'first' })
    const made = await store.record([b, again(b, { bodyHash: 'second' }), again(b)])
    const { id, bodyHash } = made[0] as Recorded
    t.match(await found(id), { bodyHash, deliveries: 3, otherBodies: bodyHash === 'first' ? 1 : 2 })
    t.match(made, [{ bodyHash }, { bodyHash }, { bodyHash }])
  })

  const awaiting = (over: Partial<Arrival> = {}) => processing({ awaitsDelivery: true, ...over })
  const failing = { status: 'retrying', dueInMs: 5_000 } as const
  const dueAtOf = async (id: string) => ((await row(id)) as { dueAt: Date | null }).dueAt

  await test('one that awaits a delivery is due only while it runs', async (t) => {
    const a = awaiting()
    await record(a)
    t.match(await dueAtOf(a.id), Date, 'a lease runs out')
    t.match(await found(a.id), { awaitsDelivery: true })
    const end = ending({ id: a.id, fence: 1 }, failing)
    t.strictSame(await store.end([end]), [true])
    t.equal(await dueAtOf(a.id), null)
    t.strictSame(await store.end([end]), [true], 'said again')
    t.equal(await dueAtOf(a.id), null)
    t.match(await record(again(a)), { isNew: false, status: 'retrying', dueInMs: null })
    t.equal(await dueAtOf(a.id), null, 'its next delivery runs it')
    t.match(await store.claim(a.id, LEASE_MS), { fence: 2, awaitsDelivery: true })
    t.strictSame(await store.end([ending({ id: a.id, fence: 2 })]), [true])
    t.match(await dueAtOf(a.id), Date, 'when it is pruned')
  })

  await test('one that is acknowledged awaits no delivery any more', async (t) => {
    const [a, b] = [awaiting(), awaiting()]
    await store.record([a, b])
    const ends = [
      ending({ id: a.id, fence: 1 }, { ...failing, isAcknowledged: true }),
      ending({ id: b.id, fence: 1 }, failing),
    ]
    for (const _ of ['once', 'said again']) t.strictSame(await store.end(ends), [true, true])
    t.match(await dueAtOf(a.id), Date)
    t.match(await found(a.id), { awaitsDelivery: false })
    t.equal(await dueAtOf(b.id), null)
    // Nor is it awaited after the next failure.
    const run = (await store.claim(a.id, LEASE_MS)) as StoredEvent
    t.strictSame(await store.end([ending(run, failing)]), [true])
    t.match(await dueAtOf(a.id), Date)
    t.match(await record(again(a, { awaitsDelivery: true })), { isNew: false })
    t.match(await found(a.id), { awaitsDelivery: false }, 'what was acknowledged stays so')
  })

  await test('a delivery that is acknowledged makes the event due, before or after its run ends', async (t) => {
    const [failed, running, both] = [awaiting(), awaiting(), awaiting()]
    await store.record([failed, running, both])
    await store.end([ending({ id: failed.id, fence: 1 }, failing)])
    const lease = await dueAtOf(running.id)
    const acknowledged = { awaitsDelivery: false, status: 'received', dueInMs: 0 } as const
    await store.record([
      again(failed, acknowledged),
      again(running, acknowledged),
      again(both),
      again(both, acknowledged),
    ])
    t.match(await store.find(failed.id), { status: 'retrying', awaitsDelivery: false })
    t.match(await dueAtOf(failed.id), Date)
    t.strictSame(await dueAtOf(running.id), lease, 'its lease is as it was')
    await store.end([
      ending({ id: running.id, fence: 1 }, failing),
      ending({ id: both.id, fence: 1 }, failing),
    ])
    for (const { id } of [running, both]) t.match(await dueAtOf(id), Date)
    t.equal((await found(both.id)).deliveries, 3)
  })

  await test('one that is reopened awaits no delivery any more', async (t) => {
    const a = awaiting()
    await record(a)
    await store.end([ending({ id: a.id, fence: 1 }, failing)])
    t.equal(await store.reopen(a.id, false, null), true)
    t.match(await store.claim(a.id, LEASE_MS), { awaitsDelivery: false })
    t.strictSame(await store.end([ending({ id: a.id, fence: 2 }, failing)]), [true])
    t.match(await dueAtOf(a.id), Date)
  })

  await test('an event without a lane is reopened in one, and keeps it afterwards', async (t) => {
    const a = arrival({ status: 'dead', dueInMs: null, lane: null })
    await record(a)
    t.equal(await store.reopen(a.id, false, 'lane-1'), true)
    t.equal((await found(a.id)).lane, 'lane-1')
    t.equal(await store.reopen(a.id, false, null), true)
    t.equal((await found(a.id)).lane, 'lane-1', 'the one that it has')
  })

  await test('a unique constraint other than the name is no duplicate, but an error', async (t) => {
    await sql('CREATE UNIQUE INDEX other_constraint ON webhook_event (endpoint)')
    try {
      t.match(await record(arrival({ endpoint: 'same' })), { isNew: true })
      await t.rejects(store.record([arrival({ endpoint: 'same' })]))
      await t.rejects(store.record([arrival({ endpoint: 'same', eventId: null })]))
      await t.rejects(store.record([processing({ endpoint: 'same', lane: 'l' })]))
    } finally {
      await events.deleteMany({})
      await sql(dropIndex('other_constraint', 'webhook_event'))
    }
  })

  await test('a run that left no word is kept as an error, once the next one begins', async (t) => {
    for (const start of [
      (id: string) => store.claim(id, LEASE_MS),
      async () => (await store.claimDue(100, SERVED)).at(-1),
    ]) {
      const a = processing()
      await record(a)
      await move(a.id, { dueAt: PAST })
      const second = await start(a.id)
      const lost = { attempt: 1, at: /^\d{4}-.*T.*\.\d{3}Z$/, message: NOT_ENDED }
      t.match(second, { id: a.id, fence: 2, errors: [lost] })
      t.equal(second?.errors.length, 1)
      const failed = { attempt: 2, at: new Date(0).toISOString(), message: 'Error: broken' }
      await end(
        ending(
          { id: a.id, fence: 2 },
          { status: 'retrying', dueInMs: 0, errors: [...(second?.errors ?? []), failed] },
        ),
      )
      await move(a.id, { dueAt: PAST })
      // It failed, and said so.
      t.match(await start(a.id), { fence: 3, errors: [lost, failed] })
      t.equal((await found(a.id)).errors.length, 2)
      for (let fence = 4; fence <= 14; fence += 1) {
        await move(a.id, { dueAt: PAST })
        t.equal((await start(a.id))?.fence, fence)
      }
      const { errors } = await found(a.id)
      t.equal(errors.length, KEPT_ERRORS)
      t.match(errors.at(-1), { attempt: 13, message: NOT_ENDED })
      await end(ending({ id: a.id, fence: 14 }))
    }
  })

  await test('an event whose lane is running waits, and is as due', async (t) => {
    const first = processing({ lane: 'l' })
    await record(first)
    const second = processing({ lane: 'l' })
    const waiting = await record(second)
    t.match(waiting, { isNew: true, status: 'received', fence: 0, attempts: 0 })
    t.ok(isNear(waiting.dueInMs, LEASE_MS))
    t.equal((await row(second.id)).runningLane, null)
    t.match(await record(processing({ lane: 'other' })), { status: 'processing' })
    t.match(await record(processing()), { status: 'processing' }, 'no lane, no waiting')
    t.match(await record(again(first)), { isNew: false, status: 'processing' }, 'itself')
    await end(ending({ id: first.id, fence: 1 }))
    t.match(await record(processing({ lane: 'l' })), { status: 'processing' }, 'free again')
  })

  await test('of one lane in one list, or of 30 at once, only one starts', async (t) => {
    const listed = await store.record(many(5, () => processing({ lane: 'l' })))
    t.ok(listed.every(({ isNew }) => isNew))
    t.equal(listed.filter(({ status }) => status === 'processing').length, 1)
    if (store.combinesLists) t.equal(listed[0]?.status, 'processing', 'the first of the list')
    const parallel = await Promise.all(
      many(30, (n) => record(processing({ lane: 'm', ...(n % 2 ? { eventId: null } : {}) }))),
    )
    t.ok(parallel.every(({ isNew }) => isNew))
    t.equal(parallel.filter(({ status }) => status === 'processing').length, 1)
    if (store.combinesLists) {
      const known = arrival({ lane: 'n' })
      await record(known)
      const told = await store.record([
        again(known, { status: 'processing' }),
        arrival({ lane: 'n' }),
        processing({ lane: 'n' }),
        processing({ lane: 'n' }),
      ])
      t.strictSame(
        told.map(({ status }) => status),
        ['received', 'received', 'processing', 'received'],
        'one that is known, or does not ask to start, keeps nobody from it',
      )
    }
  })

  await test('what is due is claimed in its order, each by its own lease', async (t) => {
    const lane = (n: number) => (n === 3 ? null : `lane ${(n * 5) % 7}`)
    const list = many(6, (n) => arrival({ endpoint: n % 2 ? 'github' : 'stripe', lane: lane(n) }))
    await store.record(list)
    for (const [n, { id }] of list.entries()) await move(id, { dueAt: new Date(+PAST - n * 1_000) })
    const claimed = await store.claimDue(4, SERVED)
    t.strictSame(ids(claimed), ids([...list].reverse()).slice(0, 4))
    for (const event of claimed) {
      t.match(event, { status: 'processing', fence: 1, attempts: 1 })
      const { dueInMs } = await record(again(list.find(({ id }) => id === event.id) as Arrival))
      t.ok(isNear(dueInMs, event.endpoint === 'github' ? 60_000 : LEASE_MS), event.endpoint)
    }
    t.strictSame(ids(await store.claimDue(4, SERVED)), [list[1]?.id, list[0]?.id])
    t.strictSame(await store.claimDue(4, SERVED), [], 'a lease that runs is nobody else’s')
    t.strictSame(await store.claimDue(0, SERVED), [])
    const { payload, deliveredAt, receivedAt, ...event } = claimed[0] as StoredEvent
    const { payload: _, status: __, dueInMs: ___, ...sent } = list[5] as Arrival
    t.strictSame(event, {
      ...sent,
      ...{ status: 'processing', fence: 1, attempts: 1, deferrals: 0, deliveries: 1 },
      ...{ sameBodyAs: null, otherBodies: 0, awaitsDelivery: false, steps: {}, errors: [] },
    })
    t.ok(Buffer.from(payload).equals(list[5]?.payload ?? Buffer.from('')))
    t.equal(deliveredAt.length, 1)
    t.ok(receivedAt instanceof Date)
  })

  await test('only what is due, may run and is served is claimed or listed', async (t) => {
    const make = async (over: Partial<Arrival>, data: object = {}) => {
      const a = arrival(over)
      await record(a)
      await move(a.id, { dueAt: PAST, ...data })
      return a.id
    }
    const free = [
      await make({}),
      await make({}, { status: 'retrying', attempts: 3, fence: 3 }),
      await make({ status: 'processing' }),
    ]
    for (const status of ['processed', 'ignored', 'dead'] as const) await make({ status })
    await make({ status: 'dead' }, { dueAt: null })
    await make({ endpoint: 'of another application' })
    await make({}, { dueAt: FUTURE })
    await make({}, { dueAt: FUTURE, status: 'retrying' })
    await make({ status: 'processing' }, { dueAt: FUTURE })
    const listed = await store.listDue(10, SERVED)
    t.strictSame(ids(listed).sort(), [...free].sort())
    t.strictSame(listed.map(({ fence }) => fence).sort(), [0, 1, 3])
    t.equal((await store.listDue(2, SERVED)).length, 2)
    const claimed = await store.claimDue(10, SERVED)
    t.strictSame(ids(claimed).sort(), [...free].sort())
    t.strictSame(claimed.map(({ fence }) => fence).sort(), [1, 2, 4])
    t.strictSame(claimed.map(({ attempts }) => attempts).sort(), [1, 2, 4])
    t.strictSame(await store.listDue(10, SERVED), [])
    t.strictSame(await store.claimDue(10, { names: [], leasesMs: [] }), [], 'nothing is served')
  })

  await test('20 who claim at the same time get each event once', async (t) => {
    const list = many(60, () => arrival())
    await store.record(list)
    const claims = (await Promise.all(many(20, () => store.claimDue(5, SERVED)))).flat()
    while (claims.length < 60) {
      const more = await store.claimDue(60, SERVED)
      if (more.length === 0) break
      claims.push(...more)
    }
    t.strictSame(ids(claims).sort(), ids(list).sort())
    t.ok(claims.every(({ fence, attempts }) => fence === 1 && attempts === 1))
  })

  await test('of 20 who claim an event that may run, one gets it', async (t) => {
    for (const data of [
      { status: 'received' },
      { status: 'received', dueAt: FUTURE },
      { status: 'retrying', dueAt: FUTURE },
      { status: 'processing', dueAt: PAST, runningLane: 'l' },
    ]) {
      await events.deleteMany({})
      const a = arrival({ lane: 'l' })
      await record(a)
      await move(a.id, data)
      const claims = await Promise.all(many(20, () => store.claim(a.id, LEASE_MS)))
      const claimed = claims.filter((claim) => claim !== undefined)
      t.equal(claimed.length, 1, JSON.stringify(data))
      t.match(claimed[0], { id: a.id, status: 'processing', fence: 1, attempts: 1 })
      t.ok(isNear((await record(again(a))).dueInMs, LEASE_MS))
      t.equal((await row(a.id)).runningLane, 'l')
      t.ok(await end(ending({ id: a.id, fence: 1 })), 'with the fence that was told')
    }
    for (const status of ['processed', 'ignored', 'dead', 'processing'] as const) {
      const a = arrival({ status, dueInMs: 60_000 })
      await record(a)
      t.equal(await store.claim(a.id, LEASE_MS), undefined, status)
    }
    t.equal(await store.claim(randomUUID(), LEASE_MS), undefined)
  })

  await test('a claim sees the steps that were written just before', async (t) => {
    const a = processing()
    await record(a)
    const steps = { charge: { id: 'ch_1', amounts: [1, 2] } }
    await move(a.id, { steps, dueAt: PAST })
    t.strictSame((await store.claimDue(1, SERVED))[0]?.steps, steps)
    const more = { ...steps, mail: null }
    await move(a.id, { steps: more, dueAt: PAST })
    t.strictSame((await store.claim(a.id, LEASE_MS))?.steps, more)
    t.strictSame((await found(a.id)).steps, more)
  })

  await test('of a lane one event runs at a time, however many claim', async (t) => {
    const lanes = ['a', 'b', 'c']
    await store.record(lanes.flatMap((lane) => many(8, () => arrival({ lane }))))
    await store.record(many(4, () => arrival()))
    const running = new Set<string>()
    const runs = new Map<string, number>()
    let overlaps = 0
    const worker = async () => {
      for (let idle = 0; idle < 5; ) {
        const claimed = await store.claimDue(4, SERVED)
        idle = claimed.length === 0 ? idle + 1 : 0
        const own = claimed.flatMap(({ lane }) => lane ?? [])
        if (new Set(own).size < own.length) overlaps += 1
        for (const lane of own) {
          if (running.has(lane)) overlaps += 1
          running.add(lane)
        }
        await new Promise((resolve) => setTimeout(resolve, 1))
        for (const { id, fence, lane } of claimed) {
          runs.set(id, (runs.get(id) ?? 0) + 1)
          if (lane !== null) running.delete(lane)
          t.equal(await end(ending({ id, fence })), true)
        }
      }
    }
    await Promise.all(many(6, worker))
    t.equal(overlaps, 0, 'never two of one lane')
    t.equal(runs.size, 28, 'all are run')
    t.ok([...runs.values()].every((count) => count === 1))
  })

  await test('many of one lane at the head keep nobody from being claimed', async (t) => {
    const others = [arrival(), arrival({ lane: 'own' }), arrival()]
    // Not recorded: with Prisma alone that is one by one.
    const waiting = (lane: string) => {
      const { dueInMs: _, ...stored } = arrival({ lane })
      return { ...stored, dueAt: PAST, receivedAt: PAST, deliveredAt: [], steps: {}, errors: [] }
    }
    const blocked = many(300, () => waiting('blocked'))
    await events.createMany({ data: [...blocked, ...many(300, () => waiting('idle'))] })
    await store.record([processing({ lane: 'blocked' }), ...others])
    for (const { id } of others) await move(id, { dueAt: new Date(+PAST + 1_000) })
    t.equal((await store.listDue(10, SERVED)).length, 4, 'one stands for its lane')
    const claimed = await store.claimDue(10, SERVED)
    t.strictSame(
      claimed.map(({ lane }) => lane ?? '').sort(),
      ['', '', 'idle', 'own'],
      'one of the idle lane, none of the blocked one',
    )
    t.strictSame(await store.claimDue(10, SERVED), [])
  })

  await test('a crashed run holds its lane until it is run again, and nothing else', async (t) => {
    const [first, second] = [processing({ lane: 'l' }), arrival({ lane: 'l' })]
    await store.record([first, second])
    await move(second.id, { dueAt: PAST })
    t.equal(await store.claim(second.id, LEASE_MS), undefined)
    t.strictSame(await store.claimDue(10, SERVED), [], 'while the lease runs')
    // Due after the one that waits: it comes first all the same.
    await move(first.id, { dueAt: new Date(+PAST + 60_000) })
    t.equal(await store.claim(second.id, LEASE_MS), undefined, 'while its holder may be run again')
    t.strictSame(ids(await store.listDue(10, SERVED)), [first.id])
    const [claimed, ...more] = await store.claimDue(10, SERVED)
    t.match(claimed, { id: first.id, fence: 2, attempts: 2 })
    t.strictSame(more, [])
    t.equal(await end(ending({ id: first.id, fence: 1 })), false, 'too late')
    t.equal((await row(first.id)).runningLane, 'l', 'and the lane stays taken')
    t.equal(await end(ending({ id: first.id, fence: 2 })), true)
    t.match(await store.claim(second.id, LEASE_MS), { id: second.id, fence: 1 })
  })

  await test('one that waits for its next attempt leaves its lane to others', async (t) => {
    const [first, second] = [processing({ lane: 'l' }), arrival({ lane: 'l' })]
    await store.record([first, second])
    t.equal(
      await end(ending({ id: first.id, fence: 1 }, { status: 'retrying', dueInMs: 60_000 })),
      true,
    )
    t.equal((await row(first.id)).runningLane, null)
    t.strictSame(ids(await store.claimDue(10, SERVED)), [second.id])
    t.equal(await store.claim(first.id, LEASE_MS), undefined, 'its lane is running')
    await end(ending({ id: second.id, fence: 1 }))
    t.match(await store.claim(first.id, LEASE_MS), { fence: 2, attempts: 2 })
  })

  await test('of 20 who claim the events of one lane, one gets one', async (t) => {
    const list = many(20, () => arrival({ lane: 'l' }))
    await store.record(list)
    const claims = await Promise.all(list.map(({ id }) => store.claim(id, LEASE_MS)))
    t.equal(claims.filter((claim) => claim !== undefined).length, 1)
    const rows: { status: string }[] = await events.findMany({ where: { status: 'processing' } })
    t.equal(rows.length, 1)
  })

  await test('a run ends once, with one meaning, by the fence it was given', async (t) => {
    const errors = [{ attempt: 1, at: '2026-01-01T00:00:00.000Z', message: 'quote " \\ ünï' }]
    for (const [status, dueInMs] of [
      ['processed', 86_400_000],
      ['ignored', 86_400_000],
      ['retrying', 60_000],
      ['received', 0],
      ['dead', null],
    ] as const) {
      const a = processing({ lane: status })
      const run = await record(a)
      const over = { status, dueInMs, attempts: 7, deferrals: 2, errors }
      t.equal(await end(ending({ ...run, fence: 2 }, over)), false, 'a fence never given')
      t.equal(await end(ending({ ...run, fence: 0 }, over)), false)
      t.equal((await row(a.id)).runningLane, status, 'a refused end changes nothing')
      t.equal(await end(ending(run, over)), true, status)
      t.equal(await end(ending(run, over)), true, 'saying it again is fine: the reply may get lost')
      t.match(await found(a.id), { status, fence: 1, attempts: 7, deferrals: 2 })
      t.strictSame((await found(a.id)).errors, errors)
      t.equal((await row(a.id)).runningLane, null)
      const told = await record(again(a))
      if (dueInMs === null) t.equal(told.dueInMs, null)
      else t.ok(Math.abs((told.dueInMs ?? 0) - dueInMs) < 10_000)
      const other = status === 'dead' ? 'retrying' : 'dead'
      t.equal(await end(ending(run, { status: other })), false, 'not with another meaning')
    }
    t.equal(await end(ending({ id: randomUUID(), fence: 1 })), false, 'no event')
  })

  await test('a late end is refused once the event runs again', async (t) => {
    const a = processing()
    const run = await record(a)
    await move(a.id, { dueAt: PAST })
    await store.claimDue(1, SERVED)
    t.equal(await end(ending(run)), false)
    t.match(await found(a.id), { status: 'processing', fence: 2 })
    t.equal(await end(ending({ id: a.id, fence: 2 }, { attempts: 2 })), true)
  })

  await test('each end of a list is told for itself', async (t) => {
    const list = many(10, () => processing())
    await store.record(list)
    const ends = list.map(({ id }, n) => ending({ id, fence: n % 3 === 0 ? 9 : 1 }))
    t.strictSame(
      await store.end(ends),
      list.map((_, n) => n % 3 !== 0),
    )
    const both = many(10, () => processing())
    await store.record(both)
    const told = await Promise.all([
      store.end(both.map(({ id }) => ending({ id, fence: 1 }))),
      store.end([...both].reverse().map(({ id }) => ending({ id, fence: 1 }))),
    ])
    t.ok(told.flat().every(Boolean))
  })

  await test('the events of a lane that were deferred or found it taken are woken, and only they', async (t) => {
    const make = async (over: Partial<Arrival>, data: object) => {
      const a = arrival(over)
      await record(a)
      await move(a.id, { dueAt: FUTURE, ...data })
      return a.id
    }
    const deferred = { status: 'retrying', deferrals: 1 }
    const often = await make({ lane: 'l' }, { ...deferred, deferrals: 4 })
    const blocked = await make({ lane: 'l' }, { status: 'received', deferrals: 0 })
    const woken = [await make({ lane: 'l' }, deferred), await make({ lane: 'l' }, deferred), often]
    const asleep = [
      await make({ lane: 'l' }, { status: 'retrying', deferrals: 0 }),
      await make({ lane: 'm' }, deferred),
      await make({}, deferred),
    ]
    const overdue = await make({ lane: 'l' }, { ...deferred, dueAt: PAST })
    const dead = await make({ lane: 'l' }, { status: 'dead', deferrals: 1, dueAt: null })
    const a = processing({ lane: 'l' })
    const run = await record(a)
    t.equal(await end(ending({ ...run, fence: 9 }, { wakes: 'l' })), false)
    t.equal(await end(ending(run, { wakes: null })), true)
    for (const id of woken)
      t.strictSame((await row(id)).dueAt, FUTURE, 'not by an end that wakes none')
    t.equal(await end(ending(run, { wakes: 'l' })), true)
    for (const id of woken) {
      const { dueAt, status, fence } = await row(id)
      t.ok(Math.abs(dueAt.getTime() - run.receivedAt.getTime()) < 30_000, 'due now')
      t.strictSame([status, fence], ['retrying', 0])
    }
    t.strictSame(
      await Promise.all([...woken, blocked].map(async (id) => (await row(id)).deferrals)),
      [1, 1, 3, 0],
      'to be woken takes back one deferral',
    )
    t.ok((await row(blocked)).dueAt < FUTURE, 'the lane is free')
    for (const id of asleep) t.strictSame((await row(id)).dueAt, FUTURE)
    t.strictSame((await row(overdue)).dueAt, PAST, 'what is due stays due for as long')
    t.equal((await row(dead)).dueAt, null)
    t.match(await row(a.id), { status: 'processed' }, 'the event itself sleeps on')
    t.ok((await row(a.id)).dueAt > new Date(run.receivedAt.getTime() + 60_000))

    const self = processing({ lane: 'self' })
    const itself = await record(self)
    await end(ending(itself, { status: 'retrying', deferrals: 1, dueInMs: 60_000, wakes: 'self' }))
    await end(ending(itself, { status: 'retrying', deferrals: 1, dueInMs: 60_000, wakes: 'self' }))
    const { dueAt } = await row(self.id)
    t.ok(dueAt > new Date(itself.receivedAt.getTime() + 30_000), 'nobody wakes itself')
  })

  await test('only the holder renews its lease, counted from now', async (t) => {
    const a = processing({ dueInMs: 1_000 })
    const run = await record(a)
    const extend = (fence: number) => only(store.extend([{ id: run.id, fence, leaseMs: 60_000 }]))
    t.equal(await extend(2), false)
    t.equal(await extend(1), true)
    t.ok(isNear((await record(again(a))).dueInMs, 60_000))
    await move(a.id, { dueAt: PAST })
    t.equal(await extend(1), true, 'nobody came, so it is still its holder’s')
    await move(a.id, { dueAt: PAST })
    await store.claimDue(1, SERVED)
    t.equal(await extend(1), false, 'taken over')
    await end(ending({ id: a.id, fence: 2 }, { status: 'retrying' }))
    t.equal(await extend(2), false, 'ended')
  })

  await test('only the run that goes on stores what it has done', async (t) => {
    const steps = { '["charge"]': '["ch_1"]', 'quote " and \\': '[{"ü":1},2]' }
    const [a, b] = [processing(), processing()]
    await store.record([a, b])
    const keep = (fence: number, results: object = steps) =>
      only(store.keepSteps([{ id: a.id, fence, steps: { ...results } }]))
    const list = [
      { id: b.id, fence: 2, steps },
      { id: randomUUID(), fence: 1, steps },
      { id: a.id, fence: 1, steps },
    ]
    t.strictSame(await store.keepSteps(list), [false, false, true], 'each is told for itself')
    t.strictSame((await found(a.id)).steps, steps)
    t.strictSame((await found(b.id)).steps, {})
    t.equal(await keep(1), true, 'saying it again is fine: the reply may get lost')
    t.equal(await keep(1, { other: '[]' }), true)
    t.strictSame((await found(a.id)).steps, { other: '[]' }, 'all of them each time')
    await move(a.id, { dueAt: PAST })
    t.equal(await keep(1), true, 'nobody came, so it is still its holder’s')
    const [again] = await store.claimDue(1, SERVED)
    t.strictSame(again?.steps, steps)
    t.equal(await keep(1, {}), false, 'taken over')
    t.equal(await keep(2, { mine: '[]' }), true)
    await end(ending({ id: a.id, fence: 2 }, { status: 'retrying' }))
    t.equal(await keep(2), false, 'ended')
    t.strictSame((await found(a.id)).steps, { mine: '[]' })
  })

  await test('an event is reopened from its first attempt, with its fence and its steps', async (t) => {
    const steps = { charge: 'ch_1' }
    const errors = [{ attempt: 1, at: '2026-01-01T00:00:00.000Z', message: 'no' }]
    for (const [status, data] of [
      ['dead', { dueAt: null }],
      ['retrying', { dueAt: FUTURE }],
      ['ignored', { dueAt: FUTURE }],
      ['received', { dueAt: FUTURE }],
      ['processing', { dueAt: PAST, runningLane: 'l' }],
    ] as const) {
      const a = arrival({ lane: 'l' })
      await record(a)
      await move(a.id, { status, fence: 5, attempts: 5, deferrals: 3, steps, errors, ...data })
      t.equal(await store.reopen(a.id, false, null), true, status)
      const event = await found(a.id)
      t.match(event, { status: 'received', fence: 5, attempts: 0, deferrals: 0 })
      t.strictSame(event.steps, steps)
      t.strictSame(event.errors, errors)
      t.equal((await row(a.id)).runningLane, null)
      t.ok(Math.abs((await record(again(a))).dueInMs ?? Number.NaN) < 10_000, 'due now')
      t.equal(await end(ending({ id: a.id, fence: 5 })), false, 'a run of before is over')
      t.match(await store.claim(a.id, LEASE_MS), { fence: 6, attempts: 1 })
      t.equal(await store.reopen(a.id, true, null), false, 'not while it is being processed')
      await end(ending({ id: a.id, fence: 6 }))
    }
    t.equal(await store.reopen(randomUUID(), true, null), false)
  })

  await test('one that is processed is reopened by force alone, without its steps', async (t) => {
    const a = arrival({ status: 'processed', dueInMs: 60_000 })
    await record(a)
    await move(a.id, { steps: { charge: 'ch_1' }, fence: 2 })
    t.equal(await store.reopen(a.id, false, null), false)
    t.match(await found(a.id), { status: 'processed', steps: { charge: 'ch_1' } })
    t.equal(await store.reopen(a.id, true, null), true)
    const event = await found(a.id)
    t.match(event, { status: 'received', fence: 2 })
    t.strictSame(event.steps, {})
    const dead = arrival({ status: 'dead', dueInMs: null })
    await record(dead)
    await move(dead.id, { steps: { charge: 'ch_1' } })
    t.equal(await store.reopen(dead.id, true, null), true)
    t.strictSame((await found(dead.id)).steps, { charge: 'ch_1' }, 'what never ended keeps them')
  })

  await test('prune deletes what is over and due, no more at a time than asked', async (t) => {
    const over = many(25, (n) => arrival({ status: n % 2 ? 'processed' : 'ignored' }))
    const kept = [
      arrival({ status: 'processed', dueInMs: 60_000 }),
      arrival({ status: 'dead', dueInMs: null }),
      ...many(3, () => arrival()),
      processing(),
    ]
    await store.record([...over, ...kept])
    for (const { id } of over) await move(id, { dueAt: PAST })
    const [dead, received, retrying, deadAndDue, running] = kept.slice(1).map(({ id }) => id)
    for (const id of [received, retrying, deadAndDue, running])
      await move(id as string, { dueAt: PAST })
    await move(retrying as string, { status: 'retrying' })
    await move(deadAndDue as string, { status: 'dead' })
    t.ok(dead)
    t.equal(await store.prune(10), 10)
    const counts = await Promise.all([store.prune(10), store.prune(10), store.prune(10)])
    const rest = await store.prune(100)
    t.equal(
      counts.reduce((a, b) => a + b, rest),
      15,
      'side by side, each row is deleted once',
    )
    const left: { id: string }[] = await events.findMany({})
    t.strictSame(ids(left).sort(), ids(kept).sort())
  })

  await test('leases and due times are the database’s, whatever the clock of this process says', async (t) => {
    const { now } = Date
    t.teardown(() => {
      Date.now = now
    })
    for (const offMs of hasOwnClock ? [-3_600_000, 3_600_000] : [0]) {
      Date.now = () => now() + offMs
      const a = processing()
      const made = await record(a)
      t.ok(isNear(made.dueInMs, LEASE_MS), `clock off by ${offMs}`)
      t.ok(Math.abs(made.receivedAt.getTime() - now()) < 60_000)
      t.strictSame(await store.claimDue(10, SERVED), [])
      t.equal(await store.claim(a.id, LEASE_MS), undefined)
      t.equal(await store.reopen(a.id, false, null), false)
      const later = arrival({ dueInMs: 60_000 })
      await record(later)
      t.strictSame(await store.listDue(10, SERVED), [])
      const kept = arrival({ status: 'processed', dueInMs: 60_000 })
      await record(kept)
      t.equal(await store.prune(10), 0)
      await record(arrival())
      t.equal((await store.claimDue(10, SERVED)).length, 1, 'what is due now, is')
    }
  })
}
