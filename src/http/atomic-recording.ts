import type { FastifyError, FastifyReply, RouteHandlerMethod } from 'fastify'
import type { AtomicClaim } from '../atomic/atomic-claim.js'
import type { Commit } from '../atomic/transaction.js'
import type { StoredResponse } from '../core/record.js'
import {
  AtomicAborted,
  AtomicStream,
  AtomicTimedOut,
  LeaseLost,
  NotConfirmed,
  StepNotAwaited,
  StepTooLate,
  TransactionEnded,
} from '../errors.js'
import { isInFailedTransaction } from '../store/atomic.js'
import { watchThen } from './awaited-reply.js'
import { captureResponse, discard } from './capture.js'
import { onClosed } from './closed-response.js'
import { isKept } from './kept-status.js'
import { BUSY_RETRY_S, problemInstead } from './problem.js'
import type { RecordingTerms } from './recording.js'
import { saveHead } from './reply-head.js'
import { type Outgoing, type SendOn, Sends } from './sends.js'
import { responseToStore } from './stored-response.js'

/** A response that may be given out, and what is stored of it: nothing where its status is not kept. */
interface Answer {
  readonly outgoing: Outgoing
  readonly statusCode: number
  readonly response: StoredResponse | undefined
}

/**
 * A handler that runs in a transaction, and its response, which is committed with all that the handler
 * wrote before any of it is sent. Everything else that may come of a request undoes all of it.
 */
export class AtomicRecording {
  readonly claim: AtomicClaim
  readonly #reply: FastifyReply
  readonly #terms: RecordingTerms
  readonly #sends: Sends
  /** Whether a response is on its way through the hooks. */
  #isSending = false
  #hasTimedOut = false
  #hasClosed = false
  /** What the handler threw, or sent as an error, is on its way: nothing is kept. */
  #failure: { why: string; refusal: Error } | undefined

