export interface CombineOptions {
  /** So many calls may be under way, each with one item, before further items are combined. */
  readonly free: number
  /** The most items that travel in one call. */
  readonly most: number
}

interface Waiting<I, O> {
  readonly item: I
  readonly resolve: (result: O) => void
  readonly reject: (error: unknown) => void
}

/**
 * Puts a verb that takes a list behind a function that takes one item: a group commit.
 *
 * A few items go at once, alone, as if this did not exist; what arrives while those are under way
 * waits for the next one to end and then travels together. So nothing waits for a batch to fill,
 * and under load the number of statements stops growing with the number of requests.
 */
export function combine<I, O>(
  verb: (items: readonly I[]) => Promise<readonly O[]>,
  { free, most }: CombineOptions,
): (item: I) => Promise<O> {
  const queue: Waiting<I, O>[] = []
  let underWay = 0

  function send(batch: readonly Waiting<I, O>[]): void {
    underWay += 1
    verb(batch.map(({ item }) => item)).then(
      (results) => {
        sendNext()
        for (const [i, waiting] of batch.entries()) waiting.resolve(results[i] as O)
      },
      (error: unknown) => {
        sendNext()
        for (const waiting of batch) waiting.reject(error)
      },
    )
  }

  function sendNext(): void {
    underWay -= 1
    if (queue.length > 0) send(queue.splice(0, most))
  }

  return (item) =>
    new Promise((resolve, reject) => {
      const waiting = { item, resolve, reject }
      if (underWay < free) send([waiting])
      else queue.push(waiting)
    })
}
