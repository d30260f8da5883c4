import { isRoot } from './class-contents.js'
import { Entries } from './entries.js'
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

/** What is copied into what. */
interface Part {
  /** Items, or keys. */
  readonly list: readonly unknown[]
  /** What has the items: the list itself, or what its keys are keys of. */
  readonly source: object
  readonly target: object
}

/** The copy of an object, which is the target of its items, or is filled with copies of its entries. */
interface Begun extends Part {
  readonly filling?: Filling
}

interface Filling {
  readonly entries: Entries
  /** Adds an entry to the copy: an item, or a name and its value. */
  readonly add: (item: unknown, value: unknown) => unknown
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
  /** The next container, while its entries are being taken. */
  #gathering: { value: object; filling: Filling } | undefined
  /** What fills the maps and sets, once all is copied that they hold. */
  readonly #fills: (() => boolean)[] = []
  #filled = 0
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
      if (this.#gathering !== undefined) this.#gather(this.#gathering)
      // To list keys is work, too.
      else if (this.#hasItem()) left -= this.#copyItem()
      else if (!this.#fill()) return true
    }
    return false
  }

  end(): unknown {
    return this.#root[0]
  }

  #hasItem(): boolean {
    // What the application changes between two turns may have become shorter.
    while (this.#index >= this.#list.length) {
      if (this.#unfinished.isEmpty) return false
      this.#resume()
    }
    return true
  }

  /** Takes an entry, or opens the container when there is none left. */
  #gather({ value, filling }: { value: object; filling: Filling }): void {
    const { entries, add } = filling
    if (entries.take()) return
    this.#gathering = undefined
    if (entries.size === 0) return
    const [first, ...others] = entries.lists.map((list): Part => {
      const target: unknown[] = []
      this.#fills.push(fillWith(target, entries.width, add))
      return { list, source: list, target }
    })
    this.#open(value, first as Part)
    for (const part of others.reverse()) this.#putAside(part, 0)
  }

  /** Adds an entry to a copy; `false` when all are filled. */
  #fill(): boolean {
    const fill = this.#fills[this.#filled]
    if (fill === undefined) return false
    if (!fill()) this.#filled += 1
    return true
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
    const { list, target, filling } = begun
    put(this.#target, name, target)
    if (filling !== undefined) this.#gathering = { value, filling }
    else if (list.length > 0) this.#open(value, begun)
    return list === value ? 0 : list.length
  }

  #watch(value: object): void {
    if (this.#watched.has(value)) throw new TypeError('repetitions are not copied')
    this.#watched.add(value)
  }

  #open(value: object, { list, source, target }: Part): void {
    // In a circle, the container at a power of two of the depths comes again before that depth has doubled.
    if (this.#far[31 - Math.clz32(this.#depth)] === value) {
      throw new TypeError('a circle is not copied')
    }
    if (this.#index < this.#list.length) {
      this.#putAside({ list: this.#list, source: this.#source, target: this.#target }, this.#index)
    }
    this.#list = list
    this.#source = source
    this.#target = target
    this.#index = 0
    this.#depth += 1
    if ((this.#depth & (this.#depth - 1)) === 0) this.#far[31 - Math.clz32(this.#depth)] = value
  }

  /** At this depth, it goes on with this item later. */
  #putAside({ list, source, target }: Part, index: number): void {
    this.#unfinished.push(list)
    this.#unfinished.push(source)
    this.#unfinished.push(target)
    this.#places.push(index)
    this.#places.push(this.#depth)
  }
}

/** @throws {TypeError} for what is no plain data. */
function beginCopy(value: object): Begun {
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype === Object.prototype) return keyed(value, {})
  if (Array.isArray(value) && isRoot(Object.getPrototypeOf(prototype))) {
    const copy = new Array(value.length)
    return { list: value, source: value, target: copy }
  }
  if (Buffer.isBuffer(value)) return whole(Buffer.from(value))
  switch (prototype) {
    case Uint8Array.prototype:
      return whole((value as Uint8Array).slice())
    case Date.prototype:
      return whole(structuredClone(value))
    case URLSearchParams.prototype:
      // Node copies one list for that, which takes less than to fill it in turns.
      return whole(new URLSearchParams(value as URLSearchParams))
    case Map.prototype: {
      const copy = new Map()
      const entries = Entries.ofPairs(value as Map<unknown, unknown>)
      return filled(copy, { entries, add: (key, item) => copy.set(key, item) })
    }
    case Set.prototype: {
      const copy = new Set()
      const entries = Entries.ofItems(value as Set<unknown>)
      return filled(copy, { entries, add: (item) => copy.add(item) })
    }
  }
  // None, or an empty one of a parser's own in its place.
  if (prototype === null || Object.getPrototypeOf(prototype) === null) {
    return keyed(value, Object.create(prototype as object | null))
  }
  throw new TypeError('an instance of a class is not copied')
}

function keyed(source: object, copy: object): Begun {
  return { list: Object.keys(source), source, target: copy }
}

function whole(copy: object): Begun {
  return { list: NOTHING, source: NOTHING, target: copy }
}

function filled(copy: object, filling: Filling): Begun {
  return { ...whole(copy), filling }
}

/** Adds the next of these entries with each call; `false` when there is none left. */
function fillWith(items: readonly unknown[], width: number, add: Filling['add']): () => boolean {
  let at = 0
  return () => {
    if (at >= items.length) return false
    add(items[at], items[at + 1])
    at += width
    return true
  }
}

function put(target: object, name: string | number, value: unknown): void {
  if (name !== '__proto__') (target as Record<string, unknown>)[name] = value
  else Object.defineProperty(target, name, { ...PLAIN, value })
}
