import { OptionInvalid } from '../errors.js'
import {
  checkSignature,
  headerOf,
  type Incoming,
  type Key,
  type Refusal,
  type Scheme,
} from './signature.js'

/** What a provider and this side share: text, or bytes. */
export type Secret = string | Uint8Array

/**
 * One secret, several while one is being changed, or a function that finds those of a tenant, or
 * nothing for a tenant that has none. `undefined` can be written, as in `process.env.SECRET`, and is
 * refused at start like an empty text.
 */
export type Secrets =
  | Secret
  | undefined
  | readonly (Secret | undefined)[]
  | ((tenantId: string) => FoundSecrets | Promise<FoundSecrets>)

type SomeSecrets = Exclude<Secrets, (...args: never[]) => unknown>
type FoundSecrets = Secret | readonly Secret[] | null | undefined

/** What a delivery is answered with. Objects are sent as JSON. */
export interface Answer {
  readonly status: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string | object
}

/**
 * What became of a delivery.
 *
 * - `processed`: the handler succeeded in this request. `duplicate`: it had succeeded before.
 * - `accepted`: the event is durable, and a worker runs it (`mode: 'deferred'`).
 * - `ignored`: nothing has to be done for it.
 * - `running`: another delivery of it is being processed. `postponed`: `defer()` put it back.
 * - `failed`: the handler failed, and will be run again. `dead`: it will not.
 */
export type DeliveryOutcome =
  | 'processed'
  | 'duplicate'
  | 'accepted'
  | 'ignored'
  | 'running'
  | 'postponed'
  | 'failed'
  | 'dead'

/** A header by its lower-case name. */
export type HeaderReader = (name: string) => string | undefined

/** How one provider sends events. The ones that are built in, and `hmac()`, make such an object. */
export interface Provider {
  /** Part of the inbox's unique key: `'stripe'`. */
  readonly name: string
  readonly secret: Secrets
  /** What the option with the secret is called, where it is not called `secret`: `'authToken'`. */
  readonly secretOption?: string
  readonly scheme: Scheme
  /** Headers that are kept with the event. Never one that carries a secret. */
  readonly keptHeaders: readonly string[]
  /** Headers that carry the secret itself, by lower-case name: nobody can have them kept. */
  readonly secretHeaders?: readonly string[]
  /** Decodes a verified body. Default: JSON. What it throws makes the event unreadable. */
  readonly parse?: (incoming: Incoming) => unknown
  /** Splits a batch into its items; `undefined` and by default, the body is one event. */
  readonly items?: (payload: unknown) => readonly unknown[] | undefined
  /** What the provider calls the event: the same in every delivery of it, never the object's id. */
  readonly eventId: (payload: unknown, header: HeaderReader) => unknown
  /** What kind of event it is. Left out by a provider that does not say so. */
  readonly type?: (payload: unknown, header: HeaderReader) => unknown
  /** What the event is about, for `serialize`. */
  readonly object?: (payload: unknown, header: HeaderReader) => unknown
  /**
   * Answers a verified request that is no event but a question whether anybody is here. `keys` are
   * those that it was signed with.
   */
  readonly handshake?: (
    payload: unknown,
    incoming: Incoming,
    keys: readonly Key[],
  ) => Answer | undefined | Promise<Answer | undefined>
  /** The same for a GET request, which no provider signs. */
  readonly greeting?: (
    query: URLSearchParams,
    tenantId: string,
  ) => Answer | undefined | Promise<Answer | undefined>
  /**
   * Whether the provider delivers an event again when the answer was no 2xx. Default `true`: inline,
   * it gets a minute for that before a failed event is run again from the inbox.
   */
  readonly redelivers?: boolean
  /** What this provider wants to hear, where it differs from everybody else. */
  readonly answers?: Readonly<Partial<Record<DeliveryOutcome, Answer>>>
}

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

/**
 * Checks a request as the route does, without Fastify: in a queue's consumer, in a test, or for an
 * event of the inbox, with its headers, its bytes and `{ at: event.receivedAt }`.
 *
 * @throws what looking up the secret throws. A wrong signature is a result.
 */
export async function verify(
  provider: Provider,
  headers: Incoming['headers'],
  body: Uint8Array | string,
  { at = Date.now(), tenantId = '', url = '/', method = 'POST' }: VerifyOptions = {},
): Promise<Verification> {
  const bytes =
    typeof body === 'string'
      ? Buffer.from(body)
      : Buffer.from(body.buffer, body.byteOffset, body.byteLength)
  const lower = Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]),
  )
  const incoming: Incoming = { method, url, headers: lower, body: bytes }
  return verifyIncoming(provider, await keysOf(provider, tenantId), incoming, Number(at))
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

const utf8 = new TextDecoder('utf-8', { fatal: true })

/** @throws for bytes that are no UTF-8, and for text that is no JSON. */
export function parseJson(body: Uint8Array): unknown {
  return JSON.parse(utf8.decode(body))
}

/** No provider sends that many; somebody who sends more wants them sorted. */
const MOST_FIELDS = 1_000

