import { randomUUID } from 'node:crypto'
import { decide, type OnLeaseExpired } from '../core/decide.js'
import type { AttemptToken, HeldBy, RecordKey, SeenRecord, StoredResponse } from '../core/record.js'
import { crashPoint } from '../crash-points.js'
import { Drain } from '../drain.js'
import type { Report } from '../events.js'
import { defaultHolder } from '../holder.js'
import { RENEWALS_OF_A_GRANT } from '../lease.js'
import { batched } from '../store/batcher.js'
import type { PrismaClientLike } from '../store/client.js'
import { isLockTimeout, isOfItsData } from '../store/failures.js'
import {
  createStatementLimits,
  defaultMaxConnections,
  type StatementLimits,
} from '../store/statement-limit.js'
import type { Ask, Inserted, Recovery, Store, Taken } from '../store/store.js'
import { StoreTimeout, within } from '../within.js'
import { Claim, type ClaimTerms } from './claim.js'
import { sizeOf } from './steps.js'
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
  | ({ kind: 'busy'; waitedMs: number } & HeldBy)
  | { kind: 'mismatch' }
  | ({ kind: 'uncertain' } & AttemptToken)
  | { kind: 'refused' }

export interface ClaimsOptions {
  /** The application's client: what transactions write with. */
  readonly prisma: PrismaClientLike
  /** How long the store may take for one answer. */
  readonly storeTimeoutMs: number
  /** How this process is named in the records of what it runs. */
  readonly holder?: string
  /** How many requests may wait for an operation at once. */
  readonly maxWaiters?: number
  readonly limits?: StatementLimits
  /** How long a closing server waits for handlers, once no request waits for them. */
  readonly drainMs?: number
}

/** A record that could not be taken over so often is locked by another transaction, or taken. */
const MAX_TAKEOVERS = 3

/** Every claim of this process. */
export class Claims {
  readonly #open = new Set<Claim>()
  readonly #waiting: WaitingRoom
  readonly #drain: Drain
  readonly #prisma: PrismaClientLike
  readonly #storeTimeoutMs: number
  readonly #holder: string
  #onEmpty: (() => void) | undefined
  readonly #insert
  readonly #takeOver
  readonly #readBody
  readonly #finish
  readonly #extend
  readonly #keepSteps
  readonly #forget

