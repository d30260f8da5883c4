import {
  type Check,
  check,
  defined,
  isBoolean,
  isColumnText,
  isDuration,
  isFunction,
  isHeaderList,
  isInteger,
  isOneOf,
  isRateLimit,
  LONGEST_RETENTION_MS,
  notShorter,
  toMs,
} from './checks.js'
import { type Duration, parseDuration } from './core/duration.js'
import { ISOLATION_LEVELS } from './core/isolation.js'
import { isStorableText } from './core/text.js'
import { OptionInvalid } from './errors.js'
import { defaultHolder } from './holder.js'
import {
  ATOMIC_DEFAULTS,
  type AtomicOptions,
  type AtomicSettings,
  DEFAULTS,
  type PluginOptions,
  type PluginSettings,
  type RouteOptions,
  type RouteSettings,
} from './options.js'

const KEPT_HEADERS = ['content-type', 'location', 'link', 'retry-after']

const ROUTE_CHECKS: Record<keyof RouteOptions, Check> = {
  required: isBoolean,
  wait: isDuration(0, '5s'),
  lease: isDuration(1_000, '30s'),
  maxRun: isDuration(1_000, '15m'),
  retention: isDuration(1_000, '24h', LONGEST_RETENTION_MS),
  // Several such bodies may be under way, each as text of twice the size.
  maxBodyBytes: isInteger(0, 64 * 1024 * 1024),
  store: isBoolean,
  redact: isSynchronous,
  headers: isHeaderList,
  keepStatus: isFunction,
  fingerprint: isFunction,
  onLeaseExpired: isOneOf('rerun', 'uncertain'),
  onStoreError: isOneOf('fail', 'bypass'),
  principal: (value) =>
    value === false || typeof value === 'function'
      ? undefined
      : 'must be a function such as (request) => request.user?.id, or false',
  onUnknownCaller: isOneOf('reject', 'bypass'),
  atomic: isAtomic,
}

/** Nothing waits for a promise there: every response would be stored without its body. */
function isSynchronous(value: unknown): string | undefined {
  const isAsync = Object.prototype.toString.call(value) === '[object AsyncFunction]'
  return isAsync ? 'must not be async' : isFunction(value)
}

// Rows stay locked and a connection stays taken for as long as such a transaction takes.
const LONGEST_ATOMIC_MS = 60_000

function isAtomic(value: unknown): string | undefined {
  if (typeof value === 'boolean') return undefined
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    const { timeout, maxWait, isolationLevel, ...others } = value as AtomicOptions
    const isRight =
      [timeout, maxWait].every((one) => one === undefined || isAtomicDuration(one)) &&
      (isolationLevel === undefined ||
        ISOLATION_LEVELS.some((level) => level === isolationLevel)) &&
      Object.keys(others).length === 0
    if (isRight) return undefined
  }
  const levels = ISOLATION_LEVELS.map((level) => `'${level}'`).join(', ')
  return `must be true, false, or { timeout, maxWait, isolationLevel } such as { timeout: '5s' }: durations of 1 ms to 60 s, and one of ${levels}`
}

function isAtomicDuration(value: unknown): boolean {
  const ms = parseDuration(value)
  return ms !== undefined && ms >= 1 && ms <= LONGEST_ATOMIC_MS
}

/** By what cannot be one: others may stand in for a `pg.Pool`, and need nothing but its `connect`. */
function isPool(value: unknown): string | undefined {
  const given = Object(value)
  const advice =
    "write const pool = new pg.Pool({ … }), then { pool } here, and new PrismaPg(pool) for the client's adapter"
  if (typeof given.adapterName === 'string') {
    return `must be the pg.Pool of Prisma's adapter, not the adapter itself: ${advice}`
  }
  if ('processID' in given) {
    return `must be a pg.Pool, not a single pg.Client: ${advice}`
  }
  return typeof given.connect === 'function'
    ? undefined
    : `must be a pg.Pool, or be left out: ${advice}`
}

