import type { Readable } from 'node:stream'
import type { FastifyError, FastifyReply, RouteHandlerMethod } from 'fastify'
import type { Claim } from '../claims/claim.js'
import type { StoredResponse } from '../core/record.js'
import { isThrown, readThrown } from '../core/thrown.js'
import { LeaseLost, StepNotAwaited } from '../errors.js'
import type { OmittedReason, Report } from '../events.js'
import type { RouteSettings } from '../options.js'
import { watchThen } from './awaited-reply.js'
import type { BeforeSend } from './before-send.js'
import {
  announcedBytes,
  type Captured,
  captureResponse,
  discard,
  type Head,
  passableBytes,
} from './capture.js'
import { breakOff, ClosedResponse, isClosed, onClosed } from './closed-response.js'
import { isKept } from './kept-status.js'
import { BUSY_RETRY_S, problemInstead } from './problem.js'
import { LengthMismatch, recordStream } from './recorded-stream.js'
import { type Outgoing, type SendOn, Sends } from './sends.js'
import { responseToStore, type ToStore } from './stored-response.js'
import { isOwnError } from './thrown-problem.js'

export interface RecordingTerms {
  readonly beforeSend: BeforeSend
  readonly settings: RouteSettings
  readonly storeTimeoutMs: number
  readonly docs: string
  readonly report: Report
}

const UNSENDABLE = 'its response could not be sent'

/** How a handler ended that threw nothing. */
interface Handled {
  readonly value: unknown
  /** It calls `send` later, or has. */
  readonly isAnsweredLater: boolean
}

interface LateAnswer {
  readonly statusCode: number
  /** It is an error of the library's own. */
  readonly isRefused: boolean
}

/** A handler that runs under a claim, and its response on the way out and into the store. */
export class Recording {
  readonly claim: Claim
  readonly #reply: FastifyReply
  readonly #terms: RecordingTerms
  readonly #sends: Sends
  /** Whether a response is on its way through the hooks. */
  #isSending = false
  #hasTimedOut = false
  /** The last response that came to be sent could not be. */
  #isUnsendable = false
  /** The response, if its connection was closed before it was known how the attempt ends. */
  #closed: ClosedResponse | undefined
  #onPastHooks: ((isSuccess: boolean) => void) | undefined
  /** The handler has returned a promise that has not ended yet. */
  #isPending = false
  #isRefused = false
  #outgoing: Readable | undefined
  #isStreamRecorded: Promise<boolean> | undefined
  /** Why the stream that was the response has failed. */
  #streamFailure: string | undefined
  /** What the handler had begun and not awaited when it answered, until that is over. */
  #unfinished: Promise<void> | undefined
  #handled: Promise<Handled> = Promise.resolve({ value: undefined, isAnsweredLater: false })
  /** After Fastify's timeout has answered: what the handler sends all the same, once it does. */
  #lateAnswer: Promise<LateAnswer> | undefined

