/** `received → processing → processed | retrying → dead | ignored`. */
export type EventStatus = 'received' | 'processing' | 'processed' | 'retrying' | 'dead' | 'ignored'

/** A failed run, as it is kept with the event. */
export interface RunError {
  readonly attempt: number
  /** By the clock of the process that ran it, for people. */
  readonly at: string
  readonly message: string
}

/** So many failures and delivery times are kept: enough to see a pattern. */
export const KEPT_ERRORS = 10
export const KEPT_DELIVERIES = 20
