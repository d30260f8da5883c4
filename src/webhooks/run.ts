import type { FastifyBaseLogger } from 'fastify'
import { Steps, type StepsContext } from '../claims/steps.js'
import { fullJitter } from '../core/backoff.js'
import { KEPT_ERRORS, NOT_ENDED } from '../core/event.js'
import { crashPoint } from '../crash-points.js'
import { LeaseLost, StepNotAwaited } from '../errors.js'
import { failureOf, type Report, type WebhookSubject } from '../events.js'
import type { ApplicationGuards } from '../guards.js'
import { Lease } from '../lease.js'
import type { PrismaClientLike } from '../store/client.js'
import type { DatabaseClock } from '../store/clock.js'
import type { KeepEventSteps, RunEnd, RunHold, StoredEvent } from '../store/event-store.js'
import type { Endpoint } from './endpoint.js'
import { WebhookEvent } from './event.js'
import { type Answer, doesRedeliver } from './provider.js'
import { runErrorOf } from './run-error.js'

/** What a run needs of its surroundings. */
export interface RunContext {
  readonly prisma: PrismaClientLike
  /** For the library's own statements. */
  readonly ownPrisma: PrismaClientLike
  readonly clock: DatabaseClock
  readonly guards: ApplicationGuards
  readonly end: (end: RunEnd) => Promise<boolean>
  readonly extend: (hold: RunHold & { leaseMs: number }) => Promise<boolean>
  /** Answers in time, or rejects: the steps may be stored all the same. */
  readonly keepSteps: (steps: KeepEventSteps) => Promise<boolean>
  readonly storeTimeoutMs: number
  readonly log: FastifyBaseLogger
  readonly report: Report
  /**
   * Called once, when the lease is over and the handler is not: nobody waits for it any more. Returns
   * how many such handlers there are.
   */
  readonly onOverdue: (run: Run) => number
  /** Called once, when the run has ended in this process, however it ended. */
  readonly onEnd: (run: Run) => void
}

/** What became of a run. `lost`: another one took over, or may, and its result counts. */
export type RunOutcome = 'processed' | 'ignored' | 'postponed' | 'failed' | 'dead' | 'lost'

/** A run that has ended, and what its handler answers itself. */
export interface Ran {
  readonly outcome: RunOutcome
  readonly answer: Answer | undefined
}

/**
 * What an event is run for: the request that delivered it alone, whose answer its handler can give, or with
 * others; `elsewhere`, a caller in this process; or a worker, because it is due.
 */
export type RunFrom = 'request' | 'batch' | 'elsewhere' | 'worker'

/** Outcomes of a handler that returned. */
const RETURNED: readonly RunOutcome[] = ['processed', 'ignored', 'postponed', 'dead']

/** How long `defer()` puts an event back when it does not say. */
const POSTPONE = { firstMs: 1_000, mostMs: 300_000 }

/**
 * Inline, the provider is told of a failure and delivers again: it gets this head start before the
 * inbox runs the event by itself. One that never delivers again needs none.
 */
const PROVIDER_FIRST_MS = 60_000

/** One attempt at an event: its handler, under a lease, and how that ended. */
export class Run {
  readonly #endpoint: Endpoint
  readonly #stored: StoredEvent
  readonly #context: RunContext
  readonly #lease: Lease<RunEnd>
  readonly #subject: WebhookSubject
  #steps: Steps | undefined
  #event: WebhookEvent | undefined
  #hasReturned = false
  #isRedelivered = true
  #mayAnswer = false
  /** Ends the run for who waits for it, while its handler goes on. */
  #endEarly: (outcome: RunOutcome) => void = () => {}

