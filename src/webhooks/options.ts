import type { FastifyRequest } from 'fastify'
import type { Duration } from '../core/duration.js'
import type { TenantId } from '../options.js'
import type { Answer, DeliveryOutcome, Provider } from './provider.js'

/** What is known of an event before it is run. */
export interface EventFacts {
  readonly provider: string
  readonly eventId: string | null
  readonly type: string | null
  /** What the event is about, where the provider says so. */
  readonly object: string | null
  // biome-ignore lint/suspicious/noExplicitAny: what a provider sends has no type here
  readonly payload: any
}

/** A request before its body is read: its parameters, headers and address. */
export type WebhookRequest = FastifyRequest<{
  Params: Record<string, string>
  Querystring: Record<string, string>
}>

/** Options of `app.webhook`. */
export interface WebhookOptions {
  /** Who posts here, with the secret: `stripe({ secret })`, or `hmac({ … })` for anybody else. */
  provider: Provider
  /**
   * Whose events arrive here: a name, or a function of the request, called before its body is read,
   * so that it cannot depend on it. Needed unless the plugin has `tenant: false`.
   */
  tenant?: string | ((request: WebhookRequest) => TenantId | Promise<TenantId>)
  /**
   * Names the endpoint in the inbox. Default: the route's URL. Events that wait belong to it, so
   * keep it when the URL changes.
   */
  name?: string
  /**
   * `'inline'` (default) runs the handler in the request, and answers 2xx only when it succeeded.
   * `'deferred'` answers 2xx as soon as the event is durable; a worker runs the handler.
   */
  mode?: 'inline' | 'deferred'
  /**
   * The event types that are handled. Others are recorded as `ignored`; an event without a type is
   * handled. Default: all.
   */
  types?: readonly string[]
  /**
   * Events for which this returns the same are run one at a time: `(event) => event.payload.order`.
   * `true` takes what the provider says the event is about; nothing serializes nothing.
   */
  serialize?: true | ((event: EventFacts) => string | number | null | undefined)
  /**
   * How long nobody may take a run over after its process was last heard of. Renewed while the
   * handler runs. Default `'30s'`, at least `'1s'`.
   */
  lease?: Duration
  /**
   * How long a lease is renewed for one run; then its `signal` is aborted. Once the lease has expired, the
   * event may be run again, and a handler that has not returned no longer counts towards `concurrency`.
   * Default `'15m'`.
   */
  maxRun?: Duration
  /**
   * How an event whose handler failed is run again: after a pause that doubles from `first` up to
   * `most`, drawn from all of that (full jitter), until there were `attempts` of them; then it is
   * `dead`. Default `{ attempts: 20, first: '1s', most: '12h' }`, a day on average. A
   * delivery of the event does not wait for the pause.
   */
  retry?: { attempts?: number; first?: Duration; most?: Duration }
  /** How often `defer()` may put an event back before it is `dead`. Default 50. */
  deferrals?: number
  /**
   * How long a processed or ignored event is remembered, and so a duplicate of it recognized.
   * Default `'30d'`: as long as providers let people send one again by hand.
   */
  retention?: Duration
  /** Request headers that are kept besides those that the provider needs. None with a secret. */
  headers?: readonly string[]
  /**
   * The largest body, in bytes; a larger one is answered 413 and told as `webhook_too_large`. Default:
   * what the provider sends at most, at least 1 MiB.
   */
  bodyLimit?: number
  /** What to answer for an outcome, over what the provider wants to hear. */
  answers?: Partial<Record<DeliveryOutcome, Answer>>
  /** The clock that signed times are compared with, in milliseconds. Default `Date.now`. */
  clock?: () => number
}

/** Options of one endpoint, checked, complete, and in milliseconds. */
export interface EndpointSettings {
  readonly mode: 'inline' | 'deferred'
  readonly types: ReadonlySet<string> | undefined
  readonly serialize: (event: EventFacts) => unknown
  readonly isSerialized: boolean
  readonly leaseMs: number
  readonly maxRunMs: number
  readonly retry: { readonly attempts: number; readonly firstMs: number; readonly mostMs: number }
  readonly deferrals: number
  readonly retentionMs: number
  /** Names of all headers that are kept. */
  readonly keptHeaders: readonly string[]
  readonly bodyLimit: number
  readonly answers: Readonly<Partial<Record<DeliveryOutcome, Answer>>>
  readonly clock: () => number
}

export const WEBHOOK_DEFAULTS = {
  mode: 'inline',
  lease: '30s',
  maxRun: '15m',
  retry: { attempts: 20, first: '1s', most: '12h' },
  deferrals: 50,
  retention: '30d',
  headers: [],
  bodyLimit: 1024 * 1024,
  answers: {},
  clock: Date.now,
} as const satisfies Partial<WebhookOptions>
