import { isUtf8 } from 'node:buffer'
import { validateHeaderName, validateHeaderValue } from 'node:http'
import type { FastifyRequest } from 'fastify'
import { type PayloadForm, withForm } from '../core/payload-form.js'
import type { StoredResponse } from '../core/record.js'
import { isReplayable } from '../core/replayable-header.js'
import { type Failure, failureOf, type OmittedReason } from '../events.js'
import type { RedactedResponse, RouteSettings } from '../options.js'
import type { Head } from './capture.js'

/** What is stored of a response, and why that is not all of it where the route does not say so. */
export interface ToStore {
  readonly response: StoredResponse
  readonly omitted?: { readonly reason: OmittedReason; readonly failure?: Failure }
}

type Settings = Pick<RouteSettings, 'isStored' | 'redact' | 'maxBodyBytes'>

/** `body` is `null` when it is known that it is too large. Without a body, the headers are of no use. */
export function responseToStore(
  request: FastifyRequest,
  { isStored, redact, maxBodyBytes }: Settings,
  { statusCode, headers, form }: Head,
  body: Uint8Array | null,
): ToStore {
  const bare = { statusCode, headers: {}, body: null }
  if (!isStored) return { response: bare }
  const tooLarge = { response: bare, omitted: { reason: 'too large' } } as const
  if (body === null || body.byteLength > maxBodyBytes) return tooLarge
  if (redact === undefined) {
    return { response: { statusCode, headers: withForm(headers, form), body } }
  }
  try {
    // A copy of all of it: what the function changes in place must not reach the client.
    const copy = { statusCode, headers: copyOf(headers), body: Buffer.from(body) }
    const redacted = read(redact(copy, request))
    if (redacted.body === null) return { response: bare }
    const ownBody = Buffer.from(redacted.body)
    if (ownBody.byteLength > maxBodyBytes) return tooLarge
    const ownHeaders = withForm(redacted.headers ?? headers, formOfRedacted(form, ownBody))
    return { response: { statusCode, headers: ownHeaders, body: ownBody } }
  } catch (error) {
    return { response: bare, omitted: { reason: 'redaction_failed', failure: failureOf(error) } }
  }
}

/** Later hooks get what was redacted in the form of the first response, where it can have that. */
function formOfRedacted(form: PayloadForm | undefined, body: Buffer): PayloadForm | undefined {
  if (form === 'text' && !isUtf8(body)) return 'bytes'
  return form === 'null' && body.byteLength > 0 ? undefined : form
}

function copyOf(headers: StoredResponse['headers']): StoredResponse['headers'] {
  return Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [
      name,
      typeof value === 'string' ? value : [...value],
    ]),
  )
}

/**
 * What the function returned, with lower-case names. A property that is `undefined` is refused: it is
 * what a misspelt name looks like, and the secret would be stored.
 *
 * @throws {TypeError} for what cannot be stored, or not be sent later.
 */
function read(redacted: unknown): RedactedResponse {
  const isObject = typeof redacted === 'object' && redacted !== null
  if (!isObject || typeof Reflect.get(redacted, 'then') === 'function') {
    throw new TypeError('redact must return { headers, body }, and no promise')
  }
  const { body } = redacted as Record<string, unknown>
  if (body !== null && typeof body !== 'string' && !(body instanceof Uint8Array)) {
    throw new TypeError('redact must return the body as text, bytes or null')
  }
  return 'headers' in redacted ? { headers: readHeaders(redacted.headers), body } : { body }
}

function readHeaders(headers: unknown): StoredResponse['headers'] {
  if (typeof headers !== 'object' || headers === null || Array.isArray(headers)) {
    throw new TypeError('redact must return the headers as an object')
  }
  const own: Record<string, string | string[]> = {}
  for (const [name, value] of Object.entries(headers)) {
    validateHeaderName(name)
    if (!isReplayable(name)) throw new TypeError('a header that redact returned is never replayed')
    for (const one of [value].flat()) {
      if (typeof one !== 'string') throw new TypeError('a header that redact returned is no text')
      validateHeaderValue(name, one)
    }
    own[name.toLowerCase()] = value
  }
  return own
}