/** How often something is done; `false` for never. */
const isPause =
  (example: Duration): Check =>
  (value) =>
    value === false ? undefined : isDuration(1_000, example)(value)

const PLUGIN_CHECKS: Record<keyof PluginOptions, Check> = {
  ...ROUTE_CHECKS,
  prisma: (value) =>
    typeof value === 'object' && value !== null && '$queryRawUnsafe' in value
      ? undefined
      : "must be the application's PrismaClient: { prisma: new PrismaClient({ adapter }) }",
  pool: isPool,
  redis: (value) => {
    const clients: unknown[] = Array.isArray(value) ? value : [value]
    const areClients = clients.every((one) => typeof Object(one).defineCommand === 'function')
    return areClients && clients.length > 0
      ? undefined
      : 'must be an ioredis client, such as new Redis(process.env.REDIS_URL), several independent ones, or be left out'
  },
  redisPrefix: (value) =>
    isStorableText(value, 100)
      ? undefined
      : "must be text of 1 to 100 characters, such as 'shop:idempotency:'",
  locks: isOneOf('auto', 'redis', 'database', 'memory'),
  tenant: (value) =>
    value === false || typeof value === 'function'
      ? undefined
      : "must be a function such as (request) => request.user?.orgId, or false in an application with one tenant. It keeps one client's keys from another's",
  global: isBoolean,
  rateLimit: isRateLimit,
  failedSignatures: isRateLimit,
  dispatch: (value) =>
    ['start', 'enqueue', 'lookAgain', 'stop', 'close'].every(
      (name) => typeof Object(value)[name] === 'function',
    )
      ? undefined
      : 'must be inProcess({ … }), bullmq({ … }), or another object with start, enqueue, lookAgain, stop and close',
  worker: isBoolean,
  drain: isDuration(0, '10s'),
  storeTimeout: isDuration(1, '5s'),
  holder: isColumnText('payments-api-7f9c'),
  maxConnections: isInteger(2, 10_000),
  maxWaiters: isInteger(0),
  pruneEvery: isPause('10m'),
  recoverEvery: isPause('1m'),
  docs: (value) =>
    typeof value === 'string' && URL.canParse(value)
      ? undefined
      : "must be an absolute URL such as 'https://example.com/docs/errors'",
}

/** Checks everything that was given to `register`, and completes it. @throws OptionInvalid */
export function readPluginOptions(options: PluginOptions): PluginSettings {
  check('', PLUGIN_CHECKS, options, ['prisma', 'tenant'])
  const given = { ...DEFAULTS, ...defined(options) }
  const redis: readonly object[] =
    given.redis === undefined ? [] : Array.isArray(given.redis) ? given.redis : [given.redis]
  if (given.locks === 'redis' && redis.length === 0) {
    throw new OptionInvalid('option "locks" is \'redis\', which needs option "redis" as well')
  }
  return {
    tenant: given.tenant,
    isGlobal: given.global,
    rateLimit: given.rateLimit
      ? { max: given.rateLimit.max, timeWindowMs: toMs(given.rateLimit.timeWindow) }
      : undefined,
    failedSignatures: given.failedSignatures
      ? {
          max: given.failedSignatures.max,
          timeWindowMs: toMs(given.failedSignatures.timeWindow),
        }
      : undefined,
    redis,
    redisPrefix: given.redisPrefix,
    locks: given.locks,
    hasWorker: given.worker,
    drainMs: toMs(given.drain),
    storeTimeoutMs: toMs(given.storeTimeout),
    holder: given.holder ?? defaultHolder(),
    maxConnections: given.maxConnections,
    maxWaiters: given.maxWaiters,
    pruneEveryMs: given.pruneEvery === false ? undefined : toMs(given.pruneEvery),
    recoverEveryMs: given.recoverEvery === false ? undefined : toMs(given.recoverEvery),
    docs: given.docs,
    route: settingsOf('', given),
  }
}

