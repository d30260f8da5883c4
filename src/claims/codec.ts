import { types } from 'node:util'
import { DevalueError, defaultStringifyOperations, parse, stringify } from 'devalue'
import { classNameOf } from '../core/canonical.js'
import { isRoot } from '../core/class-contents.js'
import { isThrown } from '../core/thrown.js'
import { StepNotStorable } from '../errors.js'

// How results and inputs are stored: as text from which a later attempt gets the same values of the same
// types. What would come back as something else is refused.

/**
 * Values and what they hold, one within the other. Fewer than the stack has room for, wherever they are stored
 * or read: with Node's own stack it is about 1,700 levels in a process that has just begun.
 */
const MAX_LEVELS = 500

/**
 * A result as it is stored: at once an error, and not when a later attempt wants it back. `what` names it
 * for people: `result of step "charge"`.
 *
 * @throws StepNotStorable
 */
export function encode(what: string, value: unknown): string {
  try {
    return stringify(value, REDUCERS, { operations: { ...OPERATIONS, ...countingLevels(value) } })
  } catch (error) {
    throw new StepNotStorable(what, reasonOf(error))
  }
}

/** What was encoded. */
export function decode(text: string): unknown {
  return parse(text, REVIVERS)
}

const REDUCERS = {
  // A copy, because the memory around a small one is shared with others.
  Buffer: (value: unknown) => isBuffer(value) && new Uint8Array(value),
}

const REVIVERS = {
  Buffer: ({ buffer, byteOffset, byteLength }: Uint8Array) =>
    Buffer.from(buffer, byteOffset, byteLength),
}

const { tagOf, shapeOf, viewInfo, get, valuesOf, entriesOf } = defaultStringifyOperations

const OPERATIONS = {
  // Without a tag of its own it is an object, and no plain one.
  tagOf: (value: object) => (isLossy(value) ? '' : tagOf(value)),
  shapeOf: (value: object) => (isLossy(value) ? { kind: 'not-plain' as const } : shapeOf(value)),
  // Of a view of a larger buffer its own bytes alone: the others may be anybody's.
  viewInfo: (view: ArrayBufferView) => {
    const { buffer, byteOffset, byteLength } = view
    if (byteLength === buffer.byteLength || !types.isArrayBuffer(buffer)) return viewInfo(view)
    const bytes = buffer.slice(byteOffset, byteOffset + byteLength)
    return { ...viewInfo(view), buffer: bytes, byteOffset: 0, bufferByteLength: byteLength }
  },
}

/** It is nested more deeply than can be read again. */
class TooDeep extends Error {}

/** Each container is at the level of the first way to it, which is the one that is taken. */
function countingLevels(root: unknown) {
  const levels = new Map<unknown, number>([[root, 1]])
  const within = <T>(container: unknown, item: T): T => {
    if (typeof item !== 'object' || item === null || levels.has(item)) return item
    const level = (levels.get(container) ?? 0) + 1
    if (level > MAX_LEVELS) throw new TooDeep()
    levels.set(item, level)
    return item
  }
  return {
    get: (container: object, key: string | number) => within(container, get(container, key)),
    *valuesOf(container: Set<unknown>) {
      for (const item of valuesOf(container)) yield within(container, item)
    },
    *entriesOf(container: Map<unknown, unknown>) {
      for (const [key, item] of entriesOf(container)) {
        yield [within(container, key), within(container, item)] as [unknown, unknown]
      }
    },
  }
}

function isBuffer(value: unknown): value is Buffer {
  return Buffer.isBuffer(value) && Object.getPrototypeOf(value) === Buffer.prototype
}

/** Whether it has the form of one of JavaScript's own classes, and is or has more than its values. */
function isLossy(value: object): boolean {
  return isOfSubclass(value) || hasMore(value)
}

/** Classes are told by their depth and not by identity, because a test runner has globals of its own. */
function isOfSubclass(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value)
  if (types.isTypedArray(value)) return !isRoot(parentOf(parentOf(prototype)))
  if (value instanceof URL) return prototype !== URL.prototype
  if (value instanceof URLSearchParams) return prototype !== URLSearchParams.prototype
  return isBuiltIn(value) && !isRoot(parentOf(prototype))
}

function isBuiltIn(value: object): boolean {
  return (
    Array.isArray(value) ||
    types.isDate(value) ||
    types.isMap(value) ||
    types.isSet(value) ||
    types.isRegExp(value) ||
    types.isBoxedPrimitive(value) ||
    types.isArrayBuffer(value) ||
    types.isDataView(value)
  )
}

const parentOf = (prototype: unknown): unknown =>
  prototype === null ? null : Object.getPrototypeOf(prototype)

/** Whether it has properties that are none of its values. */
function hasMore(value: object): boolean {
  if (Array.isArray(value)) {
    // Indexes come first.
    const last = Object.keys(value).at(-1)
    return last !== undefined && !(Number(last) < value.length)
  }
  if (types.isArgumentsObject(value)) return true
  const isKeyless = types.isDate(value) || types.isMap(value) || types.isSet(value)
  return isKeyless && Object.keys(value).length > 0
}

/** Without anything of the value but names of properties: an error of its getters may quote it. */
function reasonOf(error: unknown): string {
  if (isThrown(error, TooDeep)) return `it is nested in more than ${MAX_LEVELS} levels`
  if (!isThrown(error, DevalueError)) return 'reading it failed'
  const path = withoutData(error.path)
  const what = path === '' ? 'it' : `\`${path}\``
  try {
    return `${what} ${obstacleOf(error.value)}`
  } catch {
    return `${what} cannot be read`
  }
}

function obstacleOf(value: unknown): string {
  if (typeof value !== 'object' || value === null) return `is a ${typeof value}`
  if (!isOfSubclass(value) && hasMore(value)) return 'has properties beside its values'
  const name = Object.getPrototypeOf(value) === null ? 'Object' : classNameOf(value)
  if (name !== 'Object') return `is an instance of ${name}`
  if (Object.getOwnPropertySymbols(value).length > 0) return 'has symbols as keys'
  return Object.hasOwn(value, '__proto__') ? 'has a key __proto__' : 'has a prototype of its own'
}

const LONGEST_PATH = 100

/** Keys that are no identifiers, and all keys of maps, may be data. */
function withoutData(path: string): string {
  const names = path.replace(/"(?:[^"\\]|\\.)*"/g, '…').replace(/\.get\([^)]*\)/g, '.get(…)')
  return names.length > LONGEST_PATH ? `…${names.slice(-LONGEST_PATH)}` : names
}
