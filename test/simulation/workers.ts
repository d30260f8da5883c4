import { fork } from 'node:child_process'
import { once } from 'node:events'
import { bundleOf } from '../fixtures/bundle.js'
import { addCounts, type Counts, noCounts } from './counts.js'
import type { Share, ShareDone } from './worker.js'

export interface Summary {
  schedules: number
  steps: number
  readonly counts: Counts
  readonly failures: { readonly seed: number; readonly violations: readonly string[] }[]
}

export interface WorkersOptions extends Share {
  readonly processes: number
  /** How many schedules a process runs before it tells. */
  readonly share: number
  readonly onShare?: (summary: Summary) => void
}

/** A schedule leaves nothing behind: with room for many of them, hardly anything is ever moved. */
const ROOM = ['--min-semi-space-size=64', '--max-semi-space-size=64']

/** So many failures are enough to look at. */
const ENOUGH_FAILURES = 10

/** Runs schedules in several processes, until all are done or enough have failed. */
export async function runSchedules({
  from,
  count,
  processes,
  share,
  onShare,
}: WorkersOptions): Promise<Summary> {
  const summary: Summary = { schedules: 0, steps: 0, counts: noCounts(), failures: [] }
  let next = from
  const work = async () => {
    const child = fork(bundleOf('../simulation/worker.ts'), {
      env: { ...process.env, NODE_OPTIONS: '' },
      execArgv: ROOM,
    })
    const ended = once(child, 'exit').then(([code]) => {
      throw new Error(`a process that runs schedules ended with ${code}`)
    })
    ended.catch(() => {})
    try {
      while (next < from + count && summary.failures.length < ENOUGH_FAILURES) {
        const mine: Share = { from: next, count: Math.min(share, from + count - next) }
        next += mine.count
        child.send(mine)
        const [done] = await Promise.race([once(child, 'message') as Promise<[ShareDone]>, ended])
        summary.schedules += done.count
        summary.steps += done.steps
        addCounts(summary.counts, done.counts)
        summary.failures.push(...done.failures)
        onShare?.(summary)
      }
    } finally {
      child.kill()
    }
  }
  await Promise.all(Array.from({ length: processes }, work))
  return summary
}
