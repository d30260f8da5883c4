import { createHash } from 'node:crypto'
import { hashCanonical, type Repetitive } from './canonical.js'

/** What must stay the same when a key is used again. */
export interface RequestParts {
  readonly method: string
  /** The route's pattern, not the address: `/payments/:id`. */
  readonly route: string
  readonly params: unknown
  readonly query: unknown
  /** As it was parsed. Without this property, bodies are not compared. */
  readonly body?: unknown
}

/** SHA-256 over a value, as 43 characters of base64url. */
export type Fingerprint =
  /** Two values have the same exactly when they hold the same. */
  | { readonly kind: 'exact'; readonly value: string; readonly isCyclic: boolean }
  /** `opaque`: what it holds that is not compared, such as `an instance of Decimal`. */
  | { readonly kind: 'partial'; readonly value: string; readonly opaque: string }
  | Repetitive

/** The fingerprint of a request. The order of keys and the white space of JSON do not count. */
export function fingerprintOf(parts: RequestParts): Fingerprint {
  const { method, route, params, query } = parts
  const body = Object.hasOwn(parts, 'body') ? [parts.body] : []
  return fingerprint(['request', method, route, params, query, ...body])
}

/** The same, over what an application says must stay the same. */
export function fingerprintOfValue(value: unknown): Fingerprint {
  return fingerprint(['value', value])
}

/** For people: why a value cannot be compared as a whole with another. */
export function obstacleIn(fingerprint: Exclude<Fingerprint, { kind: 'exact' }>): string {
  return fingerprint.kind === 'partial' ? fingerprint.opaque : 'endless repetitions of one value'
}

function fingerprint(value: unknown): Fingerprint {
  const hash = createHash('sha256')
  const hashed = hashCanonical(hash, value)
  if (hashed.kind === 'repetitive') return hashed
  const { opaque, isCyclic } = hashed
  const digest = hash.digest('base64url')
  return opaque === undefined
    ? { kind: 'exact', value: digest, isCyclic }
    : { kind: 'partial', value: digest, opaque }
}
