import { createHash } from 'node:crypto'
import { stringify } from 'safe-stable-stringify'

/** What must stay the same when a key is used again. */
export interface RequestParts {
  readonly method: string
  /** The route's pattern, not the address: `/payments/:id`. */
  readonly route: string
  readonly params: unknown
  readonly query: unknown
  /** Parsed JSON, text, bytes, or nothing. */
  readonly body: unknown
}

/**
 * SHA-256 over an operation, as 43 characters of base64url. The order of keys and the white space
 * of JSON do not count: the body is hashed in its parsed form with its keys sorted.
 *
 * @throws {RangeError} when the body is nested too deeply to be walked.
 */
export function fingerprintOf({ method, route, params, query, body }: RequestParts): string {
  const hash = createHash('sha256').update(canonical([method, route, params, query]))
  // A tag and a separator that JSON cannot contain keep `"a"` as text apart from `"a"` as JSON.
  if (body === undefined || body === null) hash.update('\0none')
  else if (typeof body === 'string') hash.update('\0text\0').update(body)
  else if (body instanceof Uint8Array) hash.update('\0bytes\0').update(body)
  else hash.update('\0json\0').update(canonical(body))
  return hash.digest('base64url')
}

/** The same, over whatever an application's own function returned. */
export function fingerprintOfValue(value: unknown): string {
  return createHash('sha256').update('\0own\0').update(canonical(value)).digest('base64url')
}

/**
 * A body as something that JSON can tell from another. Forms and maps are their entries; an object
 * of any other class may hide what it holds.
 */
export function comparable(
  body: unknown,
): { kind: 'comparable'; value: unknown } | { kind: 'opaque' } {
  if (typeof body !== 'object' || body === null || body instanceof Uint8Array) {
    return { kind: 'comparable', value: body }
  }
  if (body instanceof Map || body instanceof URLSearchParams || body instanceof FormData) {
    const entries = [...body.entries()]
    const isText = entries.every((entry) => entry.every((part) => typeof part === 'string'))
    return isText ? { kind: 'comparable', value: entries } : { kind: 'opaque' }
  }
  const prototype: unknown = Object.getPrototypeOf(body)
  // Object.prototype, or an empty one of a parser's own in its place.
  const isBase = prototype === null || Object.getPrototypeOf(prototype) === null
  const isPlain = Array.isArray(body) || isBase
  return isPlain ? { kind: 'comparable', value: body } : { kind: 'opaque' }
}

function canonical(value: unknown): string {
  return stringify(value) ?? ''
}
