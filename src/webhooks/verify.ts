import { OptionInvalid } from '../errors.js'
import { nameOf, parseJson } from './payload.js'
import {
  type Answer,
  checkProvider,
  type HeaderReader,
  isProvider,
  type Provider,
} from './provider.js'
import { keysOf } from './secrets.js'
import { checkSignature, headerOf, type Incoming, type Key, type Refusal } from './signature.js'

/** One event of a verified request. */
export interface VerifiedEvent {
  /** `null` when the provider gave it none: such events are never merged. */
  readonly eventId: string | null
  readonly type: string | null
  readonly object: string | null
  readonly payload: unknown
  /** The bytes as they came; those of one item as JSON when the request carried several. */
  readonly rawBody: Buffer
}

export type Verification =
  | { readonly kind: 'verified'; readonly events: readonly VerifiedEvent[] }
  /** Signed by the provider, but no event: what to answer. */
  | { readonly kind: 'handshake'; readonly answer: Answer }
  /** Signed by the provider, but what it says cannot be read. */
  | { readonly kind: 'unreadable'; readonly rawBody: Buffer }
  | { readonly kind: 'refused'; readonly reason: Refusal }

export interface VerifyOptions {
  /** The time to compare the signature's with: now, or when a stored event was received. */
  at?: Date | number
  /** Whose secrets, where `secret` is a function. Default `''`. */
  tenantId?: string
  /** Path and query, for providers that sign them. */
  url?: string
  method?: string
}

/** Those of a request: an object by name, as Node has it, or `Headers`, as `fetch` and workers have them. */
export type HeadersToVerify =
  | Incoming['headers']
  | { forEach(callback: (value: string, name: string) => void): void }

/**
 * Checks a request as the route does, without Fastify: in a queue's consumer, in a test, or for an
 * event of the inbox, with its headers, its bytes and `{ at: event.receivedAt }`.
 *
 * @throws IDEMPOTENCY_OPTION_INVALID for arguments that are not what they must be; what looking up the
 * secret throws. A wrong signature is a result.
 */
export async function verify(
  provider: Provider,
  headers: HeadersToVerify,
  body: Uint8Array | string,
  { at = Date.now(), tenantId = '', url = '/', method = 'POST' }: VerifyOptions = {},
): Promise<Verification> {
  checkVerified(provider, headers, body, at)
  const bytes =
    typeof body === 'string'
      ? Buffer.from(body)
      : Buffer.from(body.buffer, body.byteOffset, body.byteLength)
  const incoming: Incoming = { method, url, headers: byLowerCaseName(headers), body: bytes }
  return verifyIncoming(provider, await keysOf(provider, tenantId), incoming, Number(at))
}

function byLowerCaseName(headers: HeadersToVerify): Incoming['headers'] {
  const named: [name: string, value: string | readonly string[] | undefined][] = []
  if (typeof headers.forEach === 'function') {
    headers.forEach((value, name) => void named.push([name, value]))
  } else {
    named.push(...Object.entries(headers as Incoming['headers']))
  }
  return Object.fromEntries(named.map(([name, value]) => [name.toLowerCase(), value]))
}

function checkVerified(provider: unknown, headers: unknown, body: unknown, at: unknown): void {
  if (isProvider(provider) !== undefined) {
    throw new OptionInvalid('verify() needs a provider first, such as stripe({ secret })')
  }
  checkProvider(provider as Provider)
  if (typeof headers !== 'object' || headers === null || Array.isArray(headers)) {
    throw new OptionInvalid(
      'verify() needs the headers of the request second: an object by name, or Headers. Of a list of pairs, Object.fromEntries(list)',
    )
  }
  if (typeof body !== 'string' && !(body instanceof Uint8Array)) {
    throw new OptionInvalid(
      'verify() needs the body as it came: bytes or text, because a parsed one cannot be verified',
    )
  }
  if (typeof at !== 'number' && !(at instanceof Date)) {
    throw new OptionInvalid('option "at" of verify() must be a Date, or milliseconds')
  }
}

/** The same, with keys that are known already. */
export async function verifyIncoming(
  provider: Provider,
  keys: readonly Key[],
  incoming: Incoming,
  nowMs: number,
): Promise<Verification> {
  const signers = await checkSignature(provider.scheme, keys, incoming, nowMs)
  if (typeof signers === 'string') return { kind: 'refused', reason: signers }
  let payload: unknown
  try {
    payload = provider.parse ? provider.parse(incoming) : parseJson(incoming.body)
  } catch {
    return { kind: 'unreadable', rawBody: incoming.body }
  }
  const answer = await provider.handshake?.(payload, incoming, signers)
  if (answer !== undefined) return { kind: 'handshake', answer }
  // What the application's own functions throw is not the body's fault, and is thrown.
  const items = provider.items?.(payload)
  if (items === undefined) {
    return { kind: 'verified', events: [eventOf(provider, incoming, payload, incoming.body)] }
  }
  const events = items.map((item) =>
    eventOf(provider, incoming, item, Buffer.from(JSON.stringify(item) ?? 'null')),
  )
  return { kind: 'verified', events }
}

/** One event of a decoded body, as the provider names it. @throws what its functions throw. */
export function eventOf(
  provider: Provider,
  incoming: Incoming,
  payload: unknown,
  rawBody: Buffer,
): VerifiedEvent {
  const header: HeaderReader = (name) => headerOf(incoming, name)
  return {
    eventId: nameOf(provider.eventId(payload, header)),
    type: nameOf(provider.type?.(payload, header)),
    object: nameOf(provider.object?.(payload, header)),
    payload,
    rawBody,
  }
}
