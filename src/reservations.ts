import { randomUUID } from 'node:crypto'
import {
  type Check,
  check,
  isColumnText,
  isDuration,
  LONGEST_RETENTION_MS,
  toMs,
} from './checks.js'
import type { Duration } from './core/duration.js'
import { type Free, hasLapsed, type SlotHold, soonest, standing } from './core/reservation.js'
import { isStorableText } from './core/text.js'
import type { Report } from './events.js'
import {
  isUniqueViolation,
  type ModelDelegate,
  type PrismaClientLike,
  type Provider,
} from './store/client.js'
import type { DatabaseClock } from './store/clock.js'
import { sayAgain, sayingAgainEach } from './store/say-again.js'

/** What a reservation asks of the client of an open transaction. */
export type ReservationTransaction = Pick<PrismaClientLike, 'slotReservation' | '$queryRawUnsafe'>

export interface SlotsOptions {
  /** What the slots belong to, such as a venue: 1 to 255 characters. */
  resource: string
  /** One or several, such as dates: 1 to 255 characters each, at most 1,000. All of them or none. */
  slots: string | readonly string[]
  /** Who wants them, such as the id of a booking: 1 to 255 characters. The same in every retry. */
  holder: string
  /**
   * An open transaction of the application: what happens to the slots is committed, or rolled back,
   * with it. Without it, the call is a transaction of its own.
   */
  tx?: ReservationTransaction
}

export interface ReserveOptions extends SlotsOptions {
  /** How long the slots are kept for the holder, from now on. Default `'15m'`. */
  hold?: Duration
}

export interface AvailabilityOptions {
  resource: string
  /** Which slots to look at. Default: all that are not free. */
  slots?: string | readonly string[]
}

export interface Reserved {
  readonly kind: 'reserved'
  readonly resource: string
  /** Without duplicates, sorted. */
  readonly slots: readonly string[]
  readonly holder: string
  /** From this time of the database's clock on, the first of the slots is free. `null`: confirmed. */
  readonly until: Date | null
  /** `false` when all of the slots were his already. */
  readonly isNew: boolean
}

/** Somebody else has these of the slots; nothing was reserved. */
export interface Taken {
  readonly kind: 'taken'
  readonly slots: readonly string[]
}

export interface Confirmed {
  readonly kind: 'confirmed'
  readonly resource: string
  readonly slots: readonly string[]
  readonly holder: string
  /** `false` when all of the slots were confirmed already: of several calls, one is new. */
  readonly isNew: boolean
}

/** These of the slots are not his, or not any more; nothing was confirmed. */
export interface Missing {
  readonly kind: 'missing'
  readonly slots: readonly string[]
}

export interface Cancelled {
  readonly kind: 'cancelled'
  /** Those that were his, and are free now. */
  readonly slots: readonly string[]
}

export type Availability =
  | { readonly slot: string; readonly kind: 'free' }
  | {
      readonly slot: string
      readonly kind: 'held'
      readonly holder: string
      readonly until: Date
    }
  | { readonly slot: string; readonly kind: 'confirmed'; readonly holder: string }

/** One holder per slot: the constraint on (tenant, resource, slot) decides who that is. */
export interface Reservations {
  /**
   * Holds all of the slots for the holder, or none. Asking again gets the same reservation, and does
   * not prolong it. A process that dies meanwhile leaves all of them held, or none.
   *
   * @throws OptionInvalid; whatever the database throws: then ask again, it happens once.
   */
  reserve(tenantId: string, report: Report, options: ReserveOptions): Promise<Reserved | Taken>
  /**
   * Keeps all of the slots for good, or none. A hold that has run out is confirmed as well, as long
   * as nobody else took the slot. Confirming twice is confirmed again.
   *
   * @throws as `reserve` does.
   */
  confirm(tenantId: string, report: Report, options: SlotsOptions): Promise<Confirmed | Missing>
  /**
   * Frees those of the slots that are the holder's, confirmed or not. Cancelling twice frees nothing
   * more; what is somebody else's stays.
   *
   * @throws as `reserve` does.
   */
  cancel(tenantId: string, report: Report, options: SlotsOptions): Promise<Cancelled>
  /** Who has which slots now. To be shown, not to be relied upon: `reserve` decides. */
  availability(tenantId: string, options: AvailabilityOptions): Promise<Availability[]>
  /** Deletes at most `limit` holds that ran out at least a day ago; returns how many. */
  prune(limit: number): Promise<number>
}

