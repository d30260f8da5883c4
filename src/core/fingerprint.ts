import { createHash, type Hash } from 'node:crypto'
import { type Hashed, hashCanonical, hashCanonicalInTurns, type Repetitive } from './canonical.js'
import type { NextTurn } from './turns.js'

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

/** What a fingerprint is taken of. */
type Comparable = readonly unknown[]

/** A request. The order of keys and the white space of JSON do not count. */
export function ofRequest(parts: RequestParts): Comparable {
  const { method, route, params, query } = parts
  const body = Object.hasOwn(parts, 'body') ? [parts.body] : []
  return ['request', method, route, params, query, ...body]
}

/** What an application says must stay the same. */
export function ofValue(value: unknown): Comparable {
  return ['value', value]
}

export function fingerprint(comparable: Comparable): Fingerprint {
  const hash = createHash('sha256')
  return digestOf(hash, hashCanonical(hash, comparable))
}

/** The same, for what a client may have made as large as it can: it does not block the event loop. */
export async function fingerprintInTurns(
  comparable: Comparable,
  nextTurn: NextTurn,
): Promise<Fingerprint> {
  const hash = createHash('sha256')
  return digestOf(hash, await hashCanonicalInTurns(hash, comparable, nextTurn))
}

/** For people: why a value cannot be compared as a whole with another. */
export function obstacleIn(fingerprint: Exclude<Fingerprint, { kind: 'exact' }>): string {
  return fingerprint.kind === 'partial' ? fingerprint.opaque : 'endless repetitions of one value'
}

function digestOf(hash: Hash, hashed: Hashed | Repetitive): Fingerprint {
  if (hashed.kind === 'repetitive') return hashed
  const { opaque, isCyclic } = hashed
  const digest = hash.digest('base64url')
  return opaque === undefined
    ? { kind: 'exact', value: digest, isCyclic }
    : { kind: 'partial', value: digest, opaque }
}
