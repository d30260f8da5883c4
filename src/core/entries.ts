/** A longer list is moved whenever it grows. Even, so that a pair stays in one list. */
const LIST_LENGTH = 2_000

/**
 * What a map, a set or a form holds. It is known only once all of it was taken, and an entry at a time,
 * because there may be hundreds of thousands.
 */
export class Entries {
  /** What was taken so far; of a pair its name, then its value. There is one list at least. */
  readonly lists: [unknown[], ...unknown[][]] = [[]]
  /** So many items are an entry. */
  readonly width: 1 | 2
  readonly #rest: Iterator<unknown>
  #last: unknown[] = this.lists[0]

  private constructor(rest: Iterator<unknown>, width: 1 | 2) {
    this.#rest = rest
    this.width = width
  }

  static ofItems(items: Iterable<unknown>): Entries {
    return new Entries(items[Symbol.iterator](), 1)
  }

  static ofPairs(pairs: Iterable<[unknown, unknown]>): Entries {
    return new Entries(pairs[Symbol.iterator](), 2)
  }

  /** How many items are in the lists. */
  get size(): number {
    return (this.lists.length - 1) * LIST_LENGTH + this.#last.length
  }

  /** Takes the next entry; `false` when there is none left. */
  take(): boolean {
    const { done, value } = this.#rest.next()
    if (done) return false
    if (this.#last.length === LIST_LENGTH) {
      this.#last = []
      this.lists.push(this.#last)
    }
    if (this.width === 1) {
      this.#last.push(value)
    } else {
      const pair = value as [unknown, unknown]
      this.#last.push(pair[0], pair[1])
    }
    return true
  }
}
