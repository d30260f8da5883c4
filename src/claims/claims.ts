import { backoff } from '../core/backoff.js'
import { decide, type OnLeaseExpired } from '../core/decide.js'
import type { RecordKey, StoredResponse } from '../core/record.js'
import type { Report } from '../events.js'
import { oneOf } from '../store/combine.js'
import type { Store } from '../store/store.js'
import { StoreTimeout, within } from '../within.js'
import { Claim, type ClaimTerms } from './claim.js'
import { WaitingRoom } from './waiting.js'

/** What a request wants: to run this operation, unless it was run before. */
export interface Wish extends RecordKey {
  readonly fingerprint: string
  readonly leaseMs: number
  readonly maxRunMs: number
  readonly retentionMs: number
  readonly onLeaseExpired: OnLeaseExpired
  /** How long to wait for another attempt that is running; 0 for not at all. */
  readonly waitMs: number
  /** Ends the wait early: nobody wants the answer any more. */
  readonly signal?: AbortSignal
  /** Asked once a key turned out to be new; `false` forgets it again. */
  readonly mayAdd?: () => Promise<boolean>
  readonly report: Report
}

export type Outcome =
  | { kind: 'run'; claim: Claim }
  | { kind: 'replay'; response: StoredResponse; waitedMs: number }
  | { kind: 'busy'; waitedMs: number }
  | { kind: 'mismatch' }
  | { kind: 'uncertain' }
  | { kind: 'refused' }

export interface ClaimsOptions {
  /** How long the store may take for one answer. */
  readonly storeTimeoutMs: number
}

/** How often another process's attempt is looked at. In the same process, its end wakes us. */
const LOOK_AGAIN = { firstMs: 25, mostMs: 1_000 }

/** A store that takes half a lease for an answer so often is too slow to hold anything in it. */
const RENEWALS = 3

/** Every claim of this process. */
export class Claims {
  readonly #open = new Set<Claim>()
  readonly #waiting = new WaitingRoom()
  readonly #storeTimeoutMs: number
  #onEmpty: (() => void) | undefined
  readonly #insert
  readonly #takeOver
  readonly #finish
  readonly #extend
  readonly #forget

