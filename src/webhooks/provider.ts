import { validateHeaderName, validateHeaderValue } from 'node:http'
import {
  type Check,
  check,
  isBoolean,
  isColumnText,
  isFunction,
  isHeaderList,
  isInteger,
} from '../checks.js'
import { OptionInvalid } from '../errors.js'
import { returned } from './payload.js'
import { checkSecrets, type Secrets } from './secrets.js'
import type { Incoming, Key, Scheme } from './signature.js'

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
  /**
   * What the provider calls the event: the same in every delivery of it, never the object's id. `null` where it
   * gives none: then the event is named after its bytes and, where one is signed, its time.
   */
  readonly eventId: (payload: unknown, header: HeaderReader) => unknown
  /**
   * Whether deliveries of the same bytes are one event, where `eventId` returns nothing. Default `true`. `false`
   * for notifications that say the same of two changes: then no two deliveries are the same event.
   */
  readonly mergesUnnamed?: boolean
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
  /**
   * Answers a validation request that the provider does not sign. Called before the signature is
   * verified; nothing of the request is stored.
   */
  readonly unsigned?: (incoming: Incoming) => Answer | undefined
  /** The same for a GET request, which no provider signs. */
  readonly greeting?: (
    query: URLSearchParams,
    tenantId: string,
  ) => Answer | undefined | Promise<Answer | undefined>
  /**
   * Whether the provider delivers an event again when the answer was no 2xx, or a function where it depends on
   * the event. Default `true`: inline, it gets a minute for that before a failed event is run again from the inbox.
   */
  readonly redelivers?: boolean | ((payload: unknown) => boolean)
  /** The largest body that the provider sends, in bytes, where that is more than 1 MiB. */
  readonly bodyLimit?: number
  /** What a 401 says in `www-authenticate`, where the provider authenticates as HTTP has it: `'Basic realm="…"'`. */
  readonly challenge?: string
  /** What this provider wants to hear, where it differs from everybody else. */
  readonly answers?: Readonly<Partial<Record<DeliveryOutcome, Answer>>>
}

/**
 * Whether this event is delivered again.
 *
 * @throws what the provider's function throws, and TypeError when it returns something else than a boolean.
 */
export function doesRedeliver({ redelivers = true }: Provider, payload: unknown): boolean {
  if (typeof redelivers === 'boolean') return redelivers
  const value = returned('redelivers', redelivers(payload))
  if (typeof value === 'boolean') return value
  throw new TypeError(
    `redelivers returned a value of type ${typeof value}; it must return a boolean`,
  )
}

/** A part of the unique key, of logs and of metrics. */
export function isProviderName(value: unknown): value is string {
  return typeof value === 'string' && /^[\w-]{1,64}$/.test(value)
}

export const isName: Check = (value) =>
  isProviderName(value) ? undefined : "must be 1 to 64 letters, digits, - and _, such as 'my-bank'"

export const isRedelivers: Check = (value) =>
  typeof value === 'function' || isBoolean(value) === undefined
    ? undefined
    : 'must be true or false, or a function of the payload that returns one of them'

const OUTCOMES: readonly DeliveryOutcome[] = [
  'processed',
  'duplicate',
  'accepted',
  'ignored',
  'running',
  'postponed',
  'failed',
  'dead',
]

const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** What says how long a message is, or how it is sent. */
const FRAMING: ReadonlySet<string> = new Set([
  ...['connection', 'content-length', 'keep-alive', 'trailer', 'transfer-encoding', 'upgrade'],
])

const SENDABLE =
  "must be text by header name that HTTP allows, such as { 'content-type': 'text/xml' }"

const isSendableHeaders: Check = (value) => {
  try {
    for (const [name, text] of Object.entries(value as object)) {
      if (typeof text !== 'string') return SENDABLE
      validateHeaderName(name)
      validateHeaderValue(name, text)
      if (FRAMING.has(name.toLowerCase())) return `must not contain '${name}': Node writes it`
    }
    if (isObject(value) && isData(value)) return undefined
  } catch {
    // Said below, without the value.
  }
  return SENDABLE
}

export const ANSWER_CHECKS: Record<keyof Answer, Check> = {
  status: isInteger(200, 599),
  headers: isSendableHeaders,
  body: (value) =>
    textOf(value) === undefined
      ? 'must be text, or plain data that can be written as JSON, without cycles and without BigInt'
      : undefined,
}

