import type { Hash } from 'node:crypto'
import { ByteWriter } from './byte-writer.js'
import { contentsOf, isRoot } from './class-contents.js'
import type { Entries } from './entries.js'
import { SortInParts } from './sort-in-parts.js'
import { Stack } from './stack.js'
import { type NextTurn, VALUES_PER_TURN } from './turns.js'

// One byte in front of each value. Part of every stored fingerprint: none of them ever changes.
const UNDEFINED = 0
const NULL = 1
const FALSE = 2
const TRUE = 3
const NUMBER = 4
const BIGINT = 5
const TEXT = 6
const ARRAY = 7
const OBJECT = 8
/** From here on an array has holes. */
const HOLES = 9
/** One of the containers of this value: so many levels up. */
const CYCLE = 10
/** What cannot be read. */
const OPAQUE = 11

/** A value is in the hash. */
export interface Hashed {
  readonly kind: 'hashed'
  /** What it holds that cannot be read, such as `an instance of Decimal`: only its place is hashed. */
  readonly opaque: string | undefined
  /** It holds one of its own containers. Which one, and where, is hashed. */
  readonly isCyclic: boolean
}

/** It holds the same values over and over, as a few YAML aliases can do billions of times. */
export interface Repetitive {
  readonly kind: 'repetitive'
}

/** Repetitions are counted from so many values on: 1 MiB of JSON holds half of them at most. */
const WATCHED_FROM = 1_000_000
/** So many values may then be repetitions. */
const MAX_REPEATED = 1_000_000
/** Half of what a Set can hold. */
const MAX_WATCHED = 2 ** 23
/** Text and bytes count as one value for each so many units. */
const UNITS_PER_VALUE = 64

/** Containers up to this depth are compared with all those around them: most cycles are there. */
const NEAR_LEVELS = 32

const NOTHING: readonly unknown[] = []

// What the list of a container is: its own items, the keys of an object, or what an instance holds.
const ITEMS = 0
const KEYS = 1
const VALUES = 2

/** So few keys are sorted faster by insertion. */
const FEW_KEYS = 16
/** More keys than that are sorted in several turns. */
const MANY_KEYS = 5_000
/**
 * Adds a value to a hash, so that two values give the same hash exactly when they hold the same. The
 * order of the keys of an object does not count. Everything else does: the type of a value, -0 and 0,
 * an undefined property and a missing one, the order of a map. An instance counts for what it holds
 * as one of its class, without other properties that were set on it; a shared reference counts as a
 * copy.
 *
 * Takes time linear in what the value holds, and n log n in the number of keys of one object, of any
 * shape and depth. Throws only what a getter or a proxy throws.
 */
export function hashCanonical(hash: Hash, value: unknown): Hashed | Repetitive {
  const walk = new Walk(hash, value)
  while (!walk.advance()) {}
  return walk.end()
}

/** The same, for values of any size: other work of the process gets its turn in between. */
export async function hashCanonicalInTurns(
  hash: Hash,
  value: unknown,
  nextTurn: NextTurn,
): Promise<Hashed | Repetitive> {
  const walk = new Walk(hash, value)
  while (!walk.advance()) await nextTurn()
  return walk.end()
}

class Walk {
  readonly #out: ByteWriter
  #opaque: string | undefined
  #isCyclic = false
  /** So many values may still be worked on in this turn. */
  #left = 0

  // The container whose items are being written. `list` has them, or the keys of an object.
  #source: object = NOTHING
  #list: readonly unknown[] = NOTHING
  #isKeyed = false
  #index = 0
  #depth = 0
  /** Of the list, when it is many keys that are still to be sorted. */
  #sorting: SortInParts | undefined
  /** The next container, while its entries are being taken. */
  #gathering: { tag: number; source: object; entries: Entries } | undefined
  /** It and the containers around it, by depth, down to the last of the near levels. */
  readonly #near: object[] = []
  /** Those of them at a depth that is a power of two, by its exponent. */
  readonly #far: object[] = []
  /**
   * Those that have items left: the source under its list, which is often the same. One that is at its
   * last item is not among them, so that a list in a list in a list … takes no space.
   */
  readonly #unfinished = new Stack<object>()
  /** Where to go on in each of them: its depth, the next index, and what its list is. */
  readonly #places = new Stack<number>()

