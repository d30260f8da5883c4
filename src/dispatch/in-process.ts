import { check, defined, isDuration, isInteger, toMs } from '../checks.js'
import type { Duration } from '../core/duration.js'
import { failureOf } from '../events.js'
import type { Dispatch, Work } from './dispatch.js'
import { createLooks } from './looks.js'

export interface InProcessOptions {
  /** How many events a process runs at once. Default 10. */
  concurrency?: number
  /** How often to look for what other processes left behind. Default `'5s'`. */
  pollEvery?: Duration
}

const CHECKS = {
  concurrency: isInteger(1, 10_000),
  pollEvery: isDuration(10, '5s'),
} as const satisfies Record<keyof InProcessOptions, unknown>

const DEFAULTS = { concurrency: 10, pollEvery: '5s' } as const satisfies InProcessOptions

/** How long a process that runs many events waits for more of them to end before it claims a few. */
const LINGER_MS = 20

/**
 * Runs events in the processes that receive them. They share the inbox: each claims what is due, so
 * that what one leaves behind is run by another. Needs nothing but the database.
 */
export function inProcess(options: InProcessOptions = {}): Dispatch {
  check(' of inProcess()', CHECKS, options)
  const { concurrency, pollEvery } = { ...DEFAULTS, ...defined(options) }
  const looks = createLooks(toMs(pollEvery), take)
  let work: Work | undefined
  let running = 0
  /** There may be more than was taken. */
  let hasMore = false
  let tookAt = Number.NEGATIVE_INFINITY

  async function take(): Promise<void> {
    if (work === undefined) return
    hasMore = true
    const room = concurrency - running
    if (room === 0) return
    // Or a full house of short events would ask for one at a time. Long ones must not keep the
    // other places empty.
    const lingerMs = room < concurrency / 2 ? tookAt + LINGER_MS - performance.now() : 0
    if (lingerMs > 0) return looks.in(lingerMs)
    tookAt = performance.now()
    try {
      const runs = await work.startDue(room)
      hasMore = runs.length === room
      running += runs.length
      for (const run of runs) {
        void run.then(() => {
          running -= 1
          if (hasMore) looks.now()
        })
      }
    } catch (error) {
      work.report({ kind: 'dispatch_failed', failure: failureOf(error) })
    }
  }

  return {
    start(given) {
      if (work !== undefined) return
      work = given
      looks.now()
    },
    enqueue({ inMs }) {
      if (work === undefined) return
      if (inMs > 0) looks.in(inMs)
      else looks.now()
    },
    lookAgain() {
      if (work !== undefined) looks.now()
    },
    stop: () => looks.stop(),
    async close() {},
  }
}
