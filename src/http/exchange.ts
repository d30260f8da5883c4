import type { FastifyError, FastifyReply, FastifyRequest, RouteHandlerMethod } from 'fastify'
import type { AtomicClaim } from '../atomic/atomic-claim.js'
import type { AtomicClaims, AtomicOutcome } from '../atomic/atomic-claims.js'
import type { Claim } from '../claims/claim.js'
import type { Claims, Outcome, Wish } from '../claims/claims.js'
import type { StoredResponse } from '../core/record.js'
import {
  InProgress,
  KeyReused,
  NotReplayable,
  StepTooLate,
  StoreUnavailable,
  TooManyKeys,
  Uncertain,
} from '../errors.js'
import { failureOf, type Report, reporter } from '../events.js'
import type { AtomicSettings, PluginSettings, RouteSettings } from '../options.js'
import { isOfItsData } from '../store/failures.js'
import { sayAgain } from '../store/say-again.js'
import { type Received, whatIsAsked } from './asked.js'
import { AtomicRecording } from './atomic-recording.js'
import { BeforeSend } from './before-send.js'
import { isClosed, onClosed } from './closed-response.js'
import type { Limiter } from './limiter.js'
import { BUSY_RETRY_S, problem, STORE_RETRY_S } from './problem.js'
import { Recording, type RecordingTerms } from './recording.js'
import { Replay } from './replay.js'
import { restoreHead, saveHead } from './reply-head.js'
import { saveInput } from './request-input.js'
import type { SendOn } from './sends.js'

/** Why an operation that was granted does not run. */
const OVER = 'the client left, or was answered, before it ran'

/** What all protected routes share. */
export interface Protection {
  readonly settings: PluginSettings
  readonly claims: Claims
  /** None where the database cannot hold a claim in a transaction. */
  readonly atomic: AtomicClaims | undefined
  readonly limiter: Limiter | undefined
}

/** A protected route, resolved once when it was added. */
export interface ProtectedRoute {
  readonly protection: Protection
  readonly settings: RouteSettings
  /** For people: `POST /payments`. */
  readonly name: string
  /** What tells it from all other routes: its pattern, and its constraints if it has any. */
  readonly identity: string
  readonly methods: readonly string[]
  readonly handler: RouteHandlerMethod
}

/**
 * What the steps of a request run under, if they may run: `unprotected` as they are, `claimed` under its
 * claim. `unclaimed`: its handler has not begun; `answered`: it was answered without it; `atomic`: its
 * route has no steps.
 */
export type Stage = 'unprotected' | 'unclaimed' | 'claimed' | 'answered' | 'atomic'

/** One request to a protected route, from its header to its stored response. */
export class Exchange {
  tenantId = ''
  readonly beforeSend = new BeforeSend()

  readonly #route: ProtectedRoute
  readonly #request: FastifyRequest
  readonly #reply: FastifyReply
  readonly #received: Received
  #report: Report
  #recording: Recording | undefined
  #atomic: AtomicRecording | undefined
  #isCounted = false
  #hasTimedOut = false
  #isBypassed = false
  #isAnswered = false
  #replay: Replay | undefined

  constructor(
    route: ProtectedRoute,
    request: FastifyRequest,
    reply: FastifyReply,
    received: Received,
  ) {
    this.#route = route
    this.#request = request
    this.#reply = reply
    this.#received = received
    this.#report = reporter(request.log, route.name, undefined)
  }

  /** The claim under which the handler runs, if it runs. */
  get claim(): Claim | undefined {
    return this.#recording?.claim
  }

  /** The same, where the handler runs in a transaction. */
  get atomicClaim(): AtomicClaim | undefined {
    return this.#atomic?.claim
  }

