/** So many texts are sorted at once: a few milliseconds, of whatever characters. */
const RUN_LENGTH = 5_000
/** So many texts are merged at once. */
const MERGED_AT_ONCE = 20_000

/** Two sorted lists on the way into one. */
interface Merge {
  readonly left: readonly string[]
  readonly right: readonly string[]
  readonly into: string[]
  /** How many of each are in it. */
  fromLeft: number
  fromRight: number
}

/** Sorts any number of texts as `sort()` does, a part at a time. */
export class SortInParts {
  readonly #texts: readonly string[]
  #sorted = 0
  /** Sorted lists; the two that have waited longest are merged next. */
  #runs: string[][] = []
  #merge: Merge | undefined

  constructor(texts: readonly string[]) {
    this.#texts = texts
  }

  /** Does the next part; returns the sorted list once it is done. */
  advance(): readonly string[] | undefined {
    if (this.#sorted < this.#texts.length) {
      this.#runs.push(this.#texts.slice(this.#sorted, this.#sorted + RUN_LENGTH).sort())
      this.#sorted += RUN_LENGTH
      return undefined
    }
    const [left = [], right, ...others] = this.#runs
    if (right === undefined) return left
    this.#merge ??= {
      ...{ left, right, fromLeft: 0, fromRight: 0 },
      into: new Array(left.length + right.length),
    }
    if (mergeMore(this.#merge)) {
      this.#runs = [...others, this.#merge.into]
      this.#merge = undefined
    }
    return undefined
  }
}

/** Merges the next ones; `true` when all are. */
function mergeMore(merge: Merge): boolean {
  const { left, right, into } = merge
  let { fromLeft, fromRight } = merge
  const end = Math.min(into.length, fromLeft + fromRight + MERGED_AT_ONCE)
  for (let at = fromLeft + fromRight; at < end; at += 1) {
    const isLeft =
      fromRight === right.length ||
      (fromLeft < left.length && (left[fromLeft] as string) <= (right[fromRight] as string))
    into[at] = (isLeft ? left[fromLeft++] : right[fromRight++]) as string
  }
  merge.fromLeft = fromLeft
  merge.fromRight = fromRight
  return end === into.length
}
