import type { FastifyBaseLogger } from 'fastify'
import { type Check, check, isDuration, LONGEST_RETENTION_MS, toMs } from '../checks.js'
import type { EventTransactionOptions, Steps } from '../claims/steps.js'
import type { Duration } from '../core/duration.js'
import { OptionInvalid } from '../errors.js'
import type { Guards } from '../guards.js'
import type { ApplicationTransaction } from '../register.js'
import type { StoredEvent } from '../store/event-store.js'
import { ANSWER_CHECKS, type Answer, writtenAnswer } from './provider.js'

/** What a handler decided about its event, where it is not simply done. */
export type Verdict =
  | { kind: 'postpone'; afterMs: number | undefined }
  | { kind: 'ignore' }
  | { kind: 'reject'; reason: string }

// A time that a column holds, and for which somebody may still wait.
const DEFER_CHECKS: Record<'after', Check> = { after: isDuration(0, '30s', LONGEST_RETENTION_MS) }

/** What an event needs of its run. */
export interface EventContext {
  readonly log: FastifyBaseLogger
  readonly steps: Steps
  readonly signal: () => AbortSignal
  readonly guards: Guards
  /** Whether workers run it again. */
  readonly isServed: boolean
}

/** What a handler is given: one event, however often it was delivered. */
// biome-ignore lint/suspicious/noExplicitAny: what a provider sends has no type here
export class WebhookEvent<Payload = any> implements Guards {
  /** What the inbox calls the event: the same in every attempt, different for every event. */
  readonly id: string
  readonly tenantId: string
  readonly provider: string
  /**
   * What the provider calls it. Where it gives no id, a name that the inbox has made of its bytes, `bytes:…`;
   * `null` where deliveries are never merged, or `ingest` or `recordEvent` was given none.
   */
  readonly eventId: string | null
  readonly type: string | null
  /** The decoded body. */
  readonly payload: Payload
  /** The body as it came; for an item of a batch, the item as JSON. */
  readonly rawBody: Buffer
  /** Those that are kept: by lower-case name. */
  readonly headers: Readonly<Record<string, string>>
  /** Which run of the event this is, from 1. */
  readonly attempt: number
  /** When its first delivery was recorded, by the database's clock. */
  readonly receivedAt: Date
  /** An earlier event with the same bytes under another name, if there is one. */
  readonly sameBodyAs: string | null
  /** Names the event in each line. */
  readonly log: FastifyBaseLogger

  // What keeps operations apart, for the event's tenant.
  readonly lock: Guards['lock']
  readonly reserve: Guards['reserve']
  readonly confirm: Guards['confirm']
  readonly cancel: Guards['cancel']
  readonly availability: Guards['availability']
  readonly advance: Guards['advance']
  readonly once: Guards['once']

  readonly #steps: Steps
  readonly #signal: () => AbortSignal
  readonly #isServed: boolean
  #verdict: Verdict | undefined
  #answer: Answer | undefined

  constructor(stored: StoredEvent, payload: Payload, context: EventContext) {
    this.id = stored.id
    this.tenantId = stored.tenantId
    this.provider = stored.provider
    this.eventId = stored.eventId
    this.type = stored.type
    this.payload = payload
    const { buffer, byteOffset, byteLength } = stored.payload
    this.rawBody = Buffer.from(buffer, byteOffset, byteLength)
    this.headers = stored.headers
    this.attempt = stored.fence
    this.receivedAt = stored.receivedAt
    this.sameBodyAs = stored.sameBodyAs
    this.log = context.log
    this.#steps = context.steps
    this.#signal = context.signal
    this.#isServed = context.isServed
    const { guards } = context
    this.lock = guards.lock
    this.reserve = guards.reserve
    this.confirm = guards.confirm
    this.cancel = guards.cancel
    this.availability = guards.availability
    this.advance = guards.advance
    this.once = guards.once
  }

  /**
   * Aborted when another attempt may start, because the lease could not be kept, the handler ran
   * longer than `maxRun`, or the server closes. What has not been done by then should not be done.
   */
  get signal(): AbortSignal {
    return this.#signal()
  }

