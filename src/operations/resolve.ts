import type { Claims, Wish } from '../claims/claims.js'
import { backoff } from '../core/backoff.js'
import type { AttemptToken, StoredResponse } from '../core/record.js'
import type { FoundRecord } from '../store/prisma.js'

export type Resolved =
  | { kind: 'resolved' }
  /** There is no such operation, or it is forgotten. */
  | { kind: 'missing' }
  /**
   * `holder` has run this attempt since `since`. No other process may take it over for
   * `leaseRemainingMs`, and longer if the holder lives.
   */
  | ({
      kind: 'running'
      leaseRemainingMs: number
      holder: string | undefined
      since: Date | undefined
    } & AttemptToken)
  /** It has its result already. */
  | { kind: 'completed' }
  /** It was released: the next retry runs it without a decision. */
  | { kind: 'released' }
  /** Another attempt than the one that was looked at has been interrupted. */
  | ({ kind: 'changed' } & AttemptToken)

/** How a decision reaches the store. */
export interface ResolveContext {
  /** The attempt that the decision is about. */
  readonly attempt: AttemptToken | undefined
  /** Whether an operation is ended although its lease runs. */
  readonly isForced: boolean
  readonly find: () => Promise<FoundRecord | undefined>
  readonly claims: Claims
  /** The operation's claim, as far as it is known without the record. */
  readonly wish: Omit<Wish, 'fingerprint'>
  readonly storeTimeoutMs: number
}

/** The pauses before a record is read again that could not be taken over. */
const READ_AGAIN = { firstMs: 20, mostMs: 500 }

/**
 * Ends an operation whose lease ran out, or any that runs if it is forced. It is taken over, so that the
 * attempt that is replaced can store nothing any more if it lives, and then ends as it was decided. A
 * crash in between leaves it in progress, for one more lease.
 */
export async function resolve(
  decided: StoredResponse | null,
  { attempt, isForced, find, claims, wish, storeTimeoutMs }: ResolveContext,
): Promise<Resolved> {
  const deadline = performance.now() + storeTimeoutMs
  for (let read = 0; ; read += 1) {
    const seen = await find()
    if (seen === undefined || seen.isExpired) return { kind: 'missing' }
    const { status, leaseLeftMs, fingerprint } = seen
    if (status !== 'in_progress') return { kind: status }
    const isRunning = leaseLeftMs > 0
    if (isRunning && !isForced) return running(seen)
    const current = { operationId: seen.operationId, attempt: seen.attempt }
    const isCurrent =
      attempt === undefined ||
      (attempt.operationId === current.operationId && attempt.attempt === current.attempt)
    // The key may have expired since it was looked at, and name another operation now.
    if (!isCurrent) return { kind: 'changed', ...current }
    // The route may remember its keys for longer than the plugin does.
    const retentionMs = Math.max(wish.retentionMs, seen.expiresInMs)
    const decisive = { ...wish, fingerprint, retentionMs }
    const taking = { seen: current, resumed: true, forced: isForced } as const
    const claim = await claims.takeOver(decisive, taking)
    if (claim === undefined) {
      // Another request was faster, or an open transaction has locked the record.
      if (performance.now() > deadline) throw new Error('the record stayed locked')
      const pauseMs = backoff(READ_AGAIN, read, Math.random())
      await new Promise((resume) => setTimeout(resume, pauseMs))
      continue
    }
    const settled =
      decided === null
        ? await claim.release('a person decided', storeTimeoutMs)
        : await claim.complete(decided, storeTimeoutMs)
    if (settled === 'failed') throw new Error('the decision could not be stored')
    if (settled === 'lost') continue
    const to = decided === null ? 'released' : 'completed'
    wish.report({ kind: 'resolved', attempt: claim.attempt, to, forced: isRunning })
    return { kind: 'resolved' }
  }
}

function running({ leaseLeftMs, holder, since, operationId, attempt }: FoundRecord): Resolved {
  const leaseRemainingMs = Math.max(0, Math.round(leaseLeftMs))
  return { kind: 'running', leaseRemainingMs, holder, since, operationId, attempt }
}
