import type { OnLeaseExpired } from '../core/decide.js'
import type { AttemptToken, RecordKey, StepResults, StoredResponse } from '../core/record.js'
import { crashPoint } from '../crash-points.js'
import { OptionInvalid } from '../errors.js'
import { failureOf, type Report } from '../events.js'
import { Lease, type LeaseTerms } from '../lease.js'
import type { PrismaClientLike } from '../store/client.js'
import { writeHeld } from '../store/held-record.js'
import type { Extend, Finish, KeepSteps } from '../store/store.js'
import { finishDespiteBody } from './finish-despite-body.js'
import { type ClosedSteps, Steps, type StepsContext } from './steps.js'

/** What a claim needs of its surroundings. */
export interface ClaimContext {
  readonly finish: (finish: Finish) => Promise<boolean>
  readonly extend: (extend: Extend) => Promise<boolean>
  /** Answers in time, or rejects: the steps may be stored all the same. */
  readonly keepSteps: (steps: KeepSteps) => Promise<boolean>
  readonly prisma: PrismaClientLike
  readonly report: Report
  /** Called once, when the claim has ended in this process, however it ended. */
  readonly onEnd: (claim: Claim) => void
}

export interface ClaimTerms extends LeaseTerms, RecordKey, AttemptToken {
  /** Whether an earlier attempt at the same operation may have left something done. */
  readonly resumed: boolean
  readonly onLeaseExpired: OnLeaseExpired
  /** What earlier attempts have done. */
  readonly steps: StepResults
}

const NO_STEPS: ClosedSteps = { isAwaited: true, over: undefined }

/** The exclusive right to run an operation now, as a handle. Its lease is kept while it is open. */
export class Claim extends Lease<StoredResponse | null> implements RecordKey, AttemptToken {
  readonly tenantId: string
  readonly key: string
  readonly operationId: string
  readonly resumed: boolean
  readonly onLeaseExpired: OnLeaseExpired
  readonly #report: Report
  readonly #openSteps: () => Steps
  #steps: Steps | undefined
  #hasAnswered = false

  constructor(
    terms: ClaimTerms,
    { finish, extend, keepSteps, prisma, report, onEnd }: ClaimContext,
  ) {
    const { tenantId, key, operationId, attempt, leaseMs } = terms
    const hold = { tenantId, key, operationId, attempt }
    const end = finishDespiteBody(finish, (reason) =>
      report({ kind: 'response_omitted', attempt, reason }),
    )
    super(terms, {
      end: (response) => end({ ...hold, response }),
      extend: () => extend({ ...hold, leaseMs }),
      isBusy: () => this.#steps?.isOpen === true,
      report,
      onEnd: () => onEnd(this),
    })
    this.tenantId = tenantId
    this.key = key
    this.operationId = operationId
    this.resumed = terms.resumed
    this.onLeaseExpired = terms.onLeaseExpired
    this.#report = report
    this.#openSteps = () => stepsOf(terms, { prisma, keepSteps, isHeld: () => this.isHeld() })
  }

  /** The named pieces of its operation. Made when they are asked for: most handlers have none. */
  get steps(): Steps {
    this.#steps ??= this.#openSteps()
    if (this.#hasAnswered) this.#steps.close()
    return this.#steps
  }

  /** The handler has answered, and begins nothing more. */
  closeSteps(): ClosedSteps {
    this.#hasAnswered = true
    return this.#steps?.close() ?? NO_STEPS
  }

  /**
   * Stores the response, so that every retry gets it.
   *
   * - `stored`: it is durable.
   * - `lost`: another attempt has the operation, or may have it because the lease has run out; this one's
   *   response must not be given out.
   * - `failed`: the store did not answer within `withinMs`, and the lease is held. Storing goes on in the
   *   background for as long as the claim may run. If the lease runs out before it succeeds, a retry runs
   *   the handler again.
   */
  async complete(
    response: StoredResponse,
    withinMs: number,
  ): Promise<'stored' | 'lost' | 'failed'> {
    crashPoint('response:storing')
    const settled = await this.settle(response, withinMs)
    crashPoint('response:stored')
    if (settled.kind === 'failed') {
      const failure = failureOf(settled.error)
      this.#report({ kind: 'response_not_stored', attempt: this.attempt, failure })
      void this.keepSettling(response, withinMs)
      if (this.loseIfRunOut()) return 'lost'
    } else if (settled.kind === 'stored') {
      this.#report({
        kind: 'completed',
        attempt: this.attempt,
        statusCode: response.statusCode,
        bytes: response.body?.byteLength ?? 0,
        tookMs: Math.round(performance.now() - this.startedAt),
      })
    }
    return settled.kind
  }

  /** Lets the next request with this key run the operation again, at once. */
  async release(why: string, withinMs: number): Promise<'stored' | 'lost' | 'failed'> {
    if (this.isSettled) return 'lost'
    const settled = await this.settle(null, withinMs)
    if (settled.kind === 'stored') this.#report({ kind: 'released', attempt: this.attempt, why })
    if (settled.kind === 'failed') {
      // Nothing is lost: the lease is no longer renewed.
      const failure = failureOf(settled.error)
      this.#report({ kind: 'release_failed', attempt: this.attempt, failure })
      this.close()
    }
    return settled.kind
  }
}

/** Results are stored by a write that is guarded by the claim, on its own or in a transaction. */
function stepsOf(
  { tenantId, key, operationId, attempt, steps: earlier }: ClaimTerms,
  {
    keepSteps,
    ...context
  }: Pick<ClaimContext, 'prisma' | 'keepSteps'> & Pick<StepsContext, 'isHeld'>,
): Steps {
  const hold = { tenantId, key, operationId, attempt }
  const keep: StepsContext['keep'] = (steps) => keepSteps({ ...hold, steps })
  const prepare: StepsContext['prepare'] = async (isFinal) => {
    if (isFinal) {
      throw new OptionInvalid(
        'option "final" of transaction() is for webhook events; leave it out, or make the route atomic: config.idempotency.atomic',
      )
    }
    return (tx, steps) => writeHeld(tx, hold, { steps })
  }
  return new Steps({ ...context, operationId, earlier, keep, prepare })
}