export interface ReservationsContext {
  readonly prisma: PrismaClientLike
  readonly clock: DatabaseClock
  readonly provider: Provider
}

interface Wanted {
  readonly tenantId: string
  readonly resource: string
  readonly slots: readonly string[]
  readonly holder: string
}

/** A row as it is looked at. */
type Row = SlotHold & { readonly tenantId: string; readonly resource: string }

interface Written {
  readonly count: number
}

const SEEN = { id: true, tenantId: true, resource: true, slot: true, holder: true, heldUntil: true }

// Each time, somebody else was faster and has let go again before the next look, or a transaction
// does not show what its constraint knows.
const LOOKS = 5

// On SQLite Prisma takes 999 parameters in one condition.
const AT_A_TIME = 200

const MOST_SLOTS = 1_000

// Longer than Prisma's 5 s, in which a transaction of somebody else's may hold what this one waits
// for; and as patient as a query outside of a transaction while many want a connection.
const PATIENCE = { maxWait: 10_000, timeout: 10_000 }

// Every write is guarded by itself, so no stricter isolation is needed; with the one that is usual on
// MySQL, those who want slots side by side lock each other's gaps. SQLite has but one.
const ISOLATION: Record<Provider, object> = {
  postgresql: { isolationLevel: 'ReadCommitted' },
  mysql: { isolationLevel: 'ReadCommitted' },
  sqlite: {},
}

// Until then, whoever was too late finds his hold and can still confirm it.
const KEPT_MS = 86_400_000

