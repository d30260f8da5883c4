import { decide, type OnLeaseExpired } from '../core/decide.js'
import type { StoredResponse } from '../core/record.js'
import { crashPoint } from '../crash-points.js'
import type { Report } from '../events.js'
import type { PrismaClientLike } from '../store/client.js'
import { oneOf } from '../store/combine.js'
import type { Recovery, Store } from '../store/store.js'
import { StoreTimeout, within } from '../within.js'
import { Claim, type ClaimTerms } from './claim.js'
import { type Patience, WaitingRoom } from './waiting.js'

/** What a request wants: to run this operation, unless it was run before. */
export interface Wish extends Patience {
  readonly fingerprint: string
  readonly leaseMs: number
  readonly maxRunMs: number
  readonly retentionMs: number
  readonly onLeaseExpired: OnLeaseExpired
  /** Asked once a key turned out to be new; `false` forgets it again. */
  readonly mayAdd?: () => Promise<boolean>
  readonly recovery?: Recovery | undefined
  readonly report: Report
}

export type Outcome =
  | { kind: 'run'; claim: Claim }
  | { kind: 'replay'; response: StoredResponse; waitedMs: number }
  | { kind: 'busy'; waitedMs: number }
  | { kind: 'mismatch' }
  | { kind: 'uncertain'; attempt: number }
  | { kind: 'refused' }

export interface ClaimsOptions {
  /** The application's client: what steps and transactions write with. */
  readonly prisma: PrismaClientLike
  /** How long the store may take for one answer. */
  readonly storeTimeoutMs: number
}

/** A store that takes half a lease for an answer so often is too slow to hold anything in it. */
const RENEWALS = 3

/** Every claim of this process. */
export class Claims {
  readonly #open = new Set<Claim>()
  readonly #waiting = new WaitingRoom()
  readonly #prisma: PrismaClientLike
  readonly #storeTimeoutMs: number
  #onEmpty: (() => void) | undefined
  readonly #insert
  readonly #takeOver
  readonly #finish
  readonly #extend
  readonly #forget

  constructor(store: Store, { prisma, storeTimeoutMs }: ClaimsOptions) {
    this.#prisma = prisma
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
  begin(wish: Wish): Promise<Outcome> {
    return this.#waiting.whileBusy(wish, () => this.#beginNow(wish))
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
    crashPoint('claim:asking')
    // Ends after one or two turns: each further one means that somebody else moved the fence.
    for (;;) {
      const askedAt = performance.now()
      const asking = this.#insert(wish)
      const inserted = await this.#inTime(asking, (late) => {
        if (late.kind === 'made') void this.#forget({ ...wish, fence: 1 }).catch(() => {})
      })
      if (inserted.kind === 'made') {
        if (!(await this.#mayAdd(wish))) return { kind: 'refused' }
        const claim = await this.#hold(wish, { fence: 1, resumed: false, steps: {}, askedAt })
        if (claim === undefined) continue
        wish.report({ kind: 'claimed', attempt: 1 })
        return { kind: 'run', claim }
      }
      const decision = decide(inserted.record, wish.fingerprint, wish.onLeaseExpired)
      if (decision.kind === 'busy') return { kind: 'busy', waitedMs: 0 }
      if (decision.kind === 'replay') return { ...decision, waitedMs: 0 }
      if (decision.kind !== 'take') return decision
      // Granted too late, for somebody who is gone: the next one need not wait for its lease.
      const giveBack = () => {
        const { fence } = decision
        this.#finish({ ...wish, fence: fence + 1, response: null }).catch(() => {})
      }
      const claim = await this.takeOver(wish, decision, giveBack)
      if (claim !== undefined) return { kind: 'run', claim }
    }
  }

  /**
   * Takes over a record that was seen with this fence, if it is released, expired, or its lease ran
   * out; `undefined` when somebody else moved the fence.
   *
   * @throws as `begin` does. A record that was taken over too late is left in progress for a lease: it
   * must not look as if somebody had released it.
   */
  async takeOver(
    wish: Wish,
    { fence, resumed }: { readonly fence: number; readonly resumed: boolean },
    onLate: () => void = () => {},
  ): Promise<Claim | undefined> {
    const askedAt = performance.now()
    const taking = this.#takeOver({ ...wish, fence, resumed })
    const taken = await this.#inTime(taking, (late) => {
      if (late) onLate()
    })
    if (taken === undefined) return undefined
    const { steps } = taken
    const claim = await this.#hold(wish, { fence: fence + 1, resumed, steps, askedAt })
    if (claim !== undefined) wish.report({ kind: 'taken_over', attempt: fence + 1, resumed })
    return claim
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
    granted: Pick<ClaimTerms, 'fence' | 'resumed' | 'steps' | 'askedAt'>,
  ): Promise<Claim | undefined> {
    let { askedAt } = granted
    for (let renewals = 0; performance.now() - askedAt > wish.leaseMs / 2; renewals += 1) {
      if (renewals === RENEWALS) throw new StoreTimeout('answers take longer than the lease')
      askedAt = performance.now()
      const { fence } = granted
      const isHeld = await this.#inTime(this.#extend({ ...wish, fence }), () => {})
      if (!isHeld) return undefined
    }
    const { tenantId, key, fingerprint, leaseMs, maxRunMs, onLeaseExpired, report } = wish
    const claim = new Claim(
      { tenantId, key, fingerprint, leaseMs, maxRunMs, onLeaseExpired, ...granted, askedAt },
      {
        finish: this.#finish,
        extend: this.#extend,
        prisma: this.#prisma,
        report,
        onEnd: (ended) => {
          this.#open.delete(ended)
          if (this.#open.size === 0) this.#onEmpty?.()
          this.#waiting.wake(ended)
        },
      },
    )
    this.#open.add(claim)
    crashPoint('claim:held')
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