  #visited = 0
  #repeated = 0
  readonly #watched = new Set<unknown>()

  constructor(hash: Hash, root: unknown) {
    this.#out = new ByteWriter(hash)
    this.#write(root)
  }

  /** Writes as much as fits into one turn; `true` when all is written. */
  advance(): boolean {
    if (this.#sorting !== undefined) {
      const sorted = this.#sorting.advance()
      if (sorted === undefined) return false
      this.#list = sorted
      this.#sorting = undefined
    }
    for (this.#left = VALUES_PER_TURN; this.#left > 0; this.#left -= 1) {
      if (this.#repeated > MAX_REPEATED) return true
      if (this.#gathering !== undefined) {
        this.#gather(this.#gathering)
        continue
      }
      // What the application changes between two turns may have become shorter.
      if (this.#index >= this.#list.length) {
        if (this.#unfinished.isEmpty) return true
        this.#resume()
      }
      this.#writeItem()
      if (this.#sorting !== undefined) return false
    }
    return false
  }

  end(): Hashed | Repetitive {
    this.#out.end()
    if (this.#repeated > MAX_REPEATED) return { kind: 'repetitive' }
    return { kind: 'hashed', opaque: this.#opaque, isCyclic: this.#isCyclic }
  }

  /** Takes an entry, or opens the container when there is none left. */
  #gather({ tag, source, entries }: { tag: number; source: object; entries: Entries }): void {
    if (entries.take()) return
    this.#gathering = undefined
    const [first, ...others] = entries.lists
    this.#open(tag, source, first, false, entries.size)
    // It is empty, or one of its own containers.
    if (this.#list !== first) return
    for (const list of others.reverse()) {
      this.#unfinished.push(source)
      this.#unfinished.push(list)
      this.#places.push(this.#depth)
      this.#places.push(0)
      this.#places.push(VALUES)
    }
  }

  #resume(): void {
    const places = this.#places
    const unfinished = this.#unfinished
    const kind = places.pop()
    this.#index = places.pop()
    this.#depth = places.pop()
    this.#isKeyed = kind === KEYS
    this.#list = unfinished.pop() as unknown[]
    this.#source = kind === ITEMS ? this.#list : unfinished.pop()
  }

  #writeItem(): void {
    const item = this.#list[this.#index]
    if (this.#isKeyed) {
      this.#index += 1
      this.#writeText(item as string)
      this.#write((this.#source as Record<string, unknown>)[item as string])
    } else if (
      item === undefined &&
      this.#list === this.#source &&
      !Object.hasOwn(this.#list, this.#index)
    ) {
      this.#writeHoles()
    } else {
      this.#index += 1
      this.#write(item)
    }
  }

  #write(value: unknown): void {
    const out = this.#out
    switch (typeof value) {
      case 'string':
        out.tag(TEXT)
        this.#writeText(value)
        break
      case 'number':
        out.tag(NUMBER)
        out.number(value)
        break
      case 'boolean':
        out.tag(value ? TRUE : FALSE)
        break
      case 'undefined':
        out.tag(UNDEFINED)
        break
      case 'bigint':
        out.tag(BIGINT)
        // The base is a power of two: to another one takes more than linear time.
        this.#writeText(value.toString(16))
        break
      case 'object':
        if (value === null) out.tag(NULL)
        else this.#writeObject(value)
        break
      default:
        this.#writeOpaque(`a ${typeof value}`)
    }
  }

  #writeText(text: string): void {
    this.#visit(text, Math.floor(text.length / UNITS_PER_VALUE))
    this.#out.text(text)
  }

  #writeObject(value: object): void {
    const prototype: unknown = Object.getPrototypeOf(value)
    if (Array.isArray(value)) {
      this.#open(ARRAY, value, value, false)
    } else if (prototype === null || isRoot(prototype)) {
      this.#openObject(value)
    } else {
      this.#writeInstance(value)
    }
  }

  #openObject(value: object): void {
    const keys = Object.keys(value)
    // They are sorted before any of them is written.
    this.#left -= keys.length
    this.#open(OBJECT, value, keys, true)
    // It has none, or is one of its own containers.
    if (this.#list !== keys) return
    if (keys.length > MANY_KEYS) this.#sorting = new SortInParts(keys)
    else sort(keys)
  }

  #writeInstance(value: object): void {
    const contents = contentsOf(value)
    switch (contents.kind) {
      case 'values':
        this.#open(contents.tag, value, contents.values, false)
        break
      case 'entries':
        this.#gathering = { tag: contents.tag, source: value, entries: contents.entries }
        break
      case 'bytes':
        this.#visit(value, Math.floor(contents.bytes.length / UNITS_PER_VALUE))
        this.#out.tag(contents.tag)
        this.#out.bytes(contents.bytes)
        break
      case 'hidden':
        this.#writeOpaque(`an instance of ${classNameOf(value)}`)
    }
  }

