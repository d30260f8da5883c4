import type { AttemptToken, RecordKey, StoredResponse } from '../core/record.js'
import { crashPoint } from '../crash-points.js'
import { LeaseLost, TransactionEnded } from '../errors.js'
import { failureOf, type Report } from '../events.js'
import { isInFailedTransaction, record, recordNothing } from '../store/atomic.js'
import type { TransactionClient } from '../store/client.js'
import { within } from '../within.js'
import type { AtomicTransaction, Commit } from './transaction.js'

/** What an atomic operation is known by. */
export interface AtomicKey extends RecordKey, AttemptToken {
  readonly fingerprint: string
  readonly retentionMs: number
  /** The attempt that the record was at when this one began; `undefined` when there was none. */
  readonly seen: AttemptToken | undefined
  /** Whether an earlier attempt may have left something done: never an atomic one. */
  readonly resumed: boolean
}

export interface AtomicClaimContext {
  /** How long to wait for the database's answer to a rollback before the client has his. */
  readonly patienceMs: number
  readonly report: Report
}

/**
 * An operation in its transaction, as a handle: what a `Claim` is to other routes. It has no lease,
 * because nothing of it can be seen before it is committed. Without a key there is nothing to record,
 * and the transaction is all there is.
 */
export class AtomicClaim {
  readonly key: AtomicKey | undefined
  readonly #transaction: AtomicTransaction
  readonly #context: AtomicClaimContext
  readonly #startedAt = performance.now()
  #isEnding = false
  #isUndone = false

  constructor(
    key: AtomicKey | undefined,
    transaction: AtomicTransaction,
    context: AtomicClaimContext,
  ) {
    this.key = key
    this.#transaction = transaction
    this.#context = context
  }

  /** 0 when nothing names the operation. */
  get attempt(): number {
    return this.key?.attempt ?? 0
  }

  get tx(): TransactionClient {
    return this.#transaction.tx
  }

  get signal(): AbortSignal {
    return this.#transaction.signal
  }

  /** Whether it was said how it ends. */
  get isEnding(): boolean {
    return this.#isEnding
  }

  /** Whether nothing of it is kept, because its handler failed, took too long, or said so by its status. */
  get isUndone(): boolean {
    return this.#isUndone
  }

  /** Whether nothing that the handler has begun in the transaction is still under way. */
  get isIdle(): boolean {
    return this.#transaction.isIdle
  }

  /** Writes the record and commits. Nothing but `committed` lets the response be given out. */
  async complete(response: StoredResponse): Promise<Commit> {
    this.#isEnding = true
    crashPoint('atomic:inside')
    const commit = await this.#transaction.commit(async (tx) => {
      const written = await (this.key === undefined
        ? recordNothing(tx)
        : record(tx, { ...this.key, response }))
      if (written === 'lost') throw new LeaseLost()
      if (written === 'ended') throw new TransactionEnded()
      crashPoint('atomic:recorded')
    })
    const { attempt } = this
    const { report } = this.#context
    if (commit.kind === 'committed') {
      crashPoint('atomic:committed')
      if (this.key !== undefined) {
        report({
          kind: 'completed',
          attempt,
          statusCode: response.statusCode,
          bytes: response.body?.byteLength ?? 0,
          tookMs: Math.round(performance.now() - this.#startedAt),
        })
      }
    } else if (commit.error instanceof LeaseLost) {
      report({ kind: 'lease_lost', attempt, why: 'another attempt was faster' })
    } else if (commit.kind === 'rolled back' && isInFailedTransaction(commit.error)) {
      report({ kind: 'rolled_back', attempt, why: 'a query of it failed, and was caught' })
    } else {
      report({ kind: 'not_confirmed', attempt, failure: failureOf(commit.error) })
    }
    return commit
  }

  /** Undoes all of it. What the handler still wants of its transaction fails with `refusal`. */
  async undo(why: string, refusal: Error): Promise<void> {
    if (this.#isEnding) return
    this.#isEnding = true
    this.#isUndone = true
    const { report, patienceMs } = this.#context
    report({ kind: 'rolled_back', attempt: this.attempt, why })
    // Without COMMIT nothing is committed, whether or not the database answers.
    await within(this.#transaction.rollBack(refusal), patienceMs).catch(() => {})
  }
}
