import t from 'tap'
import { createReservations } from '../../src/reservations.js'
import type { ModelDelegate } from '../../src/store/client.js'
import { databaseClock } from '../../src/store/clock.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'
import { WAYS } from '../fixtures/ways.js'

const ATTEMPTS = size({ full: 1_000, quick: 100 })
const SLOTS = Array.from({ length: 40 }, (_, n) => `evening ${n}`)
const MOST = 5

/** One to five of the slots, in any order. */
function someSlots(): string[] {
  const count = 1 + Math.trunc(Math.random() * MOST)
  return [...SLOTS].sort(() => Math.random() - 0.5).slice(0, count)
}

for (const { name, skip, open } of WAYS) {
  if (!['PostgreSQL', 'MariaDB', 'SQLite'].some((one) => name === `${one}, Prisma alone`)) continue
  t.test(
    `${name.split(',')[0]}: of ${ATTEMPTS} parallel attempts at overlapping slots, no slot goes twice and no set in part`,
    { skip },
    async (t) => {
      const { prisma, ...context } = await open(t)
      const reservations = createReservations({ prisma, ...context })
      const rows = prisma.slotReservation as ModelDelegate
      for (let round = 1; round <= size({ full: 3, quick: 1 }); round += 1) {
        const resource = `hall ${round}`
        // A third of them holds what ran out: it is taken over beside what is free.
        const ranOut = SLOTS.filter((_, n) => n % 3 === 0)
        await reservations.reserve('acme', () => {}, {
          resource,
          slots: ranOut,
          holder: 'x',
          hold: 1,
        })

        const results = await Promise.all(
          Array.from({ length: ATTEMPTS }, (_, n) =>
            reservations.reserve('acme', () => {}, {
              resource,
              slots: someSlots(),
              holder: `${n}`,
            }),
          ),
        )
        const had = new Map<string, string>()
        const twice: string[] = []
        for (const result of results) {
          if (result.kind === 'taken') continue
          for (const slot of result.slots) {
            if (had.has(slot)) twice.push(slot)
            had.set(slot, result.holder)
          }
        }
        t.strictSame(twice, [])
        const left: { slot: string; holder: string }[] = await rows.findMany({
          where: { resource, holder: { not: 'x' } },
        })
        const stored = left.map(({ slot, holder }) => `${slot}: ${holder}`).sort()
        t.strictSame(stored, [...had].map(([slot, holder]) => `${slot}: ${holder}`).sort())
        t.ok(had.size > SLOTS.length / 2, `${had.size} of ${SLOTS.length} slots have a holder`)
      }
    },
  )
}

t.test(
  'of 300 parallel transactions that book what they reserve, each books all of it or hears who was first',
  { skip: await missing('postgres') },
  async (t) => {
    const { prisma } = await postgresDatabase(t)
    const clock = databaseClock(prisma, 'postgresql')
    const reservations = createReservations({ prisma, clock, provider: 'postgresql' })
    const resource = 'hall'
    const ranOut = SLOTS.filter((_, n) => n % 3 === 0)
    await reservations.reserve('acme', () => {}, { resource, slots: ranOut, holder: 'x', hold: 1 })
    const outcomes = await Promise.all(
      Array.from({ length: 300 }, (_, n) =>
        prisma.$transaction(
          async (tx) => {
            const wanted = { resource, slots: someSlots(), holder: `${n}`, tx }
            const { kind, slots } = await reservations.reserve('acme', () => {}, wanted)
            // Both ways, the transaction can still write and be committed.
            const book = (evening: string) =>
              tx.booking.create({ data: { tenantId: 'acme', venue: kind, evening, guest: `${n}` } })
            for (const slot of slots) await book(slot)
            return kind
          },
          { maxWait: 20_000, timeout: 20_000 },
        ),
      ),
    )
    t.ok(outcomes.includes('taken'))
    const booked = await prisma.booking.findMany({ where: { venue: 'reserved' } })
    const held = await prisma.slotReservation.findMany({ where: { holder: { not: 'x' } } })
    t.strictSame(
      booked.map(({ evening, guest }) => `${evening}: ${guest}`).sort(),
      held.map(({ slot, holder }) => `${slot}: ${holder}`).sort(),
    )
  },
)
