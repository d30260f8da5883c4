// A process of its own for schedules: nothing else shares its clock, its timers and its dice.
import { addCounts, type Counts, noCounts } from './counts.js'
import { simulate } from './simulate.js'

/** Seeds from `from` on. */
export interface Share {
  readonly from: number
  readonly count: number
}

export interface ShareDone extends Share {
  readonly counts: Counts
  readonly steps: number
  readonly failures: readonly { readonly seed: number; readonly violations: readonly string[] }[]
}

process.on('message', async ({ from, count }: Share) => {
  const counts = noCounts()
  const failures: { seed: number; violations: readonly string[] }[] = []
  let steps = 0
  for (let seed = from; seed < from + count; seed += 1) {
    const run = await simulate(seed)
    addCounts(counts, run.counts)
    steps += run.steps
    if (run.violations.length > 0) failures.push({ seed, violations: run.violations })
  }
  const done: ShareDone = { from, count, counts, steps, failures }
  process.send?.(done)
})
