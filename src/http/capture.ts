import { once } from 'node:events'
import { validateHeaderValue } from 'node:http'
import { PassThrough, Readable } from 'node:stream'
import type { FastifyReply } from 'fastify'
import type { StoredResponse } from '../core/record.js'

/** A response as it passes by: what to send on, and its bytes as far as they are known. */
export type Captured =
  | { kind: 'bytes'; payload: unknown; body: Uint8Array }
  | { kind: 'stream'; source: Readable }

const NOTHING = new Uint8Array()

/** Tells what a payload of `onSend` is. A fetch `Response` is unpacked onto the reply. */
export function capturePayload(reply: FastifyReply, payload: unknown): Captured {
  if (payload === undefined || payload === null || isWithoutBody(reply.statusCode)) {
    return { kind: 'bytes', payload, body: NOTHING }
  }
  if (typeof payload === 'string') return { kind: 'bytes', payload, body: Buffer.from(payload) }
  if (payload instanceof Uint8Array) {
    // A copy, for both: the handler may use its buffer again while this one is being stored.
    const copy = Buffer.from(payload)
    return { kind: 'bytes', payload: copy, body: copy }
  }
  if (payload instanceof Response) {
    // Fastify does this after the hooks; the status decides here whether to keep the response.
    reply.code(payload.status)
    for (const [name, value] of payload.headers) reply.header(name, value)
    if (payload.bodyUsed) throw new TypeError('the Response that was sent has been read already')
    return capturePayload(reply, payload.body)
  }
  if (typeof Reflect.get(Object(payload), 'getReader') === 'function') {
    return streamOf(Readable.fromWeb(payload as never))
  }
  return streamOf(readable(payload))
}

function streamOf(source: Readable): Captured {
  // Fastify listens once it sends, which is after the hooks. An error before that must not be one
  // that nobody listens to: that would end the process.
  source.on('error', () => {})
  return { kind: 'stream', source }
}

// Streams of other makes have pipe() and nothing more that can be relied on.
function readable(payload: unknown): Readable {
  if (payload instanceof Readable) return payload
  if (typeof Reflect.get(Object(payload), 'pipe') !== 'function') {
    throw new TypeError('what was sent is neither text nor bytes nor a stream')
  }
  const out = new PassThrough()
  const source = payload as NodeJS.ReadableStream
  source.on('error', (error) => out.destroy(error))
  return source.pipe(out)
}

function isWithoutBody(statusCode: number): boolean {
  return statusCode === 204 || statusCode < 200
}

export interface StreamEnd {
  /** The whole body, or `null` when it was larger than the limit. */
  readonly body: Uint8Array | null
}

/**
 * Passes a stream on to the client and keeps what goes by, up to `limit` bytes.
 *
 * `onEnd` is awaited before the client sees the end, so that a client that has the whole response
 * can rely on its being stored. A client that goes away does not stop the reading: its retry wants
 * the same response. `onError` is told when the source fails; the client's stream then breaks, too.
 */
export function tee(
  source: Readable,
  limit: number,
  onEnd: (end: StreamEnd) => Promise<void>,
  onError: (error: unknown) => Promise<void>,
): Readable {
  const out = new PassThrough()
  // The reading below notices what happens to `out`; nobody else listens once the client has gone.
  out.on('error', () => {})
  void pass()
  return out

  async function pass(): Promise<void> {
    const chunks: Uint8Array[] = []
    let size = 0
    try {
      for await (const chunk of source) {
        const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : (chunk as Uint8Array)
        size += bytes.byteLength
        if (size <= limit) chunks.push(bytes)
        else chunks.length = 0
        // Too large to keep and nobody to send it to: the rest is of no use.
        if (size > limit && out.destroyed) break
        if (!out.destroyed && !out.write(bytes)) await drained(out)
      }
      await onEnd({ body: size <= limit ? Buffer.concat(chunks) : null })
      out.end()
    } catch (error) {
      await onError(error)
      out.destroy(error instanceof Error ? error : new Error(String(error)))
    }
  }
}

async function drained(out: PassThrough): Promise<void> {
  const stop = new AbortController()
  const { signal } = stop
  await Promise.race([once(out, 'drain', { signal }), once(out, 'close', { signal })]).catch(
    () => {},
  )
  stop.abort()
}

/** What is kept of a response besides its bytes. */
export type Head = Pick<StoredResponse, 'statusCode' | 'headers'>

/**
 * Status and kept headers as they stand now, before other plugins work on the response.
 *
 * @throws {TypeError} when Node would refuse to send a header: that response is no answer.
 */
export function captureHead(reply: FastifyReply, names: readonly string[]): Head {
  const { statusCode } = reply
  const all = reply.getHeaders()
  for (const [name, value] of Object.entries(all)) validateHeaderValue(name, value as string)
  const headers: Record<string, string | string[]> = {}
  for (const name of names) {
    // Fastify takes it away from a response without a body, after the hooks.
    if (name === 'content-type' && isWithoutBody(statusCode)) continue
    const value = all[name]
    if (value !== undefined)
      headers[name] = Array.isArray(value) ? value.map(String) : String(value)
  }
  // Something in front of us has encoded the body already: without this it cannot be read.
  const encoding = all['content-encoding']
  if (encoding !== undefined) headers['content-encoding'] = String(encoding)
  return { statusCode, headers }
}