/**
 * A form as an object; a name that comes twice has a list.
 *
 * @throws for bytes that are no UTF-8, and for more than a thousand fields.
 */
export function parseForm(body: Uint8Array): Record<string, string | string[]> {
  const text = utf8.decode(body)
  if (text.split('&', MOST_FIELDS + 1).length > MOST_FIELDS) throw new RangeError('too many fields')
  const fields = new Map<string, string[]>()
  for (const [name, value] of new URLSearchParams(text)) {
    const values = fields.get(name)
    if (values === undefined) fields.set(name, [value])
    else values.push(value)
  }
  return Object.fromEntries(
    [...fields].map(([name, values]) => [
      name,
      values.length === 1 ? (values[0] as string) : values,
    ]),
  )
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

/** Text, or a number that is written as text; anything else names nothing. */
export function nameOf(value: unknown): string | null {
  if (typeof value === 'number' && Number.isSafeInteger(value)) return String(value)
  return typeof value === 'string' && value !== '' ? value : null
}

/** Names that only together name something; none if one of them is missing. */
export function nameOfAll(...values: readonly unknown[]): string | null {
  const names = values.map(nameOf)
  return names.includes(null) ? null : names.join(':')
}

/** Reads `a.b.c` of something that may be anything. */
export function at(value: unknown, path: string): unknown {
  let current = value
  for (const name of path.split('.')) {
    if (typeof current !== 'object' || current === null || !Object.hasOwn(current, name)) {
      return undefined
    }
    current = Reflect.get(current, name)
  }
  return current
}

/** Whose secrets: a provider, or whatever else of it is compared with something secret. */
export interface SecretOwner {
  readonly name: string
  readonly secret: Secrets
  readonly secretOption?: string
  readonly scheme: Pick<Scheme, 'algorithm' | 'toKey' | 'secretForm'>
}

/** The keys of a tenant, from secrets that do not change or from whoever knows them. */
export async function keysOf(owner: SecretOwner, tenantId: string): Promise<readonly Key[]> {
  const { secret } = owner
  if (typeof secret !== 'function') return preparedKeys(owner, secret)
  const found: unknown = await secret(tenantId)
  // An unknown tenant has no secret, and no signature matches none.
  if (found === undefined || found === null) return []
  return toKeys(owner, found as Secret)
}

/** Refuses secrets that cannot be used, as early as they are known. @throws OptionInvalid */
export function checkSecrets(owner: SecretOwner): void {
  if (typeof owner.secret !== 'function') preparedKeys(owner, owner.secret)
}

const prepared = new WeakMap<SecretOwner, readonly Key[]>()

function preparedKeys(owner: SecretOwner, secrets: SomeSecrets): readonly Key[] {
  const known = prepared.get(owner)
  if (known !== undefined) return known
  const keys = toKeys(owner, secrets)
  prepared.set(owner, keys)
  return keys
}

/** Turns secrets into keys. @throws OptionInvalid for one that is empty or no key. */
function toKeys(
  { name, scheme, secretOption = 'secret' }: SecretOwner,
  secrets: SomeSecrets,
): Key[] {
  const option = `option "${secretOption}" of ${name}`
  const form = scheme.secretForm ?? `in the form that ${name} gives it`
  const list = Array.isArray(secrets) ? (secrets as readonly Secret[]) : [secrets as Secret]
  if (list.length === 0) {
    throw new OptionInvalid(`${option} is an empty list; write one or several of them`)
  }
  return list.map((secret) => {
    const isText = typeof secret === 'string'
    if ((!isText && !(secret instanceof Uint8Array)) || secret.length === 0) {
      throw new OptionInvalid(
        `${option} is missing or empty; anybody could sign with that. Is an environment variable not set?`,
      )
    }
    if (!isText) {
      if (scheme.algorithm.kind !== 'public-key') return secret
      throw new OptionInvalid(`${option} must be text, ${form}`)
    }
    if (scheme.toKey === undefined) return Buffer.from(secret)
    let key: Key
    try {
      key = scheme.toKey(secret)
    } catch {
      // Without the cause: its message may quote the secret.
      throw new OptionInvalid(`${option} must be ${form}`)
    }
    if (key instanceof Uint8Array && key.byteLength === 0) {
      throw new OptionInvalid(`${option} holds an empty key`)
    }
    return key
  })
}

/** Checks a provider once, where it is made: secrets that do not change must be usable. */
export function defineProvider(provider: Provider): Provider {
  if (typeof provider.name !== 'string' || !/^[\w.-]{1,64}$/.test(provider.name)) {
    throw new OptionInvalid('option "name" of a provider must be 1 to 64 letters, digits, - and _')
  }
  const { toleranceMs } = provider.scheme
  if (toleranceMs !== undefined && !(Number.isFinite(toleranceMs) && toleranceMs > 0)) {
    throw new OptionInvalid(
      `option "tolerance" of ${provider.name} must be a duration such as '5m'`,
    )
  }
  const defined = { ...provider }
  checkSecrets(defined)
  return defined
}
