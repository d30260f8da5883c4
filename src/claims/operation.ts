import type { ApplicationTransaction } from '../register.js'
import type { Claim } from './claim.js'
import type { TransactionOptions } from './steps.js'

/** What a handler can do under a claim, so that each part of its work is done once. */
export interface Operation {
  /** Which attempt at the operation this is, from 1. */
  readonly attempt: number
  /** Whether an earlier attempt was interrupted, or failed, and may have left something done. */
  readonly resumed: boolean
  /**
   * Aborted when another attempt may start, because the lease could not be kept or the handler ran
   * longer than `maxRun`. What has not been done by then should not be done.
   */
  readonly signal: AbortSignal

  /**
   * Runs `fn` in one transaction of the application's client together with the note that it was
   * run: both commit, or neither. A later attempt gets its result without running it.
   *
   * The result must be plain data. What `fn` does outside of `tx` is not undone when it fails. `fn`
   * is run again, up to ten times, when the database rolls back for a conflict.
   *
   * A crash before the commit leaves nothing behind; after it, the effect is there once and the
   * next attempt goes on behind the transaction.
   *
   * @throws IDEMPOTENCY_LEASE_LOST when another attempt took over: nothing of this one is kept.
   * @throws IDEMPOTENCY_DATABASE_FAILED when the database fails at the begin, the step record or the commit.
   * What `fn` throws is thrown on unchanged.
   * @throws IDEMPOTENCY_TRANSACTION_OPEN within or beside another one of the same handler, or while a
   * step is in flight: await that first.
   * @throws IDEMPOTENCY_STEP_TOO_LATE after the handler has ended. Nothing of it was done.
   */
  transaction<T>(
    fn: (tx: ApplicationTransaction) => Promise<T>,
    options?: TransactionOptions,
  ): Promise<T>

  /**
   * Runs `fn` once over all attempts and stores its result, which must be plain data. For work
   * outside the database: a crash between `fn` and the storing runs it again, so give the other
   * side `keyFor(name)` to recognize that by. Steps may run side by side, but not beside a transaction.
   *
   * @throws IDEMPOTENCY_STEP_NAME_INVALID, IDEMPOTENCY_STEP_NAME_USED before anything runs.
   * @throws IDEMPOTENCY_LEASE_LOST when another attempt took over before the result was stored.
   * @throws IDEMPOTENCY_DATABASE_FAILED when the result could not be stored.
   * @throws IDEMPOTENCY_STEP_TOO_LATE after the handler has ended. Nothing of it was done.
   */
  step<T>(name: string, fn: () => T | Promise<T>): Promise<T>

  /**
   * The idempotency key for a call to another service: the same in every attempt at this operation,
   * another one for every other operation and name, also for a later operation under the same key.
   *
   * @throws IDEMPOTENCY_NOT_IN_ATOMIC on an atomic route, where a failed attempt leaves no trace.
   */
  keyFor(name: string): string
}

/** A claim as its handler sees it. */
export function operationOf(
  claim: Pick<Claim, 'attempt' | 'resumed' | 'signal' | 'steps'>,
): Operation {
  const { steps } = claim
  return {
    attempt: claim.attempt,
    resumed: claim.resumed,
    get signal() {
      return claim.signal
    },
    transaction: (fn, options) => steps.transaction(fn, options),
    step: (name, fn) => steps.step(name, fn),
    keyFor: (name) => steps.keyFor(name),
  }
}
