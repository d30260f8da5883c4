import { type Check, check } from '../checks.js'
import { OptionInvalid } from '../errors.js'
import { nameOfBytes, nameOfRead, sha256, storableName } from './names.js'
import { idOf, nameOf, parseJson, returned, returnedList } from './payload.js'
import {
  type Answer,
  checkProvider,
  doesRedeliver,
  type HeaderReader,
  isProvider,
  type Provider,
} from './provider.js'
import { keysOf } from './secrets.js'
import { checkSignature, headerOf, type Incoming, type Key, type Refusal } from './signature.js'

/** One event of a verified request. */
export interface VerifiedEvent {
  /**
   * What the provider calls the event: the same in every delivery of it. Where it gives none, the library names
   * the event after its bytes (`bytes:…`).
   */
  readonly eventId: string | null
  /**
   * What `eventId` comes from.
   *
   * - `provider`: its id. One that does not fit into a column is its hash, `sha256:…`.
   * - `bytes`: the bytes. Another event of the same bytes is taken for a duplicate.
   * - `signed_bytes`: the bytes and the time at which they were signed. A delivery that is signed anew is
   *   another event.
   * - `nothing`: it is `null`, and no two deliveries are the same event (`Provider.mergesUnnamed`).
   */
  readonly namedBy: 'provider' | 'bytes' | 'signed_bytes' | 'nothing'
  readonly type: string | null
  readonly object: string | null
  readonly payload: unknown
  /** The bytes as they came; those of one item as JSON when the request carried several. */
  readonly rawBody: Buffer
  /** Whether it is one item of a batch. */
  readonly isItem: boolean
  /** Whether the provider delivers it again after an answer that is no 2xx. */
  readonly isRedelivered: boolean
}

/** Bytes that the provider has signed and that are no event. */
export interface UnreadableEvent {
  readonly rawBody: Buffer
  readonly isItem: boolean
  /** When they were signed, where a time was. */
  readonly signedAtMs: number | undefined
  /** How many equal items of its batch came before it. */
  readonly repetition: number
  /** What decoding them, or a function of the provider's such as `eventId`, has thrown. */
  readonly error: unknown
}

/** What a genuine body says. */
export type Reading =
  /** `unreadable`: the items of a batch that cannot be read. The others are among the events. */
  | {
      readonly kind: 'verified'
      readonly events: readonly VerifiedEvent[]
      readonly unreadable: readonly UnreadableEvent[]
    }
  /** Signed by the provider, but what it says cannot be read. */
  | ({ readonly kind: 'unreadable' } & UnreadableEvent)

