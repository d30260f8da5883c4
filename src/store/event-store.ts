import type { EventStatus, RunError } from '../core/event.js'
import type { StepResults } from '../core/record.js'

/**
 * An event as a delivery brought it. On MySQL, `eventId` and `lane` have room for 255 characters,
 * `provider`, `endpoint` and `type` for 191; no database takes a NUL character.
 */
export interface Arrival {
  /** The row's name if this arrival makes one. */
  readonly id: string
  readonly tenantId: string
  readonly provider: string
  readonly eventId: string | null
  readonly endpoint: string
  readonly type: string | null
  readonly payload: Uint8Array
  readonly headers: Readonly<Record<string, string>>
  readonly bodyHash: string
  readonly lane: string | null
  /**
   * What a new row starts as. `processing` is a claim with fence 1; when another event runs in the
   * lane, the row starts as `received` instead, and is as due.
   */
  readonly status: Exclude<EventStatus, 'retrying'>
  /**
   * Whether only its provider repeats it, by another delivery: then no time makes it due once it is `retrying`.
   * A later delivery of which this is not so makes it an event like any other.
   */
  readonly awaitsDelivery: boolean
  /** From now; `null` for never. The lease of one that starts as `processing`. */
  readonly dueInMs: number | null
  /** Why it cannot be run, where it starts as `dead`. */
  readonly errors: readonly RunError[]
}

/** What stands in the inbox after a delivery. */
export interface Recorded {
  readonly id: string
  readonly isNew: boolean
  readonly status: EventStatus
  readonly fence: number
  readonly attempts: number
  readonly deliveries: number
  /** How long until it is due: the rest of a lease. `null` for never. */
  readonly dueInMs: number | null
  /** Of the bytes that are stored: those of the first delivery. */
  readonly bodyHash: string
  /** The id of another event with the same bytes. Only told of a new one. */
  readonly sameBodyAs: string | null
  readonly receivedAt: Date
}

/** An event as it is stored. */
export interface StoredEvent {
  readonly id: string
  readonly tenantId: string
  readonly provider: string
  readonly eventId: string | null
  readonly endpoint: string
  readonly type: string | null
  readonly status: EventStatus
  readonly fence: number
  readonly attempts: number
  readonly deferrals: number
  readonly deliveries: number
  /** ISO 8601, the last twenty. */
  readonly deliveredAt: readonly string[]
  readonly payload: Uint8Array
  readonly headers: Readonly<Record<string, string>>
  readonly bodyHash: string
  readonly sameBodyAs: string | null
  /** How many deliveries carried other bytes than the first. */
  readonly otherBodies: number
  /** Whether only its provider repeats it, by another delivery. It can become `false`, and never `true`. */
  readonly awaitsDelivery: boolean
  readonly lane: string | null
  readonly steps: StepResults
  readonly errors: readonly RunError[]
  readonly receivedAt: Date
}

/** Names a run of an event; every write of the run is guarded by all of it. */
export interface RunHold {
  readonly id: string
  readonly fence: number
}

/** All that the steps of an event have returned so far, in place of what is stored. */
export interface KeepEventSteps extends RunHold {
  readonly steps: StepResults
}

/** How a run ends. Absolute values: saying it twice changes nothing more. */
export interface RunEnd extends RunHold {
  readonly status: Exclude<EventStatus, 'processing'>
  /** Whether its provider is answered that it need not deliver it again: it no longer awaits a delivery. */
  readonly isAcknowledged: boolean
  /** From now; `null` for never. One that is `retrying` and awaits a delivery is never due. */
  readonly dueInMs: number | null
  readonly attempts: number
  readonly deferrals: number
  readonly errors: readonly RunError[]
  /**
   * Makes the events of this lane that were deferred, or found it taken, due now: what they wait
   * for may have arrived. Each gets one deferral back.
   */
  readonly wakes: string | null
}

/** Which events may be claimed: those of the endpoints that are served, each with its own lease. */
export interface Endpoints {
  readonly names: readonly string[]
  readonly leasesMs: readonly number[]
}

/**
 * The inbox's table. As in `Store`, `false` means that a guard did not match, and a verb rejects
 * only when the store cannot answer: the write may have happened.
 */
export interface EventStore {
  /** Whether a list travels as one statement. */
  readonly combinesLists: boolean
  /** Inserts events, or counts one more delivery of those that are there. The constraint decides. */
  record(arrivals: readonly Arrival[]): Promise<Recorded[]>
  /**
   * Claims at most `limit` events that are due, those that are due longest first, no two of one
   * lane and none whose lane is running. Side by side, no event is claimed twice.
   */
  claimDue(limit: number, endpoints: Endpoints): Promise<StoredEvent[]>
  /**
   * Claims this event if it may run now: received or retrying, whenever it is due, or processing
   * with its lease run out. `undefined` when it may not, or its lane is running.
   */
  claim(id: string, leaseMs: number): Promise<StoredEvent | undefined>
  /** Ends runs. Saying the same again is `true` again. */
  end(ends: readonly RunEnd[]): Promise<boolean[]>
  /** Renews leases, counted from now. */
  extend(holds: readonly (RunHold & { readonly leaseMs: number })[]): Promise<boolean[]>
  /** Stores the results of steps while the run goes on. */
  keepSteps(list: readonly KeepEventSteps[]): Promise<boolean[]>
  /** Lists at most `limit` events that are due, without claiming them. */
  listDue(limit: number, endpoints: Endpoints): Promise<{ id: string; fence: number }[]>
  find(
    name: string | { tenantId: string; provider: string; eventId: string },
  ): Promise<StoredEvent | undefined>
  /**
   * Lets an event that is not being processed run again, from its first attempt, due now. One that
   * is processed only when forced, and then its steps are forgotten, too. It no longer awaits a delivery.
   * `lane`: the one to run in from now on; `null` for the one that it has.
   */
  reopen(id: string, force: boolean, lane: string | null): Promise<boolean>
  /** Deletes at most `limit` processed or ignored events that are due; returns how many. */
  prune(limit: number): Promise<number>
}
