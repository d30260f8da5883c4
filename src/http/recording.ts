import { Readable } from 'node:stream'
import type { FastifyReply, RouteHandlerMethod } from 'fastify'
import type { Claim } from '../claims/claim.js'
import { LeaseLost } from '../errors.js'
import type { OmittedReason, Report } from '../events.js'
import type { RouteSettings } from '../options.js'
import { type Captured, captureHead, capturePayload, type Head, tee } from './capture.js'
import { BUSY_RETRY_S, problem } from './problem.js'

/** Hands a payload on to the next hook. */
export type SendOn = (error: Error | null, payload?: unknown) => void

export interface RecordingTerms {
  readonly settings: RouteSettings
  readonly storeTimeoutMs: number
  readonly docs: string
  readonly report: Report
}

/** A handler that runs under a claim, and its response on the way out and into the store. */
export class Recording {
  readonly claim: Claim
  readonly #reply: FastifyReply
  readonly #terms: RecordingTerms
  /** Whether a response is on its way through the hooks. */
  #isSending = false
  #sends = 0
  #hasTimedOut = false
  #hasClosed = false
  #outgoing: Readable | undefined
  #handled: Promise<unknown> = Promise.resolve()

  constructor(claim: Claim, reply: FastifyReply, terms: RecordingTerms) {
    this.claim = claim
    this.#reply = reply
    this.#terms = terms
  }

  /** Fastify has answered for a handler that still runs. */
  onTimeout(): void {
    this.#hasTimedOut = true
  }

