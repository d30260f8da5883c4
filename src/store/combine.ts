export interface CombineOptions<I> {
  /** So many calls may be under way, each with one item, while few ask. */
  readonly free: number
  /** The most items that travel in one call. */
  readonly most: number
  /** How much an item weighs, and how much one call carries unless a single item weighs more. */
  readonly weigh?: (item: I) => number
  readonly mostWeight?: number
  /** A call that takes longer is no longer waited for: nothing else may hang behind it. */
  readonly patienceMs: number
}

interface Waiting<I, O> {
  readonly item: I
  readonly resolve: (result: O) => void
  readonly reject: (error: unknown) => void
  readonly since: number
}

/**
 * Puts a verb that takes a list behind a function that takes one item: a group commit.
 *
 * While few ask, every item goes at once, alone, as if this did not exist. What arrives when `free`
 * calls are under way travels together as soon as one ends. Were that more than `free` items, many
 * ask at once, and from then on one call at a time carries all that came during the last one, until
 * calls become small again. So nothing waits for a batch to fill, and under load the number of
 * statements stops growing with the number of requests.
 */
export function combine<I, O>(
  verb: (items: readonly I[]) => Promise<readonly O[]>,
  { free, most, weigh = () => 0, mostWeight = 0, patienceMs }: CombineOptions<I>,
): (item: I) => Promise<O> {
  let queue: Waiting<I, O>[] = []
  let underWay = 0
  let lastSize = 1

  function sendWhatMay(): void {
    while (queue.length > 0 && underWay < (lastSize > free ? 1 : free)) {
      let count = 1
      let weight = weigh((queue[0] as Waiting<I, O>).item)
      while (count < Math.min(most, queue.length)) {
        weight += weigh((queue[count] as Waiting<I, O>).item)
        if (weight > mostWeight) break
        count += 1
      }
      const batch = queue.slice(0, count)
      queue = queue.slice(count)
      send(batch)
    }
  }

  /** While calls hang, what nobody waits for any more is not kept: it was never asked. */
  function giveUpWaiting(): void {
    const since = performance.now() - 2 * patienceMs
    const tooOld = queue.filter((waiting) => waiting.since <= since)
    queue = queue.filter((waiting) => waiting.since > since)
    for (const { reject } of tooOld) reject(new Error('the store did not answer others in time'))
  }

  function send(batch: readonly Waiting<I, O>[]): void {
    underWay += 1
    lastSize = batch.length
    let isCounted = true
    const makeWay = () => {
      if (!isCounted) return
      isCounted = false
      clearTimeout(timer)
      underWay -= 1
      sendWhatMay()
    }
    const timer = setTimeout(() => {
      giveUpWaiting()
      makeWay()
    }, patienceMs)
    // In the executor, so that a verb that throws is like one that rejects.
    new Promise<readonly O[]>((resolve) => resolve(verb(batch.map(({ item }) => item)))).then(
      (results) => {
        makeWay()
        for (const [i, waiting] of batch.entries()) waiting.resolve(results[i] as O)
      },
      (error: unknown) => {
        makeWay()
        for (const waiting of batch) waiting.reject(error)
      },
    )
  }

  return (item) =>
    new Promise((resolve, reject) => {
      queue.push({ item, resolve, reject, since: performance.now() })
      sendWhatMay()
    })
}

// Measured with 4 and 32 connections; see docs/decisions.
const FREE = 4
const MOST = 64
const MOST_WEIGHT = 1024 * 1024

/** A verb over lists as a function of one item, combined where the store's lists are one statement. */
export function oneOf<I, O>(
  { combinesLists }: { readonly combinesLists: boolean },
  verb: (items: readonly I[]) => Promise<readonly O[]>,
  patienceMs: number,
  weigh: (item: I) => number = () => 0,
): (item: I) => Promise<O> {
  if (!combinesLists) return async (item) => (await verb([item]))[0] as O
  return combine(verb, { free: FREE, most: MOST, mostWeight: MOST_WEIGHT, patienceMs, weigh })
}
