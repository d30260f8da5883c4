import {
  type Check,
  check,
  defined,
  isColumnText,
  isDuration,
  isFunction,
  isInteger,
  isOneOf,
  LONGEST_RETENTION_MS,
  notShorter,
  toMs,
} from '../checks.js'
import { isStorableText } from '../core/text.js'
import { OptionInvalid } from '../errors.js'
import { LONGEST_NAME } from './names.js'
import { type EndpointSettings, WEBHOOK_DEFAULTS, type WebhookOptions } from './options.js'
import {
  checkProvider,
  isAnswers,
  isBodyLimit,
  isKeptHeaders,
  isProvider,
  secretAmong,
} from './provider.js'

/** No longer than the column of an event's type. */
const isEventType = (value: unknown) => isStorableText(value, LONGEST_NAME)

const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

const { retry: DEFAULT_RETRY } = WEBHOOK_DEFAULTS

const isRetry: Check = (value) => {
  const { attempts, first, most, ...others } = Object(value)
  const isValid =
    isObject(value) &&
    Object.keys(others).length === 0 &&
    (attempts === undefined || isInteger(1, 1_000)(attempts) === undefined) &&
    (first === undefined || isDuration(1, '1s')(first) === undefined) &&
    (most === undefined || isDuration(1, '12h')(most) === undefined) &&
    toMs(first ?? DEFAULT_RETRY.first) <= toMs(most ?? DEFAULT_RETRY.most)
  return isValid
    ? undefined
    : 'must be { attempts, first, most }, with a "first" that is no longer than "most", such as { attempts: 20, first: \'1s\', most: \'12h\' }'
}

const CHECKS: Record<keyof WebhookOptions, Check> = {
  provider: isProvider,
  tenant: (value) =>
    isStorableText(value) || typeof value === 'function'
      ? undefined
      : 'must be a name of at most 255 characters, without NUL and without lone surrogates, or a function such as (request) => request.params.tenant',
  name: isColumnText('stripe', LONGEST_NAME),
  mode: isOneOf('inline', 'deferred'),
  types: (value) =>
    Array.isArray(value) && value.length > 0 && value.every(isEventType)
      ? undefined
      : "must be a list of event types, such as ['payment_intent.succeeded'], or be left out for all",
  serialize: (value) => (value === true ? undefined : isFunction(value)),
  lease: isDuration(1_000, '30s'),
  maxRun: isDuration(1_000, '15m'),
  retry: isRetry,
  deferrals: isInteger(0, 1_000_000),
  retention: isDuration(1_000, '30d', LONGEST_RETENTION_MS),
  headers: isKeptHeaders,
  bodyLimit: isBodyLimit,
  answers: isAnswers,
  clock: isFunction,
}

/** Checks the options of an endpoint and completes them. @throws OptionInvalid */
export function readWebhookOptions(url: string, options: WebhookOptions): EndpointSettings {
  const where = ` of webhook ${url}`
  if (typeof options !== 'object') {
    throw new OptionInvalid(
      `the options${where} must be an object such as { provider: stripe({ secret }) }, before the handler`,
    )
  }
  check(where, CHECKS, options, ['provider'])
  checkProvider(options.provider, ` of the provider${where}`)
  const given = { ...WEBHOOK_DEFAULTS, ...defined(options) }
  const retry = { ...WEBHOOK_DEFAULTS.retry, ...defined(given.retry) }
  const { provider, serialize } = given
  const settings: EndpointSettings = {
    mode: given.mode,
    types: given.types && new Set(given.types),
    serialize: serialize === true ? (event) => event.object : (serialize ?? (() => undefined)),
    isSerialized: serialize !== undefined,
    leaseMs: toMs(given.lease),
    maxRunMs: toMs(given.maxRun),
    retry: { attempts: retry.attempts, firstMs: toMs(retry.first), mostMs: toMs(retry.most) },
    deferrals: given.deferrals,
    retentionMs: toMs(given.retention),
    keptHeaders: [
      ...new Set(
        ['content-type', 'user-agent', ...provider.keptHeaders, ...given.headers].map((name) =>
          name.toLowerCase(),
        ),
      ),
    ],
    bodyLimit: options.bodyLimit ?? Math.max(given.bodyLimit, provider.bodyLimit ?? 0),
    answers: given.answers,
    clock: given.clock,
  }
  if (settings.maxRunMs < settings.leaseMs) {
    throw new OptionInvalid(
      notShorter(where, 'maxRun', settings.maxRunMs, '"lease"', settings.leaseMs),
    )
  }
  const secret = secretAmong(given.headers, provider.secretHeaders ?? [])
  if (secret !== undefined) throw new OptionInvalid(`option "headers"${where} ${secret}`)
  if (given.types !== undefined && provider.type === undefined) {
    throw new OptionInvalid(
      `option "types"${where} must be left out: ${provider.name} does not say what type an event has`,
    )
  }
  if (serialize === true && provider.object === undefined) {
    throw new OptionInvalid(
      `option "serialize"${where} must be a function: ${provider.name} does not say what an event is about`,
    )
  }
  return settings
}