/** The text of a body that is sent; `undefined` for what cannot be one. */
function textOf(body: unknown): string | undefined {
  if (typeof body === 'string') return body
  if (typeof body !== 'object' || body === null || body instanceof Uint8Array) return undefined
  try {
    return isData(body) ? JSON.stringify(body) : undefined
  } catch {
    // Without the cause: it may be anything that a `toJSON` throws.
    return undefined
  }
}

/** JSON would make nothing of a promise, a stream, a Map or a Response. */
function isData(body: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(body)
  return (
    Array.isArray(body) ||
    prototype === null ||
    Object.getPrototypeOf(prototype) === null ||
    typeof Reflect.get(body, 'toJSON') === 'function'
  )
}

/** An answer as it is when it is given: what is done to its objects afterwards changes nothing. */
export function writtenAnswer({ status, headers = {}, body }: Answer): Answer {
  if (body === undefined) return { status, headers: { ...headers } }
  const isTyped = Object.keys(headers).some((name) => name.toLowerCase() === 'content-type')
  const type = typeof body === 'string' || isTyped ? {} : { 'content-type': JSON_TYPE }
  return { status, headers: { ...type, ...headers }, body: textOf(body) ?? '' }
}

const JSON_TYPE = 'application/json; charset=utf-8'

const isAnswer = (answer: unknown): boolean =>
  isObject(answer) &&
  Object.keys(answer).every((name) => Object.hasOwn(ANSWER_CHECKS, name)) &&
  Object.entries(ANSWER_CHECKS).every(([name, problemWith]) => {
    const value: unknown = Reflect.get(answer, name)
    return (value === undefined && name !== 'status') || problemWith(value) === undefined
  })

export const isAnswers: Check = (value) => {
  const isValid =
    isObject(value) &&
    Object.entries(value).every(
      ([outcome, answer]) => OUTCOMES.includes(outcome as DeliveryOutcome) && isAnswer(answer),
    )
  return isValid
    ? undefined
    : `must give { status, headers, body } by outcome, such as { dead: { status: 406 } }; the outcomes are ${OUTCOMES.join(', ')}`
}

/** Headers with credentials: stored, everyone who can read the table would have them. */
const SECRET_HEADERS = [
  ...['authorization', 'proxy-authorization', 'cookie'],
  ...['x-gitlab-token', 'verif-hash'],
]

export const isKeptHeaders: Check = (value) =>
  isHeaderList(value) ?? secretAmong(value as string[], SECRET_HEADERS)

export function secretAmong(
  names: readonly string[],
  secrets: readonly string[],
): string | undefined {
  const secret = names.find((name) => secrets.includes(name.toLowerCase()))
  return secret && `must not contain '${secret}': it would be stored with every event`
}

export const isProvider: Check = (value) =>
  isObject(value) && isObject(Reflect.get(value, 'scheme'))
    ? undefined
    : "must be a provider such as stripe({ secret }) or hmac({ … }) of 'fastify-idempotency/webhooks'"

export const isBodyLimit = isInteger(1, 64 * 1024 * 1024)

const CHECKS: Record<keyof Provider, Check> = {
  name: isName,
  secret: () => undefined,
  secretOption: isColumnText('authToken'),
  scheme: (value) =>
    typeof Object(value).read === 'function' && isObject(Object(value).algorithm)
      ? undefined
      : 'must be { algorithm, read, … }, as that of a provider that is built in',
  keptHeaders: isKeptHeaders,
  secretHeaders: isHeaderList,
  parse: isFunction,
  items: isFunction,
  eventId: isFunction,
  mergesUnnamed: isBoolean,
  type: isFunction,
  object: isFunction,
  handshake: isFunction,
  unsigned: isFunction,
  greeting: isFunction,
  redelivers: isRedelivers,
  bodyLimit: isBodyLimit,
  challenge: isColumnText('Basic realm="webhooks"'),
  answers: isAnswers,
}

function whereOf({ name }: Provider): string {
  return isProviderName(name) ? ` of ${name}` : ' of a provider'
}

/** Checks a provider, which may be a copy of one with changes. @throws OptionInvalid */
export function checkProvider(provider: Provider, where = whereOf(provider)): void {
  check(where, CHECKS, provider, ['name', 'scheme', 'keptHeaders', 'eventId'])
  const { toleranceMs } = provider.scheme
  if (toleranceMs !== undefined && !(Number.isFinite(toleranceMs) && toleranceMs > 0)) {
    throw new OptionInvalid(`"toleranceMs" in option "scheme"${where} must be milliseconds above 0`)
  }
}

/** Checks a provider once, where it is made: secrets that do not change must be usable. */
export function defineProvider(provider: Provider): Provider {
  const defined = { ...provider }
  checkProvider(defined)
  checkSecrets(defined)
  return defined
}
