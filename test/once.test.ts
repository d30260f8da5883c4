import { randomUUID } from 'node:crypto'
import t, { type Test } from 'tap'
import { once } from '../src/once.js'
import { pgliteDatabase } from './fixtures/pglite.js'
import { WAYS } from './fixtures/ways.js'

// The library's own tables stand in for those of an application: named_lock is unique by its two
// names, slot_reservation by its id and by (tenant, resource, slot).
interface Models {
  slotReservation: {
    create: (args: { data: Slot }) => Promise<Slot>
    findUnique: (args: object) => Promise<Slot | null>
    count: (args?: object) => Promise<number>
  }
}
interface Client extends Models {
  $transaction<T>(fn: (tx: Models) => Promise<T>): Promise<T>
}
interface Slot {
  id: string
  tenantId: string
  resource: string
  slot: string
  holder: string
  heldUntil: Date | null
  createdAt: Date
}

const aSlot = (over: Partial<Slot> = {}): Slot => ({
  ...{ id: randomUUID(), tenantId: 'acme', resource: 'hall', slot: 'evening', holder: 'ann' },
  ...{ heldUntil: null, createdAt: new Date() },
  ...over,
})
const where = ({ tenantId, resource, slot }: Slot) => ({
  where: { tenantId_resource_slot: { tenantId, resource, slot } },
})

async function contract(
  t: Test,
  prisma: Client,
  { hasSavepoints, isKnown }: { hasSavepoints: boolean; isKnown: boolean },
): Promise<void> {
  const booked = (wanted: Slot) =>
    once(() => prisma.slotReservation.create({ data: wanted }), {
      find: () => prisma.slotReservation.findUnique(where(wanted)),
    })

  await t.test('the first creates it, the next one finds it', async (t) => {
    const first = aSlot({ resource: randomUUID() })
    t.strictSame(await booked(first), { duplicate: false, value: first })
    const second = { ...first, id: randomUUID(), holder: 'bob' }
    t.strictSame(await booked(second), { duplicate: true, value: first })
  })

  await t.test('of 20 at once one creates it, and all have the same', async (t) => {
    const resource = randomUUID()
    const results = await Promise.all(Array.from({ length: 20 }, () => booked(aSlot({ resource }))))
    t.equal(results.filter(({ duplicate }) => !duplicate).length, 1)
    t.equal(new Set(results.map(({ value }) => value.id)).size, 1)
  })

  await t.test('another constraint is an error, as it was', async (t) => {
    const first = aSlot({ resource: randomUUID() })
    await booked(first)
    await t.rejects(booked({ ...first, slot: 'another', holder: 'bob' }), { code: 'P2002' })
  })

  if (!hasSavepoints) return

  await t.test('within a transaction a duplicate does not abort it', async (t) => {
    const resource = randomUUID()
    const first = aSlot({ resource })
    await booked(first)
    await prisma.$transaction(async (tx) => {
      const bookedIn = (wanted: Slot) =>
        once((nested) => nested.slotReservation.create({ data: wanted }), {
          find: (tx) => tx.slotReservation.findUnique(where(wanted)),
          tx,
        })
      await tx.slotReservation.create({ data: aSlot({ resource, slot: 'before' }) })
      t.strictSame(await bookedIn(aSlot({ resource })), { duplicate: true, value: first })
      const second = aSlot({ resource, slot: 'second' })
      t.strictSame(await bookedIn(second), { duplicate: false, value: second })
      t.match(await bookedIn({ ...second, id: randomUUID() }), { duplicate: true, value: second })
      const another = bookedIn({ ...first, slot: 'another' })
      // On MySQL a transaction cannot find out that it is not the level of isolation.
      const hidden = { code: 'P2034', cause: { code: 'P2002' } }
      await t.rejects(another, isKnown ? { code: 'P2002' } : hidden)
      await tx.slotReservation.create({ data: aSlot({ resource, slot: 'after' }) })
    })
    t.equal(await prisma.slotReservation.count({ where: { resource } }), 4)
  })

  await t.test('what it created goes with the transaction', async (t) => {
    const wanted = aSlot({ resource: randomUUID() })
    const failure = new Error('something else failed')
    await t.rejects(
      prisma.$transaction(async (tx) => {
        await once((nested) => nested.slotReservation.create({ data: wanted }), {
          find: (tx) => tx.slotReservation.findUnique(where(wanted)),
          tx,
        })
        throw failure
      }),
      failure,
    )
    t.equal(await prisma.slotReservation.findUnique(where(wanted)), null)
  })
}

for (const { name, skip, open } of WAYS) {
  if (!name.endsWith('Prisma alone')) continue
  t.test(name.replace(', Prisma alone', ''), { skip }, async (t) => {
    const { prisma, hasOwnClock, provider } = await open(t)
    // PGlite's adapter has no savepoints.
    const isKnown = provider !== 'mysql'
    await contract(t, prisma as unknown as Client, { hasSavepoints: hasOwnClock, isKnown })
  })
}

t.test('without savepoints it says what to do, and the transaction goes on', async (t) => {
  const { prisma } = await pgliteDatabase(t)
  let calls = 0
  const create = async () => {
    calls += 1
  }
  const refused = { code: 'IDEMPOTENCY_OPTION_INVALID', message: /7\.5 or newer.*skipDuplicates/ }
  await prisma.$transaction(async (tx) => {
    await t.rejects(once(create, { find: create, tx }), refused, 'of the adapter')
    const older = { slotReservation: tx.slotReservation }
    await t.rejects(once(create, { find: create, tx: older }), refused, 'of an older Prisma')
    await tx.slotReservation.create({ data: aSlot() })
  })
  t.equal(await prisma.slotReservation.count(), 1)
  await t.rejects(once(create, { find: create, tx: prisma }), refused, 'a client is no transaction')
  await t.rejects(once(create, { find: create, tx: null as never }), refused)
  t.equal(calls, 0)
})

t.test('what else fails is thrown as it is', async (t) => {
  const failure = new Error('create failed: not supported')
  const fails = () => Promise.reject(failure)
  const find = async () => t.fail('nothing is looked for')
  await t.rejects(once(fails, { find }), failure)
  const duplicate = Object.assign(new Error('duplicate'), { code: 'P2002' })
  const isGone = () => Promise.reject(duplicate)
  for (const nothing of [null, undefined]) {
    await t.rejects(once(isGone, { find: async () => nothing }), duplicate)
  }
  const found = Promise.resolve(0)
  t.strictSame(await once(isGone, { find: () => found }), { duplicate: true, value: 0 })
  await t.rejects(once(isGone, { find: fails }), failure, 'also of find')
  for (const wrong of [undefined, {}, { find: 'findUnique' }]) {
    await t.rejects(once(fails, wrong as never), { code: 'IDEMPOTENCY_OPTION_INVALID' })
  }
  await t.rejects(once('create' as never, { find }), { code: 'IDEMPOTENCY_OPTION_INVALID' })
})

t.test('the types of what is created and found are known', async (t) => {
  const found = async (): Promise<{ id: string } | null> => ({ id: 'a' })
  const result = await once(async () => 7, { find: found })
  const told: number | string = result.duplicate ? result.value.id : result.value
  t.equal(told, 7)
})
