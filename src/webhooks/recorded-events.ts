import { pipeline, type Readable, Transform } from 'node:stream'
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import {
  type Captured,
  captureResponse,
  discard,
  isStreamed,
  passableBytes,
} from '../http/capture.js'
import { ClosedResponse, isAllWritten, isClosed, onClosed } from '../http/closed-response.js'
import { exchangeOf } from '../http/hooks.js'
import { restoreHead } from '../http/reply-head.js'
import { refuseSends, type SendOn, sendOnSafely } from '../http/sends.js'
import { isOwnError } from '../http/thrown-problem.js'

/** Stores how the request ended for one of its events. */
export type Ending = (isProcessed: boolean) => Promise<unknown>

/**
 * The events that one request has recorded. Its answer says how they ended, as it leaves behind all
 * hooks, and waits until that is stored, or could not be within `storeTimeout`: what is acknowledged is
 * durable as processed. What goes out is not changed.
 *
 * - Text and bytes have succeeded if their status says so.
 * - A stream has succeeded once its source has ended. What Fastify answers in its place, if nothing of it
 *   has gone out, counts instead.
 * - What is written past the hooks (`hijack`, `reply.raw`) has succeeded once the client got all of it.
 */
export class RecordedEvents {
  readonly #request: FastifyRequest
  readonly #reply: FastifyReply
  /** Whether the request's own record says how what is written past the hooks ended. */
  readonly #isRecorded: boolean
  #endings: Ending[] = []
  #isDecided = false
  /** The answer waits until it is stored how the events ended. */
  #isEnding = false
  #isRefused = false
  /** The stream that is the answer. */
  #outgoing: Transform | undefined
  /** It has failed before its first byte, and Fastify has not begun to answer that. */
  #isUnanswered = false

  constructor(request: FastifyRequest, reply: FastifyReply) {
    this.#request = request
    this.#reply = reply
    this.#isRecorded = exchangeOf(request)?.onPastHooks((ok) => void this.#end(ok)) === true
    onClosed(reply.raw, () => this.#onClose())
  }

  /** Adds one; `false` when how the request ended was said before. */
  add(ending: Ending): boolean {
    if (!this.#isDecided) this.#endings.push(ending)
    return !this.#isDecided
  }

  /** The `onError` hook. A handler that ends with an error of the library's own was not let go on. */
  onError(error: FastifyError): void {
    this.#isUnanswered = false
    if (isOwnError(error)) this.#isRefused = true
  }

  /** The last `onSend` hook: calls back with what goes out. */
  onSend(payload: unknown, done: SendOn): void {
    const reply = this.#reply
    if (this.#isEnding) {
      // A second answer to a reply whose first one is on its way.
      this.#ignore(payload)
      return
    }
    if (this.#isDecided || reply.raw.headersSent) {
      done(null, payload)
      return
    }
    // It takes the place of a stream that has not begun, and must not begin while this waits.
    this.#outgoing?.unpipe()
    let captured: Captured
    try {
      captured = captureResponse(reply, payload, [])
    } catch (error) {
      // Fastify or Node refuse it as well, and what is answered then comes here. A stream is closed.
      if (isStreamed(payload)) done(error as Error)
      else done(null, payload)
      return
    }
    const { sent: head } = captured
    const isSuccess = head.statusCode < 400 && !this.#hasFailed
    if (isSuccess && captured.kind === 'stream' && isClosed(reply.raw)) {
      void this.#end(exchangeOf(this.#request)?.isStreamRecorded ?? false)
      done(null, captured.payload)
      return
    }
    if (isSuccess && captured.kind === 'stream') {
      this.#outgoing = this.#watch(captured.payload)
      done(null, this.#outgoing)
      return
    }
    this.#isEnding = true
    refuseSends(reply, (sent) => this.#isEnding && this.#ignore(sent))
    void this.#end(isSuccess).then(() => {
      this.#isEnding = false
      restoreHead(reply, head)
      sendOnSafely(reply, done, captured.payload)
    })
  }

  #ignore(payload: unknown): true {
    discard(payload)
    // What Fastify sends for a handler that has sent its response and returned nothing.
    if (payload !== undefined) {
      this.#reply.log.warn('Reply was already sent, did you forget to "return reply"?')
    }
    return true
  }

  get #hasFailed(): boolean {
    return this.#isRefused || exchangeOf(this.#request)?.hasFailed === true
  }

  /** Passes a stream on, and its end once the events have ended. */
  #watch(source: Readable): Transform {
    // Where the client counts the bytes, the last of them are the end.
    const isCounted = passableBytes(this.#reply) !== Number.POSITIVE_INFINITY
    let latest: unknown
    const outgoing = new Transform({
      writableObjectMode: true,
      transform: (chunk, _encoding, done) => {
        if (typeof chunk !== 'string' && !(chunk instanceof Uint8Array)) {
          done(
            new TypeError('a stream that was sent gave something that is neither text nor bytes'),
          )
        } else if (isCounted) {
          const earlier = latest
          latest = chunk
          done(null, earlier)
        } else done(null, chunk)
      },
      flush: (done) => {
        this.#end(true).then(() => done(null, latest))
      },
      destroy: (error, done) => {
        if (outgoing === this.#outgoing) this.#onStreamClosed(source.errored !== null)
        // As Fastify ends a stream whose client has left: without an error.
        source.destroy()
        done(error)
      },
    })
    pipeline(source, outgoing, () => {})
    return outgoing
  }

  /** A stream is closed, perhaps before its end. */
  #onStreamClosed(hasFailed: boolean): void {
    const { raw } = this.#reply
    if (!raw.headersSent && !raw.destroyed) {
      // Fastify answers that, and the answer comes here.
      this.#outgoing = undefined
      this.#isUnanswered = true
      return
    }
    // A protected route reads its stream to the end, whatever became of the client.
    const isRecorded = exchangeOf(this.#request)?.isStreamRecorded
    void this.#end(hasFailed ? false : (isRecorded ?? false))
  }

  /** A handler whose client left goes on, and its answer comes here all the same. */
  #onClose(): void {
    const { raw, sent } = this.#reply
    if (isAllWritten(raw)) void this.#end(raw.statusCode < 400)
    // A stream is closed by Fastify, and tells then.
    else if (this.#outgoing !== undefined) return
    else if (sent && this.#isRecorded) return
    else if (sent || raw.headersSent || this.#isUnanswered) void this.#end(false)
    else this.#watchClosed()
  }

  /** A handler whose client has left answers through the hooks, or takes the reply out of Fastify's hands. */
  #watchClosed(): void {
    const closed = new ClosedResponse(
      this.#reply.raw,
      () => void this.#end(closed.statusCode < 400),
    )
  }

  /** Each event ends once. What cannot be stored was reported, and is what a crash would leave. */
  async #end(isProcessed: boolean | Promise<boolean>): Promise<void> {
    this.#isDecided = true
    const endings = this.#endings
    this.#endings = []
    const isSuccess = await isProcessed
    await Promise.allSettled(endings.map((ending) => ending(isSuccess)))
  }
}
