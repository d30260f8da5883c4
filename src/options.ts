import type { FastifyRequest } from 'fastify'
import type { OnLeaseExpired } from './core/decide.js'
import { type Duration, parseDuration } from './core/duration.js'
import { OptionInvalid } from './errors.js'
import type { PrismaClientLike } from './store/client.js'
import type { PoolLike } from './store/postgres.js'

/** What can be set for all routes at registration, and for one in `config.idempotency`. */
export interface RouteOptions {
  /** Answer 400 when the header is missing. Default `false`: such a request runs unprotected. */
  required?: boolean
  /**
   * How long a duplicate waits for the first request before it gets 409. Default `0`: not at all.
   * A waiting request holds its connection to the client and nothing else.
   */
  wait?: Duration
  /**
   * How long nobody may take an operation over after its process was last heard of. Renewed while
   * the handler runs; after a crash, the key is free again after at most this time. Default `'30s'`,
   * at least `'1s'`.
   */
  lease?: Duration
  /**
   * How long a lease is renewed for one attempt. A handler that has not answered by then keeps
   * running, but its `signal` is aborted and another attempt may start. Default `'15m'`.
   */
  maxRun?: Duration
  /** How long a key is remembered, counted from its first request. Default `'24h'`. */
  retention?: Duration
  /**
   * The largest response body that is kept, in bytes. A larger one reaches the client, but a retry
   * gets 409 `IDEMPOTENCY_NOT_REPLAYABLE` and the handler does not run again. Default 1 MiB.
   */
  maxBodyBytes?: number
  /**
   * Response headers that are kept besides `content-type`, `location`, `link` and `retry-after`.
   * `set-cookie` is refused: a cookie belongs to the one who got it.
   */
  headers?: readonly string[]
  /**
   * Whether a response with this status is the operation's answer. Any other releases the key, and
   * a retry runs the handler again. Default: below 500, except 408, 425 and 429.
   */
  keepStatus?: (statusCode: number) => boolean
  /**
   * What must stay the same when a key is used again, in place of method, route, parameters, query
   * and body. Called before validation; the result is hashed as JSON. Needed for bodies that
   * Fastify does not parse, such as multipart uploads.
   */
  fingerprint?: (request: FastifyRequest) => unknown
  /**
   * What a retry does when the process that ran the operation died: `'rerun'` (default) starts
   * another attempt; `'uncertain'` answers 409 `IDEMPOTENCY_UNCERTAIN` until the key expires.
   */
  onLeaseExpired?: OnLeaseExpired
  /**
   * What happens when the store does not answer: `'fail'` (default) answers 503 and runs nothing;
   * `'bypass'` runs the handler without protection.
   */
  onStoreError?: 'fail' | 'bypass'
}

/** A tenant's name, or nothing when the request belongs to no tenant. */
export type TenantId = string | number | bigint | null | undefined

/** Options of the plugin. */
export interface PluginOptions extends RouteOptions {
  /** The application's own client, with the library's models in its schema. */
  prisma: PrismaClientLike
  /** The `pg.Pool` under the client's adapter, on PostgreSQL: statements then take the fast path. */
  pool?: PoolLike
  /** The application's ioredis client: counts new keys for all processes together. */
  redis?: object
  /**
   * Whose keys a request uses: part of every look-up. Called after authentication, never with
   * anything but the request. `false` for an application with one tenant.
   */
  tenant: ((request: FastifyRequest) => TenantId | Promise<TenantId>) | false
  /** Protect every POST and PATCH that carries the header. Default `true`. */
  global?: boolean
  /** How many new keys a tenant may use in a time; retries do not count. Default: no limit. */
  rateLimit?: { max: number; timeWindow: Duration } | false
  /** How long the store may take to answer. Default `'5s'`. */
  storeTimeout?: Duration
  /** How often a listening process deletes expired records; `false` leaves it to you. Default `'10m'`. */
  pruneEvery?: Duration | false
  /** Where `type` in error answers points to; the code is added as the fragment. */
  docs?: string
}

/** Options of one route, checked, complete, and in milliseconds. */
export interface RouteSettings {
  readonly required: boolean
  readonly waitMs: number
  readonly leaseMs: number
  readonly maxRunMs: number
  readonly retentionMs: number
  readonly maxBodyBytes: number
  readonly headers: readonly string[]
  readonly keepStatus: (statusCode: number) => boolean
  readonly fingerprint: ((request: FastifyRequest) => unknown) | undefined
  readonly onLeaseExpired: OnLeaseExpired
  readonly onStoreError: 'fail' | 'bypass'
}

