// What the statements of src/store/event-statements.ts do in the model database, found by their names. The
// contract of event stores (test/contracts/event-store.ts) holds them to what PostgreSQL does.
import type { EventStatus } from '../../src/core/event.js'
import { KEPT_DELIVERIES, KEPT_ERRORS, NOT_ENDED } from '../../src/core/event.js'
import { HEAD } from '../../src/store/event-statements.js'
import { inAnyOrder } from './any-order.js'
import type { ModelDatabase, Need, Statement, Transaction } from './model-database.js'
import { type EventRow, eventKeyOf, eventNameOf } from './model-rows.js'

/** One item of a list, with the columns that its statement has; each statement reads its own. */
export interface EventItem {
  /** Its place in the list, from 1. */
  readonly i: number
  readonly id: string
  readonly tenant_id: string
  readonly provider: string
  readonly event_id: string | null
  readonly endpoint: string
  readonly type: string | null
  readonly payload: string
  readonly headers: string
  readonly body_hash: string
  readonly lane: string | null
  readonly status: EventStatus
  readonly awaits_delivery: boolean
  readonly is_acknowledged: boolean
  readonly due_ms: number | null
  readonly deliveries: number
  readonly fence: number
  readonly attempts: number
  readonly deferrals: number
  readonly errors: string
  readonly wakes: string | null
  readonly lease_ms: number
  readonly steps: string
}

type Rows = readonly object[]
type OfEvents = (items: readonly EventItem[], values: readonly unknown[]) => Statement<Rows>

const OPEN: readonly EventStatus[] = ['received', 'retrying', 'processing']
const WAITING: readonly EventStatus[] = ['received', 'retrying']

