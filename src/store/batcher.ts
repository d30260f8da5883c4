import { StoreTimeout } from '../within.js'
import { hasWaited, isOfItsData } from './failures.js'
import type { StatementLimit } from './statement-limit.js'

/** A verb of a store: one call for a list, with one result for each item. */
export type Verb<I, O> = (items: readonly I[]) => Promise<readonly O[]>

export interface BatcherOptions<I, O> {
  /** Names the row that an item reads or writes. A list never names one row twice, unless it may. */
  readonly identify: (item: I) => string
  /** The verb answers each of several items of one row in one list. */
  readonly mayRepeatRows?: boolean
  /**
   * The result of an item that joined an earlier one of the same row while that was still queued, or was
   * sent alone: both are answered by one statement. Without it, the later item waits for a statement of its own.
   */
  readonly join?: (first: I, result: O, joined: I) => O
  /** How many bytes an item carries. */
  readonly sizeOf?: (item: I) => number
}

export interface BatcherLimits {
  /** How many calls of the verb may be in flight, each with one item, while there is little load. */
  readonly maxConcurrent: number
  readonly maxItems: number
  /** A call that takes longer is slow, and no other one waits for it: the database may stand still in it. */
  readonly slowMs: number
  /** How many bytes one call carries, unless a single item has more. */
  readonly maxBytes: number
  /** An item that could not be sent within this time is rejected: its caller has given up. */
  readonly timeoutMs: number
  /** Calls of all verbs share it. */
  readonly limit: StatementLimit
  /** The same for a call with one item that has more than `maxBytes`, which may take long. */
  readonly largeLimit?: StatementLimit
}

interface Entry<I, O> {
  readonly item: I
  readonly row: string
  readonly queuedAt: number
  readonly joined: { readonly item: I; resolve(result: O): void; reject(error: unknown): void }[]
  /** A list with it failed because of the data of one of its items: it is sent in a call of its own. */
  isAlone: boolean
  resolve(result: O): void
  reject(error: unknown): void
}

/** For so long a row that was locked is expected to be locked still. */
const LOCKED_MS = 5_000

/**
 * Puts a verb that takes a list behind a function that takes one item: a group commit.
 *
 * Under little load every item goes at once, alone. What arrives while `maxConcurrent` calls are in
 * flight travels together as soon as one ends. Were that more than `maxConcurrent` items, the load is
 * high, and from then on one call at a time carries all that came during the last one, until calls
 * become small again. So nothing waits for a batch to fill, and under load the number of statements
 * stops growing with the number of requests.
 *
 * A slow call does not count as in flight: only `limit` bounds how many of those there are. One that is not
 * answered in time may never be, because its connection is gone: what comes for its row is sent without it.
 *
 * A call that fails because of the data of one of its items is repeated item by item, so that this
 * item fails alone, without those that joined it. So is one that had to wait for a row that stayed
 * locked, and for a while what comes for that row is sent alone at once: nothing else waits with it. A
 * call that fails for another reason fails for all of its items.
 */