/** Options of the plugin, checked, complete, and in milliseconds. */
export interface PluginSettings {
  readonly tenant: Exclude<PluginOptions['tenant'], false> | false
  readonly isGlobal: boolean
  readonly rateLimit: { readonly max: number; readonly timeWindowMs: number } | undefined
  readonly storeTimeoutMs: number
  readonly pruneEveryMs: number | undefined
  readonly docs: string
  readonly route: RouteSettings
}

export const DEFAULTS = {
  required: false,
  wait: 0,
  // Long enough for a pause of the runtime or a slow write, short enough to wait for after a crash.
  lease: '30s',
  maxRun: '15m',
  // What the large payment APIs remember.
  retention: '24h',
  maxBodyBytes: 1024 * 1024,
  headers: [],
  keepStatus: isAnswer,
  onLeaseExpired: 'rerun',
  onStoreError: 'fail',
  global: true,
  storeTimeout: '5s',
  pruneEvery: '10m',
  docs: 'https://github.com/fastify-idempotency/fastify-idempotency/blob/main/docs/errors.md',
} as const satisfies Partial<PluginOptions>

const KEPT_HEADERS = ['content-type', 'location', 'link', 'retry-after']

/** The default of `keepStatus`: what a client did wrong stays wrong, a failure of ours may pass. */
export function isAnswer(statusCode: number): boolean {
  return statusCode < 500 && statusCode !== 408 && statusCode !== 425 && statusCode !== 429
}

const DAY_MS = 86_400_000
// A timer of Node's holds 24.8 days, and some durations are stretched by a quarter to spread them.
const LONGEST_TIMER_MS = 19 * DAY_MS
const LONGEST_RETENTION_MS = 3_650 * DAY_MS

/** Says what is wrong with a value, if anything is. */
type Check = (value: unknown) => string | undefined

const isBoolean: Check = (value) =>
  typeof value === 'boolean' ? undefined : 'must be true or false'
const isFunction: Check = (value) =>
  typeof value === 'function' ? undefined : 'must be a function'
const isDuration =
  (least: number, example: Duration, most = LONGEST_TIMER_MS): Check =>
  (value) => {
    const ms = parseDuration(value)
    return ms !== undefined && ms >= least && ms <= most
      ? undefined
      : `must be a duration of at least ${least} ms, and at most ${most / DAY_MS} days: a number of milliseconds, or a string such as '${example}'`
  }
const isOneOf =
  (...allowed: readonly string[]): Check =>
  (value) =>
    allowed.includes(value as string)
      ? undefined
      : `must be ${allowed.map((a) => `'${a}'`).join(' or ')}`
const isInteger =
  (least: number): Check =>
  (value) =>
    Number.isSafeInteger(value) && (value as number) >= least
      ? undefined
      : `must be a whole number from ${least} on`
