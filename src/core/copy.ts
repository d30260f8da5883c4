import { isRoot } from './class-contents.js'
import { Stack } from './stack.js'
import { type NextTurn, VALUES_PER_TURN } from './turns.js'

/** Repetitions are looked for after so many turns: 1 MiB of JSON takes fewer. */
const UNWATCHED_TURNS = 60

const NOTHING: readonly unknown[] = []

const PLAIN = { configurable: true, enumerable: true, writable: true }

/**
 * Copies plain data of any size and depth: objects, arrays, maps and sets, with the dates, bytes and
 * search parameters in them. A shared reference counts as a copy. Other work of the process gets its turn
 * in between.
 *
 * @returns `undefined` when it holds something else, such as a function or an instance of a class, or one
 * of its own containers, or the same values over and over.
 */
export async function copyInTurns<T>(value: T, nextTurn: NextTurn): Promise<T | undefined> {
  try {
    const copying = new Copying(value)
    while (!copying.advance()) await nextTurn()
    return copying.end() as T
  } catch {
    return undefined
  }
}

/** The copy of an object, and how it is filled. */
interface Begun {
  readonly copy: object
  /** Its items, or its keys. */
  readonly list: readonly unknown[]
  /** What has the items: the list itself, or what its keys are keys of. */
  readonly source: object
  /** Where to: the copy itself, or what it is filled with in the end. */
  readonly target: object
  readonly fill?: () => void
}

class Copying {
  readonly #root: [unknown] = [undefined]
  #list: readonly unknown[]
  #source: object
  #target: object = this.#root
  #index = 0
  #depth = 0
  /** The containers around it that have items left: of each its list, its source and its target. */
  readonly #unfinished = new Stack<object>()
  /** Where to go on in each of them: the next index and its depth. */
  readonly #places = new Stack<number>()
  /** The containers around it at a depth that is a power of two, by its exponent. */
  readonly #far: object[] = []
  readonly #fills: (() => void)[] = []
  #turns = 0
  readonly #watched = new Set<object>()

  constructor(value: unknown) {
    this.#list = [value]
    this.#source = this.#list
  }

  /** Copies as much as fits into one turn; `true` when all is copied. */
  advance(): boolean {
    this.#turns += 1
    for (let left = VALUES_PER_TURN; left > 0; left -= 1) {
      // What the application changes between two turns may have become shorter.
      while (this.#index >= this.#list.length) {
        if (this.#unfinished.isEmpty) return true
        this.#resume()
      }
      // To list keys is work, too.
      left -= this.#copyItem()
    }
    return false
  }

  end(): unknown {
    for (const fill of this.#fills) fill()
    return this.#root[0]
  }

  #resume(): void {
    this.#depth = this.#places.pop()
    this.#index = this.#places.pop()
    this.#target = this.#unfinished.pop()
    this.#source = this.#unfinished.pop()
    this.#list = this.#unfinished.pop() as unknown[]
  }

  /** Returns how many items were listed for that. */
  #copyItem(): number {
    const source = this.#source
    const item = this.#list[this.#index]
    const isKey = this.#list !== source
    const name = isKey ? (item as string) : this.#index
    const value = isKey ? (source as Record<string, unknown>)[item as string] : item
    this.#index += 1
    if (typeof value === 'function') throw new TypeError('a function is not copied')
    if (typeof value !== 'object' || value === null) {
      // Nothing may be a hole.
      if (value !== undefined || name in source) put(this.#target, name, value)
      return 0
    }
    if (this.#turns > UNWATCHED_TURNS) this.#watch(value)
    const begun = beginCopy(value)
    put(this.#target, name, begun.copy)
    if (begun.fill !== undefined) this.#fills.push(begun.fill)
    if (begun.list.length > 0) this.#open(value, begun)
    return begun.list === value ? 0 : begun.list.length
  }

  #watch(value: object): void {
    if (this.#watched.has(value)) throw new TypeError('repetitions are not copied')
    this.#watched.add(value)
  }

  #open(value: object, { list, source, target }: Begun): void {
    // In a circle, the container at a power of two of the depths comes again before that depth has doubled.
    if (this.#far[31 - Math.clz32(this.#depth)] === value) {
      throw new TypeError('a circle is not copied')
    }
    if (this.#index < this.#list.length) {
      this.#unfinished.push(this.#list)
      this.#unfinished.push(this.#source)
      this.#unfinished.push(this.#target)
      this.#places.push(this.#index)
      this.#places.push(this.#depth)
    }
    this.#list = list
    this.#source = source
    this.#target = target
    this.#index = 0
    this.#depth += 1
    if ((this.#depth & (this.#depth - 1)) === 0) this.#far[31 - Math.clz32(this.#depth)] = value
  }
}

/** @throws {TypeError} for what is no plain data. */
function beginCopy(value: object): Begun {
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype === Object.prototype) return keyed(value, {})
  if (Array.isArray(value) && isRoot(Object.getPrototypeOf(prototype))) {
    const copy = new Array(value.length)
    return { copy, list: value, source: value, target: copy }
  }
  if (Buffer.isBuffer(value)) return whole(Buffer.from(value))
  switch (prototype) {
    case Uint8Array.prototype:
      return whole((value as Uint8Array).slice())
    case Date.prototype:
      return whole(structuredClone(value))
    case URLSearchParams.prototype:
      return whole(new URLSearchParams(value as URLSearchParams))
    case Map.prototype: {
      const copy = new Map()
      return collected(copy, [...(value as Map<unknown, unknown>)], ([key, item]) =>
        copy.set(key, item),
      )
    }
    case Set.prototype: {
      const copy = new Set()
      return collected(copy, [...(value as Set<unknown>)], (item) => copy.add(item))
    }
  }
  // None, or an empty one of a parser's own in its place.
  if (prototype === null || Object.getPrototypeOf(prototype) === null) {
    return keyed(value, Object.create(prototype as object | null))
  }
  throw new TypeError('an instance of a class is not copied')
}

function keyed(source: object, copy: object): Begun {
  return { copy, list: Object.keys(source), source, target: copy }
}

function whole(copy: object): Begun {
  return { copy, list: NOTHING, source: NOTHING, target: copy }
}

/** What holds its items in a list of its own. */
function collected<T>(copy: object, list: readonly T[], add: (item: T) => unknown): Begun {
  const items: T[] = []
  return { copy, list, source: list, target: items, fill: () => items.forEach(add) }
}

function put(target: object, name: string | number, value: unknown): void {
  if (name !== '__proto__') (target as Record<string, unknown>)[name] = value
  else Object.defineProperty(target, name, { ...PLAIN, value })
}
