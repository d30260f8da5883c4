/** What names an operation: the tenant whose key it is, and the key. */
export interface RecordKey {
  readonly tenantId: string
  readonly key: string
}

/**
 * Names one attempt at one operation: its fencing token. `operationId` is drawn anew for each
 * operation under a key, also for a later one after the key expired, and attempts at one operation
 * are counted, so a token never repeats, whatever is pruned, forgotten or expired in between.
 */
export interface AttemptToken {
  readonly operationId: string
  /** Which attempt at the operation it is, from 1. */
  readonly attempt: number
}

/** Which process holds an operation, and since when, as far as its record says. */
export interface HeldBy {
  readonly holder?: string | undefined
  /** When its attempt began, by the database's clock. */
  readonly since?: Date | undefined
}

export type RecordStatus = 'in_progress' | 'completed' | 'released'

/** What `step` and `transaction` have done for an operation or an event, by name. */
export type StepResults = Readonly<Record<string, unknown>>

/** The first response, as it is replayed. */
export interface StoredResponse {
  readonly statusCode: number
  /** Lower-case names, only those that the route keeps. */
  readonly headers: Readonly<Record<string, string | readonly string[]>>
  /** `null` when the response was too large to keep, or was written past Fastify. */
  readonly body: Uint8Array | null
}

/**
 * A record as a store saw it. Times are relative to the database's clock at that moment, so that
 * nothing outside a store ever compares two clocks.
 */
export interface SeenRecord extends AttemptToken, HeldBy {
  readonly fingerprint: string
  readonly status: RecordStatus
  /** How long nobody may take the operation over; zero or less when the lease has run out. */
  readonly leaseLeftMs: number
  /** Whether the retention time is over: the key is free, whatever the record says. */
  readonly isExpired: boolean
  /** Present when the status is `completed`. */
  readonly response: StoredResponse | null
  /**
   * How large the stored body is, in bytes, where it was too large to be read along: `readBodies` reads
   * it. 0 when `response` has it, or there is none.
   */
  readonly unreadBodyBytes: number
}
