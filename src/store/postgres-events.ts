import type { EventStatus, RunError } from '../core/event.js'
import type { StepResults } from '../core/record.js'
import { errorCode } from './client.js'
import {
  CLAIM,
  CLAIM_DUE,
  END,
  EXTEND,
  FIND,
  FIND_BY_NAME,
  HEAD,
  KEEP_STEPS,
  LIST_DUE,
  PRUNE,
  RECORD,
  REOPEN,
} from './event-statements.js'
import type { Arrival, EventStore, Recorded, RunEnd, RunHold, StoredEvent } from './event-store.js'
import { lockTimeoutFor, matchedItems, type RunStatement, sayingAgain } from './statements.js'

// Numbers are read with Number(): an application may have told pg to leave them as text.
interface RecordedRow {
  id: string
  tenant_id: string
  provider: string
  event_id: string | null
  status: EventStatus
  fence: number
  attempts: number
  deliveries: number
  due_in_ms: number | null
  body_hash: string
  same_body_as: string | null
  received_at: number
}

interface Look {
  /** How many were at the head, and their lanes. */
  seen: number
  lanes: string | null
}

interface EventRow extends Omit<RecordedRow, 'due_in_ms'> {
  endpoint: string
  type: string | null
  deferrals: number
  delivered_at: string
  payload: Uint8Array
  headers: string
  other_bodies: number
  awaits_delivery: string
  lane: string | null
  steps: string
  errors: string
}

// Two who saw a lane free at the same time: the constraint lets one take it, and stops the whole
// statement of the other, which then sees it taken. That can happen again with the next of the lane.
const UNIQUE_VIOLATION = '23505'
const LOOKS = 10

/** The arrivals of one list that name the same event: one row of the statement. */
interface Group {
  readonly first: Arrival
  readonly places: number[]
}

/** One statement for each verb, whatever the length of its list. */
export function postgresEventStore(runOnce: RunStatement): EventStore {
  const run = sayingAgain(runOnce)

  async function runForLanes(name: string, text: string, values: readonly unknown[]) {
    for (let look = 1; ; look += 1) {
      try {
        return await run(name, text, values)
      } catch (error) {
        if (errorCode(error) !== UNIQUE_VIOLATION || look === LOOKS) throw error
      }
    }
  }

  const matched = <I extends RunHold>(
    name: string,
    text: string,
    items: readonly I[],
    columnsOf: (items: readonly I[]) => readonly unknown[],
  ) => matchedItems(run, name, text, items, { compare, columnsOf })

  async function one(name: string, text: string, values: readonly unknown[]) {
    const [row] = (await runForLanes(name, text, values)) as readonly EventRow[]
    return row && storedEvent(row)
  }

  async function record(arrivals: readonly Arrival[]): Promise<Recorded[]> {
    // A statement cannot touch a row twice: those of one event travel once, with their number.
    const groups = new Map<string, Group>()
    // Those that differ from the first of their event, which are told apart once it is there.
    const others: number[] = []
    for (const [place, arrival] of arrivals.entries()) {
      const name = nameOf(arrival.tenantId, arrival.provider, arrival.eventId, arrival.id)
      const group = groups.get(name)
      if (group === undefined) groups.set(name, { first: arrival, places: [place] })
      else if (isAlike(group.first, arrival)) group.places.push(place)
      else others.push(place)
    }
    const list = [...groups.values()].map(({ first }) => first)
    const rows = (await runForLanes('fi_event_record', RECORD, [
      list.map(({ id }) => id),
      list.map(({ tenantId }) => tenantId),
      list.map(({ provider }) => provider),
      list.map(({ eventId }) => eventId),
      list.map(({ endpoint }) => endpoint),
      list.map(({ type }) => type),
      list.map(({ payload }) => base64(payload)),
      list.map(({ headers }) => JSON.stringify(headers)),
      list.map(({ bodyHash }) => bodyHash),
      list.map(({ lane }) => lane),
      list.map(({ status }) => status),
      list.map(({ dueInMs }) => dueInMs),
      list.map(({ awaitsDelivery }) => awaitsDelivery),
      list.map(({ errors }) => JSON.stringify(errors)),
      [...groups.values()].map(({ places }) => places.length),
      lockTimeoutFor(list),
    ])) as readonly RecordedRow[]

    const result = new Array<Recorded>(arrivals.length)
    for (const row of rows) {
      const group = groups.get(nameOf(row.tenant_id, row.provider, row.event_id, row.id))
      const { first, places } = group as Group
      for (const [n, place] of places.entries()) {
        const isNew = n === 0 && row.id === first.id
        result[place] = recorded(row, isNew, Number(row.deliveries) - (places.length - 1 - n))
      }
    }
    if (others.length === 0) return result
    const later = await record(others.map((place) => arrivals[place] as Arrival))
    for (const [n, place] of others.entries()) result[place] = later[n] as Recorded
    return result
  }

  return {
    combinesLists: true,
    record,

    async claimDue(limit, { names, leasesMs }) {
      const claimed: StoredEvent[] = []
      await lookForDue(
        limit,
        async (count, passed) => {
          const values = [count, names, passed, leasesMs]
          const rows = await runForLanes('fi_event_claim_due', CLAIM_DUE, values)
          return rows as readonly (EventRow & Look)[]
        },
        (row) => claimed.push(storedEvent(row)),
      )
      return claimed
    },

    claim: (id, leaseMs) => one('fi_event_claim', CLAIM, [id, leaseMs]),

    end: (ends) =>
      matched('fi_event_end', END, ends, (list: readonly RunEnd[]) => [
        ...holds(list),
        list.map(({ status }) => status),
        list.map(({ isAcknowledged }) => isAcknowledged),
        list.map(({ dueInMs }) => dueInMs),
        list.map(({ attempts }) => attempts),
        list.map(({ deferrals }) => deferrals),
        list.map(({ errors }) => JSON.stringify(errors)),
        list.map(({ wakes }) => wakes),
      ]),

    extend: (list) =>
      matched('fi_event_extend', EXTEND, list, (items) => [
        ...holds(items),
        items.map(({ leaseMs }) => leaseMs),
      ]),

    keepSteps: (list) =>
      matched('fi_event_keep_steps', KEEP_STEPS, list, (items) => [
        ...holds(items),
        items.map(({ steps }) => JSON.stringify(steps)),
      ]),

    async listDue(limit, { names }) {
      const listed: RunHold[] = []
      await lookForDue(
        limit,
        async (count, passed) => {
          const values = [count, names, passed, listed.map(({ id }) => id)]
          return (await run('fi_event_list_due', LIST_DUE, values)) as readonly (RunHold & Look)[]
        },
        ({ id, fence }) => listed.push({ id, fence: Number(fence) }),
      )
      return listed
    },

    find: (name) =>
      typeof name === 'string'
        ? one('fi_event_find', FIND, [name])
        : one('fi_event_find_by_name', FIND_BY_NAME, [name.tenantId, name.provider, name.eventId]),

    async reopen(id, force, lane) {
      return (await run('fi_event_reopen', REOPEN, [id, force, lane])).length === 1
    },

    async prune(limit) {
      const [row] = (await run('fi_event_prune', PRUNE, [limit])) as readonly { count: number }[]
      return Number(row?.count ?? 0)
    },
  }
}

