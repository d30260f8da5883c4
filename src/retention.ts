import type { Report } from './events.js'
import { within } from './within.js'

/** Small enough to hold few locks and little log at a time, large enough to be few statements. */
const BATCH = 1_000

/** Deletes at most `limit` rows that are kept for nobody any more; returns how many. */
type Prune = (limit: number) => Promise<number>

/**
 * Deletes what has expired, batch by batch, until none is left; returns how many.
 *
 * @throws StoreTimeout when a batch takes longer than `batchTimeoutMs`: a later turn deletes the rest.
 */
export async function pruneAll(
  prunes: readonly Prune[],
  batchTimeoutMs: number,
  report: Report,
  isWanted: () => boolean = () => true,
): Promise<number> {
  const startedAt = performance.now()
  let count = 0
  for (const prune of prunes) {
    let deleted: number
    do {
      deleted = await within(prune(BATCH), batchTimeoutMs)
      count += deleted
      // Fewer than asked for: the end, or another process is at the rest.
    } while (deleted === BATCH && isWanted())
  }
  report({ kind: 'pruned', count, tookMs: Math.round(performance.now() - startedAt) })
  return count
}
