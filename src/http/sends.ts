import type { FastifyError, FastifyReply } from 'fastify'
import { readThrown } from '../core/thrown.js'
import type { BeforeSend } from './before-send.js'
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
  readonly beforeSend: BeforeSend
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
 * with the head that it had. Two things take its place on the way to the client, and not in the record: the
 * error of `handlerTimeout`, and what a later hook sends, or Fastify for its error. The hook may wait for
 * what it sends, or never call back, and then nothing else goes out.
 *
 * A stream that fails before the client has a byte of it is not a response. Fastify's answer to its error is.
 */
export class Sends {
  readonly #reply: FastifyReply
  readonly #options: SendsOptions
  #state: 'none' | 'recording' | 'handed on' = 'none'
  /** The head with which it was handed on, and the headers that were set past Fastify by then. */
  #head: SavedHead | undefined
  #rawNames: readonly string[] = []
  /** A stream that was handed on has failed before its first byte. */
  #hasFailed = false
  #hasErred = false
  #isTimeoutNext = false
  #isRefusing = false
  #count = 0

  constructor(reply: FastifyReply, options: SendsOptions) {
    this.#reply = reply
    this.#options = options
  }

  /** For the `onError` hook, which runs before the response of an error comes to `onSend`. */
  onError(error: FastifyError): void {
    if (this.#hasFailed) this.#takeBackHead()
    // Fastify leaves the hook out for a second error of a request, so one is enough for all after it.
    this.#hasErred = true
    this.#isTimeoutNext = isTimeoutError(error)
  }

  /** For the `onSend` hook: calls back with what goes out, if this payload does. */
  onSend(payload: unknown, done: SendOn): void {
    const isTimeout = this.#isTimeoutNext
    this.#isTimeoutNext = false
    if (this.#state === 'none' || (this.#hasFailed && this.#hasErred)) {
      this.#hasFailed = false
      this.#refuseSends()
      this.#state = 'recording'
      this.#sendWhen(this.#options.record(payload), done)
    } else if (this.#state === 'recording' ? isTimeout : this.#isOfLaterHook) {
      if (this.#hasErred) this.#options.onReplaced?.()
      this.#count += 1
      // Within this call, as without the plugin: the chain of a later hook may go on when that returns.
      this.#handOn(() => done(null, payload))
    } else this.#ignore(payload)
  }

  /** The stream that was handed on has failed. `true`: the answer to its error will be recorded. */
  fail(): boolean {
    this.#hasFailed = !this.#reply.raw.headersSent
    return this.#hasFailed
  }

  /** For a closed connection: whether a stream has failed, and no answer to its error comes. */
  get isUnanswered(): boolean {
    return this.#hasFailed && (this.#reply.sent || !this.#hasErred)
  }

  /** Whether it comes from a later hook and takes the place of what was handed on. */
  get #isOfLaterHook(): boolean {
    if (this.#options.beforeSend.isCurrent) return false
    // For an error, Fastify breaks off what has begun to go out.
    return this.#hasErred || !this.#reply.raw.headersSent
  }

  #refuseSends(): void {
    if (this.#isRefusing) return
    this.#isRefusing = true
    refuseSends(this.#reply, (sent) => this.#isSecond(sent) && this.#ignore(sent))
  }

  #isSecond(payload: unknown): boolean {
    if (this.#reply.sent || this.#hasFailed || this.#state === 'none') return false
    const isOfHandler = this.#options.beforeSend.isCurrent
    if (this.#state === 'handed on') return isOfHandler
    return isOfHandler || !(this.#isTimeoutNext || isTimeoutError(payload))
  }

  #sendWhen(recorded: Promise<Outgoing>, done: SendOn): void {
    this.#count += 1
    const turn = this.#count
    const reply = this.#reply
    recorded.then(
      ({ payload, head }) => {
        if (turn !== this.#count) return
        if (head !== undefined) restoreHead(reply, head)
        this.#handOn(() => sendOnSafely(reply, done, payload))
      },
      (error) => {
        if (turn !== this.#count) return
        // It was none. What is answered to the error is the response.
        this.#state = 'none'
        this.#options.beforeSend.leave(() => done(error))
      },
    )
  }

  /** Lets the hooks go on, outside of what runs in front of them. */
  #handOn(go: () => void): void {
    this.#head = saveHead(this.#reply)
    this.#rawNames = this.#reply.raw.getHeaderNames()
    this.#state = 'handed on'
    this.#options.beforeSend.leave(go)
  }

  /** Undoes what later hooks and Fastify have set for a stream that is not sent. */
  #takeBackHead(): void {
    const reply = this.#reply
    for (const name of reply.raw.getHeaderNames()) {
      if (!this.#rawNames.includes(name)) reply.raw.removeHeader(name)
    }
    if (this.#head !== undefined) restoreHead(reply, this.#head)
    // As Fastify does with the type and the length.
    reply.removeHeader('content-encoding')
  }

  /** Ignores a second response, with what was set for it. */
  #ignore(payload: unknown): true {
    discard(payload)
    // Until the first one is handed on, all of its head is restored then. After that, later hooks may
    // have set the other headers.
    if (this.#head !== undefined) {
      restoreHead(this.#reply, this.#head, this.#options.recordedHeaders)
    }
    // What Fastify sends for a handler that has sent its response and returned nothing.
    if (payload === undefined) return true
    this.#reply.log.warn(
      'Reply was already sent, did you forget to "return reply"? The first response is recorded and sent, this one is ignored',
    )
    return true
  }
}

function isTimeoutError(error: unknown): boolean {
  return readThrown(error, 'code') === 'FST_ERR_HANDLER_TIMEOUT'
}

/**
 * Refuses what is sent while another response is on its way. Fastify would take it for a reply that was
 * not sent yet: it would set the head for it and run the error handlers, and of a second error it writes
 * the response at once, past all hooks.
 */
export function refuseSends(reply: FastifyReply, isRefused: (payload: unknown) => boolean): void {
  const { send } = reply
  reply.send = (payload?: unknown) => (isRefused(payload) ? reply : send.call(reply, payload))
}

/** What hooks have added may be refused by Node. Outside of Fastify's own calls, nothing else catches that. */
export function sendOnSafely(reply: FastifyReply, done: SendOn, payload: unknown): void {
  try {
    done(null, payload)
  } catch (error) {
    if (reply.raw.headersSent) reply.raw.destroy()
    else reply.send(error)
  }
}