  /**
   * Runs `fn` in one transaction of the application's client together with the note that it was
   * run: both commit, or neither. A later attempt gets its result without running it. With
   * `{ final: true }` the event is `processed` by the same commit.
   *
   * The result must be plain data. What `fn` does outside of `tx` is not undone when it fails. `fn`
   * is run again, up to ten times, when the database rolls back for a conflict.
   *
   * A crash before the commit leaves nothing behind; after it, the effect is there once and the
   * next attempt goes on behind the transaction.
   *
   * @throws IDEMPOTENCY_LEASE_LOST when another attempt took over: nothing of this one is kept.
   * @throws IDEMPOTENCY_TRANSACTION_OPEN within or beside another one of the same handler, or while a
   * step is in flight: await that first.
   * @throws IDEMPOTENCY_STEP_TOO_LATE after the handler has ended. Nothing of it was done.
   */
  transaction<T>(
    fn: (tx: ApplicationTransaction) => Promise<T>,
    options?: EventTransactionOptions,
  ): Promise<T> {
    return this.#steps.transaction(fn, options)
  }

  /**
   * Runs `fn` once over all attempts and stores its result, which must be plain data. For work
   * outside the database: a crash between `fn` and the storing runs it again, so give the other
   * side `keyFor(name)` to recognize that by. Steps may run side by side, but not beside a transaction.
   *
   * @throws IDEMPOTENCY_LEASE_LOST when another attempt took over before the result was stored.
   * @throws IDEMPOTENCY_STEP_TOO_LATE after the handler has ended. Nothing of it was done.
   */
  step<T>(name: string, fn: () => T | Promise<T>): Promise<T> {
    return this.#steps.step(name, fn)
  }

  /** A key for a call to somebody else: the same in every attempt, different for every event and name. */
  keyFor(name: string): string {
    return this.#steps.keyFor(name)
  }

  /**
   * Puts the event back when the handler returns: what it depends on has not arrived yet. It is run
   * again after `after` (at most 3,650 days; default: a pause that grows), or as soon as another event of the same
   * `serialize` object was processed. After too many times the event is `dead`. Said within a
   * transaction, it undoes that, as `ignore()` and `reject()` do.
   *
   * @throws IDEMPOTENCY_OPTION_INVALID when `after` is no such duration, and for an event of `recordEvent`,
   * which no worker runs: answer 503, and its next delivery is no duplicate.
   */
  defer(options: { after?: Duration } = {}): void {
    check(' of defer()', DEFER_CHECKS, options)
    if (!this.#isServed) {
      throw new OptionInvalid(
        'defer() has no effect on an event of recordEvent, which no worker runs: answer 503, and the next delivery is no duplicate',
      )
    }
    const { after } = options
    this.#decide({ kind: 'postpone', afterMs: after === undefined ? undefined : toMs(after) })
  }

  /** Nothing has to be done for this event: it is `ignored` when the handler returns. */
  ignore(): void {
    this.#decide({ kind: 'ignore' })
  }

  /**
   * This event can never be processed, however often it is tried: it is `dead` when the handler
   * returns, until a person looks at it. The reason is kept with it.
   *
   * @throws IDEMPOTENCY_OPTION_INVALID when the reason is no text.
   */
  reject(reason: string): void {
    if (typeof reason !== 'string') {
      throw new OptionInvalid("reject() needs a reason: text such as 'unknown currency'")
    }
    this.#decide({ kind: 'reject', reason })
  }

  /**
   * Answers the delivery that waits for this run, in place of the answer for its outcome: for providers that
   * read it, such as slash commands of Slack, Twilio (TwiML) and interactions of Discord. The last call counts,
   * once the handler has returned; a handler that fails is answered as its failure. It has no effect where no
   * delivery waits: deferred, run again by the inbox, one of several items of a batch. It is not stored: a duplicate
   * is answered as a duplicate.
   *
   * @throws IDEMPOTENCY_OPTION_INVALID when it is no `{ status, headers, body }` that can be sent.
   */
  respond(answer: Answer): void {
    check(' of respond()', ANSWER_CHECKS, answer, ['status'])
    this.#answer = writtenAnswer(answer)
  }

  /** Within a transaction, it undoes that: what it found out must be asked again next time. */
  #decide(verdict: Verdict): void {
    this.#verdict = verdict
    this.#steps.undo()
  }

  /** @internal What the handler decided. */
  static verdictOf(event: WebhookEvent): Verdict | undefined {
    return event.#verdict
  }

  /** @internal What the handler answers itself. */
  static answerOf(event: WebhookEvent): Answer | undefined {
    return event.#answer
  }
}
