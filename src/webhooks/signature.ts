import {
  createHmac,
  createPublicKey,
  type KeyObject,
  verify as publicKeyVerify,
  timingSafeEqual,
} from 'node:crypto'
import { isThrown } from '../core/thrown.js'
import { OptionInvalid } from '../errors.js'

/** A request as it arrived, before anything of it is believed. */
export interface Incoming {
  readonly method: string
  /** Path and query as they were sent: `/webhooks/twilio?a=1`. */
  readonly url: string
  /** By lower-case name. */
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>
  readonly body: Buffer
}

/** Why a request was not believed. None of them tells what would have been. */
export type Refusal = 'missing_header' | 'malformed' | 'no_match' | 'too_old' | 'from_future'

/** A piece of what was signed. */
export type Part = string | Uint8Array

/** What a request says of its own signature, still to be checked. */
export interface Signed {
  /**
   * The bytes that were signed, in pieces. A function, where the shared value is one of them and
   * no key (the id of a PayPal webhook).
   */
  readonly content: readonly Part[] | ((key: Key) => readonly Part[])
  /** Any one of them may match: providers send several while a secret is being changed. */
  readonly signatures: readonly Uint8Array[]
  /**
   * When it was signed, in milliseconds, if that is part of what was signed. A function, where the
   * body has to be read for it: it is called once the signature was found genuine.
   */
  readonly signedAtMs?: number | (() => number | undefined)
  /** The key that the request names, once it is known to be the provider's (a pinned certificate). */
  readonly key?: KeyObject
  /** The algorithm that the request names, if the provider has several that are safe. */
  readonly algorithm?: Algorithm
  /** Other readings of the same request, one of which may hold instead: another address or algorithm. */
  readonly or?: readonly Omit<Signed, 'or' | 'signedAtMs'>[]
}

export type Algorithm =
  | { readonly kind: 'hmac'; readonly hash: 'sha1' | 'sha256' | 'sha512' }
  /** RSA (PKCS #1 v1.5), ECDSA (DER) and Ed25519, which has its hash built in. */
  | { readonly kind: 'public-key'; readonly hash: 'sha1' | 'sha256' | null }
  /** The secret itself travels in a header. */
  | { readonly kind: 'equality' }

/** How a provider signs. */
export interface Scheme {
  readonly algorithm: Algorithm
  /** Turns a secret into the key's bytes or a public key. Default: the text as UTF-8. @throws when it cannot be one. */
  readonly toKey?: (secret: string) => Uint8Array | KeyObject
  /** What `toKey` accepts, for whoever wrote something else: `'64 hexadecimal digits'`. */
  readonly secretForm?: string
  /** How far `signedAtMs` may lie from now, on both sides. */
  readonly toleranceMs?: number | undefined
  /** Whether the body proves nothing: then a request is refused before its body is read. */
  readonly isWithoutBody?: boolean
  /**
   * Finds the signatures. A batch may have one for each of its items; then all of them must hold.
   * What it stumbles over (a TypeError, RangeError or SyntaxError) makes the request malformed.
   *
   * @throws CertificateUnreachable when something that is needed to know cannot be reached now.
   */
  readonly read: (incoming: Incoming, known: Known) => Read | Promise<Read>
}

/** What this side knows when a request comes. */
export interface Known {
  /** Asks for the keys, where they are needed to find the signature. */
  readonly keys: () => Promise<readonly Key[]>
  readonly nowMs: number
}

export type Read = Refusal | Signed | readonly Signed[]

export type Key = Uint8Array | KeyObject

/** What a request was signed with, and when, where a time is signed. */
export interface Genuine {
  readonly signers: readonly Key[]
  readonly signedAtMs: number | undefined
}

/** What is needed to know whether a request is genuine cannot be had now. */
export class CertificateUnreachable extends Error {
  override readonly name = 'CertificateUnreachable'
}

/** Nobody rotates that many secrets at once. Each costs a comparison, or with public keys more. */
const MOST_SIGNATURES = 16

/**
 * The one place where signatures are checked: every current key, every signature, both sides of
 * the window. What was signed is hashed once for each key, however many signatures there are.
 *
 * @returns what it was signed with, or why it is not believed.
 * @throws OptionInvalid when there is no time to compare the signature's with: no window holds it then.
 */
export async function checkSignature(
  scheme: Scheme,
  keysOf: () => Promise<readonly Key[]>,
  incoming: Incoming,
  nowMs: number,
): Promise<Refusal | Genuine> {
  if (!Number.isFinite(nowMs)) {
    throw new OptionInvalid(
      'the time that signatures are compared with must be finite: option "clock" of a webhook returns milliseconds, and "at" of verify() is a Date or milliseconds',
    )
  }
  const read = await readSafely(scheme, incoming, { keys: keysOf, nowMs })
  if (typeof read === 'string') return read
  const all = Array.isArray(read) ? (read as readonly Signed[]) : [read as Signed]
  if (all.length === 0) return 'malformed'
  const readings = all.flatMap((signed) => [signed, ...(signed.or ?? [])])
  if (readings.some(({ signatures }) => signatures.length > MOST_SIGNATURES)) return 'malformed'
  // Last: what has no signature in the right form costs no look-up of a secret.
  const keys = await keysOf()
  const signers = new Set<Key>()
  let firstSignedAtMs: number | undefined
  for (const signed of all) {
    const signer = signerOfAny(scheme.algorithm, keys, [signed, ...(signed.or ?? [])])
    if (signer === undefined) return 'no_match'
    signers.add(signer)
    // After the signature: a forged time says nothing, and a true one tells of clocks.
    const { signedAtMs: time } = signed
    const signedAtMs = typeof time === 'function' ? time() : time
    firstSignedAtMs ??= signedAtMs
    if (scheme.toleranceMs === undefined || signedAtMs === undefined) continue
    if (!Number.isFinite(signedAtMs)) return 'malformed'
    if (signedAtMs < nowMs - scheme.toleranceMs) return 'too_old'
    if (signedAtMs > nowMs + scheme.toleranceMs) return 'from_future'
  }
  return { signers: [...signers], signedAtMs: firstSignedAtMs }
}

