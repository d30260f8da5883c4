import { backoff } from './core/backoff.js'
import { failureOf, type Report } from './events.js'
import { hasWaited } from './store/failures.js'
import { within } from './within.js'

/** What a lease needs of its surroundings. */
export interface LeaseContext<Ending> {
  /** Writes how it ended, guarded by its fencing token; `false` when another attempt has taken over. */
  readonly end: (ending: Ending) => Promise<boolean>
  /** Renews it, counted from now, guarded in the same way. */
  readonly extend: () => Promise<boolean>
  /**
   * Whether something is under way that a renewal would be in the way of: a transaction whose last write
   * is to the same row, which a strict isolation level refuses once the row has changed. The renewal then
   * waits, as long as there is time.
   */
  readonly isBusy?: () => boolean
  readonly report: Report
  /** Called once, when it has ended in this process, however it ended. */
  readonly onEnd: () => void
}

export interface LeaseTerms {
  /** The number of this attempt, from 1. */
  readonly attempt: number
  /** When the store was asked, by `performance.now()`: the lease runs from then, at the latest. */
  readonly askedAt: number
  readonly leaseMs: number
  readonly maxRunMs: number
}

export type Settled = { kind: 'stored' } | { kind: 'lost' } | { kind: 'failed'; error: unknown }

/**
 * How often a grant that was answered late is renewed before it is used. A store that takes half a lease
 * for an answer so often is too slow to hold anything in it.
 */
export const RENEWALS_OF_A_GRANT = 3

/** How soon an ending that has met a locked row is tried again. */
const SETTLING_AGAIN = { firstMs: 20, mostMs: 200 }

/** How often an ending that could not be stored is tried again. */
const STORING_AGAIN = { firstMs: 200, mostMs: 5_000 }

/**
 * The time in which an attempt is the only one, kept up as long as the attempt runs: renewed three
 * times a lease. A process that dies stops renewing, and after at most one lease another attempt
 * may start. Every write is guarded by the fencing token of this attempt, so an attempt that
 * was taken over can change nothing.
 */
export class Lease<Ending> {
  readonly attempt: number
  readonly startedAt: number

  readonly #terms: LeaseTerms
  readonly #context: LeaseContext<Ending>
  /** Made when somebody asks for it: most handlers never do. */
  #lost: AbortController | undefined
  #lostWhy: Error | undefined
  #endsAt: number
  #isTakenOver = false
  #heartbeat: NodeJS.Timeout
  #isSettled = false
  #hasEnded = false
  #isOver = false
  #onOver: (() => void) | undefined
  #over: Promise<void> | undefined
  #wakeUp: (() => void) | undefined

  constructor(terms: LeaseTerms, context: LeaseContext<Ending>) {
    this.attempt = terms.attempt
    this.#terms = terms
    this.#context = context
    this.startedAt = terms.askedAt
    this.#endsAt = terms.askedAt + terms.leaseMs
    this.#heartbeat = setTimeout(() => this.#renew(), terms.leaseMs / 3)
  }

  /** Aborted when this attempt may no longer be the only one: the lease could not be kept. */
  get signal(): AbortSignal {
    this.#lost ??= new AbortController()
    if (this.#lostWhy !== undefined) this.#lost.abort(this.#lostWhy)
    return this.#lost.signal
  }

  /**
   * Fulfilled once it was lost for good, and what was left of it has passed, or it was abandoned, and
   * nothing was said of how the attempt ends: whatever the attempt does from now on, nobody needs to wait
   * for it. If its lease has run out, it may still end; that counts if no other attempt has begun. Made
   * when somebody asks for it, as `signal` is.
   */
  get over(): Promise<void> {
    this.#over ??= new Promise((resolve) => {
      this.#onOver = resolve
      if (this.#isOver) resolve()
    })
    return this.#over
  }