  /** Runs the handler as Fastify would, and knows when it has ended. */
  async run(handler: RouteHandlerMethod): Promise<unknown> {
    const reply = this.#reply
    const { request } = reply
    reply.raw.once('close', () => {
      this.#hasClosed = true
      this.#onClose()
    })
    // A handler that returns nothing answers later. One whose promise has ended may have answered,
    // and `send` is not over when it returns: the response is being stored. Were Fastify told that
    // the handler has ended, it would send what it returned, or nothing, in between.
    let result: unknown
    try {
      result = handler.call(request.server, request, reply)
      if (result === undefined) {
        // It calls back, and nobody can tell when it is done without an answer; maxRun ends it.
        this.#handled = new Promise(() => {})
        return reply
      }
      const handled = Promise.resolve(result)
      handled.catch(() => {})
      this.#handled = handled
      const value = await result
      if (this.#hasClosed) {
        // A reply that was taken out of Fastify's hands after its connection had closed.
        this.#onClose()
        // Fastify sends nothing to nobody; but nothing is this handler's answer, and to be stored.
        if (value === undefined && !this.#isSending && !reply.sent) reply.send()
      }
      return this.#isSending ? reply : value
    } catch (error) {
      if (!this.#isSending) throw error
      request.log.error({ err: error }, 'The handler failed after it had sent its response')
      return reply
    }
  }

  /**
   * The `onSend` hook. Calls back with what goes out, unless something else was sent while it was
   * being stored, as Fastify does when `handlerTimeout` ends just then: two answers are one too many.
   */
  onSend(payload: unknown, done: SendOn): void {
    this.#sends += 1
    const turn = this.#sends
    const reply = this.#reply
    this.#store(payload).then(
      (sent) => {
        if (turn !== this.#sends) return
        try {
          done(null, sent)
        } catch (error) {
          // What hooks after this one added cannot be sent. Nobody else would catch it here.
          if (reply.raw.headersSent) reply.raw.destroy()
          else reply.send(error)
        }
      },
      (error) => {
        if (turn === this.#sends) done(error)
      },
    )
  }

  /** What goes out is what is stored, or the other way round. */
  async #store(payload: unknown): Promise<unknown> {
    const { claim } = this
    const reply = this.#reply
    const { settings, storeTimeoutMs } = this.#terms
    if (this.#isSending) {
      // A later hook threw the response away, and this is the error in its place. A stream that
      // nobody sends is read to its end all the same: it is what a retry gets.
      this.#outgoing?.destroy()
      return payload
    }
    this.#isSending = true
    let captured: Captured
    let head: Head
    let isAnswer: boolean
    try {
      captured = capturePayload(reply, payload)
      head = captureHead(reply, settings.headers)
      isAnswer = settings.keepStatus(head.statusCode)
    } catch (error) {
      if (payload instanceof Readable) payload.on('error', () => {}).destroy()
      // It cannot be sent, so it is an error like one that the handler throws.
      await claim.release('its response could not be sent', storeTimeoutMs)
      throw error
    }
    if (!isAnswer) {
      const release = () => claim.release(`status ${head.statusCode}`, storeTimeoutMs)
      if (this.#hasTimedOut) {
        // Fastify's timeout answers while the handler goes on: nobody else may run until it is
        // done, and if it succeeds after all, nobody needs to.
        void this.#handled.then(() => this.#afterTimeout(head), release).catch(() => {})
      } else await release()
      return captured.kind === 'bytes' ? captured.payload : captured.source
    }
    if (captured.kind === 'bytes') {
      const isStored = await this.#complete(head, captured.body)
      return isStored ? captured.payload : this.#takeBack()
    }
    const { source } = captured
    claim.signal.addEventListener('abort', () => source.destroy(claim.signal.reason))
    this.#outgoing = tee(
      source,
      settings.maxBodyBytes,
      async ({ body }) => {
        if (!(await this.#complete(head, body))) throw claim.signal.reason
      },
      () => claim.release('the stream of its response failed', storeTimeoutMs),
    )
    return this.#outgoing
  }

  /** The handler has ended well, but Fastify had answered for it. What would it have said? */
  async #afterTimeout(head: Head): Promise<void> {
    const { settings, storeTimeoutMs } = this.#terms
    const { statusCode } = this.#reply
    const isFailure = statusCode !== head.statusCode && !settings.keepStatus(statusCode)
    if (isFailure) await this.claim.release(`status ${statusCode}`, storeTimeoutMs)
    else await this.#complete(head, null, 'timed out')
  }

  /** Stores the response; `false` when it must not go out, because another attempt took over. */
  async #complete(
    head: Head,
    body: Uint8Array | null,
    whyOmitted: OmittedReason = 'too large',
  ): Promise<boolean> {
    const { settings, storeTimeoutMs, report } = this.#terms
    const isKept = body !== null && body.byteLength <= settings.maxBodyBytes
    if (!isKept) {
      report({ kind: 'response_omitted', attempt: this.claim.fence, reason: whyOmitted })
    }
    const response = { ...head, body: isKept ? body : null }
    return (await this.claim.complete(response, storeTimeoutMs)) !== 'lost'
  }

  /** Replaces a response that is not the operation's answer. */
  #takeBack(): Buffer {
    const reply = this.#reply
    for (const name of [
      'set-cookie',
      'content-encoding',
      'etag',
      ...this.#terms.settings.headers,
    ]) {
      reply.removeHeader(name)
    }
    return problem(reply, this.#terms.docs, new LeaseLost(), BUSY_RETRY_S)
  }

  /**
   * The connection is closed. A response that went through the hooks has been dealt with, and a
   * handler whose client left goes on and will answer. What remains was written past Fastify
   * (`hijack`, `reply.raw`): the plugin cannot know its bytes, only whether they were all written.
   */
  #onClose(): void {
    this.#recordPastHooks().catch((error) => {
      this.#reply.log.error({ err: error }, 'How a response past the hooks ended is not recorded')
      this.claim.abandon('how its response ended cannot be recorded')
    })
  }

  async #recordPastHooks(): Promise<void> {
    const { claim } = this
    const reply = this.#reply
    const { settings, storeTimeoutMs } = this.#terms
    if (claim.isSettled || this.#isSending || !reply.sent) return
    if (!reply.raw.writableFinished) {
      return claim.abandon('the connection closed while the response was written past the hooks')
    }
    const { statusCode } = reply.raw
    if (!settings.keepStatus(statusCode)) {
      return claim.release(`status ${statusCode}`, storeTimeoutMs)
    }
    await this.#complete({ statusCode, headers: {} }, null, 'written past the hooks')
  }
}