/** What the constraint compares. Events without a name are each their own. */
function nameOf(tenantId: string, provider: string, eventId: string | null, id: string): string {
  return JSON.stringify(eventId === null ? [id] : [tenantId, provider, eventId])
}

/** Whether a delivery does to the row of its event what this one does. */
function isAlike(one: Arrival, other: Arrival): boolean {
  return one.bodyHash === other.bodyHash && one.awaitsDelivery === other.awaitsDelivery
}

function compare(a: RunHold, b: RunHold): number {
  return a.id < b.id ? -1 : a.id > b.id ? 1 : 0
}

function holds(list: readonly RunHold[]): unknown[] {
  return [list.map(({ id }) => id), list.map(({ fence }) => fence)]
}

/**
 * Looks at the head of what is due, and again without the lanes that filled it, for as long as that
 * may bring more.
 */
async function lookForDue<R extends { id: string | null }>(
  limit: number,
  look: (count: number, passed: readonly string[]) => Promise<readonly (R & Look)[]>,
  take: (row: R) => void,
): Promise<void> {
  const passed = new Set<string>()
  for (let left = limit; left > 0; ) {
    let rows: readonly (R & Look)[]
    try {
      rows = await look(left, [...passed])
    } catch (error) {
      // What was claimed has to be run; whatever is wrong will be met again.
      if (left === limit) throw error
      return
    }
    const before = left - passed.size
    for (const row of rows) {
      // Without any, there is one row that only tells what was seen.
      if (row.id === null) continue
      take(row)
      left -= 1
    }
    for (const lane of JSON.parse(rows[0]?.lanes ?? '[]') as string[]) passed.add(lane)
    const isNothingNew = left - passed.size === before
    if (isNothingNew || Number(rows[0]?.seen ?? 0) < HEAD) return
  }
}

// As text: no two drivers send an array of bytes objects in the same way.
function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64')
}

function recorded(row: RecordedRow, isNew: boolean, deliveries: number): Recorded {
  return {
    id: row.id,
    isNew,
    status: row.status,
    fence: Number(row.fence),
    attempts: Number(row.attempts),
    deliveries,
    dueInMs: row.due_in_ms === null ? null : Number(row.due_in_ms),
    bodyHash: row.body_hash,
    sameBodyAs: isNew ? row.same_body_as : null,
    receivedAt: new Date(Number(row.received_at)),
  }
}

function storedEvent(row: EventRow): StoredEvent {
  return {
    id: row.id,
    tenantId: row.tenant_id,
    provider: row.provider,
    eventId: row.event_id,
    endpoint: row.endpoint,
    type: row.type,
    status: row.status,
    fence: Number(row.fence),
    attempts: Number(row.attempts),
    deferrals: Number(row.deferrals),
    deliveries: Number(row.deliveries),
    deliveredAt: JSON.parse(row.delivered_at) as string[],
    payload: row.payload,
    headers: JSON.parse(row.headers) as Record<string, string>,
    bodyHash: row.body_hash,
    sameBodyAs: row.same_body_as,
    otherBodies: Number(row.other_bodies),
    awaitsDelivery: row.awaits_delivery === 'true',
    lane: row.lane,
    steps: JSON.parse(row.steps) as StepResults,
    errors: JSON.parse(row.errors) as RunError[],
    receivedAt: new Date(Number(row.received_at)),
  }
}
