import { type Duration, parseDuration } from '../core/duration.js'
import { OptionInvalid } from '../errors.js'
import { failureOf } from '../events.js'
import type { Dispatch, Job, Work } from './dispatch.js'

export interface InProcessOptions {
  /** How many events a process runs at once. Default 10. */
  concurrency?: number
  /** How often to look for what other processes left behind. Default `'5s'`. */
  pollEvery?: Duration
}

/**
 * Runs events in the processes that receive them. They share the inbox: each claims what is due, so
 * that what one leaves behind is run by another. Needs nothing but the database.
 */
export function inProcess({ concurrency = 10, pollEvery = '5s' }: InProcessOptions = {}): Dispatch {
  const pollMs = parseDuration(pollEvery)
  if (pollMs === undefined || pollMs < 10) {
    throw new OptionInvalid(`option "pollEvery" must be a duration such as '5s'`)
  }
  if (!Number.isSafeInteger(concurrency) || concurrency < 1) {
    throw new OptionInvalid('option "concurrency" must be a whole number from 1')
  }
  let work: Work | undefined
  let isOpen = true
  let running = 0
  /** There may be more than the last look took. */
  let hasMore = false
  let looking: Promise<void> | undefined
  let timer: NodeJS.Timeout | undefined
  let timerAt = Number.POSITIVE_INFINITY

  function lookIn(ms: number): void {
    if (!isOpen || work === undefined) return
    const at = performance.now() + ms
    if (at >= timerAt) return
    clearTimeout(timer)
    timerAt = at
    timer = setTimeout(() => {
      timerAt = Number.POSITIVE_INFINITY
      look()
    }, ms)
  }

  function look(): void {
    hasMore = true
    looking ??= take().finally(() => {
      looking = undefined
      // Drawn anew each time, so that processes that started together do not stay together.
      lookIn((pollMs as number) * (0.75 + Math.random() / 2))
    })
  }

  async function take(): Promise<void> {
    // Half of the places at least, or a full house would ask for one event at a time.
    while (isOpen && hasMore && work !== undefined && concurrency - running >= concurrency / 2) {
      const room = concurrency - running
      hasMore = false
      try {
        const runs = await work.startDue(room)
        hasMore ||= runs.length === room
        running += runs.length
        for (const run of runs) {
          void run.then(() => {
            running -= 1
            if (hasMore) look()
          })
        }
      } catch (error) {
        work.report({ kind: 'dispatch_failed', failure: failureOf(error) })
        return
      }
    }
  }

  return {
    start(given) {
      if (work !== undefined) return
      work = given
      look()
    },
    enqueue({ inMs }: Job) {
      if (inMs > 0) lookIn(inMs)
      else if (isOpen && work !== undefined) look()
    },
    lookAgain() {
      if (isOpen && work !== undefined) look()
    },
    async stop() {
      isOpen = false
      clearTimeout(timer)
      await looking
    },
  }
}