async function readSafely(
  scheme: Scheme,
  incoming: Incoming,
  { keys, nowMs }: Known,
): Promise<Read> {
  let isOurs = false
  const watched = () =>
    keys().catch((error) => {
      isOurs = true
      throw error
    })
  try {
    return await scheme.read(incoming, { keys: watched, nowMs })
  } catch (error) {
    if (isOurs) throw error
    const isOfRequest = [TypeError, RangeError, SyntaxError].some((kind) => isThrown(error, kind))
    if (isOfRequest) return 'malformed'
    throw error
  }
}

function signerOfAny(
  usual: Algorithm,
  keys: readonly Key[],
  readings: readonly Signed[],
): Key | undefined {
  for (const reading of readings) {
    const signer = signerOf(usual, keys, reading)
    if (signer !== undefined) return signer
  }
  return undefined
}

function signerOf(usual: Algorithm, keys: readonly Key[], signed: Signed): Key | undefined {
  const { algorithm = usual, content, key: named } = signed
  // With a key and a text that are the same for all of ours, the first is asked for all of them.
  const isSame = named !== undefined && typeof content !== 'function'
  return (isSame ? keys.slice(0, 1) : keys).find((key) => {
    const parts = typeof content === 'function' ? content(key) : content
    return matches(algorithm, named ?? key, parts, signed.signatures)
  })
}

const DIGEST_BYTES = { sha1: 20, sha256: 32, sha512: 64 }

function matches(
  algorithm: Algorithm,
  key: Key,
  content: readonly Part[],
  given: readonly Uint8Array[],
): boolean {
  // A provider may have keys of both kinds, and a reading of the request for each kind.
  if (algorithm.kind === 'public-key') {
    if (key instanceof Uint8Array) return false
    const bytes = Buffer.concat(content.map((part) => Buffer.from(part as string)))
    return given.some((signature) => isSignedBy(key, algorithm.hash, bytes, signature))
  }
  if (!(key instanceof Uint8Array)) return false
  if (algorithm.kind === 'equality') return given.some((one) => isEqual(key, one))
  const possible = given.filter((one) => one.byteLength === DIGEST_BYTES[algorithm.hash])
  if (possible.length === 0) return false
  const hmac = createHmac(algorithm.hash, key)
  for (const part of content) hmac.update(part)
  const digest = hmac.digest()
  return possible.some((one) => isEqual(digest, one))
}

function isSignedBy(
  key: KeyObject,
  hash: 'sha1' | 'sha256' | null,
  bytes: Uint8Array,
  signature: Uint8Array,
): boolean {
  try {
    return publicKeyVerify(hash, bytes, key, signature)
  } catch {
    // OpenSSL refuses signatures of some shapes instead of finding them wrong.
    return false
  }
}

/** In constant time for a given length; lengths are no secret. */
export function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  return a.byteLength === b.byteLength && timingSafeEqual(a, b)
}

/** A header that must be there once. Node joins repeated ones with a comma; those never match. */
export function headerOf({ headers }: Pick<Incoming, 'headers'>, name: string): string | undefined {
  const value = headers[name]
  return typeof value === 'string' && value !== '' ? value : undefined
}

/** Whether the body is a form as browsers send them. */
export function isForm(incoming: Pick<Incoming, 'headers'>): boolean {
  const type = headerOf(incoming, 'content-type')
  return type?.toLowerCase().startsWith('application/x-www-form-urlencoded') === true
}

// Node's decoders skip what they do not know. A signature with something else in it is none.

export function fromHex(text: string): Buffer | undefined {
  return /^(?:[0-9a-f]{2})+$/i.test(text) ? Buffer.from(text, 'hex') : undefined
}

export function fromBase64(text: string): Buffer | undefined {
  const isBase64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text)
  return isBase64 && text !== '' ? Buffer.from(text, 'base64') : undefined
}

/** Digits only: `"123junk"` is no time. Seconds or milliseconds, as the provider sends them. */
export function wholeNumber(text: string | undefined): number | undefined {
  return text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : undefined
}

const INSTANT = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/

/** RFC 3339, in milliseconds: `2021-03-25T05:09:27Z`, also with nanoseconds. */
export function instantOf(text: string): number | undefined {
  const [, seconds, fraction = '.0', zone] = INSTANT.exec(text) ?? []
  const ms = Date.parse(`${seconds}${fraction.slice(0, 4)}${zone}`)
  return Number.isNaN(ms) ? undefined : ms
}

/** PEM, or the base64 of DER (SPKI), as consoles show it. */
export function publicKeyOf(text: string): KeyObject {
  return text.includes('-----BEGIN')
    ? createPublicKey(text)
    : createPublicKey({ key: Buffer.from(text, 'base64'), format: 'der', type: 'spki' })
}
