import { Readable } from 'node:stream'
import type { FastifyError, FastifyReply } from 'fastify'
import { takeForm } from '../core/payload-form.js'
import type { StoredResponse } from '../core/record.js'
import type { BeforeSend } from './before-send.js'
import { discard } from './capture.js'
import { restoreHead, type SavedHead, saveHead } from './reply-head.js'
import { type SendOn, Sends } from './sends.js'

const MARKER = 'idempotent-replayed'

/** How many bytes of a stream are copied at once. */
const PIECE_BYTES = 64 * 1024

/**
 * A stored response on its way to one client. What was read of it is shared by all that replay it at
 * the moment, and hooks may change in place what they get: each has bytes and lists of its own.
 */
export class Replay {
  readonly #reply: FastifyReply
  readonly #statusCode: number
  readonly #headers: StoredResponse['headers']
  readonly #form: string | undefined
  readonly #body: Buffer
  /** The head of the reply before it had any of this. */
  readonly #before: SavedHead
  /** What the hooks in front of the plugin's were given. */
  #sent: unknown
  #hasFailed = false
  readonly #sends: Sends
  /** The headers that are as stored, or not there. */
  readonly #storedHeaders: readonly string[]

  constructor(
    reply: FastifyReply,
    { statusCode, headers: stored }: StoredResponse,
    body: Uint8Array,
    options: { readonly beforeSend: BeforeSend; readonly headers: readonly string[] },
  ) {
    const { headers, form } = takeForm(stored)
    this.#reply = reply
    this.#statusCode = statusCode
    this.#headers = headers
    this.#form = form
    this.#body = Buffer.from(body.buffer, body.byteOffset, body.byteLength)
    this.#before = saveHead(reply)
    this.#storedHeaders = [
      ...new Set([...options.headers, ...Object.keys(headers), 'content-type', 'content-encoding']),
    ]
    this.#sends = new Sends(reply, {
      beforeSend: options.beforeSend,
      recordedHeaders: [MARKER, ...this.#storedHeaders],
      record: async (payload) => ({ payload: this.#asStored(payload), head: saveHead(reply) }),
    })
  }

  send(): FastifyReply {
    const reply = this.#reply
    reply.code(this.#statusCode).header(MARKER, 'true')
    for (const name of Object.keys(this.#headers)) this.#setHeader(name)
    // Text with a type would go through the serializer that a hook has set.
    if (this.#form === 'text') reply.removeHeader('content-type')
    const sent = this.#payload()
    this.#sent = sent
    // And `null` would become JSON.
    return reply.send(sent === null ? undefined : sent)
  }

  /** The `onSend` hook: calls back with what goes out. */
  onSend(payload: unknown, done: SendOn): void {
    this.#sends.onSend(payload, done)
  }

  /** What hooks in front of the plugin's made of the replay is undone: they had their turn. */
  #asStored(payload: unknown): unknown {
    // An error that has taken its place.
    if (this.#hasFailed) return payload
    if (this.#reply.statusCode !== this.#statusCode) this.#reply.code(this.#statusCode)
    // Fastify calls bytes an octet stream where the first response had no type.
    for (const name of this.#storedHeaders) this.#setHeader(name)
    // Node frames an empty stream in another way once this was removed, though it was not there.
    if (this.#reply.hasHeader('content-length')) this.#reply.removeHeader('content-length')
    if (this.#form === 'sized stream') {
      this.#reply.header('content-length', String(this.#body.byteLength))
    }
    if (this.#isUntouched(payload)) return payload
    discard(payload)
    return typeof this.#sent === 'string' ? this.#sent : this.#payload()
  }

  /** For the `onError` hook: what is sent is not the stored response. */
  onError(error: FastifyError): void {
    this.#sends.onError(error)
    if (this.#hasFailed) return
    this.#hasFailed = true
    restoreHead(this.#reply, this.#before, [MARKER, ...Object.keys(this.#headers)])
  }

  #setHeader(name: string): void {
    const value = this.#headers[name]
    this.#reply.removeHeader(name)
    if (value !== undefined) {
      this.#reply.header(name, typeof value === 'string' ? value : [...value])
    }
  }

  #isUntouched(payload: unknown): boolean {
    if (payload !== this.#sent) return false
    return Buffer.isBuffer(payload) ? payload.equals(this.#body) : typeof payload === 'string'
  }

  #payload(): unknown {
    const body = this.#body
    switch (this.#form) {
      case 'text':
        return body.toString()
      case 'stream':
      case 'sized stream':
        return Readable.from(copiesOf(body), { objectMode: false })
      case 'bytes':
        return Buffer.from(body)
      case 'null':
        return null
      default:
        return body.byteLength === 0 ? undefined : Buffer.from(body)
    }
  }
}

/** One piece after the other, as they are asked for. */
function* copiesOf(body: Buffer): Generator<Buffer> {
  for (let at = 0; at < body.byteLength; at += PIECE_BYTES) {
    yield Buffer.from(body.subarray(at, at + PIECE_BYTES))
  }
}
