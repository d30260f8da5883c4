import { failureOf, type Report } from '../events.js'
import type { HeldLock, LockBackend } from './lock.js'

/** After Redis did not answer, it is left alone for so long. Then one tries it. */
const AGAIN_AFTER_MS = 3_000

/**
 * The row in the database decides, always; Redis is a gate in front of it that keeps those who wait
 * away from the database. So it does not matter what Redis forgets, or whether it answers: without
 * the gate, everybody asks the database.
 *
 *     gate in Redis ── taken ──▶ row in the database ── taken ──▶ held
 *        │ no answer ─────────────▲   │ somebody's ──▶ give the gate back: busy
 *        └ somebody's ──▶ busy
 */
export function autoLock(row: LockBackend, redis: LockBackend, report: Report): LockBackend {
  let isLost = false
  let againAt = 0

  /** What Redis answers, or `undefined`: it did not, or was not asked. Never rejects. */
  async function ask<T>(question: () => Promise<T>): Promise<T | undefined> {
    if (isLost) {
      if (performance.now() < againAt) return undefined
      againAt = performance.now() + AGAIN_AFTER_MS
    }
    try {
      const answer = await question()
      if (isLost) report({ kind: 'lock_redis_back' })
      isLost = false
      return answer
    } catch (error) {
      if (!isLost) report({ kind: 'lock_redis_lost', failure: failureOf(error) })
      isLost = true
      againAt = performance.now() + AGAIN_AFTER_MS
      return undefined
    }
  }

  /** Said to a Redis that does not answer, too: it may only be paused, and would keep others out. */
  async function open(gate: HeldLock | undefined): Promise<void> {
    if (gate === undefined) return
    if (isLost) gate.release().catch(() => {})
    else await ask(() => gate.release())
  }

  return {
    async acquire(lock) {
      const answer = await ask(() => redis.acquire(lock))
      if (answer?.kind === 'busy') return answer
      const gate = answer?.held
      let held: HeldLock | undefined
      try {
        const decision = await row.acquire(lock)
        if (decision.kind === 'busy') return decision
        held = decision.held
      } finally {
        if (held === undefined) await open(gate)
      }
      return { kind: 'acquired', held: behindGate(held, gate) }
    },
    prune: row.prune,
  }

  function behindGate(held: HeldLock, gate: HeldLock | undefined): HeldLock {
    return {
      fence: held.fence,
      askedAt: held.askedAt,
      extend() {
        // Beside it: a gate that is not extended lets others through to the row, and no further.
        if (gate !== undefined) void ask(() => gate.extend())
        return held.extend()
      },
      async release() {
        try {
          return await held.release()
        } finally {
          await open(gate)
        }
      },
    }
  }
}