export const EVENT_STATEMENTS: Readonly<Record<string, OfEvents>> = {
  fi_event_record: (items) =>
    function* (transaction, database) {
      const seen = [...database.events.rows]
      const known = new Set(seen.map(eventKeyOf))
      const isKnown = (item: EventItem) =>
        item.event_id !== null && known.has(eventKeyOf(rowOf(item, database)))
      const fresh = items.filter((item) => !isKnown(item))
      const recorded: object[] = []
      for (const item of inAnyOrderOfNames(items)) {
        const before = fresh.filter(({ i }) => i < item.i)
        const isLaneTaken =
          seen.some(({ runningLane }) => item.lane !== null && runningLane === item.lane) ||
          before.some(({ lane, status }) => lane === item.lane && status === 'processing')
        const starts = item.status === 'processing' && (item.lane === null || !isLaneTaken)
        const isSame = (other: { tenantId: string; provider: string; bodyHash: string }) =>
          other.tenantId === item.tenant_id &&
          other.provider === item.provider &&
          other.bodyHash === item.body_hash
        const twin =
          seen.find((row) => isSame(row) && (row.eventId === null || row.eventId !== item.event_id))
            ?.id ?? before.find((other) => isSame(rowOf(other, database)))?.id
        const row: EventRow = {
          ...rowOf(item, database),
          ...(starts
            ? { fence: 1, attempts: 1, runningLane: item.lane }
            : item.status === 'processing' && { status: 'received' }),
          sameBodyAs: isKnown(item) || item.payload === '' ? null : (twin ?? null),
        }
        recorded.push(recordedOf(yield* insertOrCount(transaction, database, row), database))
      }
      return recorded
    },

  fi_event_claim_due: (_, values) =>
    function* (transaction, database) {
      const [limit, names, passed, leasesMs] = values as [number, string[], string[], number[]]
      const { head, free } = headOf(database, names, passed)
      const claimed: EventRow[] = []
      const due: EventRow[] = []
      for (const row of free) {
        if (due.length === limit) break
        const name = eventNameOf(row)
        // SKIP LOCKED; what is locked is looked at again.
        if (database.isLocked(name)) continue
        yield name
        const now = database.events.see(name, transaction)
        if (now?.chain === row.chain && isDue(now, database)) due.push(now)
      }
      for (const row of due) {
        const leaseMs = leasesMs[names.indexOf(row.endpoint)] as number
        claimed.push(yield* startRun(transaction, database, row, leaseMs))
      }
      return lookedAt(
        head,
        claimed.map((row) => shown(row)),
      )
    },

  fi_event_list_due: (_, values) =>
    function* (_transaction, database) {
      const [limit, names, passed, listed] = values as [number, string[], string[], string[]]
      const { head, free } = headOf(database, names, passed, listed)
      const rows = free.slice(0, limit).map(({ id, fence }) => ({ id, fence }))
      return lookedAt(head, rows)
    },

  fi_event_claim: (_, [id, leaseMs]) =>
    function* (transaction, database) {
      const { events } = database
      const seen = [...events.rows]
      const canRun = (row: EventRow) =>
        WAITING.includes(row.status) || (row.status === 'processing' && hasCome(row, database))
      const row = yield* events.lockedIf(
        transaction,
        eventNameOf({ id: String(id) }),
        (row) => canRun(row) && !isLaneRunBy(seen, row),
      )
      if (row === undefined) return []
      return [shown(yield* startRun(transaction, database, row, Number(leaseMs)))]
    },

  fi_event_end: (items) =>
    function* (transaction, database) {
      const { events } = database
      const ended = yield* writeEach(
        ...([transaction, database, items] as const),
        (row, { fence, status }) =>
          row.fence === fence && (row.status === 'processing' || row.status === status),
        (row, { status, is_acknowledged, due_ms, attempts, deferrals, errors }) => {
          const awaitsDelivery = row.awaitsDelivery && !is_acknowledged
          const isParked = status === 'retrying' && awaitsDelivery
          return {
            ...row,
            ...{ status, attempts, deferrals, runningLane: null, awaitsDelivery },
            dueAt: isParked ? null : dueIn(due_ms, database),
            errors: JSON.parse(errors),
          }
        },
      )
      const lanes = ended.flatMap(({ wakes }) => wakes ?? [])
      const isAsleep = (row: EventRow) =>
        WAITING.includes(row.status) &&
        !hasCome(row, database) &&
        row.dueAt !== null &&
        (row.status === 'received' || row.deferrals > 0)
      const waiting = [...events.rows]
        .filter((row) => row.lane !== null && lanes.includes(row.lane))
        .sort((a, b) => (a.id < b.id ? -1 : 1))
      for (const seen of waiting) {
        // What the statement has ended itself, it does not wake.
        if (transaction.writes.has(eventNameOf(seen))) continue
        const row = yield* events.lockedIf(transaction, eventNameOf(seen), isAsleep)
        if (row === undefined) continue
        const deferrals = Math.max(row.deferrals - 1, Math.min(row.deferrals, 1))
        yield* events.put(transaction, { ...row, deferrals, dueAt: database.now() })
      }
      return ended.map(({ i }) => ({ i }))
    },

  fi_event_extend: (items) =>
    function* (transaction, database) {
      const extended = yield* writeEach(
        ...([transaction, database, items] as const),
        (row, { fence }) => row.fence === fence && row.status === 'processing',
        (row, { lease_ms }) => ({ ...row, dueAt: dueIn(lease_ms, database) }),
      )
      return extended.map(({ i }) => ({ i }))
    },

  fi_event_keep_steps: (items) =>
    function* (transaction, database) {
      const kept = yield* writeEach(
        ...([transaction, database, items] as const),
        (row, { fence }) => row.fence === fence && row.status === 'processing',
        (row, { steps }) => ({ ...row, steps: JSON.parse(steps) }),
      )
      return kept.map(({ i }) => ({ i }))
    },

  fi_event_find: (_, [id]) => reading(({ events }) => events.see(eventNameOf({ id: String(id) }))),

  fi_event_find_by_name: (_, [tenantId, provider, eventId]) => {
    const name = JSON.stringify([tenantId, provider, eventId])
    return reading(({ events }) => [...events.rows].find((row) => eventKeyOf(row) === name))
  },

  fi_event_reopen: (_, [id, isForced, lane]) =>
    function* (transaction, database) {
      const { events } = database
      const mayReopen = (row: EventRow) =>
        row.status === 'processing'
          ? hasCome(row, database)
          : row.status === 'processed'
            ? isForced === true
            : true
      const name = eventNameOf({ id: String(id) })
      const row = yield* events.lockedIf(transaction, name, mayReopen)
      if (row === undefined) return []
      const steps = row.status === 'processed' ? {} : row.steps
      const anew = { attempts: 0, deferrals: 0, dueAt: database.now(), runningLane: null, steps }
      const inLane = { lane: (lane as string | null) ?? row.lane, awaitsDelivery: false }
      yield* events.put(transaction, { ...row, ...anew, ...inLane, status: 'received' })
      return [{ reopened: 1 }]
    },

  fi_event_prune: (_, [limit]) =>
    function* (transaction, database) {
      const { events } = database
      let count = 0
      for (const row of [...events.rows]) {
        const isDoomed = ['processed', 'ignored'].includes(row.status) && hasCome(row, database)
        const name = eventNameOf(row)
        if (count === limit || !isDoomed || database.isLocked(name)) continue
        yield name
        events.delete(transaction, name)
        count += 1
      }
      return [{ count }]
    },
}