  /**
   * Whether this attempt is the only one, and may begin something. When its lease has run out, the store is
   * asked for another one: the process may have stood still meanwhile.
   */
  isHeld(): boolean | Promise<boolean> {
    if (this.#isTakenOver) return false
    if (performance.now() < this.#endsAt) return true
    return !this.#hasEnded && !this.#isRunTooLong() && this.#renewBelated()
  }

  async #renewBelated(): Promise<boolean> {
    const { leaseMs } = this.#terms
    const askedAt = performance.now()
    const isRenewed = await within(this.#context.extend(), leaseMs / 3)
    if (!isRenewed) this.#loseToAnother()
    else this.#endsAt = Math.max(this.#endsAt, askedAt + leaseMs)
    return isRenewed && performance.now() < this.#endsAt
  }

  /** Whether it was said how the attempt ends. */
  get isSettled(): boolean {
    return this.#isSettled
  }

  /** Stops renewing the lease without saying how the attempt ended, as a crash would. */
  abandon(why: string): void {
    if (this.#hasEnded) return
    const wasSettled = this.#isSettled
    this.#isSettled = true
    this.#context.report({ kind: 'abandoned', attempt: this.attempt, why })
    this.#abort(why)
    this.close()
    if (!wasSettled) this.#endWaiting()
  }

  /**
   * Stores how the attempt ended. `failed` means that the store did not answer within `withinMs`, or
   * failed: the lease is still open, for `keepSettling` or `close`. A row that another transaction has
   * locked is waited for all of that time, in statements that give up earlier.
   */
  async settle(ending: Ending, withinMs: number): Promise<Settled> {
    this.#isSettled = true
    const deadline = performance.now() + withinMs
    for (let waits = 0; ; waits += 1) {
      try {
        const isStored = await within(this.#context.end(ending), deadline - performance.now())
        if (!isStored) this.#loseToAnother()
        this.close()
        return { kind: isStored ? 'stored' : 'lost' }
      } catch (error) {
        if (!hasWaited(error) || this.#hasEnded) return { kind: 'failed', error }
        const pauseMs = backoff(SETTLING_AGAIN, waits, Math.random())
        if (performance.now() + pauseMs > deadline) return { kind: 'failed', error }
        await this.#sleep(pauseMs)
      }
    }
  }

  /** Goes on storing in the background for as long as the attempt may run. */
  async keepSettling(ending: Ending, withinMs: number): Promise<void> {
    for (let attempt = 0; ; attempt += 1) {
      await this.#sleep(backoff(STORING_AGAIN, attempt, Math.random()))
      if (this.#hasEnded) return
      if (this.#isRunTooLong()) {
        return this.abandon('its result could not be stored in the time it may run')
      }
      // The first try may have succeeded after all: saying the same again is a success, too.
      // A failure was reported when it began; the next turn tries again.
      if ((await this.settle(ending, withinMs)).kind !== 'failed') return
    }
  }

  /** The attempt is over in this process. */
  close(): void {
    if (this.#hasEnded) return
    this.#hasEnded = true
    this.#isSettled = true
    clearTimeout(this.#heartbeat)
    this.#wakeUp?.()
    this.#context.onEnd()
  }

  /** Whether another attempt may have begun. Said at once: the heartbeat may be waiting for the store. */
  loseIfRunOut(): boolean {
    if (performance.now() >= this.#endsAt) this.lose('its lease could not be renewed in time')
    return this.#lostWhy !== undefined
  }

  lose(why: string): void {
    if (this.#lostWhy !== undefined) return
    this.#context.report({ kind: 'lease_lost', attempt: this.attempt, why })
    this.#abort(why)
  }

  async #renew(): Promise<void> {
    const { leaseMs } = this.#terms
    const askedAt = performance.now()
    if (this.#isRunTooLong()) {
      this.lose('it ran longer than maxRun and its lease is not renewed any more')
      return this.#letRunOut()
    }
    const leftMs = this.#endsAt - askedAt
    if (leftMs > leaseMs / 3 && this.#context.isBusy?.()) {
      this.#heartbeat = setTimeout(() => this.#renew(), leaseMs / 20)
      return
    }
    if (leftMs <= 0) this.lose('its lease could not be renewed in time')
    try {
      const patienceMs = leftMs > 0 ? Math.min(leaseMs / 3, leftMs) : leaseMs / 3
      const isRenewed = await within(this.#context.extend(), patienceMs)
      if (this.#hasEnded) return
      if (!isRenewed) {
        // An ending of our own that is under way ends the lease as well, and says so itself.
        if (!this.#isSettled) this.#loseToAnother()
        return this.#letRunOut()
      }
      this.#endsAt = askedAt + leaseMs
      // An answer may be read late: this process stood still, and its lease did not. Then it may be
      // over already, or nearly.
      const stillMs = this.#endsAt - performance.now()
      if (stillMs <= 0) this.lose('its lease could not be renewed in time')
      this.#heartbeat = setTimeout(() => this.#renew(), Math.min(leaseMs / 3, Math.max(0, stillMs)))
    } catch (error) {
      if (this.#hasEnded) return
      const { report } = this.#context
      report({ kind: 'heartbeat_failed', attempt: this.attempt, failure: failureOf(error) })
      // No later than the lease ends, to say so in time. And on after that: as long as nobody took
      // over, a renewal makes it the only one again.
      const untilEndMs = this.#endsAt - performance.now()
      if (untilEndMs <= 0) this.lose('its lease could not be renewed in time')
      const pauseMs = untilEndMs > 0 ? Math.min(leaseMs / 10, untilEndMs) : leaseMs / 10
      this.#heartbeat = setTimeout(() => this.#renew(), pauseMs)
    }
  }

  #isRunTooLong(): boolean {
    return performance.now() - this.startedAt > this.#terms.maxRunMs
  }

  #loseToAnother(): void {
    this.#isTakenOver = true
    this.lose('another attempt took over')
  }

  /** It is renewed no more. What is left of it is for the attempt to end in. */
  #letRunOut(): void {
    const leftMs = Math.max(0, Math.ceil(this.#endsAt - performance.now()))
    this.#heartbeat = setTimeout(() => {
      if (!this.#isSettled) this.#endWaiting()
    }, leftMs)
  }

  #endWaiting(): void {
    this.#isOver = true
    this.#onOver?.()
  }

  #abort(why: string): void {
    this.#lostWhy ??= new Error(why)
    this.#lost?.abort(this.#lostWhy)
  }

  /** Ends early when the lease does. */
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
