import { validateHeaderName, validateHeaderValue } from 'node:http'
import { PassThrough, pipeline, Readable } from 'node:stream'
import type { FastifyReply } from 'fastify'
import type { PayloadForm } from '../core/payload-form.js'
import type { StoredResponse } from '../core/record.js'
import { type SavedHead, saveHead } from './reply-head.js'

/** What is kept of a response besides its bytes. */
export type Head = Pick<StoredResponse, 'statusCode' | 'headers'> & {
  /** In which form the bytes are handed to later hooks. */
  readonly form: PayloadForm | undefined
}

/** What is sent, and its bytes as far as they are known. */
type Body =
  | { readonly kind: 'bytes'; readonly payload: unknown; readonly body: Uint8Array }
  | { readonly kind: 'stream'; readonly payload: Readable }

/** A response as it passes by. */
export type Captured = Body & {
  /** Status and headers as they are sent. */
  readonly sent: SavedHead
  readonly kept: Head
}

const NOTHING = new Uint8Array()

/**
 * Tells what a payload of `onSend` is, with its head before other plugins work on the response: status
 * and the headers with these names are kept. A fetch `Response` is unpacked onto the reply.
 *
 * @throws {TypeError} when Fastify or Node would refuse to send it: that response is no answer.
 */
export function captureResponse(
  reply: FastifyReply,
  payload: unknown,
  names: readonly string[],
): Captured {
  let body: Body | undefined
  try {
    body = bodyOf(reply, payload)
    const sent = saveHead(reply)
    const form = formOf(body.payload, sent)
    return { ...body, sent, kept: { ...keptOf(sent, names), form } }
  } catch (error) {
    discard(body === undefined ? payload : body.payload)
    throw error
  }
}

/** Whether a payload is read while it is sent. */
export function isStreamed(payload: unknown): boolean {
  return isStream(payload) || isResponse(payload)
}

/** Ends a stream that will not be sent. */
export function discard(payload: unknown): void {
  const stream = isResponse(payload) ? payload.body : payload
  if (stream instanceof Readable) stream.on('error', () => {}).destroy()
  else if (stream instanceof ReadableStream && !stream.locked) stream.cancel().catch(() => {})
}

/** How many bytes of a body the head announces, if it does. */
export function announcedBytes({ statusCode, headers }: SavedHead): number | undefined {
  const length = headers['content-length']
  return length === undefined || isSentWithoutBody(statusCode) ? undefined : Number(length)
}

/**
 * How many bytes of a stream a client may have and still know that there are more: none where only the
 * end of the connection, or the head alone, tells that; all but one where the length is known. With
 * chunked encoding and HTTP/2 there is an end after the last byte, which is sent once the stream ends.
 */
export function passableBytes(reply: FastifyReply): number {
  const isHttp10 = reply.request.raw.httpVersion === '1.0'
  if (isHttp10 || isSentWithoutBody(reply.statusCode)) return 0
  const length = reply.getHeader('content-length')
  if (length === undefined) return Number.POSITIVE_INFINITY
  const bytes = Number(length)
  return bytes > 0 ? bytes - 1 : 0
}

function bodyOf(reply: FastifyReply, payload: unknown): Body {
  if (payload === undefined || payload === null || isWithoutBody(reply.statusCode)) {
    return { kind: 'bytes', payload, body: NOTHING }
  }
  if (typeof payload === 'string') return { kind: 'bytes', payload, body: Buffer.from(payload) }
  if (payload instanceof Uint8Array) {
    // A copy for each: the handler may use its buffer again, and later hooks may change theirs, while
    // this one is still being stored.
    return { kind: 'bytes', payload: Buffer.from(payload), body: Buffer.from(payload) }
  }
  if (isResponse(payload)) {
    // Fastify does this after the hooks; the status decides here whether to keep the response.
    reply.code(payload.status)
    for (const [name, value] of payload.headers) reply.header(name, value)
    if (payload.bodyUsed) throw new TypeError('the Response that was sent has been read already')
    return bodyOf(reply, payload.body)
  }
  const stream =
    typeof Reflect.get(Object(payload), 'getReader') === 'function'
      ? Readable.fromWeb(payload as never)
      : readable(payload)
  // Fastify listens once it sends, which is after the hooks. An error before that must not be one
  // that nobody listens to: that would end the process.
  stream.on('error', () => {})
  return { kind: 'stream', payload: stream }
}

/** As Fastify tells: there are other implementations of fetch than Node's. */
function isResponse(payload: unknown): payload is Response {
  return Object.prototype.toString.call(payload) === '[object Response]'
}

// Streams of other makes have pipe() and nothing more that can be relied on.
function readable(payload: unknown): Readable {
  if (payload instanceof Readable) return payload
  if (typeof Reflect.get(Object(payload), 'pipe') !== 'function') {
    throw new TypeError('what was sent is neither text nor bytes nor a stream')
  }
  return pipeline(payload as NodeJS.ReadableStream, new PassThrough(), () => {})
}

/** Fastify leaves a payload away. */
function isWithoutBody(statusCode: number): boolean {
  return statusCode === 204 || statusCode < 200
}

/** Fastify or Node leave it away. */
function isSentWithoutBody(statusCode: number): boolean {
  return statusCode === 304 || isWithoutBody(statusCode)
}

function isStream(payload: unknown): boolean {
  return ['pipe', 'getReader'].some(
    (name) => typeof Reflect.get(Object(payload), name) === 'function',
  )
}

function formOf(payload: unknown, { headers }: SavedHead): PayloadForm | undefined {
  if (payload === null) return 'null'
  if (typeof payload === 'string') return 'text'
  if (payload instanceof Uint8Array) return 'bytes'
  if (!isStream(payload)) return undefined
  return headers['content-length'] === undefined ? 'stream' : 'sized stream'
}

function keptOf({ statusCode, headers }: SavedHead, names: readonly string[]): Omit<Head, 'form'> {
  for (const [name, value] of Object.entries(headers)) {
    validateHeaderName(name)
    validateHeaderValue(name, value as string)
  }
  const kept: Record<string, string | string[]> = {}
  for (const name of names) {
    // Fastify takes it away from a response without a body, after the hooks.
    if (name === 'content-type' && isWithoutBody(statusCode)) continue
    const value = headers[name]
    if (value !== undefined) kept[name] = Array.isArray(value) ? value.map(String) : String(value)
  }
  // Something in front of us has encoded the body already: without this it cannot be read.
  const encoding = headers['content-encoding']
  if (encoding !== undefined) kept['content-encoding'] = String(encoding)
  return { statusCode, headers: kept }
}