/** @throws TypeError when the client lacks the model. */
export function createReservations({ prisma, clock, provider }: ReservationsContext): Reservations {
  const holds = sayingAgainEach(holdsOf(prisma))

  /** Where the options say that it happens, and what time it is there. */
  function placeOf(tx: ReservationTransaction | undefined) {
    // The transaction has its connection; another one may not be free while it is open.
    return tx === undefined ? { holds, clock } : { holds: holdsOf(tx), clock: clock.through(tx) }
  }

  /** Writes all of it or nothing. Within the caller's transaction, only he can say it again. */
  function write<T>(
    tx: ReservationTransaction | undefined,
    isOneStatement: boolean,
    fn: (holds: ModelDelegate) => PromiseLike<T>,
  ): PromiseLike<T> {
    if (tx !== undefined) return fn(holdsOf(tx))
    if (isOneStatement) return fn(holds)
    return sayAgain(() =>
      prisma.$transaction(async (open: ReservationTransaction) => fn(holdsOf(open)), {
        ...PATIENCE,
        ...ISOLATION[provider],
      }),
    )
  }

  /** Inserts all of the rows or none, and breaks no transaction that it is part of. */
  async function insert(holds: ModelDelegate, rows: readonly { id: string }[]): Promise<boolean> {
    if (rows.length === 0) return true
    if (provider !== 'postgresql') {
      try {
        await holds.createMany({ data: rows })
        return true
      } catch (error) {
        if (!isUniqueViolation(error)) throw error
      }
      // MySQL has undone the statement, and looking for rows that are not there would lock the gaps.
      if (provider === 'mysql') return false
    } else {
      // Without an error: that would abort the transaction, or cost the pool its connection.
      const { count } = await holds.createMany({ data: rows, skipDuplicates: true })
      if (count === rows.length) return true
      if (count === 0) return false
    }
    for (const some of portions(rows.map(({ id }) => id))) {
      await holds.deleteMany({ where: { id: { in: some } } })
    }
    return false
  }

  /** Inserts what nobody had and takes over what ran out: all of it or nothing. */
  function take(
    { tenantId, resource, holder }: Wanted,
    { unheld, lapsed, kept }: Free,
    now: Date,
    heldUntil: Date,
    tx: ReservationTransaction | undefined,
  ): PromiseLike<boolean> {
    // In the order of the slots, so that two who want the same do not wait in a circle.
    const rows = unheld.map((slot) => {
      return { id: randomUUID(), tenantId, resource, slot, holder, heldUntil, createdAt: now }
    })
    const isOneRow = unheld.length + lapsed.length + kept.length === 1
    // On MySQL an INSERT inserts all of its rows or none. PostgreSQL's, which must not fail, may insert
    // some of them, and on SQLite Prisma makes several of one that is long.
    const isOneInsert = provider === 'mysql' && lapsed.length + kept.length === 0
    return write(tx, isOneRow || isOneInsert, async (holds) => {
      // What was his at the look may have run out since, and be somebody else's by now.
      if ((await update(holds, kept, { holder }, { holder })) < kept.length) return false
      const takeOver = (data: object) => update(holds, lapsed, { heldUntil: { lte: now } }, data)
      // Locked first, by a write that changes nothing: the last write is certain then, and nothing
      // that it did would have to be undone.
      if (!isOneRow && (await takeOver({ tenantId })) < lapsed.length) return false
      if (!(await insert(holds, rows))) return false
      return (await takeOver({ holder, heldUntil, createdAt: now })) === lapsed.length
    })
  }

  return {
    async reserve(tenantId, report, options) {
      check(' of reserve', RESERVE_CHECKS, options, SLOTS_REQUIRED)
      const { tx, hold = '15m' } = options
      const wanted = wantedOf(tenantId, options)
      const { resource, slots, holder } = wanted
      const place = placeOf(tx)
      const reserved = (until: Date | null, isNew: boolean): Reserved => {
        return { kind: 'reserved', resource, slots, holder, until, isNew }
      }
      const taken = (slots: readonly string[]): Taken => {
        report({ kind: 'slots_taken', resource, slots })
        return { kind: 'taken', slots }
      }

      for (let look = 1; ; look += 1) {
        const found = await find(place.holds, wanted)
        const now = await timeFor(found, place.clock)
        const seen = standing(slots, found, holder, now)
        if (seen.kind === 'taken') return taken(seen.slots)
        if (seen.kind === 'his') return reserved(seen.until, false)

        const heldUntil = new Date(now.getTime() + toMs(hold))
        const isHis = await take(wanted, seen, now, heldUntil, tx)
        const news = [...seen.unheld, ...seen.lapsed.map(({ slot }) => slot)].sort()
        if (isHis) {
          report({ kind: 'reserved', resource, slots: news })
          return reserved(soonest([seen.until, heldUntil]), true)
        }
        if (look === LOOKS) return taken(news)
      }
    },

    async confirm(tenantId, report, options) {
      check(' of confirm', SLOTS_CHECKS, options, SLOTS_REQUIRED)
      const { tx } = options
      const wanted = wantedOf(tenantId, options)
      const { resource, slots, holder } = wanted
      const place = placeOf(tx)
      const confirmed = (isNew: boolean): Confirmed => {
        if (isNew) report({ kind: 'reservation_confirmed', resource, slots })
        return { kind: 'confirmed', resource, slots, holder, isNew }
      }
      const isOpen = { holder, heldUntil: { not: null } }
      const forGood = { heldUntil: null }
      for (let look = 1; ; look += 1) {
        if (slots.length === 1) {
          const where = { ...namesOf(wanted), ...isOpen }
          const written = await write<Written>(tx, true, (holds) =>
            holds.updateMany({ where, data: forGood }),
          )
          if (written.count === 1) return confirmed(true)
        }
        const found = await find(place.holds, wanted)
        const his = new Set(found.filter(isOf(holder)).map(({ slot }) => slot))
        const missing = slots.filter((slot) => !his.has(slot))
        if (missing.length > 0) return { kind: 'missing', slots: missing }

        const open = found.filter(({ heldUntil }) => heldUntil !== null)
        if (open.length === 0) return confirmed(false)
        if (slots.length > 1) {
          const written = await write(tx, false, async (holds) => {
            // Locked first, for the same reason; what matches after that, nobody else has confirmed.
            const hasAll = (await update(holds, found, { holder }, { holder })) === found.length
            return hasAll ? update(holds, open, isOpen, forGood) : undefined
          })
          if (written !== undefined) return confirmed(written > 0)
        }
        if (look === LOOKS) return { kind: 'missing', slots: open.map(({ slot }) => slot).sort() }
      }
    },

    async cancel(tenantId, report, options) {
      check(' of cancel', SLOTS_CHECKS, options, SLOTS_REQUIRED)
      const { tx } = options
      const wanted = wantedOf(tenantId, options)
      const { resource, holder } = wanted
      const cancelled = (slots: readonly string[]): Cancelled => {
        if (slots.length > 0) report({ kind: 'reservation_cancelled', resource, slots })
        return { kind: 'cancelled', slots }
      }
      if (wanted.slots.length === 1) {
        const where = { ...namesOf(wanted), holder }
        const { count } = await write<Written>(tx, true, (holds) => holds.deleteMany({ where }))
        return cancelled(count === 1 ? wanted.slots : [])
      }
      const his = (await find(placeOf(tx).holds, wanted)).filter(isOf(holder))
      if (his.length === 0) return cancelled([])
      const freed = await write(tx, his.length === 1, async (holds) => {
        // Locked first. Where one is missing, another call has freed it, or somebody has it by now:
        // each is asked for itself.
        const isAll =
          his.length > 1 && (await update(holds, his, { holder }, { holder })) === his.length
        const freed: SlotHold[] = []
        for (const some of isAll ? portions(his) : his.map((one) => [one])) {
          const where = { id: { in: some.map(({ id }) => id) }, holder }
          const { count } = await holds.deleteMany({ where })
          if (count === some.length) freed.push(...some)
        }
        return freed
      })
      return cancelled(freed.map(({ slot }) => slot).sort())
    },

    async availability(tenantId, options) {
      check(' of availability', AVAILABILITY_CHECKS, options, ['resource'])
      const { resource } = options
      const slots = options.slots === undefined ? undefined : listed(options.slots)
      const rows = await find(holds, { tenantId, resource, slots })
      const now = await clock.estimate()
      const kept = rows.filter((row) => !hasLapsed(row, now)).map(availabilityOf)
      const bySlot = new Map(kept.map((one) => [one.slot, one]))
      return (slots ?? [...bySlot.keys()].sort()).map(
        (slot) => bySlot.get(slot) ?? { slot, kind: 'free' },
      )
    },

    async prune(limit) {
      const isDoomed = { heldUntil: { lte: new Date((await clock.ask()).getTime() - KEPT_MS) } }
      const found: { id: string }[] = await holds.findMany({
        where: isDoomed,
        select: { id: true },
        orderBy: { heldUntil: 'asc' },
        take: limit,
      })
      let deleted = 0
      for (const some of portions(found.map(({ id }) => id))) {
        // Asked again in the delete: one that was confirmed or taken in between stays.
        const where = { id: { in: some }, ...isDoomed }
        const { count } = await holds.deleteMany({ where })
        deleted += count
      }
      return deleted
    },
  }
}