  get stage(): Stage {
    if (this.#isBypassed) return 'unprotected'
    if (this.#route.settings.atomic !== undefined) return 'atomic'
    if (this.claim !== undefined) return 'claimed'
    return this.#isAnswered ? 'answered' : 'unclaimed'
  }

  /** Takes the handler's place: runs it, or answers without it. */
  async handle(): Promise<unknown> {
    const { protection, settings, name } = this.#route
    const asked = await whatIsAsked(
      this.#request,
      this.#received,
      { ...protection.settings, ...settings },
      this.#report,
    )
    switch (asked.kind) {
      case 'ignored':
        this.#report({ kind: 'key_ignored', reason: asked.reason })
        if (settings.atomic === undefined) return this.#runUnprotected()
        return this.#again(() => this.#beginWithoutKey())
      case 'nothing':
        return this.#again(() => this.#beginWithoutKey())
      case 'refused':
        if (asked.reason !== undefined) {
          this.#report({ kind: 'key_rejected', reason: asked.reason })
        }
        return this.#answer(asked.error)
      case 'key': {
        const { tenantId, key, fingerprint } = asked
        this.tenantId = tenantId
        this.#report = reporter(this.#request.log, name, { tenantId, key })
        const begin = () => this.#begin(key, fingerprint)
        return settings.atomic === undefined ? begin() : this.#again(begin)
      }
    }
  }

  /** A transaction that a conflict undid is begun anew, on a request and a reply as they were. */
  async #again(begin: () => Promise<unknown>): Promise<unknown> {
    const reply = this.#reply
    const head = saveHead(reply)
    // Before there is a transaction: a large body takes several turns, and no connection meanwhile.
    const input = await saveInput(this.#request)
    const beginAgain = async () => {
      // Without a handler that has run, there is nothing that it could have changed.
      if (this.#atomic !== undefined) {
        this.#atomic = undefined
        restoreHead(reply, head)
        await input?.restore()
      }
      return begin()
    }
    return sayAgain(beginAgain, () => this.#atomic === undefined || input !== undefined)
  }

  async #beginWithoutKey(): Promise<unknown> {
    const { atomic, settings } = this.#atomicOf()
    let claim: AtomicClaim
    try {
      claim = await atomic.beginWithoutKey(settings, this.#report)
    } catch (error) {
      return this.#unavailable(error)
    }
    return this.#runAtomic(claim)
  }

  #atomicOf(): { atomic: AtomicClaims; settings: AtomicSettings } {
    const { protection, settings } = this.#route
    if (protection.atomic === undefined || settings.atomic === undefined) {
      throw new TypeError('the route is not atomic')
    }
    return { atomic: protection.atomic, settings: settings.atomic }
  }

  async #begin(key: string, fingerprint: string): Promise<unknown> {
    const { settings, protection } = this.#route
    const { limiter } = protection
    const report = this.#report
    const { leaseMs, maxRunMs, retentionMs, onLeaseExpired, waitMs } = settings
    let retryAfterS = 1
    const wish: Wish = {
      tenantId: this.tenantId,
      key,
      fingerprint,
      leaseMs,
      maxRunMs,
      retentionMs,
      onLeaseExpired,
      waitMs,
      ...(waitMs > 0 && { signal: closeSignal(this.#reply) }),
      ...(limiter && {
        mayAdd: async () => {
          // One whose transaction is begun anew is the same key.
          if (this.#isCounted) return true
          this.#isCounted = true
          const seconds = await limiter(this.#request, report)
          retryAfterS = seconds ?? retryAfterS
          return seconds === undefined
        },
      }),
      report,
    }
    let outcome: Outcome | AtomicOutcome
    try {
      outcome =
        settings.atomic && protection.atomic
          ? await protection.atomic.begin({ ...wish, atomic: settings.atomic })
          : await protection.claims.begin(wish)
    } catch (error) {
      // A statement that failed because of what it carried says nothing of the store.
      const mayBypass = settings.onStoreError === 'bypass' && !isOfItsData(error)
      if (!mayBypass) return this.#unavailable(error)
      report({ kind: 'store_unavailable', bypassed: true, failure: failureOf(error) })
      return this.#runUnprotected()
    }
    switch (outcome.kind) {
      case 'run':
        return this.#run(outcome.claim)
      case 'run atomic':
        return this.#runAtomic(outcome.claim)
      case 'replay':
        return this.#sendReplay(outcome.response, outcome.waitedMs)
      case 'busy':
        // Which process holds it is for the log alone.
        report(outcome)
        return this.#answer(new InProgress(), BUSY_RETRY_S)
      case 'mismatch':
        report({ kind: 'mismatch' })
        return this.#answer(new KeyReused())
      case 'uncertain':
        report(outcome)
        return this.#answer(new Uncertain())
      case 'refused':
        report({ kind: 'too_many_keys' })
        return this.#answer(new TooManyKeys(), retryAfterS)
    }
  }

  #runUnprotected(): unknown {
    const { handler } = this.#route
    this.#isBypassed = true
    // One that returns nothing answers later: its reply is what ends then.
    return handler.call(this.#request.server, this.#request, this.#reply) ?? this.#reply
  }

  #unavailable(error: unknown): FastifyReply {
    this.#report({ kind: 'store_unavailable', bypassed: false, failure: failureOf(error) })
    return this.#answer(new StoreUnavailable('this request was processed before'), STORE_RETRY_S)
  }

  async #runAtomic(claim: AtomicClaim): Promise<unknown> {
    if (this.#isOver) {
      await claim.undo(OVER, new StepTooLate())
      return this.#reply
    }
    this.#atomic = new AtomicRecording(claim, this.#reply, this.#terms())
    return this.#atomic.run(this.#route.handler)
  }

  /** Whether the client has left or has its answer, which later hooks may still work on: nothing runs. */
  get #isOver(): boolean {
    const { raw, sent } = this.#reply
    return isClosed(raw) || sent || this.#hasTimedOut
  }

  #terms(): RecordingTerms {
    const { protection, settings } = this.#route
    const { storeTimeoutMs, docs } = protection.settings
    const { beforeSend } = this
    return { beforeSend, settings, storeTimeoutMs, docs, report: this.#report }
  }

  async #run(claim: Claim): Promise<unknown> {
    const reply = this.#reply
    const { protection, handler } = this.#route
    const { storeTimeoutMs } = protection.settings
    if (this.#isOver) {
      await claim.release(OVER, storeTimeoutMs)
      return reply
    }
    this.#recording = new Recording(claim, reply, this.#terms())
    return this.#recording.run(handler)
  }

  /** What the handler did is undone, or to be done by a retry, whatever is answered for it. */
  get hasFailed(): boolean {
    return this.#recording?.isRefused === true || this.#atomic?.claim.isUndone === true
  }

  /** Where its answer is a stream that is recorded: whether it was, once that is known. */
  get isStreamRecorded(): Promise<boolean> | undefined {
    return this.#recording?.isStreamRecorded
  }

  /** Calls back with how a response past the hooks ends; `false` where nothing records it. */
  onPastHooks(then: (isSuccess: boolean) => void): boolean {
    this.#recording?.onPastHooks(then)
    return this.#recording !== undefined
  }

  /** The `onSend` hook: hands on what goes out. */
  onSend(payload: unknown, done: SendOn): void {
    this.#isAnswered = true
    const answer = this.#recording ?? this.#atomic ?? this.#replay
    if (answer !== undefined) answer.onSend(payload, done)
    else done(null, payload)
  }

  onError(error: FastifyError): void {
    if (error.code === 'FST_ERR_HANDLER_TIMEOUT') this.#hasTimedOut = true
    const answer = this.#recording ?? this.#atomic ?? this.#replay
    answer?.onError(error)
  }

  #sendReplay(response: StoredResponse, waitedMs: number): FastifyReply {
    const { statusCode, body } = response
    if (body === null) {
      this.#report({ kind: 'not_replayable' })
      const what = 'The request with this Idempotency-Key was processed, but its response'
      return this.#answer(new NotReplayable(what))
    }
    this.#report({ kind: 'replayed', statusCode, waitedMs })
    const { headers } = this.#route.settings
    this.#replay = new Replay(this.#reply, response, body, { beforeSend: this.beforeSend, headers })
    this.#isAnswered = true
    return this.#replay.send()
  }

  #answer(error: FastifyError, retryAfterS?: number): FastifyReply {
    const { docs } = this.#route.protection.settings
    this.#isAnswered = true
    return this.#reply.send(problem(this.#reply, docs, error, retryAfterS))
  }
}

function closeSignal(reply: FastifyReply): AbortSignal {
  const closed = new AbortController()
  onClosed(reply.raw, () => closed.abort())
  return closed.signal
}
