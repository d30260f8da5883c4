import { type Duration, parseDuration } from './core/duration.js'
import { OptionInvalid } from './errors.js'
import {
  DEFAULTS,
  type PluginOptions,
  type PluginSettings,
  type RouteOptions,
  type RouteSettings,
} from './options.js'

const KEPT_HEADERS = ['content-type', 'location', 'link', 'retry-after']

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
  (least: number, most = Number.MAX_SAFE_INTEGER): Check =>
  (value) =>
    Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most
      ? undefined
      : `must be a whole number from ${least} to ${most}`
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
  // Several such bodies may be under way, each as text of twice the size.
  maxBodyBytes: isInteger(0, 64 * 1024 * 1024),
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
    keepStatus: strict(given.keepStatus),
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

// A promise would be as good as true.
function strict(keepStatus: (statusCode: number) => unknown): (statusCode: number) => boolean {
  return (statusCode) => {
    const isKept = keepStatus(statusCode)
    if (typeof isKept === 'boolean') return isKept
    throw new TypeError('keepStatus must return true or false')
  }
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
