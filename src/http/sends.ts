import type { FastifyError, FastifyReply } from 'fastify'
import { discard } from './capture.js'
import { restoreHead, type SavedHead, saveHead } from './reply-head.js'

/** Hands a payload on to the next hook. */
export type SendOn = (error: Error | null, payload?: unknown) => void

/** What goes out, and the head that it was recorded with: without one, the head that it finds. */
export interface Outgoing {
  readonly payload: unknown
  readonly head?: SavedHead
}

export interface SendsOptions {
  /** The headers that are part of a record. */
  readonly recordedHeaders: readonly string[]
  /** Records the response, and says what goes out. */
  readonly record: (payload: unknown) => Promise<Outgoing>
  /** Called when an error takes the place of what was recorded, or is being recorded. */
  readonly onReplaced?: () => void
}

/**
 * Which of several payloads that are sent for one request is its response.
 *
 * Without the plugin the first `reply.send` is over when it returns, and Fastify ignores a second one.
 * A response that is being recorded is not sent yet, so that is decided here: the first one counts,
 * with the head that it had. Only an error takes its place: that of `handlerTimeout` while it is being
 * recorded, and that of a later hook afterwards.
 */
export class Sends {
  readonly #reply: FastifyReply
  readonly #options: SendsOptions
  #state: 'none' | 'recording' | 'handed on' = 'none'
  /** The head with which it was handed on. */
  #head: SavedHead | undefined
  #hasErred = false
  #isTimeoutNext = false
  #count = 0

  constructor(reply: FastifyReply, options: SendsOptions) {
    this.#reply = reply
    this.#options = options
  }

  /** For the `onError` hook, which runs before the response of an error comes to `onSend`. */
  onError(error: FastifyError): void {
    // Fastify leaves the hook out for a second error of a request, so one is enough for all after it.
    this.#hasErred = true
    this.#isTimeoutNext = error.code === 'FST_ERR_HANDLER_TIMEOUT'
  }

  /** For the `onSend` hook: calls back with what goes out, if this payload does. */
  onSend(payload: unknown, done: SendOn): void {
    const isTimeout = this.#isTimeoutNext
    this.#isTimeoutNext = false
    if (this.#state === 'none') {
      this.#state = 'recording'
      this.#sendWhen(this.#options.record(payload), done)
    } else if (this.#state === 'recording' ? isTimeout : this.#hasErred) {
      this.#options.onReplaced?.()
      this.#sendWhen(Promise.resolve({ payload }), done)
    } else this.#ignore(payload)
  }

  #sendWhen(recorded: Promise<Outgoing>, done: SendOn): void {
    this.#count += 1
    const turn = this.#count
    const reply = this.#reply
    recorded.then(
      ({ payload, head }) => {
        if (turn !== this.#count) return
        if (head !== undefined) restoreHead(reply, head)
        this.#head = head ?? saveHead(reply)
        this.#state = 'handed on'
        try {
          done(null, payload)
        } catch (error) {
          // What hooks after this one added cannot be sent. Nobody else would catch it here.
          if (reply.raw.headersSent) reply.raw.destroy()
          else reply.send(error)
        }
      },
      (error) => {
        if (turn !== this.#count) return
        this.#state = 'handed on'
        done(error)
      },
    )
  }

  /** Ignores a second response, with what was set for it. */
  #ignore(payload: unknown): void {
    discard(payload)
    // Until the first one is handed on, all of its head is restored then. After that, later hooks may
    // have set the other headers.
    if (this.#head !== undefined) {
      restoreHead(this.#reply, this.#head, this.#options.recordedHeaders)
    }
    this.#reply.log.warn(
      'Reply was already sent, did you forget to "return reply"? The first response is recorded and sent, this one is ignored',
    )
  }
}
