import { type Duration, parseDuration } from './core/duration.js'
import { editDistance } from './core/edit-distance.js'
import { isReplayable } from './core/replayable-header.js'
import { isStorableText } from './core/text.js'
import { OptionInvalid } from './errors.js'

// What options are checked with: each check says what is wrong with a value, if anything is.

const DAY_MS = 86_400_000
// A timer of Node's holds 24.8 days, and some durations are stretched by a quarter to spread them.
const LONGEST_TIMER_MS = 19 * DAY_MS
export const LONGEST_RETENTION_MS = 3_650 * DAY_MS

/** Says what is wrong with a value, if anything is. */
export type Check = (value: unknown) => string | undefined

export const isBoolean: Check = (value) =>
  typeof value === 'boolean' ? undefined : 'must be true or false'
export const isFunction: Check = (value) =>
  typeof value === 'function' ? undefined : 'must be a function'
/** Text that becomes a column, or a part of one. */
export const isColumnText =
  (example: string, maxLength = 255): Check =>
  (value) =>
    isStorableText(value, maxLength)
      ? undefined
      : `must be text of 1 to ${maxLength} characters, such as '${example}', without NUL and without lone surrogates`
export const isDuration =
  (least: number, example: Duration, most = LONGEST_TIMER_MS): Check =>
  (value) => {
    const ms = parseDuration(value)
    return ms !== undefined && ms >= least && ms <= most
      ? undefined
      : `must be a duration of at least ${least} ms, and at most ${most / DAY_MS} days: a number of milliseconds, or a string such as '${example}'; the units are ms, s, m (minutes, as in '5m'), h and d`
  }
export const isOneOf =
  (...allowed: readonly string[]): Check =>
  (value) =>
    allowed.includes(value as string)
      ? undefined
      : `must be ${allowed.map((a) => `'${a}'`).join(' or ')}`
/** What a column of whole numbers can hold. */
export const LARGEST_COLUMN_INTEGER = 2 ** 31 - 1
export const isInteger =
  (least: number, most = Number.MAX_SAFE_INTEGER): Check =>
  (value) =>
    Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most
      ? undefined
      : `must be a whole number from ${least} to ${most}`
export const isRateLimit: Check = (value) => {
  if (value === false) return undefined
  const { max, timeWindow, ...others } = Object(value)
  return isInteger(1)(max) === undefined &&
    isDuration(1, '1m')(timeWindow) === undefined &&
    Object.keys(others).length === 0
    ? undefined
    : "must be { max, timeWindow } such as { max: 100, timeWindow: '1m' }, or false"
}
const isHeaderName = (name: unknown) =>
  typeof name === 'string' && /^[\w!#$%&'*+.^`|~-]+$/.test(name)
export const isHeader: Check = (value) =>
  isHeaderName(value) ? undefined : "must name a header, such as 'x-signature'"
export const isHeaderList: Check = (value) => {
  if (!Array.isArray(value) || !value.every(isHeaderName)) {
    return "must be a list of header names, such as ['x-request-cost']"
  }
  const refused = value.find((name) => !isReplayable(name))
  return refused === undefined
    ? undefined
    : `must not contain '${refused}': it belongs to one client, or to one connection, and would be replayed to others`
}

/** What is said of a duration that another one does not go with, which may be a default. */
export function notShorter(
  where: string,
  name: string,
  ms: number,
  other: string,
  least: number,
): string {
  return `option "${name}"${where} must not be shorter than ${other}: it is ${ms} ms, and must be at least ${least} ms`
}

/** Checks an object of options, with all that may be in it. @throws OptionInvalid */
export function check(
  where: string,
  checks: Record<string, Check>,
  options: object,
  required: readonly string[] = [],
): void {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new OptionInvalid(`the options${where} must be an object`)
  }
  for (const name of Object.keys(options)) {
    if (Object.hasOwn(checks, name)) continue
    const known = Object.keys(checks)
    const meant = meantBy(name, known)
    const advice = meant === undefined ? 'the' : `did you mean "${meant}"? The`
    throw new OptionInvalid(
      `option "${name}"${where} is not known; ${advice} options are ${known.join(', ')}`,
    )
  }
  for (const [name, problemWith] of Object.entries(checks)) {
    const value: unknown = Reflect.get(options, name)
    if (value === undefined && !required.includes(name)) continue
    const problem = problemWith(value)
    if (problem !== undefined) throw new OptionInvalid(`option "${name}"${where} ${problem}`)
  }
}

/** The known name that a misspelled one is close to; none where several are equally close. */
function meantBy(name: string, known: readonly string[]): string | undefined {
  // A word of three letters that differs in two is another word.
  const most = Math.min(2, Math.floor(name.length / 3))
  const close = known
    .filter(({ length }) => Math.abs(length - name.length) <= most)
    .map((one) => ({ one, distance: editDistance(name.toLowerCase(), one.toLowerCase()) }))
    .filter(({ distance }) => distance <= most)
    .sort((a, b) => a.distance - b.distance)
  const [first, second] = close
  return first?.distance === second?.distance ? undefined : first?.one
}

export function defined<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T
}

export function toMs(duration: Duration): number {
  return parseDuration(duration) as number
}