export function createBatcher<I, O>(
  verb: Verb<I, O>,
  { identify, mayRepeatRows = false, join, sizeOf = () => 0 }: BatcherOptions<I, O>,
  {
    maxConcurrent,
    maxItems,
    maxBytes,
    timeoutMs,
    slowMs,
    limit,
    largeLimit = limit,
  }: BatcherLimits,
): (item: I) => Promise<O> {
  let queue: Entry<I, O>[] = []
  /** What is in flight in a call of its own, by row: it may wait for a lock for long. */
  const alone = new Map<string, Entry<I, O>>()
  /** Rows that were locked for longer than a call may wait, and until when the next one goes alone. */
  const locked = new Map<string, number>()
  let inFlight = 0
  let lastSize = 1
  let expiry: NodeJS.Timeout | undefined

  /** Its callers have given up. */
  const isExpired = ({ queuedAt }: Entry<I, O>) => performance.now() - queuedAt >= timeoutMs
  const notSent = () => new StoreTimeout(`no statement could be sent within ${timeoutMs} ms`)

  function flush(): void {
    while (queue.length > 0 && inFlight < (lastSize > maxConcurrent ? 1 : maxConcurrent)) {
      const batch = takeBatch()
      if (batch.length === 0) break
      void send(batch)
    }
    const [oldest] = queue
    if (oldest === undefined) {
      clearTimeout(expiry)
      expiry = undefined
    } else expiry ??= setTimeout(expireQueued, oldest.queuedAt + timeoutMs - performance.now())
  }

  /** The longest queued items that may travel together; the others stay, in their order. */
  function takeBatch(): Entry<I, O>[] {
    const batch: Entry<I, O>[] = []
    const left: Entry<I, O>[] = []
    // Of one row, the items keep their order, and wait for one that was sent alone.
    const passed = new Set(alone.keys())
    const sent = mayRepeatRows ? new Set<string>() : passed
    let bytes = 0
    for (const [n, entry] of queue.entries()) {
      if (batch.length === maxItems || batch[0]?.isAlone) {
        left.push(...queue.slice(n))
        break
      }
      const size = sizeOf(entry.item)
      const hasRoom = batch.length === 0 || (!entry.isAlone && bytes + size <= maxBytes)
      if (!hasRoom || passed.has(entry.row)) {
        left.push(entry)
        passed.add(entry.row)
        continue
      }
      batch.push(entry)
      sent.add(entry.row)
      bytes += size
    }
    queue = left
    return batch
  }

  async function send(batch: readonly Entry<I, O>[]): Promise<void> {
    const [first] = batch as [Entry<I, O>, ...Entry<I, O>[]]
    inFlight += 1
    lastSize = batch.length
    // Of a row that many items name at once, the others wait to travel together, or to be rejected with it.
    if (first.isAlone || (mayRepeatRows && batch.length === 1)) alone.set(first.row, first)
    let slow: NodeJS.Timeout | undefined
    let isCounted = true
    const discount = () => {
      if (isCounted) inFlight -= 1
      isCounted = false
    }
    const letGo = () => {
      if (alone.get(first.row) === first) alone.delete(first.row)
    }
    const finish = (settleAll: () => void) => {
      clearTimeout(slow)
      discount()
      letGo()
      settleAll()
      flush()
    }
    try {
      const isLarge = sizeOf(first.item) > maxBytes
      const results = await (isLarge ? largeLimit : limit)(() => {
        // It has waited for its place, and perhaps with a list that failed before.
        if (batch.every(isExpired)) throw notSent()
        slow = setTimeout(() => {
          discount()
          flush()
          slow = setTimeout(() => {
            letGo()
            flush()
          }, timeoutMs - slowMs).unref()
        }, slowMs)
        return verb(batch.map(({ item }) => item))
      })
      finish(() => {
        if (first.isAlone) locked.delete(first.row)
        for (const [i, entry] of batch.entries()) settle(entry, results[i] as O)
      })
    } catch (error) {
      finish(() => {
        if (batch.length > 1 && isOfItsData(error)) {
          for (const entry of batch) entry.isAlone = true
          queue = [...batch, ...queue]
          return
        }
        if (hasWaited(error)) rejectLocked(first.row, error)
        else if (isOfItsData(error)) return refuse(first, error)
        for (const entry of batch) reject(entry, error)
      })
    }
  }

  /** What is queued for the row would wait, too. */
  function rejectLocked(row: string, error: unknown): void {
    const now = performance.now()
    for (const [other, until] of locked) if (until < now) locked.delete(other)
    locked.set(row, now + LOCKED_MS)
    const waiting = queue.filter((entry) => entry.row === row)
    queue = queue.filter((entry) => entry.row !== row)
    for (const entry of waiting) reject(entry, error)
  }

  function settle(entry: Entry<I, O>, result: O): void {
    entry.resolve(result)
    for (const { item, resolve } of entry.joined) {
      resolve((join as NonNullable<typeof join>)(entry.item, result, item))
    }
  }

  /** The items that joined it have data of their own: the next of them takes its place. */
  function refuse(entry: Entry<I, O>, error: unknown): void {
    entry.reject(error)
    const [next, ...joined] = entry.joined
    if (next !== undefined) queue = [{ ...entry, ...next, joined }, ...queue]
  }

  function reject(entry: Entry<I, O>, error: unknown): void {
    entry.reject(error)
    for (const joined of entry.joined) joined.reject(error)
  }

  /** What was not sent in time never will be. */
  function expireQueued(): void {
    expiry = undefined
    const expired = queue.filter(isExpired)
    queue = queue.filter((entry) => !isExpired(entry))
    for (const entry of expired) reject(entry, notSent())
    flush()
  }

  return (item) =>
    new Promise((resolve, reject) => {
      const row = identify(item)
      const sameRow = join && (alone.get(row) ?? queue.find((entry) => entry.row === row))
      if (sameRow) {
        sameRow.joined.push({ item, resolve, reject })
        return
      }
      const queuedAt = performance.now()
      const isAlone = (locked.get(row) ?? 0) > queuedAt
      queue.push({ item, row, queuedAt, joined: [], isAlone, resolve, reject })
      flush()
    })
}

// Measured with 4 and 32 connections; see docs/decisions.
const MAX_CONCURRENT = 4
const MAX_ITEMS = 64
const MAX_BYTES = 1024 * 1024
/** Many times what a statement takes that waits for nothing. */
const SLOW_MS = 100

/** A verb over lists as a function of one item, batched where the store's lists are one statement. */
export function batched<I, O>(
  { combinesLists }: { readonly combinesLists: boolean },
  verb: Verb<I, O>,
  options: BatcherOptions<I, O>,
  limits: Pick<BatcherLimits, 'timeoutMs' | 'limit' | 'largeLimit'>,
): (item: I) => Promise<O> {
  return createBatcher(verb, options, {
    maxConcurrent: combinesLists ? MAX_CONCURRENT : Number.POSITIVE_INFINITY,
    maxItems: combinesLists ? MAX_ITEMS : 1,
    maxBytes: MAX_BYTES,
    slowMs: SLOW_MS,
    ...limits,
  })
}