export type Verification =
  | Reading
  /** Signed by the provider, but no event: what to answer. */
  | { readonly kind: 'handshake'; readonly answer: Answer }
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
  options: VerifyOptions = {},
): Promise<Verification> {
  checkVerified(provider, headers, body)
  check(' of verify()', CHECKS, options)
  const { at = Date.now(), tenantId = '', url = '/', method = 'POST' } = options
  const bytes =
    typeof body === 'string'
      ? Buffer.from(body)
      : Buffer.from(body.buffer, body.byteOffset, body.byteLength)
  const incoming: Incoming = { method, url, headers: byLowerCaseName(headers), body: bytes }
  return verifyIncoming(provider, () => keysOf(provider, tenantId), incoming, Number(at))
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

const isText: Check = (value) => (typeof value === 'string' ? undefined : 'must be text')

const CHECKS: Record<keyof VerifyOptions, Check> = {
  at: (value) =>
    typeof value === 'number' || value instanceof Date
      ? undefined
      : 'must be a Date, or milliseconds',
  tenantId: isText,
  url: isText,
  method: isText,
}

function checkVerified(provider: unknown, headers: unknown, body: unknown): void {
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
}

/** The same, with keys that are asked for when they are needed. */
export async function verifyIncoming(
  provider: Provider,
  keys: () => Promise<readonly Key[]>,
  incoming: Incoming,
  nowMs: number,
): Promise<Verification> {
  const unsigned = provider.unsigned?.(incoming)
  if (unsigned !== undefined) return { kind: 'handshake', answer: unsigned }
  const genuine = await checkSignature(provider.scheme, keys, incoming, nowMs)
  if (typeof genuine === 'string') return { kind: 'refused', reason: genuine }
  const { signers, signedAtMs } = genuine
  let payload: unknown
  try {
    payload = decoded(provider, incoming)
  } catch (error) {
    return unreadableRequest(incoming.body, signedAtMs, error)
  }
  const answer = await provider.handshake?.(payload, incoming, signers)
  if (answer !== undefined) return { kind: 'handshake', answer }
  return eventsOf(provider, incoming, payload, signedAtMs)
}

/**
 * Reads the stored bytes of an event that could not be read when it came: a whole request, or one item of a
 * batch. A header that was not kept may have been sent: a function that asks for it makes the event unreadable,
 * because its delivery would have had another name.
 */
export function readStored(
  provider: Provider,
  incoming: Incoming,
  { isItem, signedAtMs, repetition }: Omit<UnreadableEvent, 'rawBody' | 'error'>,
  keptHeaders: readonly string[],
): Reading {
  const { body: rawBody } = incoming
  const header: HeaderReader = (name) => {
    if (keptHeaders.includes(name)) return headerOf(incoming, name)
    throw new TypeError(
      `header ${name} was not kept with the event: have it delivered again, or give it to ingest with the header; to keep it from now on, add it to the kept headers`,
    )
  }
  try {
    if (!isItem) {
      return eventsOf(provider, incoming, decoded(provider, incoming), signedAtMs, header)
    }
    const item = { payload: parseJson(rawBody), rawBody, isItem }
    const read = eventOf(provider, incoming, item, signedAtMs, header)
    return { kind: 'verified', events: [repeated(read, repetition)], unreadable: [] }
  } catch (error) {
    return { kind: 'unreadable', rawBody, isItem, signedAtMs, repetition, error }
  }
}

function decoded(provider: Provider, incoming: Incoming): unknown {
  return provider.parse ? provider.parse(incoming) : parseJson(incoming.body)
}

/** Once it is signed, what cannot be read is kept for a person: the provider would send the same again. */
function eventsOf(
  provider: Provider,
  incoming: Incoming,
  payload: unknown,
  signedAtMs: number | undefined,
  header?: HeaderReader,
): Reading {
  const unreadable: UnreadableEvent[] = []
  const events: VerifiedEvent[] = []
  let items: readonly unknown[] | undefined
  try {
    items = returnedList('items', provider.items?.(payload))
  } catch (error) {
    return unreadableRequest(incoming.body, signedAtMs, error)
  }
  const isItem = items !== undefined
  // Of equal items without an id, each is an event: the same ones in each delivery of the batch.
  const seen = new Map<string, number>()
  const countOf = (rawBody: Buffer): number => {
    const hash = sha256(rawBody)
    const before = seen.get(hash) ?? 0
    seen.set(hash, before + 1)
    return before
  }
  for (const item of items ?? [payload]) {
    let rawBody = incoming.body
    try {
      if (isItem) rawBody = Buffer.from(JSON.stringify(item) ?? 'null')
      const event = { payload: item, rawBody, isItem }
      const read = eventOf(provider, incoming, event, signedAtMs, header)
      events.push(read.namedBy === 'provider' ? read : repeated(read, countOf(rawBody)))
    } catch (error) {
      if (!isItem) return unreadableRequest(rawBody, signedAtMs, error)
      unreadable.push({ rawBody, isItem, signedAtMs, repetition: countOf(rawBody), error })
    }
  }
  return { kind: 'verified', events, unreadable }
}

function unreadableRequest(
  rawBody: Buffer,
  signedAtMs: number | undefined,
  error: unknown,
): Reading {
  return { kind: 'unreadable', rawBody, isItem: false, signedAtMs, repetition: 0, error }
}

/** An event of a batch in which so many of the same name came before it. */
function repeated(event: VerifiedEvent, before: number): VerifiedEvent {
  const { eventId, namedBy } = event
  if (before === 0 || eventId === null || namedBy === 'provider') return event
  return { ...event, eventId: nameOfRead(eventId, before) }
}

/** One event of a decoded body, as the provider names it. @throws what its functions throw. */
export function eventOf(
  provider: Provider,
  incoming: Incoming,
  event: Pick<VerifiedEvent, 'payload' | 'rawBody' | 'isItem'>,
  signedAtMs?: number,
  header: HeaderReader = (name) => headerOf(incoming, name),
): VerifiedEvent {
  const { payload, rawBody } = event
  const id = idOf(returned('eventId', provider.eventId(payload, header)))
  const type = nameOf(returned('type', provider.type?.(payload, header)))
  const object = nameOf(returned('object', provider.object?.(payload, header)))
  const read = { ...event, type, object, isRedelivered: doesRedeliver(provider, payload) }
  if (id !== null) return { ...read, eventId: storableName(id), namedBy: 'provider' }
  if (provider.mergesUnnamed === false) return { ...read, eventId: null, namedBy: 'nothing' }
  const namedBy = signedAtMs === undefined ? 'bytes' : 'signed_bytes'
  return { ...read, eventId: nameOfBytes(rawBody, type, signedAtMs), namedBy }
}