const isHeaderName = (name: unknown) =>
  typeof name === 'string' && /^[\w!#$%&'*+.^`|~-]+$/.test(name)
const isHeaderList: Check = (value) => {
  if (!Array.isArray(value) || !value.every(isHeaderName)) {
    return "must be a list of header names, such as ['x-request-cost']"
  }
  return value.some((name) => name.toLowerCase() === 'set-cookie')
    ? "must not contain 'set-cookie': a cookie would be replayed to whoever retries"
    : undefined
}

const ROUTE_CHECKS: Record<keyof RouteOptions, Check> = {
  required: isBoolean,
  wait: isDuration(0, '5s'),
  lease: isDuration(1_000, '30s'),
  maxRun: isDuration(1_000, '15m'),
  retention: isDuration(1_000, '24h', LONGEST_RETENTION_MS),
  maxBodyBytes: isInteger(0),
  headers: isHeaderList,
  keepStatus: isFunction,
  fingerprint: isFunction,
  onLeaseExpired: isOneOf('rerun', 'uncertain'),
  onStoreError: isOneOf('fail', 'bypass'),
}

const PLUGIN_CHECKS: Record<keyof PluginOptions, Check> = {
  ...ROUTE_CHECKS,
  prisma: (value) =>
    typeof value === 'object' && value !== null && '$queryRawUnsafe' in value
      ? undefined
      : "must be the application's PrismaClient: { prisma: new PrismaClient({ adapter }) }",
  pool: (value) =>
    typeof Object(value).query === 'function' ? undefined : 'must be a pg.Pool, or be left out',
  redis: (value) =>
    typeof Object(value).defineCommand === 'function'
      ? undefined
      : 'must be an ioredis client, or be left out',
  tenant: (value) =>
    value === false || typeof value === 'function'
      ? undefined
      : "must be a function such as (request) => request.user.orgId, or false in an application with one tenant. It keeps one client's keys from another's",
  global: isBoolean,
  rateLimit: (value) => {
    if (value === false) return undefined
    const { max, timeWindow, ...others } = Object(value)
    return isInteger(1)(max) === undefined &&
      isDuration(1, '1m')(timeWindow) === undefined &&
      Object.keys(others).length === 0
      ? undefined
      : "must be { max, timeWindow } such as { max: 100, timeWindow: '1m' }, or false"
  },
  storeTimeout: isDuration(1, '5s'),
  pruneEvery: (value) => (value === false ? undefined : isDuration(1_000, '10m')(value)),
  docs: (value) =>
    typeof value === 'string' && URL.canParse(value)
      ? undefined
      : "must be an absolute URL such as 'https://example.com/docs/errors'",
}

/** Checks everything that was given to `register`, and completes it. @throws OptionInvalid */
export function readPluginOptions(options: PluginOptions): PluginSettings {
  check('', PLUGIN_CHECKS, options)
  const given = { ...DEFAULTS, ...defined(options) }
  return {
    tenant: given.tenant,
    isGlobal: given.global,
    rateLimit: given.rateLimit
      ? { max: given.rateLimit.max, timeWindowMs: toMs(given.rateLimit.timeWindow) }
      : undefined,
    storeTimeoutMs: toMs(given.storeTimeout),
    pruneEveryMs: given.pruneEvery === false ? undefined : toMs(given.pruneEvery),
    docs: given.docs,
    route: settingsOf('', given),
  }
}

/** Checks `config.idempotency` of a route and puts it over the plugin's. @throws OptionInvalid */
export function readRouteOptions(
  plugin: PluginOptions,
  route: string,
  options: RouteOptions,
): RouteSettings {
  const where = ` of route ${route}`
  check(where, ROUTE_CHECKS, options)
  return settingsOf(where, { ...DEFAULTS, ...defined(plugin), ...defined(options) })
}

function settingsOf(
  where: string,
  given: Required<Omit<RouteOptions, 'fingerprint'>> & RouteOptions,
): RouteSettings {
  const settings = {
    required: given.required,
    waitMs: toMs(given.wait),
    leaseMs: toMs(given.lease),
    maxRunMs: toMs(given.maxRun),
    retentionMs: toMs(given.retention),
    maxBodyBytes: given.maxBodyBytes,
    headers: [...KEPT_HEADERS, ...given.headers.map((name) => name.toLowerCase())],
    keepStatus: given.keepStatus,
    fingerprint: given.fingerprint,
    onLeaseExpired: given.onLeaseExpired,
    onStoreError: given.onStoreError,
  }
  if (settings.maxRunMs < settings.leaseMs) {
    throw new OptionInvalid(`option "maxRun"${where} must not be shorter than "lease"`)
  }
  // The fence starts again when a key is forgotten. No attempt may outlive that.
  if (settings.retentionMs < settings.maxRunMs + settings.leaseMs) {
    throw new OptionInvalid(
      `option "retention"${where} must not be shorter than "maxRun" and "lease" together: a key must be remembered while its first request may still run`,
    )
  }
  return settings
}

const REQUIRED = ['prisma', 'tenant']

function check(where: string, checks: Record<string, Check>, options: object): void {
  if (typeof options !== 'object' || options === null) {
    throw new OptionInvalid(`the options${where} must be an object`)
  }
  for (const name of Object.keys(options)) {
    if (Object.hasOwn(checks, name)) continue
    const known = Object.keys(checks).join(', ')
    throw new OptionInvalid(`option "${name}"${where} is not known; the options are ${known}`)
  }
  for (const [name, problemWith] of Object.entries(checks)) {
    const value: unknown = Reflect.get(options, name)
    if (value === undefined && !REQUIRED.includes(name)) continue
    const problem = problemWith(value)
    if (problem !== undefined) throw new OptionInvalid(`option "${name}"${where} ${problem}`)
  }
}

function defined<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T
}

function toMs(duration: Duration): number {
  return parseDuration(duration) as number
}
