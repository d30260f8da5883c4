import type { RecordKey, StoredResponse } from '../core/record.js'
import { failureOf, type Report } from '../events.js'
import { Lease, type LeaseTerms } from '../lease.js'
import type { Extend, Finish } from '../store/store.js'

/** What a claim needs of its surroundings. */
export interface ClaimContext {
  readonly finish: (finish: Finish) => Promise<boolean>
  readonly extend: (extend: Extend) => Promise<boolean>
  readonly report: Report
  /** Called once, when the claim has ended in this process, however it ended. */
  readonly onEnd: (claim: Claim) => void
}

export interface ClaimTerms extends LeaseTerms, RecordKey {
  /** Whether an earlier attempt at the same operation may have left something done. */
  readonly resumed: boolean
}

/** The exclusive right to run an operation now, as a handle. Its lease is kept while it is open. */
export class Claim extends Lease<StoredResponse | null> implements RecordKey {
  readonly tenantId: string
  readonly key: string
  readonly resumed: boolean
  readonly #report: Report

  constructor(terms: ClaimTerms, { finish, extend, report, onEnd }: ClaimContext) {
    const { tenantId, key, fence, leaseMs } = terms
    super(terms, {
      end: (response) => finish({ tenantId, key, fence, response }),
      extend: () => extend({ tenantId, key, fence, leaseMs }),
      report,
      onEnd: () => onEnd(this),
    })
    this.tenantId = tenantId
    this.key = key
    this.resumed = terms.resumed
    this.#report = report
  }

  /**
   * Stores the response, so that every retry gets it.
   *
   * - `stored`: it is durable.
   * - `lost`: another attempt has the operation; this one's response must not be given out.
   * - `failed`: the store did not answer within `withinMs`. Storing goes on in the background for as
   *   long as the claim may run. If the process dies before it succeeds, the lease runs out and a
   *   retry runs the handler again.
   */
  async complete(
    response: StoredResponse,
    withinMs: number,
  ): Promise<'stored' | 'lost' | 'failed'> {
    const settled = await this.settle(response, withinMs)
    if (settled.kind === 'failed') {
      const failure = failureOf(settled.error)
      this.#report({ kind: 'response_not_stored', attempt: this.fence, failure })
      void this.keepSettling(response, withinMs)
    } else if (settled.kind === 'stored') {
      this.#report({
        kind: 'completed',
        attempt: this.fence,
        statusCode: response.statusCode,
        bytes: response.body?.byteLength ?? 0,
        tookMs: Math.round(performance.now() - this.startedAt),
      })
    }
    return settled.kind
  }

  /** Lets the next request with this key run the operation again, at once. */
  async release(why: string, withinMs: number): Promise<void> {
    if (this.isSettled) return
    const settled = await this.settle(null, withinMs)
    if (settled.kind === 'stored') this.#report({ kind: 'released', attempt: this.fence, why })
    if (settled.kind !== 'failed') return
    // Nothing is lost: the lease is no longer renewed.
    const failure = failureOf(settled.error)
    this.#report({ kind: 'release_failed', attempt: this.fence, failure })
    this.close()
  }
}
