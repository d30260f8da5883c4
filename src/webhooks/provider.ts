import { OptionInvalid } from '../errors.js'
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

/** A part of the unique key, of logs and of metrics. */
export function isProviderName(value: unknown): value is string {
  return typeof value === 'string' && /^[\w.-]{1,64}$/.test(value)
}

/** Checks a provider once, where it is made: secrets that do not change must be usable. */
export function defineProvider(provider: Provider): Provider {
  if (!isProviderName(provider.name)) {
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