/** INSERT … ON CONFLICT (tenant_id, provider, event_id) DO UPDATE: counts the deliveries of what is there. */
function* insertOrCount(
  transaction: Transaction,
  { events }: ModelDatabase,
  row: EventRow,
): Generator<Need, EventRow, undefined> {
  const key = eventKeyOf(row)
  // Waits for whoever inserts, or deletes, an event of that name.
  if (key !== undefined) yield `name\0${key}`
  for (const known of key === undefined ? [] : events.seenBy(transaction)) {
    if (eventKeyOf(known) !== key) continue
    yield eventNameOf(known)
    const now = events.see(eventNameOf(known), transaction)
    if (now === undefined) break
    const deliveredAt = [...now.deliveredAt, ...row.deliveredAt].slice(-KEPT_DELIVERIES)
    const others = now.bodyHash === row.bodyHash ? 0 : row.deliveries
    const deliveries = now.deliveries + row.deliveries
    const awaitsDelivery = now.awaitsDelivery && row.awaitsDelivery
    const isLeft = now.status === 'retrying' && now.dueAt === null
    const counted = {
      ...{ ...now, deliveries, deliveredAt, otherBodies: now.otherBodies + others, awaitsDelivery },
      dueAt: isLeft && !row.awaitsDelivery ? row.dueAt : now.dueAt,
    }
    yield* events.put(transaction, counted)
    return counted
  }
  yield* events.insert(transaction, row)
  return row
}

/** What is due, in its order, and of it what may run: of each lane the first, or its crashed run. */
function headOf(
  database: ModelDatabase,
  names: readonly string[],
  passed: readonly string[],
  listed: readonly string[] = [],
) {
  const rows = [...database.events.rows]
  const head = rows
    .filter(
      (row) =>
        isDue(row, database) &&
        names.includes(row.endpoint) &&
        !listed.includes(row.id) &&
        (row.lane === null || row.runningLane !== null || !passed.includes(row.lane)),
    )
    .sort((a, b) => Number(a.dueAt) - Number(b.dueAt) || (a.id < b.id ? -1 : 1))
    .slice(0, HEAD)
  const free = head.filter(
    (row) =>
      row.lane === null ||
      row.runningLane !== null ||
      (head.find(({ lane }) => lane === row.lane) === row && !isLaneRunBy(rows, row)),
  )
  return { head, free }
}

/** The rows, of which the first tells what was looked at; one that tells only that if there are none. */
function lookedAt(head: readonly EventRow[], rows: readonly object[]): Rows {
  const lanes = [...new Set(head.flatMap(({ lane }) => lane ?? []))]
  const look = { seen: head.length, lanes: lanes.length > 0 ? JSON.stringify(lanes) : null }
  if (rows.length === 0) return [{ id: null, ...look }]
  return rows.map((row, n) => ({ ...row, ...look, ...(n > 0 && { lanes: null }) }))
}

function isLaneRunBy(seen: readonly EventRow[], { id, lane }: EventRow): boolean {
  return lane !== null && seen.some((other) => other.runningLane === lane && other.id !== id)
}

function* startRun(
  transaction: Transaction,
  database: ModelDatabase,
  row: EventRow,
  leaseMs: number,
): Generator<Need, EventRow, undefined> {
  const started: EventRow = {
    ...row,
    ...{ status: 'processing', fence: row.fence + 1, attempts: row.attempts + 1 },
    ...{ runningLane: row.lane, dueAt: dueIn(leaseMs, database) },
    ...(row.status === 'processing' && {
      errors: [
        ...row.errors,
        { attempt: row.fence, at: database.now().toISOString(), message: NOT_ENDED },
      ].slice(-KEPT_ERRORS),
    }),
  }
  yield* database.events.put(transaction, started)
  return started
}

