import { pipeline, type Readable, Transform } from 'node:stream'
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { isAllWritten } from '../http/all-written.js'
import { BeforeSend } from '../http/before-send.js'
import { type Captured, captureResponse, passableBytes } from '../http/capture.js'
import { exchangeOf } from '../http/hooks.js'
import { type Outgoing, type SendOn, Sends } from '../http/sends.js'
import { isOwnError } from '../http/thrown-problem.js'

/** Stores how the request ended for one of its events. */
export type Ending = (isProcessed: boolean) => Promise<unknown>

/**
 * The events that one request has recorded. Its answer says how they ended, and leaves once that is
 * stored, or could not be within `storeTimeout`: what is acknowledged is durable as processed. What goes
 * out is not changed.
 *
 * - Text and bytes have succeeded if their status says so.
 * - A stream has succeeded once its source has ended. The answer to its error counts in its place.
 * - What is written past the hooks (`hijack`, `reply.raw`) has succeeded once the client got all of it.
 */
export class RecordedEvents {
  readonly #request: FastifyRequest
  readonly #reply: FastifyReply
  readonly #sends: Sends
  #endings: Ending[] = []
  #isDecided = false
  #isRefused = false
  /** The stream that is the answer. */
  #outgoing: Transform | undefined

  constructor(request: FastifyRequest, reply: FastifyReply) {
    this.#request = request
    this.#reply = reply
    this.#sends = new Sends(reply, {
      beforeSend: exchangeOf(request)?.beforeSend ?? new BeforeSend(),
      recordedHeaders: [],
      record: (payload) => this.#answer(payload),
      onReplaced: () => this.#outgoing?.destroy(),
    })
    reply.raw.once('close', () => this.#onClose())
  }

  /** Adds one; `false` when how the request ended was said before. */
  add(ending: Ending): boolean {
    if (!this.#isDecided) this.#endings.push(ending)
    return !this.#isDecided
  }

  /** The `onSend` hook: calls back with what goes out. */
  onSend(payload: unknown, done: SendOn): void {
    this.#sends.onSend(payload, done)
  }

  /** The `onError` hook. A handler that ends with an error of the library's own was not let go on. */
  onError(error: FastifyError): void {
    this.#sends.onError(error)
    if (isOwnError(error)) this.#isRefused = true
  }

  async #answer(payload: unknown): Promise<Outgoing> {
    const reply = this.#reply
    let captured: Captured
    try {
      captured = captureResponse(reply, payload, [])
    } catch {
      // Fastify or Node refuse it as well, and answer that.
      await this.#end(false)
      return { payload }
    }
    const { sent: head } = captured
    const isSuccess = head.statusCode < 400 && !this.#hasFailed
    if (isSuccess && captured.kind === 'stream') {
      this.#outgoing = this.#watch(captured.payload)
      return { payload: this.#outgoing, head }
    }
    await this.#end(isSuccess)
    return { payload: captured.payload, head }
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
        this.#onStreamClosed(source.errored !== null)
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
    // While nothing of it has gone out, its error is answered, and that answer says how it went.
    const isAnswered = hasFailed && !this.#reply.raw.destroyed && this.#sends.fail()
    if (isAnswered) return
    // A protected route reads its stream to the end, whatever became of the client.
    const isRecorded = exchangeOf(this.#request)?.isStreamRecorded
    void this.#end(hasFailed ? false : (isRecorded ?? false))
  }

  /** A handler whose client left goes on, and its answer comes here all the same. */
  #onClose(): void {
    const { raw, sent } = this.#reply
    if (this.#sends.isUnanswered) void this.#end(false)
    else if (this.#outgoing !== undefined) this.#outgoing.destroy()
    else if (sent) void this.#end(isAllWritten(raw) && raw.statusCode < 400)
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