  constructor(store: Store, { storeTimeoutMs }: ClaimsOptions) {
    this.#storeTimeoutMs = storeTimeoutMs
    this.#insert = oneOf(store, store.insert, storeTimeoutMs)
    this.#takeOver = oneOf(store, store.takeOver, storeTimeoutMs)
    this.#finish = oneOf(
      store,
      store.finish,
      storeTimeoutMs,
      ({ response }) => response?.body?.byteLength ?? 0,
    )
    this.#extend = oneOf(store, store.extend, storeTimeoutMs)
    this.#forget = oneOf(store, store.forget, storeTimeoutMs)
  }

  /**
   * Decides what becomes of a request, waiting for a running attempt if the wish says so.
   *
   * @throws what the store throws, or `StoreTimeout`. Then nothing runs: a claim that was granted
   * too late is given back. One whose answer was lost looks like one whose process died: when its
   * lease has run out, it is rerun, or uncertain.
   */
  async begin(wish: Wish): Promise<Outcome> {
    const startedAt = performance.now()
    for (let look = 0; ; look += 1) {
      const outcome = await this.#beginNow(wish)
      const waitedMs = Math.round(performance.now() - startedAt)
      if (outcome.kind === 'replay') return { ...outcome, waitedMs }
      if (outcome.kind !== 'busy') return outcome
      const leftMs = wish.waitMs - waitedMs
      const isUnwanted = wish.signal?.aborted === true || !this.#waiting.isOpen
      if (leftMs <= 0 || isUnwanted) return { ...outcome, waitedMs }
      const pauseMs = Math.min(leftMs, backoff(LOOK_AGAIN, look, Math.random()))
      await this.#waiting.wait(wish, pauseMs, wish.signal)
    }
  }

  /** How many claims this process holds. */
  get openCount(): number {
    return this.#open.size
  }

  /** Tells those who wait that their answer will not come from here. */
  stopWaiting(): void {
    this.#waiting.close()
  }

  /**
   * Stops waiting and renewing, and gives responses that are being stored the time of one answer.
   * What still runs keeps its lease for a while; another process takes it over after that.
   */
  async close(): Promise<void> {
    this.stopWaiting()
    for (const claim of this.#open) {
      if (!claim.isSettled) claim.abandon('the server closed while it ran')
    }
    if (this.#open.size > 0) {
      const emptied = new Promise<void>((resolve) => {
        this.#onEmpty = resolve
      })
      await within(emptied, this.#storeTimeoutMs).catch(() => {})
    }
    for (const claim of this.#open) claim.abandon('the server closed before it was recorded')
  }

  async #beginNow(wish: Wish): Promise<Outcome> {
    // Ends after one or two turns: each further one means that somebody else moved the fence.
    for (;;) {
      const askedAt = performance.now()
      const asking = this.#insert(wish)
      const inserted = await this.#inTime(asking, (late) => {
        if (late.kind === 'made') void this.#forget({ ...wish, fence: 1 }).catch(() => {})
      })
      if (inserted.kind === 'made') {
        if (!(await this.#mayAdd(wish))) return { kind: 'refused' }
        const claim = await this.#hold(wish, { fence: 1, resumed: false, askedAt })
        if (claim === undefined) continue
        wish.report({ kind: 'claimed', attempt: 1 })
        return { kind: 'run', claim }
      }
      const decision = decide(inserted.record, wish.fingerprint, wish.onLeaseExpired)
      if (decision.kind === 'busy') return { kind: 'busy', waitedMs: 0 }
      if (decision.kind === 'replay') return { ...decision, waitedMs: 0 }
      if (decision.kind !== 'take') return decision
      const { fence, resumed } = decision
      const taking = this.#takeOver({ ...wish, fence })
      const isTaken = await this.#inTime(taking, (late) => {
        if (late) void this.#finish({ ...wish, fence: fence + 1, response: null }).catch(() => {})
      })
      if (!isTaken) continue
      const claim = await this.#hold(wish, { fence: fence + 1, resumed, askedAt })
      if (claim === undefined) continue
      wish.report({ kind: 'taken_over', attempt: fence + 1, resumed })
      return { kind: 'run', claim }
    }
  }

  async #mayAdd(wish: Wish): Promise<boolean> {
    if (wish.mayAdd === undefined || (await wish.mayAdd())) return true
    await this.#inTime(this.#forget({ ...wish, fence: 1 }), () => {})
    this.#waiting.wake(wish)
    return false
  }

  /**
   * Makes the handle of what was granted. A grant that took long on its way may be over by now:
   * then it is renewed first, and `undefined` means that somebody else was faster.
   */
  async #hold(
    wish: Wish,
    granted: Pick<ClaimTerms, 'fence' | 'resumed' | 'askedAt'>,
  ): Promise<Claim | undefined> {
    let { askedAt } = granted
    for (let renewals = 0; performance.now() - askedAt > wish.leaseMs / 2; renewals += 1) {
      if (renewals === RENEWALS) throw new StoreTimeout('answers take longer than the lease')
      askedAt = performance.now()
      const { fence } = granted
      const isHeld = await this.#inTime(this.#extend({ ...wish, fence }), () => {})
      if (!isHeld) return undefined
    }
    const { tenantId, key, leaseMs, maxRunMs, report } = wish
    const claim = new Claim(
      { tenantId, key, leaseMs, maxRunMs, ...granted, askedAt },
      {
        finish: this.#finish,
        extend: this.#extend,
        report,
        onEnd: (ended) => {
          this.#open.delete(ended)
          if (this.#open.size === 0) this.#onEmpty?.()
          this.#waiting.wake(ended)
        },
      },
    )
    this.#open.add(claim)
    return claim
  }

  /** Waits as long as the store may take; what arrives after that is handed to `onLate`. */
  async #inTime<T>(answer: Promise<T>, onLate: (late: T) => void): Promise<T> {
    try {
      return await within(answer, this.#storeTimeoutMs)
    } catch (error) {
      answer.then(onLate, () => {})
      throw error
    }
  }
}
