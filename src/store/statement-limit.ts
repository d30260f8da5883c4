import { StoreTimeout } from '../within.js'

/** Starts one statement, or one call of a verb, once there is room for it. */
export type StatementLimit = <T>(start: () => PromiseLike<T>) => Promise<T>

export interface PlaceLimits {
  /** For what asks for something: it can be refused. */
  readonly begin: StatementLimit
  /** For what an attempt that runs has to write. It never queues behind what wants to begin. */
  readonly hold: StatementLimit
}

/** `begin` and `hold` are those of the keys, which may take all places. */
export interface StatementLimits extends PlaceLimits {
  /**
   * For the begin of a transaction that a handler then runs in, until its first statement is answered:
   * places of `begin`, but never all of them where there are several.
   */
  readonly transaction: StatementLimit
  /**
   * For what stores a large response: places of `hold`, but never all of them where there are several, so that
   * no renewal waits for a body.
   */
  readonly largeResponses: StatementLimit
  /**
   * For webhooks, locks, reservations and statuses: places of `begin`, and of `hold`, but never all of them
   * where there are several. A table of theirs that is locked does not stop the keys.
   */
  readonly besideKeys: PlaceLimits
}

/** What a `pg` pool and Prisma's adapters have by default. */
const DEFAULT_POOL_SIZE = 10
/** The rest is left to the application, also while the database stalls. */
const SHARE_OF_POOL = 0.7

export function defaultMaxConnections(poolSize = DEFAULT_POOL_SIZE): number {
  return Math.max(2, Math.floor(poolSize * SHARE_OF_POOL))
}

/**
 * Bounds how many connections of the application's pool the plugin's own statements take at once. A
 * statement that the database does not answer keeps its place, because it keeps its connection: a
 * database that stalls takes no more than these, and routes that need nothing of the plugin go on.
 */
export function createStatementLimits(maxConnections: number, timeoutMs: number): StatementLimits {
  const forHolders = Math.floor(maxConnections / 2)
  const forBegins = maxConnections - forHolders
  const begin = createStatementLimit(forBegins, timeoutMs)
  const hold = createStatementLimit(forHolders, timeoutMs)
  return {
    begin,
    hold,
    transaction: partOf(begin, forBegins, timeoutMs),
    largeResponses: partOf(hold, forHolders, timeoutMs),
    besideKeys: {
      begin: partOf(begin, forBegins, timeoutMs),
      hold: partOf(hold, forHolders, timeoutMs),
    },
  }
}

/** Statements that take all places of a limit but one, if it has several. */
function partOf(whole: StatementLimit, places: number, timeoutMs: number): StatementLimit {
  const part = createStatementLimit(Math.max(1, places - 1), timeoutMs)
  return (start) => part(() => whole(start))
}

/**
 * A connection whose other end is gone without a word may never settle its statement. After so many
 * timeouts its place is given to another one, so that the plugin does not stand still for as long. One place
 * of a limit, and no more: a statement that waits for a locked table keeps its connection as well, and
 * together they must not take the pool.
 */
const TIMEOUTS_UNTIL_ABANDONED = 10

export function createStatementLimit(maxConcurrent: number, timeoutMs: number): StatementLimit {
  const waiting: (() => void)[] = []
  let taken = 0
  let isOneAbandoned = false

  function startNext(): void {
    if (taken < maxConcurrent) waiting.shift()?.()
  }

  function release(): void {
    taken -= 1
    startNext()
  }

  return <T>(start: () => PromiseLike<T>) =>
    new Promise<T>((resolve, reject) => {
      const run = () => {
        clearTimeout(timer)
        taken += 1
        let isAbandoned = false
        const abandon = setTimeout(() => {
          if (isOneAbandoned) return
          isAbandoned = true
          isOneAbandoned = true
          release()
        }, timeoutMs * TIMEOUTS_UNTIL_ABANDONED)
        const end = () => {
          clearTimeout(abandon)
          if (isAbandoned) isOneAbandoned = false
          else release()
        }
        // In the executor, so that a start that throws is like one that rejects.
        new Promise<T>((started) => started(start())).then(resolve, reject).finally(end)
      }
      const timer = setTimeout(() => {
        waiting.splice(waiting.indexOf(run), 1)
        reject(new StoreTimeout(`no statement could be sent within ${timeoutMs} ms`))
      }, timeoutMs)
      waiting.push(run)
      startNext()
    })
}