  /** `askedAt`: when the store was asked for this claim, by `performance.now()`. */
  constructor(endpoint: Endpoint, stored: StoredEvent, askedAt: number, context: RunContext) {
    const { id, fence, provider, eventId } = stored
    const { leaseMs, maxRunMs } = endpoint.settings
    this.#endpoint = endpoint
    this.#stored = stored
    this.#context = context
    this.#subject = { provider, eventId, event: id }
    this.#lease = new Lease<RunEnd>(
      { attempt: fence, askedAt, leaseMs, maxRunMs },
      {
        end: context.end,
        // One that is processed by a transaction of its own has no lease left to renew.
        extend: async () =>
          this.#isFinal || (await context.extend({ id, fence, leaseMs })) || this.#isFinal,
        isBusy: () => this.#steps?.isOpen === true,
        report: context.report,
        onEnd: () => context.onEnd(this),
      },
    )
  }

  /**
   * Runs the handler and stores how it ended. Never rejects, and is `lost` once its lease is over or the
   * event was handed back: a handler that never ends keeps neither a place nor a request.
   */
  async execute(readPayload: () => unknown, from: RunFrom): Promise<Ran> {
    this.#mayAnswer = from === 'request'
    if (from === 'worker' && this.#stored.awaitsDelivery) return this.#leave()
    const early = new Promise<RunOutcome>((resolve) => {
      this.#endEarly = resolve
    })
    const overdue = this.#lease.over.then((): RunOutcome => {
      const overdue = this.#context.onOverdue(this)
      this.#report({ kind: 'webhook_overdue', attempt: this.#lease.attempt, overdue })
      return 'lost'
    })
    const outcome = await Promise.race([this.#execute(readPayload), overdue, early])
    const hasReturned = this.#hasReturned && RETURNED.includes(outcome)
    return { outcome, answer: hasReturned ? this.#answer : undefined }
  }

  /** What its provider delivers again, under another name, no worker runs beside that. */
  async #leave(): Promise<Ran> {
    const end = { status: 'retrying', dueInMs: 0, attempts: this.#stored.attempts - 1 } as const
    if ((await this.#end('failed', end)) === 'failed') {
      this.#report({ kind: 'webhook_left_to_provider', attempt: this.#lease.attempt })
    }
    return { outcome: 'lost', answer: undefined }
  }

  async #execute(readPayload: () => unknown): Promise<RunOutcome> {
    const { settings, handler } = this.#endpoint
    crashPoint('event:claimed')
    // It kills its process. Where the last attempt did end, the option was lowered since, and one more
    // attempt has an end that says why it is the last.
    if (this.#stored.attempts > settings.retry.attempts && this.#lastIsLost) {
      const why = 'its attempts are used up, and the last of them did not end'
      this.#report({ kind: 'webhook_dead', attempt: this.#lease.attempt, why, failure: undefined })
      // This one was none.
      const attempts = this.#stored.attempts - 1
      return this.#end('dead', { status: 'dead', dueInMs: null, attempts })
    }
    let payload: unknown
    try {
      payload = readPayload()
      this.#isRedelivered = doesRedeliver(this.#endpoint.provider, payload)
    } catch {
      return this.#die('its body cannot be read', undefined)
    }
    const steps = this.#openSteps()
    this.#steps = steps
    const log = this.#context.log.child({
      webhook: { ...this.#subject, attempt: this.#lease.attempt },
    })
    const event = new WebhookEvent(this.#stored, payload, {
      log,
      steps,
      signal: () => this.#lease.signal,
      isServed: this.#endpoint.isServed,
      guards: this.#context.guards.of({
        tenantId: () => this.#stored.tenantId,
        log,
        route: this.#endpoint.name,
      }),
    })
    this.#event = event
    try {
      await handler(event)
      this.#hasReturned = true
      const { isAwaited, over } = steps.close()
      await over
      if (!isAwaited) throw new StepNotAwaited()
    } catch (error) {
      // What it began beside that is not cut off half way.
      await steps.close().over
      if (steps.isFinal) return this.#failedAfterEnd(error)
      return this.#lease.isSettled ? 'lost' : this.#failed(error)
    }
    if (steps.isFinal) return this.#processed(true)
    // It is somebody else's by now, and what this handler has decided is of no account.
    if (this.#lease.isSettled) return 'lost'
    const verdict = WebhookEvent.verdictOf(event)
    switch (verdict?.kind) {
      case undefined:
        return this.#processed(false)
      case 'ignore':
        this.#report({ kind: 'webhook_ignored' })
        return this.#end('ignored', { status: 'ignored', dueInMs: settings.retentionMs })
      case 'reject':
        return this.#die('its handler rejected it', new Rejected(verdict.reason))
      case 'postpone':
        return this.#postpone(verdict.afterMs)
    }
  }

  /** Lets another process go on at once: this one closes. What the handler still does is not kept. */
  async handBack(): Promise<void> {
    if (this.#lease.isSettled) return
    if (this.#isFinal) {
      this.#lease.close()
      return this.#endEarly('processed')
    }
    const { attempts } = this.#stored
    this.#lease.lose('the server closes')
    void this.#steps?.close(LeaseLost)
    await this.#end('failed', { status: 'retrying', dueInMs: 0, attempts: attempts - 1 })
    this.#report({ kind: 'webhook_handed_back', attempt: this.#lease.attempt })
    this.#endEarly('lost')
  }

  /** Stops without a word, as a crash would. */
  abandon(why: string): void {
    this.#lease.abandon(why)
  }

  /** Whether workers may run the event, and not only the request that it is. */
  get isServed(): boolean {
    return this.#endpoint.isServed
  }

  /** What the handler answers itself, where an answer waits for it. */
  get #answer(): Answer | undefined {
    return this.#mayAnswer && this.#event ? WebhookEvent.answerOf(this.#event) : undefined
  }

  /** Whether the run before this one ended without a word. */
  get #lastIsLost(): boolean {
    const { errors, fence } = this.#stored
    const last = errors.at(-1)
    return last?.attempt === fence - 1 && last.message === NOT_ENDED
  }

  /** Whether a transaction has made the event processed. */
  get #isFinal(): boolean {
    return this.#steps?.isFinal === true
  }

  #openSteps(): Steps {
    const { id, fence, steps: earlier } = this.#stored
    const { prisma, ownPrisma, clock, keepSteps } = this.#context
    const { retentionMs } = this.#endpoint.settings
    const keep: StepsContext['keep'] = (steps) => keepSteps({ id, fence, steps })
    const prepare: StepsContext['prepare'] = async (isFinal) => {
      const now = isFinal ? (await clock.through(ownPrisma).estimate()).getTime() : 0
      const done = isFinal && {
        status: 'processed',
        runningLane: null,
        dueAt: new Date(now + retentionMs),
      }
      return async (tx, steps) => {
        const written = await tx.webhookEvent?.updateMany({
          where: { id, fence, status: 'processing' },
          data: { steps, ...done },
        })
        return written?.count === 1
      }
    }
    const isHeld = () => this.#lease.isHeld()
    return new Steps({ prisma, operationId: id, earlier, keep, prepare, isHeld })
  }

  async #processed(isRecorded: boolean): Promise<RunOutcome> {
    const { retentionMs } = this.#endpoint.settings
    const tookMs = Math.round(performance.now() - this.#lease.startedAt)
    const { lane } = this.#stored
    // Committed with the effects already; those that wait in its lane are still to be woken.
    const isOver = isRecorded && lane === null
    if (isOver) this.#lease.close()
    const outcome = isOver
      ? 'processed'
      : await this.#end('processed', { status: 'processed', dueInMs: retentionMs, wakes: lane })
    if (outcome === 'processed') {
      this.#report({ kind: 'webhook_processed', attempt: this.#lease.attempt, tookMs })
    }
    return isRecorded ? 'processed' : outcome
  }

  async #failed(thrown: unknown): Promise<RunOutcome> {
    const error = thrown ?? new Error(`its handler threw ${thrown}`)
    const { mode, retry } = this.#endpoint.settings
    const { attempts } = this.#stored
    const failure = failureOf(error)
    if (attempts >= retry.attempts) return this.#die('its attempts are used up', error)
    const isProvidersTurn = mode === 'inline' && this.#isRedelivered
    const pauseMs = fullJitter(retry, attempts - 1, Math.random())
    const dueInMs = Math.round((isProvidersTurn ? PROVIDER_FIRST_MS : 0) + pauseMs)
    const retryInMs = this.#stored.awaitsDelivery ? null : dueInMs
    this.#report({ kind: 'webhook_failed', attempt: this.#lease.attempt, retryInMs, failure })
    return this.#end('failed', { status: 'retrying', dueInMs, error })
  }

  /** Its effects are committed, and so is that it is processed: a failure after that is only told. */
  #failedAfterEnd(error: unknown): Promise<RunOutcome> {
    const failure = failureOf(error)
    this.#report({ kind: 'webhook_failed', attempt: this.#lease.attempt, retryInMs: null, failure })
    return this.#processed(true)
  }

  #postpone(afterMs: number | undefined): Promise<RunOutcome> {
    const { attempts, deferrals } = this.#stored
    if (deferrals >= this.#endpoint.settings.deferrals) {
      return this.#die('it was put back too often', undefined)
    }
    const dueInMs = Math.round(afterMs ?? fullJitter(POSTPONE, deferrals, Math.random()))
    const isAcknowledged = (this.#answer?.status ?? 500) < 300
    const retryInMs = this.#stored.awaitsDelivery && !isAcknowledged ? null : dueInMs
    const { attempt } = this.#lease
    this.#report({ kind: 'webhook_postponed', attempt, deferrals: deferrals + 1, retryInMs })
    return this.#end('postponed', {
      status: 'retrying',
      isAcknowledged,
      dueInMs,
      attempts: attempts - 1,
      deferrals: deferrals + 1,
    })
  }

  #die(why: string, error: unknown): Promise<RunOutcome> {
    const failure = error === undefined ? undefined : failureOf(error)
    this.#report({ kind: 'webhook_dead', attempt: this.#lease.attempt, why, failure })
    return this.#end('dead', { status: 'dead', dueInMs: null, error: error ?? new Error(why) })
  }

  async #end(
    outcome: RunOutcome,
    {
      error,
      ...ending
    }: Pick<RunEnd, 'status' | 'dueInMs'> & Partial<RunEnd> & { error?: unknown },
  ): Promise<RunOutcome> {
    const { id, attempts, deferrals, errors } = this.#stored
    const end: RunEnd = {
      id,
      fence: this.#lease.attempt,
      attempts,
      deferrals,
      isAcknowledged: false,
      wakes: null,
      errors:
        error === undefined
          ? errors
          : [...errors, runErrorOf(this.#lease.attempt, error)].slice(-KEPT_ERRORS),
      ...ending,
    }
    if (this.#lease.isSettled) return 'lost'
    const { storeTimeoutMs } = this.#context
    crashPoint('event:ending')
    const settled = await this.#lease.settle(end, storeTimeoutMs)
    crashPoint('event:ended')
    if (settled.kind === 'stored') return outcome
    if (settled.kind === 'lost') return 'lost'
    this.#report({
      kind: 'webhook_end_not_stored',
      attempt: this.#lease.attempt,
      failure: failureOf(settled.error),
    })
    void this.#lease.keepSettling(end, storeTimeoutMs)
    return 'failed'
  }

  #report(happening: RunHappening): void {
    this.#context.report({ ...this.#subject, ...happening } as Parameters<Report>[0])
  }
}

/** What a handler says of an event that it cannot ever process. */
class Rejected extends Error {
  override readonly name = 'Rejected'
}

type Happening = Parameters<Report>[0]
type WithoutSubject<H> = H extends WebhookSubject ? Omit<H, keyof WebhookSubject> : never
type RunHappening = WithoutSubject<Happening>