/** As in the other table: a row that several items name is written once, by any one of them. */
function* writeEach(
  transaction: Transaction,
  { events, watch }: ModelDatabase,
  items: readonly EventItem[],
  guard: (row: EventRow, item: EventItem) => boolean,
  write: (row: EventRow, item: EventItem) => EventRow,
): Generator<Need, EventItem[], undefined> {
  watch?.listed(items.map(eventNameOf))
  const matching = new Map<string, EventItem[]>()
  for (const item of items) {
    const name = eventNameOf(item)
    const seen = events.see(name, transaction)
    if (seen !== undefined && guard(seen, item)) {
      matching.set(name, [...(matching.get(name) ?? []), item])
    }
  }
  const written: EventItem[] = []
  for (const [name, items] of matching) {
    for (const item of inAnyOrder(items)) {
      const row = yield* events.lockedIf(transaction, name, (row) => guard(row, item))
      if (row === undefined) continue
      yield* events.put(transaction, write(row, item))
      written.push(item)
      break
    }
  }
  return written
}

function reading(read: (database: ModelDatabase) => EventRow | undefined): Statement<Rows> {
  // biome-ignore lint/correctness/useYield: it waits for nothing
  return function* (_, database) {
    const row = read(database)
    return row === undefined ? [] : [shown(row)]
  }
}

function rowOf(item: EventItem, database: ModelDatabase): EventRow {
  const deliveredAt = new Array<string>(Math.min(item.deliveries, KEPT_DELIVERIES))
  return {
    ...{ chain: database.events.newChain(), id: item.id, tenantId: item.tenant_id },
    ...{ provider: item.provider, eventId: item.event_id, endpoint: item.endpoint },
    ...{ type: item.type, status: item.status, fence: 0, attempts: 0, deferrals: 0 },
    ...{ dueAt: dueIn(item.due_ms, database), deliveries: item.deliveries },
    deliveredAt: deliveredAt.fill(database.now().toISOString()),
    payload: Buffer.from(item.payload, 'base64'),
    ...{
      headers: JSON.parse(item.headers),
      bodyHash: item.body_hash,
      sameBodyAs: null,
      otherBodies: 0,
      awaitsDelivery: item.awaits_delivery,
    },
    ...{ lane: item.lane, runningLane: null, steps: {}, errors: JSON.parse(item.errors) },
    receivedAt: database.now(),
  }
}

function dueIn(ms: number | null, database: ModelDatabase): Date | null {
  return ms === null ? null : database.later(ms)
}

function hasCome({ dueAt }: EventRow, database: ModelDatabase): boolean {
  return dueAt !== null && dueAt <= database.now()
}

function isDue(row: EventRow, database: ModelDatabase): boolean {
  return OPEN.includes(row.status) && hasCome(row, database)
}

function inAnyOrderOfNames(items: readonly EventItem[]): readonly EventItem[] {
  const name = ({ tenant_id, provider, event_id }: EventItem) =>
    `${tenant_id}\0${provider}\0${event_id ?? '\uffff'}`
  return inAnyOrder(items).sort((a, b) => (name(a) < name(b) ? -1 : name(a) > name(b) ? 1 : 0))
}

/** The columns of a row, as the statements return them. */
function shown(row: EventRow): object {
  return {
    ...{ id: row.id, tenant_id: row.tenantId, provider: row.provider, event_id: row.eventId },
    ...{ endpoint: row.endpoint, type: row.type, status: row.status, fence: row.fence },
    ...{ attempts: row.attempts, deferrals: row.deferrals, deliveries: row.deliveries },
    ...{ delivered_at: JSON.stringify(row.deliveredAt), payload: row.payload },
    ...{ headers: JSON.stringify(row.headers), body_hash: row.bodyHash },
    ...{ same_body_as: row.sameBodyAs, other_bodies: row.otherBodies, lane: row.lane },
    awaits_delivery: String(row.awaitsDelivery),
    steps: JSON.stringify(row.steps),
    ...{ errors: JSON.stringify(row.errors), received_at: row.receivedAt.getTime() },
  }
}

function recordedOf(row: EventRow, database: ModelDatabase): object {
  const dueInMs = row.dueAt === null ? null : row.dueAt.getTime() - database.now().getTime()
  return { ...shown(row), due_in_ms: dueInMs }
}
