import { types } from 'node:util'
import { Entries } from './entries.js'

// One byte each, and part of every stored fingerprint: none of them ever changes.
export const CLASS_TAGS = {
  Date: 32,
  Map: 33,
  Set: 34,
  RegExp: 35,
  URL: 36,
  URLSearchParams: 37,
  FormData: 38,
  Boxed: 39,
  Error: 40,
  ArrayBuffer: 41,
  SharedArrayBuffer: 42,
  DataView: 43,
  Int8Array: 44,
  Uint8Array: 45,
  Uint8ClampedArray: 46,
  Int16Array: 47,
  Uint16Array: 48,
  Int32Array: 49,
  Uint32Array: 50,
  Float32Array: 51,
  Float64Array: 52,
  BigInt64Array: 53,
  BigUint64Array: 54,
  Float16Array: 55,
  Temporal: 56,
} as const

type ClassName = keyof typeof CLASS_TAGS

/** What an instance of a class of JavaScript or Node holds, as plain values, as entries or as bytes. */
export type Contents =
  | { kind: 'values'; tag: number; values: readonly unknown[] }
  | { kind: 'entries'; tag: number; entries: Entries }
  | { kind: 'bytes'; tag: number; bytes: Uint8Array }
  /** It may hold what cannot be read from outside. */
  | { kind: 'hidden' }

const HIDDEN: Contents = { kind: 'hidden' }
const NO_BYTES = new Uint8Array()

const ERRORS: readonly unknown[] = [
  Error,
  AggregateError,
  EvalError,
  RangeError,
  ReferenceError,
  SyntaxError,
  TypeError,
  URIError,
].map(({ prototype }) => prototype)

/** Entries of maps, sets and forms stay in their order, which can be observed. */
export function contentsOf(value: object): Contents {
  if (ArrayBuffer.isView(value)) return ofView(value)
  const prototype: unknown = Object.getPrototypeOf(value)
  if (ERRORS.includes(prototype)) return ofError(value as Error, ERRORS.indexOf(prototype))
  if (prototype === URL.prototype) return values('URL', [(value as URL).href])
  if (prototype === URLSearchParams.prototype) {
    return entries('URLSearchParams', Entries.ofPairs(value as URLSearchParams))
  }
  // A subclass may hold more than its base shows. Classes are not told by identity, because a test
  // runner has globals of its own, beside those of Node.
  if (!isRoot(Object.getPrototypeOf(prototype))) return HIDDEN
  if (types.isDate(value)) return values('Date', [Date.prototype.getTime.call(value)])
  if (types.isMap(value)) return entries('Map', Entries.ofPairs(value))
  if (types.isSet(value)) return entries('Set', Entries.ofItems(value))
  if (types.isRegExp(value)) return values('RegExp', [value.source, value.flags])
  if (types.isArrayBuffer(value)) return bytes('ArrayBuffer', value)
  if (types.isSharedArrayBuffer(value)) return bytes('SharedArrayBuffer', value)
  if (types.isBoxedPrimitive(value)) return values('Boxed', [value.valueOf()])
  // By name first: Node loads FormData when it is used, and knows no Temporal of a polyfill.
  const name = Object.prototype.toString.call(value)
  if (name === '[object FormData]' && prototype === FormData.prototype) {
    return entries('FormData', Entries.ofPairs(value as FormData))
  }
  return name.startsWith('[object Temporal.') ? values('Temporal', [name, String(value)]) : HIDDEN
}

/** Whether a chain of prototypes ends here: `Object.prototype` of this global or of another. */
export function isRoot(prototype: unknown): boolean {
  return (
    prototype === Object.prototype ||
    (typeof prototype === 'object' &&
      prototype !== null &&
      Object.getPrototypeOf(prototype) === null)
  )
}

function values(name: ClassName, values: readonly unknown[]): Contents {
  return { kind: 'values', tag: CLASS_TAGS[name], values }
}

function entries(name: ClassName, entries: Entries): Contents {
  return { kind: 'entries', tag: CLASS_TAGS[name], entries }
}

function bytes(
  name: ClassName,
  buffer: ArrayBufferLike,
  start = 0,
  length = buffer.byteLength,
): Contents {
  // There is no view of a buffer that was transferred away.
  const bytes = length === 0 ? NO_BYTES : new Uint8Array(buffer, start, length)
  return { kind: 'bytes', tag: CLASS_TAGS[name], bytes }
}

/** A Buffer is compared as the Uint8Array that it is. */
function ofView(view: ArrayBufferView): Contents {
  const name = viewName.call(view) ?? 'DataView'
  if (!Object.hasOwn(CLASS_TAGS, name)) return HIDDEN
  return bytes(name as ClassName, view.buffer, view.byteOffset, view.byteLength)
}

/** Reads the class from the array itself: `Symbol.toStringTag` of a subclass may be anything. */
const viewName = Object.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Uint8Array.prototype),
  Symbol.toStringTag,
)?.get as (this: ArrayBufferView) => string | undefined

/** Without the stack, which names lines of code. */
function ofError(error: Error, index: number): Contents {
  const { message } = error
  const cause = Object.hasOwn(error, 'cause') ? [error.cause] : []
  const errors = Object.hasOwn(error, 'errors') ? [Reflect.get(error, 'errors')] : []
  return values('Error', [index, message, cause, errors, { ...error }])
}
