import { backoff } from '../core/backoff.js'
import type { RecordKey, StoredResponse } from '../core/record.js'
import { failureOf, type Report } from '../events.js'
import type { Extend, Finish, Hold } from '../store/store.js'
import { within } from './within.js'

/** What a claim needs of its surroundings. */
export interface ClaimContext {
  readonly finish: (finish: Finish) => Promise<boolean>
  readonly extend: (extend: Extend) => Promise<boolean>
  readonly report: Report
  /** Called once, when the claim has ended in this process, however it ended. */
  readonly onEnd: (claim: Claim) => void
}

export interface ClaimTerms extends Hold {
  /** Whether an earlier attempt at the same operation may have left something done. */
  readonly resumed: boolean
  /** When the store was asked, by `performance.now()`: the lease runs from then, at the latest. */
  readonly askedAt: number
  readonly leaseMs: number
  readonly maxRunMs: number
}

/** How often a response that could not be stored is tried again. */
const STORING_AGAIN = { firstMs: 200, mostMs: 5_000 }

/**
 * The exclusive right to run an operation now, as a handle. While it is open, its lease is renewed
 * three times a lease; a process that dies stops renewing, and after at most one lease another
 * attempt may start, with the next fence. Every write is guarded by this attempt's fence, so a
 * claim that was taken over can change nothing.
 */
export class Claim implements RecordKey {
  readonly tenantId: string
  readonly key: string
  /** The number of this attempt, from 1. */
  readonly fence: number
  readonly resumed: boolean
  readonly startedAt: number

  readonly #terms: ClaimTerms
  readonly #context: ClaimContext
  /** Made when somebody asks for it: most handlers never do. */
  #lost: AbortController | undefined
  #lostWhy: Error | undefined
  #leaseEndsAt: number
  #heartbeat: NodeJS.Timeout
  #isSettled = false
  #hasEnded = false
  #wakeUp: (() => void) | undefined

  constructor(terms: ClaimTerms, context: ClaimContext) {
    this.tenantId = terms.tenantId
    this.key = terms.key
    this.fence = terms.fence
    this.resumed = terms.resumed
    this.#terms = terms
    this.#context = context
    this.startedAt = terms.askedAt
    this.#leaseEndsAt = terms.askedAt + terms.leaseMs
    this.#heartbeat = setTimeout(() => this.#renew(), terms.leaseMs / 3)
  }

  /** Aborted when this attempt may no longer be the only one: the lease could not be kept. */
  get signal(): AbortSignal {
    this.#lost ??= new AbortController()
    if (this.#lostWhy !== undefined) this.#lost.abort(this.#lostWhy)
    return this.#lost.signal
  }

  /** Whether it was said how the claim ends. */
  get isSettled(): boolean {
    return this.#isSettled
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
    this.#isSettled = true
    const { report } = this.#context
    const storing = this.#finish(response)
    try {
      const isStored = await within(storing, withinMs)
      if (!isStored) this.#lose('another attempt took over')
      else {
        report({
          kind: 'completed',
          attempt: this.fence,
          statusCode: response.statusCode,
          bytes: response.body?.byteLength ?? 0,
          tookMs: Math.round(performance.now() - this.startedAt),
        })
      }
      this.#end()
      return isStored ? 'stored' : 'lost'
    } catch (error) {
      report({ kind: 'response_not_stored', attempt: this.fence, failure: failureOf(error) })
      void this.#keepStoring(response, withinMs)
      return 'failed'
    }
  }

  /** Lets the next request with this key run the operation again, at once. */
  async release(why: string, withinMs: number): Promise<void> {
    if (this.#isSettled) return
    this.#isSettled = true
    try {
      const isReleased = await within(this.#finish(null), withinMs)
      if (isReleased) this.#context.report({ kind: 'released', attempt: this.fence, why })
      else this.#lose('another attempt took over')
    } catch (error) {
      // Nothing is lost: the lease is no longer renewed.
      this.#context.report({
        kind: 'release_failed',
        attempt: this.fence,
        failure: failureOf(error),
      })
    }
    this.#end()
  }

  /** Stops renewing the lease without saying how the operation ended, as a crash would. */
  abandon(why: string): void {
    if (this.#hasEnded) return
    this.#isSettled = true
    this.#context.report({ kind: 'abandoned', attempt: this.fence, why })
    this.#abort(why)
    this.#end()
  }

  #finish(response: StoredResponse | null): Promise<boolean> {
    const { tenantId, key, fence } = this
    return this.#context.finish({ tenantId, key, fence, response })
  }

  async #keepStoring(response: StoredResponse, withinMs: number): Promise<void> {
    for (let attempt = 0; ; attempt += 1) {
      await this.#sleep(backoff(STORING_AGAIN, attempt, Math.random()))
      if (this.#hasEnded) return
      if (performance.now() - this.startedAt > this.#terms.maxRunMs) {
        return this.abandon('its response could not be stored in the time it may run')
      }
      try {
        // The first try may have succeeded after all: saying the same again is a success, too.
        const isStored = await within(this.#finish(response), withinMs)
        if (!isStored) this.#lose('another attempt took over')
        return this.#end()
      } catch {
        // Reported once, when it began; the next turn tries again.
      }
    }
  }

  async #renew(): Promise<void> {
    const { leaseMs, maxRunMs } = this.#terms
    const { tenantId, key, fence } = this
    const askedAt = performance.now()
    if (askedAt - this.startedAt > maxRunMs) {
      return this.#lose('it ran longer than maxRun and its lease is not renewed any more')
    }
    const leftMs = this.#leaseEndsAt - askedAt
    if (leftMs <= 0) this.#lose('its lease could not be renewed in time')
    try {
      const renewing = this.#context.extend({ tenantId, key, fence, leaseMs })
      const patienceMs = leftMs > 0 ? Math.min(leaseMs / 3, leftMs) : leaseMs / 3
      const isRenewed = await within(renewing, patienceMs)
      if (this.#hasEnded) return
      if (!isRenewed) {
        // A finish of our own that is under way ends the lease as well, and says so itself.
        if (!this.#isSettled) this.#lose('another attempt took over')
        return
      }
      this.#leaseEndsAt = askedAt + leaseMs
      this.#heartbeat = setTimeout(() => this.#renew(), leaseMs / 3)
    } catch (error) {
      if (this.#hasEnded) return
      this.#context.report({ kind: 'heartbeat_failed', attempt: fence, failure: failureOf(error) })
      // No later than the lease ends, to say so in time. And on after that: as long as nobody took
      // over, a renewal makes it the only one again.
      const untilEndMs = this.#leaseEndsAt - performance.now()
      const pauseMs = untilEndMs > 0 ? Math.min(leaseMs / 10, untilEndMs) : leaseMs / 10
      this.#heartbeat = setTimeout(() => this.#renew(), pauseMs)
    }
  }

  #lose(why: string): void {
    if (this.#lostWhy !== undefined) return
    this.#context.report({ kind: 'lease_lost', attempt: this.fence, why })
    this.#abort(why)
  }

  #abort(why: string): void {
    this.#lostWhy ??= new Error(why)
    this.#lost?.abort(this.#lostWhy)
  }

  #end(): void {
    if (this.#hasEnded) return
    this.#hasEnded = true
    clearTimeout(this.#heartbeat)
    this.#wakeUp?.()
    this.#context.onEnd(this)
  }

  /** Ends early when the claim ends. */
  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms)
      this.#wakeUp = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }
}
