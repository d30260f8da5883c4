import type { FastifyInstance } from 'fastify'
import { failureOf, type Report } from './events.js'
import { within } from './within.js'

/** Small enough to hold few locks and little log at a time, large enough to be few statements. */
const BATCH = 1_000

/** Deletes at most `limit` rows that are kept for nobody any more; returns how many. */
type Prune = (limit: number) => Promise<number>

/** Deletes what has expired, batch by batch, until none is left; returns how many. */
export async function pruneAll(
  prunes: readonly Prune[],
  report: Report,
  isWanted: () => boolean = () => true,
): Promise<number> {
  const startedAt = performance.now()
  let count = 0
  for (const prune of prunes) {
    let deleted: number
    do {
      deleted = await prune(BATCH)
      count += deleted
      // Fewer than asked for: the end, or another process is at the rest.
    } while (deleted === BATCH && isWanted())
  }
  report({ kind: 'pruned', count, tookMs: Math.round(performance.now() - startedAt) })
  return count
}

/** Prunes from when the application listens (a test that only injects gets no timer) to its end. */
export function pruneRegularly(
  app: FastifyInstance,
  prunes: () => readonly Prune[],
  report: Report,
  { everyMs, patienceMs }: { everyMs: number; patienceMs: number },
): void {
  let timer: NodeJS.Timeout | undefined
  let pruning: Promise<unknown> = Promise.resolve()
  let isOpen = true

  function schedule(): void {
    if (!isOpen) return
    // Drawn anew each time, so that processes that started together do not stay together.
    timer = setTimeout(run, everyMs * (0.75 + Math.random() / 2))
  }

  function run(): void {
    pruning = pruneAll(prunes(), report, () => isOpen)
      .catch((error) => report({ kind: 'prune_failed', failure: failureOf(error) }))
      .finally(schedule)
  }

  app.addHook('onListen', async () => schedule())
  app.addHook('onClose', async () => {
    isOpen = false
    clearTimeout(timer)
    // A database that does not answer must not keep a server from closing.
    await within(pruning, patienceMs).catch(() => {})
  })
}
