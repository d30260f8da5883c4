import { validateHeaderValue } from 'node:http'
import { PassThrough, pipeline, Readable } from 'node:stream'
import type { FastifyReply } from 'fastify'
import type { StoredResponse } from '../core/record.js'
import { type SavedHead, saveHead } from './reply-head.js'

/** What is kept of a response besides its bytes. */
export type Head = Pick<StoredResponse, 'statusCode' | 'headers'>

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
    body = withHeadAsBytes(reply, bodyOf(reply, payload))
    const sent = saveHead(reply)
    return { ...body, sent, kept: keptOf(sent, names) }
  } catch (error) {
    discard(body === undefined ? payload : body.payload)
    throw error
  }
}

/** Ends a stream that will not be sent. */
export function discard(payload: unknown): void {
  const stream = isResponse(payload) ? payload.body : payload
  if (stream instanceof Readable) stream.on('error', () => {}).destroy()
  else if (stream instanceof ReadableStream && !stream.locked) stream.cancel().catch(() => {})
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
    // A copy, for both: the handler may use its buffer again while this one is being stored.
    const copy = Buffer.from(payload)
    return { kind: 'bytes', payload: copy, body: copy }
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

/**
 * Node writes a head together with a text behind it, in the encoding of that text: as UTF-8. Before
 * bytes, and so in a replay, it writes Latin-1. A head for which that makes a difference is given the
 * characters whose Latin-1 is its UTF-8, and bytes behind it: now, and in every replay.
 */
function withHeadAsBytes(reply: FastifyReply, body: Body): Body {
  const isText = typeof body.payload === 'string' && body.payload !== ''
  if (body.kind === 'stream' || !isText || isSentWithoutBody(reply.statusCode)) return body
  let isDifferent = false
  for (const [name, value] of Object.entries(reply.getHeaders())) {
    const values = [value].flat()
    if (values.every(isAscii)) continue
    for (const one of values) validateHeaderValue(name, one as string)
    isDifferent = true
    const asLatin1 = values.map((one) => Buffer.from(String(one)).toString('latin1'))
    reply.removeHeader(name)
    reply.header(name, Array.isArray(value) ? asLatin1 : asLatin1[0])
  }
  return isDifferent ? { ...body, payload: body.body } : body
}

function isAscii(value: unknown): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: all of ASCII, whatever may be sent of it
  return typeof value !== 'string' || /^[\x00-\x7f]*$/.test(value)
}

function keptOf({ statusCode, headers }: SavedHead, names: readonly string[]): Head {
  for (const [name, value] of Object.entries(headers)) validateHeaderValue(name, value as string)
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