/** The rows of these slots, or of all that the resource has. */
async function find(
  holds: ModelDelegate,
  wanted: Pick<Wanted, 'tenantId' | 'resource'> & { readonly slots: readonly string[] | undefined },
): Promise<Row[]> {
  const { tenantId, resource, slots } = wanted
  const found: Row[] = []
  for (const some of slots === undefined ? [undefined] : portions(slots)) {
    const slot = some && { slot: { in: some } }
    found.push(...(await holds.findMany({ where: { tenantId, resource, ...slot }, select: SEEN })))
  }
  // MySQL's usual collations find 'ABC' under 'abc'. Two slots, or two tenants, must never share a
  // row, so this is an answer that cannot be given.
  const isAsked = new Set(slots)
  for (const row of found) {
    const isSlot = slots === undefined || isAsked.has(row.slot)
    if (row.tenantId === tenantId && row.resource === resource && isSlot) continue
    throw new Error(
      'slot_reservation compares names without regard to case: give tenant_id, resource, slot and holder a binary collation',
    )
  }
  return found
}

/** Changes those of the rows that still match; returns how many. */
async function update(
  holds: ModelDelegate,
  rows: readonly SlotHold[],
  guard: object,
  data: object,
): Promise<number> {
  let changed = 0
  for (const some of portions(rows.map(({ id }) => id))) {
    const { count } = await holds.updateMany({ where: { id: { in: some }, ...guard }, data })
    changed += count
  }
  return changed
}

