import { downstreamKey, operationName } from '../core/downstream-key.js'
import type { RecordKey, StoredResponse } from '../core/record.js'
import { stepPath } from '../core/step-path.js'
import { isStorableText } from '../core/text.js'
import { crashPoint } from '../crash-points.js'
import { LeaseLost, StepNameInvalid } from '../errors.js'
import { failureOf, type Report } from '../events.js'
import { isInFailedTransaction, record, recordNothing } from '../store/atomic.js'
import type { TransactionClient } from '../store/client.js'
import { within } from '../within.js'
import type { AtomicTransaction, Commit } from './transaction.js'

/** What an atomic operation is known by. */
export interface AtomicKey extends RecordKey {
  readonly fingerprint: string
  readonly retentionMs: number
  /** The number of this attempt: one more than that of the record that was seen, or 1. */
  readonly fence: number
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
  get fence(): number {
    return this.key?.fence ?? 0
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

  /** Whether nothing that the handler has begun in the transaction is still under way. */
  get isIdle(): boolean {
    return this.#transaction.isIdle
  }

  /** The same for every attempt at the operation, as `Steps` names it. @throws StepNameInvalid */
  keyFor(name: string): string | undefined {
    if (this.key === undefined) return undefined
    if (!isStorableText(name)) throw new StepNameInvalid()
    return downstreamKey(operationName(this.key, this.key.fingerprint), stepPath([], name))
  }

  /** Writes the record and commits. Nothing but `committed` lets the response be given out. */
  async complete(response: StoredResponse): Promise<Commit> {
    this.#isEnding = true
    crashPoint('atomic:inside')
    const commit = await this.#transaction.commit(async (tx) => {
      if (this.key === undefined) await recordNothing(tx)
      else if (!(await record(tx, { ...this.key, response }))) throw new LeaseLost()
      crashPoint('atomic:recorded')
    })
    const attempt = this.fence
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
    const { report, patienceMs } = this.#context
    report({ kind: 'rolled_back', attempt: this.fence, why })
    // Without COMMIT nothing is committed, whether or not the database answers.
    await within(this.#transaction.rollBack(refusal), patienceMs).catch(() => {})
  }
}