  #writeOpaque(what: string): void {
    this.#opaque ??= what
    this.#out.tag(OPAQUE)
  }

  /** Begins to write a container: its items come next. */
  #open(
    tag: number,
    source: object,
    list: readonly unknown[],
    isKeyed: boolean,
    size = list.length,
  ): void {
    const depth = this.#depth + 1
    const levelsUp = size === 0 ? 0 : this.#levelsUp(source, depth)
    if (levelsUp > 0) {
      this.#isCyclic = true
      this.#out.tag(CYCLE)
      this.#out.size(levelsUp)
      return
    }
    this.#visit(source, 1 + size)
    this.#out.tag(tag)
    this.#out.size(size)
    if (size === 0) return
    if (this.#index < this.#list.length) {
      const isOwn = this.#source === this.#list
      if (!isOwn) this.#unfinished.push(this.#source)
      this.#unfinished.push(this.#list)
      this.#places.push(this.#depth)
      this.#places.push(this.#index)
      this.#places.push(this.#isKeyed ? KEYS : isOwn ? ITEMS : VALUES)
    }
    if (depth <= NEAR_LEVELS) this.#near[depth] = source
    if ((depth & (depth - 1)) === 0) this.#far[31 - Math.clz32(depth)] = source
    this.#source = source
    this.#list = list
    this.#isKeyed = isKeyed
    this.#index = 0
    this.#depth = depth
  }

  /** Writes the rest of an array by its indices: there may be four billion holes in it. */
  #writeHoles(): void {
    const list = this.#list
    const index = this.#index
    const rest: unknown[] = []
    // Indices in ascending order come first.
    for (const key of Object.keys(list)) {
      const at = Number(key)
      if (!Number.isInteger(at) || at < 0) break
      if (at > index) rest.push(at, list[at])
    }
    this.#out.tag(HOLES)
    this.#out.size(rest.length)
    this.#list = rest
    this.#index = 0
  }

  /**
   * How many levels above this depth the same container is, or 0. In a cycle that is longer or lies
   * deeper than what is near, the container at a power of two of the depths comes again before that
   * depth has doubled.
   */
  #levelsUp(source: object, depth: number): number {
    if (depth <= NEAR_LEVELS) {
      for (let at = depth - 1; at > 0; at -= 1) if (this.#near[at] === source) return depth - at
      return 0
    }
    const exponent = 31 - Math.clz32(depth - 1)
    return this.#far[exponent] === source ? depth - (1 << exponent) : 0
  }

  #visit(value: unknown, weight: number): void {
    this.#visited += weight
    if (this.#visited <= WATCHED_FROM || weight === 0) return
    if (this.#watched.has(value)) this.#repeated += weight
    else if (this.#watched.size < MAX_WATCHED) this.#watched.add(value)
  }
}

function sort(keys: string[]): void {
  if (keys.length > FEW_KEYS) {
    keys.sort()
    return
  }
  for (let n = 1; n < keys.length; n += 1) {
    const key = keys[n] as string
    let at = n
    for (; at > 0 && (keys[at - 1] as string) > key; at -= 1) keys[at] = keys[at - 1] as string
    keys[at] = key
  }
}

export function classNameOf(value: object): string {
  const made: unknown = Reflect.get(Object.getPrototypeOf(value), 'constructor')
  return (typeof made === 'function' && made.name) || 'a class'
}
