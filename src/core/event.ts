/** `received → processing → processed | retrying → dead | ignored`. */
export type EventStatus = 'received' | 'processing' | 'processed' | 'retrying' | 'dead' | 'ignored'

/** A failed run, as it is kept with the event. */
export interface RunError {
  readonly attempt: number
  /** By the clock of the process that ran it, for people. */
  readonly at: string
  readonly message: string
}

/** What is kept of a run that ended without a word, once the next one begins. */
export const NOT_ENDED = 'It did not end: its process died or stood still, or its lease ran out.'

/** So many failures and delivery times are kept: enough to see a pattern. */
export const KEPT_ERRORS = 10
export const KEPT_DELIVERIES = 20
