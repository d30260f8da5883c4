// Reading what somebody has sent: it may be anything.
import { types } from 'node:util'

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

/**
 * What a function of a provider's returned, which must not be a promise.
 *
 * @throws TypeError for one. The library does not wait for it, and ignores its rejection.
 */
export function returned(what: string, value: unknown): unknown {
  if (isAwaitable(value)) throw new TypeError(`${what} returned a promise; it must return at once`)
  return value
}

/**
 * The same of a list, or of nothing.
 *
 * @throws TypeError for a promise, for a list with promises in it, and for what is no list.
 */
export function returnedList(what: string, value: unknown): readonly unknown[] | undefined {
  const list = returned(what, value) ?? undefined
  if (list === undefined) return undefined
  if (!Array.isArray(list)) throw new TypeError(`${what} returned no list`)
  // All of them are looked at: each may reject.
  const awaitable = list.filter(isAwaitable)
  if (awaitable.length === 0) return list
  throw new TypeError(`${what} returned a list of promises; it must return its items at once`)
}

/** Whether `await` would wait for it. The rejection of a promise is ignored from now on. */
function isAwaitable(value: unknown): boolean {
  if (types.isPromise(value)) {
    // Its own `then` and `catch` may be anything.
    Promise.prototype.then.call(value, undefined, () => {})
    return true
  }
  const isObject = typeof value === 'object' || typeof value === 'function'
  return isObject && value !== null && typeof Reflect.get(value, 'then') === 'function'
}

/** Text, or a number that is written as text; anything else names nothing. */
export function nameOf(value: unknown): string | null {
  if (typeof value === 'number' && Number.isSafeInteger(value)) return String(value)
  return typeof value === 'string' && value !== '' ? value : null
}

/**
 * What a function of a provider's calls an event. A number that is no exact integer names nothing: two events
 * may share it.
 *
 * @throws TypeError for what can be no name.
 */
export function idOf(value: unknown): string | null {
  if (typeof value === 'bigint') return String(value)
  if (value === undefined || value === null || ['string', 'number'].includes(typeof value)) {
    return nameOf(value)
  }
  throw new TypeError(
    `eventId returned a value of type ${typeof value}; it must return text, an integer or null`,
  )
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
