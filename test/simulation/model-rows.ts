// The rows of the model database, as Prisma names their columns.
import type { EventStatus, RunError } from '../../src/core/event.js'
import type {
  AttemptToken,
  RecordKey,
  RecordStatus,
  StepResults,
  StoredResponse,
} from '../../src/core/record.js'

/** Never changed, always replaced. */
export interface Version {
  /** Which row this is a version of: what was deleted and inserted again is another one. */
  readonly chain: number
}

/** A row of `idempotency_record`. */
export interface Row extends RecordKey, AttemptToken, Version {
  readonly fingerprint: string
  readonly status: RecordStatus
  readonly holder: string | null
  readonly claimedAt: Date | null
  readonly leaseUntil: Date
  readonly expiresAt: Date
  readonly createdAt: Date
  readonly statusCode: number | null
  readonly headers: StoredResponse['headers'] | null
  readonly body: Uint8Array | null
  readonly steps: StepResults | null
  readonly handler: string | null
  readonly input: unknown
}

export const EMPTY = {
  ...{ statusCode: null, headers: null, body: null },
  ...{ steps: null, handler: null, input: null, holder: null, claimedAt: null },
}

export function nameOf({ tenantId, key }: RecordKey): string {
  return `${tenantId}\0${key}`
}

/** A row of `webhook_event`. */
export interface EventRow extends Version {
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
  readonly dueAt: Date | null
  readonly deliveries: number
  readonly deliveredAt: readonly string[]
  readonly payload: Uint8Array
  readonly headers: Readonly<Record<string, string>>
  readonly bodyHash: string
  readonly sameBodyAs: string | null
  readonly otherBodies: number
  readonly awaitsDelivery: boolean
  readonly lane: string | null
  readonly runningLane: string | null
  readonly steps: StepResults
  readonly errors: readonly RunError[]
  readonly receivedAt: Date
}

export const EMPTY_EVENT = {
  ...{ fence: 0, attempts: 0, deferrals: 0, dueAt: null, deliveries: 1 },
  ...{ sameBodyAs: null, otherBodies: 0, awaitsDelivery: false, lane: null, runningLane: null },
}

export const eventNameOf = ({ id }: Pick<EventRow, 'id'>): string => `event\0${id}`

/** The name under which the provider knows an event, if it has one. */
export function eventKeyOf({ tenantId, provider, eventId }: EventRow): string | undefined {
  return eventId === null ? undefined : JSON.stringify([tenantId, provider, eventId])
}

/** A row of the application's own table: what an operation, or an event, does. */
export interface Effect {
  readonly id: string
  /** The key, or the id of the event. */
  readonly key: string
  /** The body of the request that it was done for. */
  readonly body: string
  /** The attempt that did it, and at which operation. */
  readonly attempt: number
  readonly operation: string
  /** Whether it is committed together with the response. */
  readonly isAtomic?: true
  /** Whether it is what a webhook event does: `key` is the inbox's name of that. */
  readonly isOfEvent?: true
}