// An estimate is good enough to find a hold running; to take a slot over, ask.
async function timeFor(rows: readonly SlotHold[], clock: DatabaseClock): Promise<Date> {
  const estimate = await clock.estimate()
  return rows.some((row) => hasLapsed(row, estimate)) ? clock.ask() : estimate
}

function holdsOf({ slotReservation }: Pick<PrismaClientLike, 'slotReservation'>): ModelDelegate {
  if (slotReservation === undefined) throw new TypeError('the client lacks model SlotReservation')
  return slotReservation
}

function availabilityOf({ slot, holder, heldUntil }: SlotHold): Availability {
  return heldUntil === null
    ? { slot, kind: 'confirmed', holder }
    : { slot, kind: 'held', holder, until: heldUntil }
}

/** Names the row of one slot. */
function namesOf({ tenantId, resource, slots: [slot] }: Wanted): object {
  return { tenantId, resource, slot }
}

function isOf(holder: string): (row: SlotHold) => boolean {
  return (row) => row.holder === holder
}

function wantedOf(tenantId: string, { resource, slots, holder }: SlotsOptions): Wanted {
  return { tenantId, resource, slots: listed(slots), holder }
}

function listed(slots: string | readonly string[]): string[] {
  return [...new Set(typeof slots === 'string' ? [slots] : slots)].sort()
}

function portions<T>(items: readonly T[]): T[][] {
  const count = Math.ceil(items.length / AT_A_TIME)
  return Array.from({ length: count }, (_, n) => items.slice(n * AT_A_TIME, (n + 1) * AT_A_TIME))
}

const isSlots: Check = (value) => {
  const slots: unknown[] = Array.isArray(value) ? value : [value]
  return slots.length >= 1 &&
    slots.length <= MOST_SLOTS &&
    slots.every((slot) => isStorableText(slot))
    ? undefined
    : `must be a text or a list of 1 to ${MOST_SLOTS} texts such as ['2027-06-05'], each of 1 to 255 characters, without NUL and without lone surrogates`
}

const isOpenTransaction: Check = (value) => {
  const delegate: unknown = Reflect.get(Object(value), 'slotReservation')
  // A whole client has it, and what a transaction gives has not.
  const isClient = typeof Reflect.get(Object(value), '$connect') === 'function'
  return typeof delegate === 'object' && delegate !== null && !isClient
    ? undefined
    : 'must be the client that $transaction gives to its function; leave it out where no transaction is open'
}

const SLOTS_REQUIRED = ['resource', 'slots', 'holder']
const SLOTS_CHECKS = {
  resource: isColumnText('venue:7'),
  slots: isSlots,
  holder: isColumnText('booking:12'),
  tx: isOpenTransaction,
}
const RESERVE_CHECKS = { ...SLOTS_CHECKS, hold: isDuration(1, '15m', LONGEST_RETENTION_MS) }
const AVAILABILITY_CHECKS = { resource: SLOTS_CHECKS.resource, slots: isSlots }
