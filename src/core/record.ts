/** What names an operation: the tenant whose key it is, and the key. */
export interface RecordKey {
  readonly tenantId: string
  readonly key: string
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
export interface SeenRecord {
  readonly fingerprint: string
  readonly status: RecordStatus
  readonly fence: number
  /** How long nobody may take the operation over; zero or less when the lease has run out. */
  readonly leaseLeftMs: number
  /** Whether the retention time is over: the key is free, whatever the record says. */
  readonly isExpired: boolean
  /** Present when the status is `completed`. */
  readonly response: StoredResponse | null
}