  constructor(
    store: Store,
    {
      prisma,
      storeTimeoutMs,
      holder = defaultHolder(),
      maxWaiters = Number.POSITIVE_INFINITY,
      limits = createStatementLimits(defaultMaxConnections(), storeTimeoutMs),
      drainMs = 0,
    }: ClaimsOptions,
  ) {
    this.#prisma = prisma
    this.#storeTimeoutMs = storeTimeoutMs
    this.#holder = holder
    this.#waiting = new WaitingRoom(maxWaiters)
    this.#drain = new Drain(drainMs, () => {})
    const identify = recordName
    const begin = { timeoutMs: storeTimeoutMs, limit: limits.begin }
    const hold = { timeoutMs: storeTimeoutMs, limit: limits.hold }
    this.#insert = batched(store, store.insert, { identify, join: joinInsert }, begin)
    this.#takeOver = batched(store, store.takeOver, { identify }, begin)
    this.#readBody = batched(
      store,
      store.readBodies,
      { identify, join: sameResult, sizeOf: (item) => item.bytes },
      begin,
    )
    this.#finish = batched(
      store,
      store.finish,
      { identify, sizeOf: ({ response }) => response?.body?.byteLength ?? 0 },
      { ...hold, largeLimit: limits.largeResponses },
    )
    this.#extend = batched(store, store.extend, { identify }, hold)
    this.#keepSteps = batched(store, store.keepSteps, { identify, sizeOf }, hold)
    this.#forget = batched(store, store.forget, { identify }, hold)
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

  /** From here on, handlers for which no request waits have the time of `drain` to end. */
  beginDrain(): void {
    this.stopWaiting()
    this.#drain.begin()
  }

  /**
   * Lets handlers end for as long as the drain lasts. Then it stops renewing, and gives responses that are being
   * stored the time of one answer. What still runs keeps its lease for a while; another process takes it over
   * after that.
   */
  async close(): Promise<void> {
    this.beginDrain()
    const emptied = new Promise<void>((resolve) => {
      this.#onEmpty = resolve
      if (this.#open.size === 0) resolve()
    })
    await this.#drain.untilEnded(emptied)
    for (const claim of this.#open) {
      if (!claim.isSettled) claim.abandon('the server closed while it ran')
    }
    await within(emptied, this.#storeTimeoutMs).catch(() => {})
    for (const claim of this.#open) claim.abandon('the server closed before it was recorded')
  }

  async #beginNow(wish: Wish): Promise<Outcome> {
    crashPoint('claim:asking')
    // Ends after one or two turns: each further one means that another request was faster.
    for (let takeovers = 0; ; ) {
      // Anew in each turn: what an earlier one began may have been taken over and pruned since.
      const begun = { operationId: randomUUID(), attempt: 1 }
      const ask: Ask = { ...wish, operationId: begun.operationId, holder: this.#holder }
      const askedAt = performance.now()
      const inserting = this.#insert(ask)
      let inserted: Inserted
      try {
        inserted = await this.#inTime(inserting)
      } catch (error) {
        // Another transaction has inserted the key and is not committed yet.
        if (isLockTimeout(error)) return { kind: 'busy', waitedMs: 0 }
        this.#undo(inserting, () => this.#forget({ ...wish, ...begun }))
        throw error
      }
      if (inserted.kind === 'made') {
        if (!(await this.#mayAdd(wish, begun))) return { kind: 'refused' }
        const claim = await this.#hold(wish, { ...begun, resumed: false, steps: {}, askedAt })
        if (claim === undefined) continue
        wish.report({ kind: 'claimed', attempt: 1 })
        return { kind: 'run', claim }
      }
      const { record } = inserted
      const decision = decide(record, wish.fingerprint, wish.onLeaseExpired)
      switch (decision.kind) {
        case 'busy':
          return { ...decision, waitedMs: 0 }
        case 'replay': {
          const response = await this.#responseOf(wish, record, decision.response)
          if (response === undefined) continue
          return { kind: 'replay', response, waitedMs: 0 }
        }
        case 'take': {
          if (takeovers === MAX_TAKEOVERS) return { kind: 'busy', waitedMs: 0 }
          takeovers += 1
          const claim = await this.#takeOverSeen(wish, decision, begun, (token) =>
            this.#finish({ ...wish, ...token, response: null }),
          )
          if (claim !== undefined) return { kind: 'run', claim }
          continue
        }
        default:
          return decision
      }
    }
  }

  /** With its body, which is read apart when it is large; `undefined` when the record has gone since. */
  async #responseOf(
    wish: Wish,
    { operationId, attempt, unreadBodyBytes: bytes }: SeenRecord,
    response: StoredResponse,
  ): Promise<StoredResponse | undefined> {
    if (bytes === 0) return response
    const { tenantId, key } = wish
    const reading = this.#readBody({ tenantId, key, operationId, attempt, bytes })
    const body = await this.#inTime(reading)
    return body && { ...response, body }
  }

  /**
   * Takes over a record that was seen at this attempt, if it is released, expired, or its lease ran
   * out, or `forced`; `undefined` when it is at another attempt by now, or another transaction has
   * locked it.
   *
   * @throws as `begin` does. A record that was taken over too late is left in progress for a lease: it
   * must not look as if it had been released.
   */
  takeOver(
    wish: Wish,
    decision: { readonly seen: AttemptToken; readonly resumed: true; readonly forced?: boolean },
  ): Promise<Claim | undefined> {
    return this.#takeOverSeen(wish, decision, undefined, undefined)
  }

  async #takeOverSeen(
    wish: Wish,
    {
      seen,
      resumed,
      forced = false,
    }: { readonly seen: AttemptToken; readonly resumed: boolean; readonly forced?: boolean },
    begun: AttemptToken | undefined,
    giveBack: ((token: AttemptToken) => Promise<unknown>) | undefined,
  ): Promise<Claim | undefined> {
    const next = { operationId: seen.operationId, attempt: seen.attempt + 1 }
    const token = resumed || begun === undefined ? next : begun
    const askedAt = performance.now()
    const { operationId } = token
    const taking = this.#takeOver({
      ...{ ...wish, operationId, holder: this.#holder },
      ...{ seen, resumed, forced },
    })
    let taken: Taken | undefined
    try {
      taken = await this.#inTime(taking)
    } catch (error) {
      if (giveBack !== undefined) this.#undoTakeover(taking, token === begun, () => giveBack(token))
      throw error
    }
    if (taken === undefined) return undefined
    const { steps } = taken
    const claim = await this.#hold(wish, { ...token, resumed, steps, askedAt })
    if (claim !== undefined) {
      wish.report({ kind: 'taken_over', attempt: token.attempt, resumed })
    }
    return claim
  }

  async #mayAdd(wish: Wish, begun: AttemptToken): Promise<boolean> {
    if (wish.mayAdd === undefined || (await wish.mayAdd())) return true
    await this.#inTime(this.#forget({ ...wish, ...begun }))
    this.#waiting.wake(wish)
    return false
  }

  /**
   * Makes the handle of what was granted. A grant that took long on its way may be over by now:
   * then it is renewed first, and `undefined` means that another request was faster.
   */
  async #hold(
    wish: Wish,
    granted: Pick<ClaimTerms, 'operationId' | 'attempt' | 'resumed' | 'steps' | 'askedAt'>,
  ): Promise<Claim | undefined> {
    const { tenantId, key, leaseMs, maxRunMs, onLeaseExpired, report } = wish
    const { operationId, attempt } = granted
    let { askedAt } = granted
    for (let renewals = 0; performance.now() - askedAt > leaseMs / 2; renewals += 1) {
      if (renewals === RENEWALS_OF_A_GRANT)
        throw new StoreTimeout('answers take longer than the lease')
      askedAt = performance.now()
      const extending = this.#extend({ tenantId, key, operationId, attempt, leaseMs })
      if (!(await this.#inTime(extending))) return undefined
    }
    const claim = new Claim(
      { tenantId, key, leaseMs, maxRunMs, onLeaseExpired, ...granted, askedAt },
      {
        finish: this.#finish,
        extend: this.#extend,
        keepSteps: (steps) => this.#inTime(this.#keepSteps(steps)),
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

  /** Waits as long as the store may take. What was asked for may still happen. */
  #inTime<T>(answer: Promise<T>): Promise<T> {
    return within(answer, this.#storeTimeoutMs)
  }

  /**
   * What was asked for may have been granted, or may yet be, and its client has another answer: the
   * next request need not wait for the lease. Done once the store has answered, with a token that no
   * other attempt has. Where that fails, too, the lease runs out.
   */
  #undo(asking: Promise<unknown>, giveBack: () => Promise<unknown>): void {
    asking.then(giveBack, (error) => (isOfItsData(error) ? undefined : giveBack())).catch(() => {})
  }

  /**
   * The next attempt at the same operation has a number that any of those who want it would get: only an
   * answer tells that it was granted here. An operation that is begun anew has an id of its own.
   */
  #undoTakeover(
    taking: Promise<Taken | undefined>,
    isAnew: boolean,
    giveBack: () => Promise<unknown>,
  ): void {
    if (isAnew) this.#undo(taking, giveBack)
    else taking.then((taken) => taken && giveBack()).catch(() => {})
  }
}

const recordName = ({ tenantId, key }: RecordKey) => JSON.stringify([tenantId, key])

const sameResult = <I, O>(_first: I, result: O) => result

/** Of two requests with one key in one statement, the second sees what the first has inserted. */
function joinInsert(first: Ask, inserted: Inserted): Inserted {
  if (inserted.kind === 'seen') return inserted
  const { operationId, fingerprint, holder, leaseMs } = first
  return {
    kind: 'seen',
    record: {
      operationId,
      attempt: 1,
      fingerprint,
      status: 'in_progress',
      holder,
      leaseLeftMs: leaseMs,
      isExpired: false,
      response: null,
      unreadBodyBytes: 0,
    },
  }
}