  constructor(claim: AtomicClaim, reply: FastifyReply, terms: RecordingTerms) {
    this.claim = claim
    this.#reply = reply
    this.#terms = terms
    this.#sends = new Sends(reply, {
      beforeSend: terms.beforeSend,
      recordedHeaders: terms.settings.headers,
      record: (payload) => this.#end(payload),
    })
  }

  /** Runs the handler as Fastify would. What it throws is thrown on, once all of it is undone. */
  async run(handler: RouteHandlerMethod): Promise<unknown> {
    const { claim } = this
    const reply = this.#reply
    const { request } = reply
    claim.signal.addEventListener('abort', () => this.#onTimeout())
    if (claim.signal.aborted) {
      this.#onTimeout()
      return reply
    }
    const onClose = () => {
      this.#hasClosed = true
      if (reply.sent) void this.#undoPastHooks()
    }
    onClosed(reply.raw, onClose)
    try {
      const isAnsweredLater = watchThen(reply)
      const result: unknown = handler.call(request.server, request, reply)
      // It calls back, and its timeout ends it if it does not.
      if (result === undefined) return reply
      const value = await result
      if (reply.sent) await this.#undoPastHooks()
      // Fastify sends nothing to nobody; but nothing is this handler's answer, and to be stored.
      else if (this.#hasClosed && value === undefined && !isAnsweredLater()) reply.send()
      return this.#isSending ? reply : value
    } catch (error) {
      if (!this.#isSending) {
        // It may be run again, with this reply.
        reply.raw.off('close', onClose)
        await claim.undo('its handler failed', new StepTooLate())
        throw error
      }
      request.log.error({ err: error }, 'The handler failed after its response was on its way')
      return reply
    }
  }

  /** The `onSend` hook: calls back with what goes out, which is what is stored. */
  onSend(payload: unknown, done: SendOn): void {
    this.#sends.onSend(payload, done)
  }

  /** The `onError` hook. Fastify's `handlerTimeout` comes here, too, while the handler still runs. */
  onError(error: FastifyError): void {
    this.#sends.onError(error)
    this.#failure ??=
      error.code === 'FST_ERR_HANDLER_TIMEOUT'
        ? { why: "Fastify's handlerTimeout answered", refusal: new AtomicTimedOut() }
        : { why: 'its handler failed', refusal: new StepTooLate() }
  }

  async #end(payload: unknown): Promise<Outgoing> {
    const { claim } = this
    this.#isSending = true
    // What the handler does to it later, or sends later, does not count.
    const head = saveHead(this.#reply)
    if (this.#hasTimedOut) {
      // Of the handler's own response and the one to its timeout, either may come first.
      discard(payload)
      return { payload: this.#timedOut() }
    }
    // It is undone already: by an error of the handler, whose response this is.
    if (claim.isEnding) return { payload, head }
    if (this.#reply.raw.headersSent) {
      await this.#undoPastHooks()
      return { payload }
    }
    if (this.#failure !== undefined) {
      await claim.undo(this.#failure.why, this.#failure.refusal)
      return { payload, head }
    }
    let answer: Answer
    try {
      answer = this.#answerOf(payload)
    } catch (error) {
      // It cannot be sent, so it is an error like one that the handler throws.
      await claim.undo('its response could not be sent', new StepTooLate())
      throw error
    }
    const { outgoing, response, statusCode } = answer
    if (response === undefined) {
      await claim.undo(`status ${statusCode}`, new StepTooLate())
      return outgoing
    }
    const commit = await claim.complete(response)
    return commit.kind === 'committed' ? outgoing : { payload: this.#takeBack(commit) }
  }

  #answerOf(payload: unknown): Answer {
    const { settings, report } = this.#terms
    const captured = captureResponse(this.#reply, payload, settings.headers)
    const { attempt } = this.claim
    const { kept, sent: head } = captured
    const outgoing = { payload: captured.payload, head }
    try {
      const { statusCode } = kept
      if (!isKept(settings, statusCode, attempt, report)) {
        return { outgoing, statusCode, response: undefined }
      }
      if (captured.kind === 'stream') throw new AtomicStream()
      // What it answered is not the result of what it has done: a mistake, to be seen at once.
      if (!this.claim.isIdle) throw new StepNotAwaited()
      const { request } = this.#reply
      const { response, omitted } = responseToStore(request, settings, kept, captured.body)
      if (omitted !== undefined) report({ kind: 'response_omitted', attempt, ...omitted })
      return { outgoing, statusCode, response }
    } catch (error) {
      discard(captured.payload)
      throw error
    }
  }

  /** Nobody is told that it is done who may not rely on that. */
  #takeBack({ kind, error }: Exclude<Commit, { kind: 'committed' }>): Buffer {
    const { docs, settings } = this.#terms
    // Time that is over after COMMIT was sent says nothing of what became of it.
    const isKnown = error instanceof LeaseLost || error instanceof AtomicTimedOut
    const isUndone = kind === 'rolled back'
    const isAborted = isUndone && isInFailedTransaction(error)
    const mistake = isAborted ? new AtomicAborted() : error instanceof TransactionEnded && error
    // A retry of a mistake ends in the same way.
    if (mistake) return problemInstead(this.#reply, settings.headers, docs, mistake)
    const answer = isKnown && isUndone ? error : new NotConfirmed()
    return problemInstead(this.#reply, settings.headers, docs, answer, BUSY_RETRY_S)
  }

  /** Its time is over. The client hears of it now, whatever the handler still does. */
  #onTimeout(): void {
    const { claim } = this
    const reply = this.#reply
    // Its end is under way, and tells itself.
    if (claim.isEnding) return
    const error = new AtomicTimedOut()
    void claim.undo('it took longer than its timeout', error)
    this.#hasTimedOut = true
    if (reply.sent || this.#isSending) return
    this.#isSending = true
    reply.send(this.#timedOut())
  }

  #timedOut(): Buffer {
    const { docs, settings } = this.#terms
    return problemInstead(this.#reply, settings.headers, docs, new AtomicTimedOut(), BUSY_RETRY_S)
  }

  /** What was written with `hijack` or `reply.raw` cannot be taken back; what it was about can. */
  async #undoPastHooks(): Promise<void> {
    if (this.claim.isEnding) return
    this.#isSending = true
    this.#reply.log.error(
      'The handler of an atomic route wrote its response past the hooks: what it did was rolled back',
    )
    await this.claim.undo('its response was written past the hooks', new StepTooLate())
  }
}
