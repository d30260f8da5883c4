import { backoff } from '../core/backoff.js'
import { crashPoint } from '../crash-points.js'
import { LockUnavailable } from '../errors.js'
import { failureOf, type Happening, type Report } from '../events.js'
import { Lease } from '../lease.js'
import { sealIn } from '../sealed.js'
import { within } from '../within.js'
import { Lines, type Place } from './lines.js'
import type { HeldLock, LockAsk, LockBackend, LockBusy } from './lock.js'
import { type LockOptions, readLock } from './options.js'

/**
 * What runs while the lock is held. `signal` is aborted when it is lost: somebody else may have it.
 * `fence` rises with each acquisition, and guards what the routine writes; it is `undefined` with
 * `locks: 'redis'`.
 */
export type LockRoutine<T> = (signal: AbortSignal, fence: number | undefined) => T | Promise<T>

export type LockResult<T> =
  | {
      readonly kind: 'done'
      readonly value: T
      /** Whether the lock was held until the routine ended. */
      readonly kept: boolean
    }
  | LockBusy

/** The pauses in which the first of a line asks again: the lock may be held by another process. */
const ASK_AGAIN = { firstMs: 20, mostMs: 250 }

/** What two clocks may differ by over a ttl: a hundredth, and what is rounded. */
const DRIFT = 0.01
const ROUNDED_MS = 2

export interface LocksContext {
  readonly backend: LockBackend
  /** How long the backend may take for an answer. */
  readonly patienceMs: number
  /** Who holds locks that name no holder. */
  readonly holder?: string | undefined
}

/** Takes locks, keeps them while a routine runs, and gives them back. */
export class Locks {
  readonly #context: LocksContext
  readonly #lines = new Lines()

  constructor(context: LocksContext) {
    this.#context = context
  }

  /**
   * Runs the routine while nobody else has any of the names. What the routine throws is thrown on. A
   * process that dies leaves the lock held for the rest of its ttl, and the routine undone where it
   * was.
   *
   * @throws OptionInvalid for a name or an option that cannot be used; nothing ran.
   * @throws LockUnavailable when the backend cannot say who has it; nothing ran.
   */
  async lock<T>(
    tenantId: string,
    report: Report,
    names: string | readonly string[],
    options: LockOptions,
    routine: LockRoutine<T>,
  ): Promise<LockResult<T>> {
    const { waitMs, ...ask } = readLock(tenantId, names, options, routine, this.#context.holder)
    const place = this.#lines.join(JSON.stringify([tenantId, ask.names]))
    try {
      const startedAt = performance.now()
      const answer = await this.#acquire(ask, place, startedAt + waitMs, report)
      const waitedMs = Math.round(performance.now() - startedAt)
      const isHeld = answer.kind === 'acquired'
      report({ kind: isHeld ? 'locked' : 'lock_busy', names: ask.names, waitedMs })
      return isHeld ? await this.#run(ask, answer.held, place, report, routine) : answer
    } finally {
      place.leave()
    }
  }

  /** Deletes at most `limit` rows that nobody has held for a day; returns how many. */
  prune(limit: number): Promise<number> {
    return this.#context.backend.prune(limit)
  }

  /** Nobody waits from now on; what runs goes on, and a lock that is free can still be taken. */
  close(): void {
    this.#lines.close()
  }

  /** The first of a line asks until its time is up; those behind it ask once, when theirs is. */
  async #acquire(ask: LockAsk, place: Place, deadline: number, report: Report) {
    for (let asked = 0; ; ) {
      const leftMs = this.#lines.isOpen ? deadline - performance.now() : 0
      const isLast = leftMs <= 0
      if (isLast || place.isFirst) {
        const answer = await this.#ask(ask, report)
        if (answer.kind === 'acquired' || isLast) return answer
        asked += 1
      }
      const pauseMs = place.isFirst ? backoff(ASK_AGAIN, asked - 1, Math.random()) : leftMs
      await place.pause(Math.min(pauseMs, leftMs))
    }
  }

  async #ask(ask: LockAsk, report: Report) {
    const asking = this.#context.backend.acquire(ask)
    try {
      const answer = await within(asking, this.#context.patienceMs)
      // What has run out half is no start; the first renewal comes after a third.
      const isLate =
        answer.kind === 'acquired' && performance.now() - answer.held.askedAt > ask.ttlMs / 2
      if (isLate) throw new Error('the answer came too late')
      return answer
    } catch (error) {
      // It may yet be taken, for nobody.
      asking.then((late) => late.kind === 'acquired' && late.held.release()).catch(() => {})
      report({ kind: 'lock_unavailable', failure: failureOf(error) })
      throw sealIn((options) => new LockUnavailable(options), error)
    }
  }

  async #run<T>(
    { names, ttlMs }: LockAsk,
    held: HeldLock,
    place: Place,
    report: Report,
    routine: LockRoutine<T>,
  ): Promise<LockResult<T>> {
    const leaseMs = ttlMs * (1 - DRIFT) - ROUNDED_MS
    let endsAt = held.askedAt + leaseMs
    const lease = new Lease<undefined>(
      { attempt: 0, askedAt: held.askedAt, leaseMs, maxRunMs: Number.POSITIVE_INFINITY },
      {
        end: () => held.release(),
        async extend() {
          const askedAt = performance.now()
          const isHeld = await held.extend()
          if (isHeld) endsAt = askedAt + leaseMs
          return isHeld
        },
        report: (happening) => report(ofLock(happening, names)),
        onEnd: () => {},
      },
    )
    const { signal } = lease
    // Those behind it do not wait for a routine that has lost its lock.
    signal.addEventListener('abort', () => place.leave(), { once: true })
    const release = async (): Promise<boolean> => {
      crashPoint('lock:releasing')
      const wasLost = signal.aborted
      const endedAt = performance.now()
      const settled = await lease.settle(undefined, this.#context.patienceMs)
      crashPoint('lock:released')
      lease.close()
      if (settled.kind === 'failed') {
        report({ kind: 'lock_release_failed', names, failure: failureOf(settled.error) })
      }
      // Nobody else can have had it before its time was over, whether it was given back or not.
      const wasHeld = settled.kind === 'stored' || (settled.kind === 'failed' && endedAt < endsAt)
      return wasHeld && !wasLost
    }

    let value: T
    let kept = false
    crashPoint('lock:held')
    try {
      value = await routine(signal, held.fence)
    } finally {
      kept = await release()
    }
    return { kind: 'done', value, kept }
  }
}

/** A lock's lease is a lease like any other; what happens to it is told as what happens to a lock. */
function ofLock(happening: Happening, names: readonly string[]): Happening {
  switch (happening.kind) {
    case 'lease_lost':
      return { kind: 'lock_lost', names, why: happening.why }
    case 'heartbeat_failed':
      return { kind: 'lock_heartbeat_failed', names, failure: happening.failure }
    default:
      return happening
  }
}