  constructor(claim: Claim, reply: FastifyReply, terms: RecordingTerms) {
    this.claim = claim
    this.#reply = reply
    this.#terms = terms
    this.#sends = new Sends(reply, {
      beforeSend: terms.beforeSend,
      recordedHeaders: terms.settings.headers,
      record: (payload) => this.#store(payload),
      // A stream that is not sent is read to its end all the same: it is what a retry gets.
      onReplaced: () => this.#outgoing?.destroy(),
    })
  }

  /** The handler ended with an error of the library's own: whatever is answered, it has no result. */
  get isRefused(): boolean {
    return this.#isRefused
  }

  /** Once it is known: whether the stream that it answered with is its recorded response. */
  get isStreamRecorded(): Promise<boolean> | undefined {
    return this.#isStreamRecorded
  }

  /** Calls back with whether a response past the hooks is one of success, if one ends so. */
  onPastHooks(then: (isSuccess: boolean) => void): void {
    this.#onPastHooks = then
  }

  /** The `onError` hook. Fastify's `handlerTimeout` answers for a handler that still runs. */
  onError(error: FastifyError): void {
    this.#sends.onError(error)
    if (isOwnError(error)) this.#isRefused = true
    if (error.code !== 'FST_ERR_HANDLER_TIMEOUT') return
    this.#hasTimedOut = true
    this.#lateAnswer = this.#watchLateAnswer()
  }

  /** Fastify ignores what is sent after its timeout has answered, before any hook. */
  #watchLateAnswer(): Promise<LateAnswer> {
    const reply = this.#reply
    const { send } = reply
    return new Promise((resolve) => {
      reply.send = (payload?: unknown) => {
        if (this.#terms.beforeSend.isCurrent) resolve(lateAnswerOf(reply, payload))
        return send.call(reply, payload)
      }
    })
  }

  /** Runs the handler as Fastify would, and knows when it has ended. */
  async run(handler: RouteHandlerMethod): Promise<unknown> {
    const reply = this.#reply
    const { request } = reply
    onClosed(reply.raw, () => {
      if (!this.claim.isSettled) this.#closed = new ClosedResponse(reply.raw, () => this.#onEnd())
      // The client has left, or got what a later hook sent in place of the stream.
      this.#outgoing?.destroy()
      this.#onClose()
    })
    // A handler that returns nothing answers later. One whose promise has ended may have answered,
    // and `send` is not over when it returns: the response is being stored. Were Fastify told that
    // the handler has ended, it would send what it returned, or nothing, in between.
    let result: unknown
    try {
      const isAnsweredLater = watchThen(reply)
      result = handler.call(request.server, request, reply)
      if (result === undefined) {
        // It calls back, and nobody can tell when it is done without an answer; maxRun ends it.
        this.#handled = Promise.resolve({ value: undefined, isAnsweredLater: true })
        return reply
      }
      // Adopted once: each call of `then` runs the query of a query builder.
      const handled = Promise.resolve(result)
      this.#handled = handled.then((value) => ({ value, isAnsweredLater: isAnsweredLater() }))
      this.#handled.catch(() => {})
      this.#isPending = true
      const value = await handled.finally(() => {
        this.#isPending = false
      })
      if (this.#closed !== undefined) {
        // A reply that was taken out of Fastify's hands, before or after its connection had closed.
        this.#onClose('ended')
        // Fastify sends nothing to nobody; but nothing is this handler's answer, and to be stored.
        const isAnswer = value === undefined && !isAnsweredLater()
        if (isAnswer && !this.#isSending && !reply.sent) reply.send()
      }
      return this.#isSending ? reply : value
    } catch (error) {
      if (this.#closed !== undefined) this.#onClose('failed')
      if (!this.#isSending) throw error
      request.log.error({ err: error }, 'The handler failed after it had sent its response')
      return reply
    }
  }

  /** The `onSend` hook: calls back with what goes out. */
  onSend(payload: unknown, done: SendOn): void {
    this.#sends.onSend(payload, done)
  }

  /** What goes out is what is stored, or the other way round. */
  async #store(payload: unknown): Promise<Outgoing> {
    const { claim } = this
    const reply = this.#reply
    const { settings, docs } = this.#terms
    this.#isSending = true
    // Fastify's timeout answers while the handler goes on, and so do its steps.
    const steps = this.#hasTimedOut ? undefined : claim.closeSteps()
    this.#unfinished = steps?.over
    let captured: Captured | undefined
    let isAnswer: boolean
    try {
      captured = captureResponse(reply, payload, settings.headers)
      isAnswer = this.#isKept(captured.kept.statusCode)
      // What it answered is not the result of what it has done: a mistake, to be seen at once.
      if (isAnswer && steps?.isAwaited === false) throw new StepNotAwaited()
    } catch (error) {
      discard(captured?.payload)
      // It cannot be sent, so it is an error like one that the handler throws: what is answered to that
      // is recorded, if it can be sent.
      this.#isUnsendable = true
      throw error
    }
    const unsendable = this.#isUnsendable ? UNSENDABLE : undefined
    this.#isUnsendable = false
    const { kept, sent: head } = captured
    if (!isAnswer) {
      const why = this.#streamFailure ?? unsendable ?? `status ${kept.statusCode}`
      const release = () => this.#release(why)
      if (this.#hasTimedOut) {
        // Fastify's timeout answers while the handler goes on: nobody else may run until it is
        // done, and if it succeeds after all, nobody needs to.
        void this.#handled.then((how) => this.#afterTimeout(kept, how), release).catch(() => {})
      } else await release()
      return { payload: captured.payload, head }
    }
    // The client has bytes already that are not in this payload.
    const isPartial = reply.raw.headersSent
    if (captured.kind === 'stream' && settings.isStored && !isPartial) {
      this.#outgoing = this.#recordStream(captured.payload, captured)
      return { payload: this.#outgoing, head }
    }
    const isRecorded = isPartial
      ? await this.#completeWithout(kept.statusCode, 'written past the hooks')
      : await this.#complete(kept, captured.kind === 'bytes' ? captured.body : null)
    if (isRecorded) {
      return { payload: captured.payload, head }
    }
    discard(captured.payload)
    return { payload: problemInstead(reply, settings.headers, docs, new LeaseLost(), BUSY_RETRY_S) }
  }

  #isKept(statusCode: number): boolean {
    const { settings, report } = this.#terms
    if (this.#isRefused) return false
    return isKept(settings, statusCode, this.claim.attempt, report)
  }

  #recordStream(source: Readable, { kept, sent }: Captured): Readable {
    const { claim } = this
    claim.signal.addEventListener('abort', () => source.destroy(claim.signal.reason))
    let tell: (isRecorded: boolean) => void = () => {}
    this.#isStreamRecorded = new Promise((resolve) => {
      tell = resolve
    })
    return recordStream(source, {
      limit: this.#terms.settings.maxBodyBytes,
      announced: announcedBytes(sent),
      passableBytes: () => passableBytes(this.#reply),
      record: async (body) => {
        if (!(await this.#complete(kept, body))) throw claim.signal.reason
        tell(true)
      },
      onError: async (error) => {
        tell(false)
        const isMismatch = error instanceof LengthMismatch
        const why = isMismatch ? error.message : 'the stream of its response failed'
        this.#streamFailure = why
        if (isOwnError(error)) this.#isRefused = true
        // While it is on its way and nothing of it has gone out, this is like a handler that throws.
        const { raw } = this.#reply
        breakOff(raw)
        const isSent = this.#outgoing?.destroyed === false && !isClosed(raw)
        const isAnswered = isSent && this.#sends.fail()
        if (!isAnswered) await this.#release(why)
      },
    })
  }

  /** The handler has ended well, but Fastify had answered for it. What would it have said? */
  async #afterTimeout(head: Head, { value, isAnsweredLater }: Handled): Promise<void> {
    const sent = isAnsweredLater
      ? await this.#lateAnswer
      : await Promise.race([this.#lateAnswer, undefined])
    const { statusCode } = sent ?? this.#reply
    await this.claim.closeSteps().over
    // An error that is returned is one that is thrown, to Fastify.
    const isError = isThrown(value, Error) || sent?.isRefused === true
    // Of a value that it returns, the status is that of the timeout's answer, unless it set another.
    const isItsOwn = sent !== undefined || statusCode !== head.statusCode
    const isFailure = isError || (isItsOwn && !this.#isKept(statusCode))
    if (isFailure) await this.#release(`status ${statusCode}`)
    else await this.#completeWithout(head.statusCode, 'timed out')
  }

  /** Stores the response; `false` when it must not go out, because another attempt took over. */
  async #complete(head: Head, body: Uint8Array | null): Promise<boolean> {
    const { settings } = this.#terms
    const { response, omitted } = responseToStore(this.#reply.request, settings, head, body)
    return this.#completeWith(response, omitted)
  }

  /** The same where the response is not known. */
  #completeWithout(statusCode: number, reason: OmittedReason): Promise<boolean> {
    return this.#completeWith({ statusCode, headers: {}, body: null }, { reason })
  }

  async #completeWith(response: StoredResponse, omitted: ToStore['omitted']): Promise<boolean> {
    const { storeTimeoutMs, report } = this.#terms
    const attempt = this.claim.attempt
    if (omitted !== undefined) report({ kind: 'response_omitted', attempt, ...omitted })
    return (await this.claim.complete(response, storeTimeoutMs)) !== 'lost'
  }

  /**
   * Frees the key for a retry. What is still under way keeps it until it is over, so that nobody does it
   * beside it; the client's answer does not wait for that.
   */
  async #release(why: string): Promise<void> {
    const { claim } = this
    // It has not failed by itself: the library did not let it go on, because of that very lease.
    if (this.#isRefused && claim.onLeaseExpired === 'uncertain' && claim.loseIfRunOut()) {
      return claim.abandon('its lease had run out before it had ended')
    }
    const release = () => claim.release(why, this.#terms.storeTimeoutMs)
    if (this.#unfinished === undefined) await release()
    else void this.#unfinished.then(release)
  }

  /**
   * The connection is closed. A response that went through the hooks has been dealt with, and a
   * handler whose client left goes on and will answer. What remains was written past Fastify
   * (`hijack`, `reply.raw`): the plugin cannot know its bytes, only whether the handler has ended.
   * `handler`: how its promise ended since the connection is closed.
   */
  #onClose(handler?: 'ended' | 'failed'): void {
    this.#recordPastHooks(handler).catch((error) => {
      this.#reply.log.error({ err: error }, 'How a response past the hooks ended is not recorded')
      this.claim.abandon('how its response ended cannot be recorded')
    })
  }

  /** A handler that calls back has ended the response of a client that has left. */
  #onEnd(): void {
    if (!this.#isPending) this.#onClose('ended')
  }

  async #recordPastHooks(handler: 'ended' | 'failed' | undefined): Promise<void> {
    const { claim } = this
    const reply = this.#reply
    if (claim.isSettled) return
    const why = this.#streamFailure
    if (why !== undefined && this.#sends.isUnanswered) return this.#release(why)
    if (this.#isUnsendable) return this.#release(UNSENDABLE)
    const closed = this.#closed
    if (this.#isSending || closed === undefined || !(reply.sent || closed.isEnded)) return
    // The client has left, and the handler goes on: it comes here once it has ended.
    if (!closed.isEnded && this.#isPending) return
    if (!closed.isEnded && handler !== 'failed') {
      this.#onPastHooks?.(false)
      return claim.abandon('the connection closed while the response was written past the hooks')
    }
    await claim.closeSteps().over
    if (claim.isSettled) return
    const { isEnded, statusCode } = closed
    const isAnswer = isEnded && this.#isKept(statusCode)
    this.#onPastHooks?.(isAnswer && statusCode < 400)
    if (isAnswer) await this.#completeWithout(statusCode, 'written past the hooks')
    else await this.#release(isEnded ? `status ${statusCode}` : 'it failed')
  }
}

function lateAnswerOf({ statusCode }: FastifyReply, payload: unknown): LateAnswer {
  if (!isThrown(payload, Error)) return { statusCode, isRefused: false }
  const own = readThrown(payload, 'statusCode')
  return { statusCode: typeof own === 'number' ? own : 500, isRefused: isOwnError(payload) }
}
