import type { Claims, Wish } from '../claims/claims.js'
import type { AttemptToken, StoredResponse } from '../core/record.js'
import type { FoundRecord } from '../store/prisma.js'

export type Resolved =
  | { kind: 'resolved' }
  /** There is no such operation, or it is forgotten. */
  | { kind: 'missing' }
  /** Somebody runs it now, for at least so long. */
  | { kind: 'running'; leaseLeftMs: number }
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
  readonly find: () => Promise<FoundRecord | undefined>
  readonly claims: Claims
  /** The operation's claim, as far as it is known without the record. */
  readonly wish: Omit<Wish, 'fingerprint'>
  readonly storeTimeoutMs: number
}

/**
 * Ends an operation whose lease ran out. It is taken over, so that the attempt that was interrupted can
 * store nothing any more if it turns out to live, and then ends as it was decided. A crash in between
 * leaves it as it was, for one more lease.
 */
export async function resolve(
  decided: StoredResponse | null,
  { attempt, find, claims, wish, storeTimeoutMs }: ResolveContext,
): Promise<Resolved> {
  for (;;) {
    const seen = await find()
    if (seen === undefined || seen.isExpired) return { kind: 'missing' }
    const { status, leaseLeftMs, fingerprint } = seen
    if (status !== 'in_progress') return { kind: status }
    if (leaseLeftMs > 0) return { kind: 'running', leaseLeftMs }
    const current = { operationId: seen.operationId, attempt: seen.attempt }
    const isCurrent =
      attempt === undefined ||
      (attempt.operationId === current.operationId && attempt.attempt === current.attempt)
    // The key may have expired since it was looked at, and name another operation now.
    if (!isCurrent) return { kind: 'changed', ...current }
    // The route may remember its keys for longer than the plugin does.
    const retentionMs = Math.max(wish.retentionMs, seen.expiresInMs)
    const decisive = { ...wish, fingerprint, retentionMs }
    const claim = await claims.takeOver(decisive, { seen: current, resumed: true })
    // Somebody else was faster: look what it did.
    if (claim === undefined) continue
    const settled =
      decided === null
        ? await claim.release('a person decided', storeTimeoutMs)
        : await claim.complete(decided, storeTimeoutMs)
    if (settled === 'failed') throw new Error('the decision could not be stored')
    if (settled === 'lost') continue
    const to = decided === null ? 'released' : 'completed'
    wish.report({ kind: 'resolved', attempt: claim.attempt, to })
    return { kind: 'resolved' }
  }
}