/**
 * Checks what is said of a route, such as `config.idempotency`, and puts it over the plugin's options.
 * `where` is for people: ` of route POST /payments`. @throws OptionInvalid
 */
export function readRouteOptions(
  plugin: PluginOptions,
  where: string,
  options: RouteOptions,
): RouteSettings {
  if (typeof options !== 'object') {
    throw new OptionInvalid(
      `the options${where} must be an object, such as { required: true }, or true, or false`,
    )
  }
  check(where, ROUTE_CHECKS, options)
  refuseContradictions(where, options)
  return settingsOf(where, { ...DEFAULTS, ...defined(plugin), ...defined(options) })
}

/** What is said of one route must have an effect. What the plugin says of all of them gives way to it. */
function refuseContradictions(where: string, options: RouteOptions): void {
  const { store, redact } = options
  if (store === false && redact !== undefined) {
    throw new OptionInvalid(
      `option "redact"${where} has no effect beside store: false, which stores nothing of a response; remove one of them`,
    )
  }
}

function settingsOf(
  where: string,
  given: Required<Omit<RouteOptions, 'fingerprint' | 'redact'>> & RouteOptions,
): RouteSettings {
  const settings = {
    required: given.required,
    waitMs: toMs(given.wait),
    leaseMs: toMs(given.lease),
    maxRunMs: toMs(given.maxRun),
    retentionMs: toMs(given.retention),
    maxBodyBytes: given.maxBodyBytes,
    isStored: given.store,
    redact: given.redact,
    headers: [...KEPT_HEADERS, ...given.headers.map((name) => name.toLowerCase())],
    keepStatus: strict(given.keepStatus),
    fingerprint: given.fingerprint,
    onLeaseExpired: given.onLeaseExpired,
    onStoreError: given.onStoreError,
    principal: given.principal === false ? undefined : given.principal,
    onUnknownCaller: given.onUnknownCaller,
    atomic: atomicOf(given.atomic),
  }
  if (settings.atomic && settings.onStoreError === 'bypass') {
    throw new OptionInvalid(
      `option "atomic"${where} does not go with onStoreError: 'bypass': without the database there is nothing that its handler could write to. Give it onStoreError: 'fail'`,
    )
  }
  if (settings.maxRunMs < settings.leaseMs) {
    throw new OptionInvalid(
      notShorter(where, 'maxRun', settings.maxRunMs, '"lease"', settings.leaseMs),
    )
  }
  if (settings.retentionMs < settings.maxRunMs + settings.leaseMs) {
    const least = settings.maxRunMs + settings.leaseMs
    throw new OptionInvalid(
      `${notShorter(where, 'retention', settings.retentionMs, '"maxRun" and "lease" together', least)}: a key must be remembered while its first request may still run`,
    )
  }
  if (settings.atomic && settings.retentionMs < settings.atomic.timeoutMs) {
    const least = settings.atomic.timeoutMs
    throw new OptionInvalid(
      `${notShorter(where, 'retention', settings.retentionMs, 'the "timeout" of "atomic"', least)}: a key must be remembered while its first request may still run`,
    )
  }
  return settings
}

function atomicOf(given: boolean | AtomicOptions): AtomicSettings | undefined {
  if (given === false) return undefined
  const { timeout, maxWait, isolationLevel } = {
    ...ATOMIC_DEFAULTS,
    ...(given === true ? {} : defined(given)),
  } as AtomicOptions & typeof ATOMIC_DEFAULTS
  return { timeoutMs: toMs(timeout), maxWaitMs: toMs(maxWait), isolationLevel }
}

// A promise would be as good as true.
function strict(keepStatus: (statusCode: number) => unknown): (statusCode: number) => boolean {
  return (statusCode) => {
    const isKept = keepStatus(statusCode)
    if (typeof isKept === 'boolean') return isKept
    throw new TypeError('keepStatus must return true or false')
  }
}
