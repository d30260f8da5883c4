// What reservations promise, run on each database, by themselves and in the caller's transaction.
import { randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import type { Happening } from '../../src/events.js'
import {
  createReservations,
  type Reservations,
  type ReservationTransaction,
  type ReserveOptions,
  type SlotsOptions,
} from '../../src/reservations.js'
import type { ModelDelegate, PrismaClientLike } from '../../src/store/client.js'
import type { Way } from '../fixtures/ways.js'

type Ask = Partial<ReserveOptions> & Pick<SlotsOptions, 'resource'>
type Rows = readonly object[]

const PAST = new Date('2001-01-01T00:00:00Z')
const EVENINGS = ['2027-06-04', '2027-06-05', '2027-06-06']

/** Reservations of one tenant, with what they report. */
function deskOf(reservations: Reservations, tenantId = 'acme') {
  const happened: Happening[] = []
  const report = (happening: Happening) => void happened.push(happening)
  const given = (ask: Ask) => ({ slots: EVENINGS, holder: 'ann', ...ask })
  return {
    happened,
    reserve: (ask: Ask) => reservations.reserve(tenantId, report, given(ask)),
    confirm: (ask: Ask) => reservations.confirm(tenantId, report, given(ask)),
    cancel: (ask: Ask) => reservations.cancel(tenantId, report, given(ask)),
    availability: (resource: string, slots?: string | readonly string[]) =>
      reservations.availability(tenantId, { resource, ...(slots && { slots }) }),
  }
}

/** A client whose first looks see this; then it sees what is there. */
export function seeing<C extends ReservationTransaction>(client: C, ...looks: Rows[]): C {
  const rows = client.slotReservation as ModelDelegate
  const slotReservation = {
    findMany: (args: object) =>
      looks.length > 0 ? Promise.resolve(looks.shift()) : rows.findMany(args),
    createMany: (args: object) => rows.createMany(args),
    updateMany: (args: object) => rows.updateMany(args),
    deleteMany: (args: object) => rows.deleteMany(args),
  }
  return {
    slotReservation,
    $queryRawUnsafe: (query: string) => client.$queryRawUnsafe(query),
    $transaction: (...args: Parameters<PrismaClientLike['$transaction']>) =>
      (client as unknown as PrismaClientLike).$transaction(...args),
  } as unknown as C
}

export async function reservationsContract(t: Test, context: Way): Promise<void> {
  const { prisma, hasOwnClock } = context
  const rows = prisma.slotReservation as ModelDelegate
  const desk = deskOf(createReservations(context))
  const left = (resource: string) =>
    rows.findMany({ where: { resource }, orderBy: { slot: 'asc' } })
  const holders = async (resource: string) =>
    (await left(resource)).map(({ slot, holder }: { slot: string; holder: string }) => [
      slot,
      holder,
    ])
  const lapse = (resource: string, slot: string | { in: string[] } = { in: EVENINGS }) =>
    rows.updateMany({ where: { resource, slot }, data: { heldUntil: PAST } })

  await t.test('of many who cancel the same at once, each slot is freed by one', async (t) => {
    const resource = randomUUID()
    await desk.reserve({ resource })
    const all = await Promise.all(Array.from({ length: 8 }, () => desk.cancel({ resource })))
    t.strictSame(all.flatMap(({ slots }) => slots).sort(), [...EVENINGS].sort())
  })

  await t.test('of many who confirm the same at once, one is new', async (t) => {
    const resource = randomUUID()
    await desk.reserve({ resource })
    const all = await Promise.all(Array.from({ length: 8 }, () => desk.confirm({ resource })))
    t.ok(all.every(({ kind }) => kind === 'confirmed'))
    t.equal(all.filter((one) => one.kind === 'confirmed' && one.isNew).length, 1)
  })

  for (const isInTx of [false, true]) {
    const where = isInTx ? "in the caller's transaction" : 'by itself'
    const within = <T>(fn: (own: { tx?: ReservationTransaction }) => Promise<T>): Promise<T> =>
      isInTx
        ? (prisma.$transaction((tx: ReservationTransaction) => fn({ tx })) as Promise<T>)
        : fn({})
    const reserve = (ask: Ask) => within((own) => desk.reserve({ ...ask, ...own }))
    const confirm = (ask: Ask) => within((own) => desk.confirm({ ...ask, ...own }))
    const cancel = (ask: Ask) => within((own) => desk.cancel({ ...ask, ...own }))
    /** Somebody whose first looks are out of date. */
    const late = (looks: Rows[]) => {
      const blind = deskOf(createReservations({ ...context, prisma: seeing(prisma, ...looks) }))
      const through = <T>(
        fn: (at: typeof desk, own: { tx?: ReservationTransaction }) => Promise<T>,
      ) =>
        within(async ({ tx }) => {
          if (tx === undefined) return fn(blind, {})
          const result = await fn(desk, { tx: seeing(tx, ...looks) })
          // The caller's transaction still works.
          await (tx.slotReservation as ModelDelegate).findMany({ where: { resource: '' } })
          return result
        })
      return {
        reserve: (ask: Ask) => through((at, own) => at.reserve({ ...ask, ...own })),
        confirm: (ask: Ask) => through((at, own) => at.confirm({ ...ask, ...own })),
        cancel: (ask: Ask) => through((at, own) => at.cancel({ ...ask, ...own })),
      }
    }

    await t.test(
      `${where}, the first to ask gets all slots, the next one is told which`,
      async (t) => {
        const resource = randomUUID()
        const asked = { resource, slots: ['c', 'a', 'b', 'a'] }
        const got = await reserve(asked)
        t.match(got, { kind: 'reserved', resource, holder: 'ann', isNew: true })
        t.strictSame(got.slots, ['a', 'b', 'c'], 'sorted, each once')
        const taken = await reserve({ resource, slots: ['d', 'c', 'b'], holder: 'bob' })
        t.strictSame(taken, { kind: 'taken', slots: ['b', 'c'] })
        t.strictSame(await holders(resource), [
          ['a', 'ann'],
          ['b', 'ann'],
          ['c', 'ann'],
        ])
      },
    )

    await t.test(`${where}, one slot is asked for without a list`, async (t) => {
      const resource = randomUUID()
      t.match(await reserve({ resource, slots: 'a' }), { kind: 'reserved', slots: ['a'] })
      t.strictSame(await reserve({ resource, slots: 'a', holder: 'bob' }), {
        kind: 'taken',
        slots: ['a'],
      })
      t.match(await confirm({ resource, slots: 'a' }), { kind: 'confirmed', slots: ['a'] })
      t.match(await cancel({ resource, slots: 'a' }), { kind: 'cancelled', slots: ['a'] })
    })

    await t.test(`${where}, asking again is the same reservation, and no longer one`, async (t) => {
      const resource = randomUUID()
      const first = await reserve({ resource, hold: '1m' })
      const again = await reserve({ resource, hold: '1h' })
      t.strictSame(again, { ...first, isNew: false })
      await confirm({ resource })
      t.match(await reserve({ resource }), { kind: 'reserved', until: null, isNew: false })
    })

    await t.test(`${where}, who has some of the slots gets the rest, too`, async (t) => {
      const resource = randomUUID()
      const [first, second, third] = EVENINGS as [string, string, string]
      await desk.reserve({ resource, slots: first })
      await desk.confirm({ resource, slots: first })
      const held = await desk.reserve({ resource, slots: second, hold: '1m' })
      const all = await reserve({ resource, hold: '1h' })
      t.match(all, { kind: 'reserved', slots: EVENINGS, isNew: true })
      t.strictSame(
        (all as { until: Date }).until,
        (held as { until: Date }).until,
        'the first to end',
      )
      t.match(await left(resource), [{ heldUntil: null }, { slot: second }, { slot: third }])
    })

    await t.test(`${where}, a hold that has run out is free, without a sweeper`, async (t) => {
      const resource = randomUUID()
      const [first, second, third] = EVENINGS as [string, string, string]
      await desk.reserve({ resource, slots: [first, third] })
      await lapse(resource)
      t.match(await reserve({ resource, slots: [first, second], holder: 'bob' }), {
        kind: 'reserved',
        isNew: true,
      })
      t.match(await reserve({ resource, slots: third, holder: 'bob' }), { kind: 'reserved' })
      t.strictSame(
        await holders(resource),
        EVENINGS.map((slot) => [slot, 'bob']),
      )
      await lapse(resource)
      const again = await reserve({ resource, holder: 'bob' })
      t.match(again, { kind: 'reserved', isNew: true }, 'his own, too')
      t.ok((again as { until: Date }).until > PAST)
    })

    await t.test(`${where}, the constraint decides when the look did not see it`, async (t) => {
      const resource = randomUUID()
      const [first, second] = EVENINGS as [string, string]
      await desk.reserve({ resource, slots: second })
      for (const slots of [EVENINGS, [second]]) {
        const taken = await late([[]]).reserve({ resource, slots, holder: 'bob' })
        t.strictSame(taken, { kind: 'taken', slots: [second] })
      }
      t.strictSame(await holders(resource), [[second, 'ann']], 'nothing is left of the attempt')

      await desk.reserve({ resource, slots: first })
      await lapse(resource, first)
      const stale = await left(resource)
      await desk.reserve({ resource, slots: first, holder: 'eve' })
      for (const slots of [[first, '0'], [first]]) {
        const seen = stale.filter(({ slot }: { slot: string }) => slots.includes(slot))
        const taken = await late([seen]).reserve({ resource, slots, holder: 'bob' })
        t.strictSame(taken, { kind: 'taken', slots: [first] }, 'taken over by somebody else')
      }
      t.strictSame(await holders(resource), [
        [first, 'eve'],
        [second, 'ann'],
      ])
    })

    await t.test(
      `${where}, a retry that runs beside the first finds its reservation`,
      async (t) => {
        const resource = randomUUID()
        await desk.reserve({ resource })
        const again = await late([[]]).reserve({ resource })
        t.match(again, { kind: 'reserved', isNew: false })
      },
    )

    await t.test(
      `${where}, what only the constraint sees is taken, and nobody loops`,
      async (t) => {
        const resource = randomUUID()
        await desk.reserve({ resource })
        const blind = late(Array.from({ length: 50 }, () => []))
        t.strictSame(await blind.reserve({ resource, holder: 'bob' }), {
          kind: 'taken',
          slots: EVENINGS,
        })
        const his = (await left(resource)).map((row: object) => ({ ...row, holder: 'bob' }))
        t.strictSame(
          await late(Array.from({ length: 50 }, () => his)).confirm({ resource, holder: 'bob' }),
          { kind: 'missing', slots: EVENINGS },
        )
      },
    )

    await t.test(`${where}, all slots are confirmed or none, and for good`, async (t) => {
      const resource = randomUUID()
      const [first, second, third] = EVENINGS as [string, string, string]
      await reserve({ resource, slots: [first, second] })
      t.strictSame(await confirm({ resource }), { kind: 'missing', slots: [third] })
      t.strictSame(await confirm({ resource, holder: 'bob' }), { kind: 'missing', slots: EVENINGS })
      t.notOk(
        (await left(resource)).some(({ heldUntil }: { heldUntil: unknown }) => heldUntil === null),
      )
      const stale = await left(resource)
      const confirmed = { kind: 'confirmed', resource, slots: [first, second], holder: 'ann' }
      t.strictSame(await confirm({ resource, slots: [second, first] }), {
        ...confirmed,
        isNew: true,
      })
      const again = { ...confirmed, isNew: false }
      t.strictSame(await confirm({ resource, slots: [first, second] }), again, 'twice')
      const beside = await late([stale]).confirm({ resource, slots: [first, second] })
      t.strictSame(beside, again, 'also when another call confirmed them since the look')
      t.match(await left(resource), [{ heldUntil: null }, { heldUntil: null }])
      await reserve({ resource, slots: third })
      t.match(await confirm({ resource }), { kind: 'confirmed' }, 'the rest of them')
    })

    await t.test(
      `${where}, a payment that came late is not lost while the slot is free`,
      async (t) => {
        const resource = randomUUID()
        const [first, second] = EVENINGS as [string, string]
        await reserve({ resource, slots: [first, second] })
        await lapse(resource)
        t.match(await confirm({ resource, slots: first }), { kind: 'confirmed' })
        const stale = await left(resource)
        await desk.reserve({ resource, slots: second, holder: 'bob' })
        const missing = { kind: 'missing', slots: [second] }
        t.strictSame(await confirm({ resource, slots: [first, second] }), missing)
        t.strictSame(await late([stale]).confirm({ resource, slots: [first, second] }), missing)
        t.match(await left(resource), [{ heldUntil: null }, { holder: 'bob', heldUntil: Date }])
      },
    )

    await t.test(`${where}, none is confirmed when one was taken since the look`, async (t) => {
      const resource = randomUUID()
      await desk.reserve({ resource })
      await lapse(resource)
      const stale = await left(resource)
      await desk.reserve({ resource, slots: EVENINGS[2] as string, holder: 'bob' })
      t.strictSame(await late([stale]).confirm({ resource }), {
        kind: 'missing',
        slots: [EVENINGS[2]],
      })
      t.match(await left(resource), [{ heldUntil: PAST }, { heldUntil: PAST }, { holder: 'bob' }])
    })

    await t.test(
      `${where}, only the holder frees slots, and freeing twice frees nothing`,
      async (t) => {
        const resource = randomUUID()
        const [first, second, third] = EVENINGS as [string, string, string]
        await desk.reserve({ resource, slots: [first, second] })
        await desk.confirm({ resource, slots: first })
        await desk.reserve({ resource, slots: third, holder: 'bob' })
        const stale = await left(resource)
        t.strictSame(await cancel({ resource }), { kind: 'cancelled', slots: [first, second] })
        t.strictSame(await cancel({ resource }), { kind: 'cancelled', slots: [] })
        t.strictSame(await holders(resource), [[third, 'bob']])
        const mixed = stale.map((row: object) => ({ ...row, holder: 'ann' }))
        const tooLate = await late([mixed]).cancel({ resource })
        t.strictSame(tooLate, { kind: 'cancelled', slots: [] }, 'nothing was his any more')
        t.strictSame(await holders(resource), [[third, 'bob']], 'also when he had it at the look')
        t.match(await reserve({ resource, slots: first, holder: 'bob' }), { kind: 'reserved' })
      },
    )

    await t.test(`${where}, what was his at the look is asked for again`, async (t) => {
      const resource = randomUUID()
      const [first, second] = EVENINGS as [string, string]
      await desk.reserve({ resource, slots: first })
      const held = await left(resource)
      await lapse(resource)
      await desk.reserve({ resource, slots: first, holder: 'bob' })
      const both = { resource, slots: [first, second] }
      t.strictSame(await late([held]).reserve(both), { kind: 'taken', slots: [first] })
      t.strictSame(await holders(resource), [[first, 'bob']], 'no part of it')

      const other = { resource: randomUUID(), slots: [first, second] }
      await desk.reserve(other)
      await desk.confirm({ ...other, slots: first })
      const confirmed = await left(other.resource)
      await desk.cancel({ ...other, slots: first })
      t.strictSame(await late([confirmed]).confirm(other), { kind: 'missing', slots: [first] })
    })

    await t.test(`${where}, a thousand slots are one reservation`, async (t) => {
      const resource = randomUUID()
      const slots = Array.from({ length: 1_000 }, (_, n) => `seat ${`${n}`.padStart(3, '0')}`)
      const last = slots.at(-1) as string
      await desk.reserve({ resource, slots: last, holder: 'bob' })
      const taken = await late([[], [], [], [], []]).reserve({ resource, slots })
      t.strictSame(taken, { kind: 'taken', slots: [last] })
      t.equal(await rows.findMany({ where: { resource } }).then((found) => found.length), 1)
      await desk.cancel({ resource, slots: last, holder: 'bob' })
      t.match(await reserve({ resource, slots }), { kind: 'reserved' })
      await rows.updateMany({ where: { resource }, data: { heldUntil: PAST } })
      t.match(await reserve({ resource, slots, holder: 'bob' }), { kind: 'reserved' })
      t.match(await confirm({ resource, slots, holder: 'bob' }), { kind: 'confirmed' })
      t.equal((await cancel({ resource, slots, holder: 'bob' })).slots.length, 1_000)
    })

    await t.test(`${where}, it is told what happened, once`, async (t) => {
      const resource = randomUUID()
      const slots = EVENINGS
      desk.happened.length = 0
      for (const holder of ['ann', 'ann', 'bob']) await reserve({ resource, holder })
      for (const holder of ['ann', 'ann', 'bob']) await confirm({ resource, holder })
      for (const holder of ['bob', 'ann', 'ann']) await cancel({ resource, holder })
      t.strictSame(desk.happened, [
        { kind: 'reserved', resource, slots },
        { kind: 'slots_taken', resource, slots },
        { kind: 'reservation_confirmed', resource, slots },
        { kind: 'reservation_cancelled', resource, slots },
      ])
    })
  }

  await t.test('one slot is confirmed, and freed, by one guarded write', async (t) => {
    const resource = randomUUID()
    const calls: string[] = []
    const counted = new Proxy(rows, {
      get: (target, name: keyof ModelDelegate) => (args: object) => {
        calls.push(name)
        return target[name](args)
      },
    })
    const client = new Proxy(prisma, {
      get(target, name) {
        if (name === '$transaction') t.fail('no transaction is begun')
        return name === 'slotReservation' ? counted : Reflect.get(target, name)
      },
    })
    const counting = deskOf(createReservations({ ...context, prisma: client }))
    const one = { resource, slots: 'a' }
    for (const [call, kind, spent] of [
      [counting.reserve, 'reserved', ['findMany', 'createMany']],
      [counting.confirm, 'confirmed', ['updateMany']],
      [counting.confirm, 'confirmed', ['updateMany', 'findMany']],
      [counting.cancel, 'cancelled', ['deleteMany']],
      [counting.cancel, 'cancelled', ['deleteMany']],
      [counting.confirm, 'missing', ['updateMany', 'findMany']],
    ] as const) {
      calls.length = 0
      t.match(await call(one), { kind })
      t.strictSame(calls, spent)
    }
  })

  await t.test('what the caller rolls back has not happened', async (t) => {
    const resource = randomUUID()
    const [first, second] = EVENINGS as [string, string]
    await desk.reserve({ resource, slots: first })
    const changed = Error('the booking failed')
    await t.rejects(
      Promise.resolve(
        prisma.$transaction(async (tx: ReservationTransaction) => {
          await desk.reserve({ resource, slots: second, tx })
          await desk.confirm({ resource, slots: [first, second], tx })
          await desk.cancel({ resource, slots: first, tx })
          throw changed
        }),
      ),
      changed,
    )
    t.match(await left(resource), [{ slot: first, heldUntil: Date }])
    t.equal((await left(resource)).length, 1)
  })

  await t.test('of 100 who ask for the same slot at once, one gets it', async (t) => {
    const resource = randomUUID()
    for (const before of ['free', 'run out']) {
      const results = await Promise.all(
        Array.from({ length: 100 }, (_, n) =>
          desk.reserve({ resource, slots: 'a', holder: `${n}` }),
        ),
      )
      t.equal(results.filter(({ kind }) => kind === 'reserved').length, 1, before)
      await lapse(resource, 'a')
    }
  })

  await t.test('of 20 retries at once, one is new and all are told the same', async (t) => {
    const resource = randomUUID()
    const results = await Promise.all(Array.from({ length: 20 }, () => desk.reserve({ resource })))
    t.equal(results.filter((result) => result.kind === 'reserved' && result.isNew).length, 1)
    const told = new Set(results.map((result) => JSON.stringify({ ...result, isNew: undefined })))
    t.equal(told.size, 1)
  })

  await t.test(
    'tenants, resources, and slots that differ in case or a space, are apart',
    async (t) => {
      const resource = `Hall ${randomUUID()}`
      const others = deskOf(createReservations(context), 'ACME')
      for (const [at, ask] of [
        [desk, { resource }],
        [others, { resource }],
        [desk, { resource: resource.toUpperCase() }],
        [desk, { resource: `${resource} ` }],
        [desk, { resource, slots: ['Evening', 'EVENING', 'evening '] }],
        [desk, { resource, slots: ['ünïcode ✓', "quote ' \\ %", 's'.repeat(255)] }],
        [desk, { resource: `${resource.padEnd(255, 'r')}`, holder: 'h'.repeat(255) }],
      ] as const) {
        t.match(await at.reserve(ask), { kind: 'reserved', isNew: true }, JSON.stringify(ask))
      }
      t.match(await others.cancel({ resource }), { kind: 'cancelled', slots: EVENINGS })
      t.match(await desk.confirm({ resource }), { kind: 'confirmed' }, "another tenant's stays")
    },
  )

  await t.test('availability says who has what until when', async (t) => {
    const resource = randomUUID()
    const [first, second, third] = EVENINGS as [string, string, string]
    const held = await desk.reserve({ resource, slots: [second, third] })
    const until = (held as { until: Date }).until
    await desk.confirm({ resource, slots: third })
    await desk.reserve({ resource, slots: 'z', holder: 'bob' })
    await lapse(resource, 'z')
    const notFree = [
      { slot: second, kind: 'held', holder: 'ann', until },
      { slot: third, kind: 'confirmed', holder: 'ann' },
    ]
    t.strictSame(await desk.availability(resource), notFree)
    t.strictSame(await desk.availability(resource, ['z', ...EVENINGS]), [
      { slot: first, kind: 'free' },
      ...notFree,
      { slot: 'z', kind: 'free' },
    ])
    t.strictSame(await desk.availability(resource, first), [{ slot: first, kind: 'free' }])
    t.strictSame(await desk.availability(randomUUID()), [])
  })

  await t.test('holds end by the clock of the database alone', async (t) => {
    const { now } = Date
    t.teardown(() => {
      Date.now = now
    })
    for (const offMs of hasOwnClock ? [-3_600_000, 3_600_000] : [0]) {
      Date.now = () => now() + offMs
      const resource = randomUUID()
      const got = await desk.reserve({ resource, hold: '1m' })
      const leftMs = (got as { until: Date }).until.getTime() - now()
      t.ok(leftMs > 50_000 && leftMs < 70_000, `off by ${offMs}: ${leftMs}`)
      t.match(await desk.reserve({ resource, holder: 'bob' }), { kind: 'taken' })
    }
  })

  await t.test('prune deletes what ran out a day ago, and nothing else', async (t) => {
    await rows.deleteMany({})
    const resource = randomUUID()
    const reservations = createReservations(context)
    const slots = Array.from({ length: 250 }, (_, n) => `${n}`)
    await desk.reserve({ resource, slots })
    await rows.updateMany({ where: { resource }, data: { heldUntil: PAST } })
    await desk.reserve({ resource, slots: ['held', 'confirmed', 'late'] })
    await desk.confirm({ resource, slots: 'confirmed' })
    const dayAgo = (await context.clock.ask()).getTime() - 86_400_000
    await rows.updateMany({
      where: { resource, slot: 'late' },
      data: { heldUntil: new Date(dayAgo + 60_000) },
    })
    t.equal(await reservations.prune(10), 10)
    t.equal(await reservations.prune(1_000), 240)
    t.equal(await reservations.prune(1_000), 0)
    t.match(await left(resource), [{ slot: 'confirmed' }, { slot: 'held' }, { slot: 'late' }])
    const stale = seeing(prisma, await left(resource))
    t.equal(await createReservations({ ...context, prisma: stale }).prune(10), 0)
    t.equal(
      (await left(resource)).length,
      3,
      'also when one was confirmed, or taken, since the look',
    )
  })
}
