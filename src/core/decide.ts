import type { AttemptToken, HeldBy, SeenRecord, StoredResponse } from './record.js'

/** What to do when the holder's lease ran out: run the handler again, or leave it to a person. */
export type OnLeaseExpired = 'rerun' | 'uncertain'

export type Decision =
  /**
   * The key may be taken by the first request that replaces `seen`: with the next attempt at the same
   * operation, or with another operation.
   */
  | { kind: 'take'; seen: AttemptToken; resumed: boolean }
  | { kind: 'replay'; response: StoredResponse }
  | ({ kind: 'busy' } & HeldBy)
  | { kind: 'mismatch' }
  /** The attempt that was interrupted. */
  | ({ kind: 'uncertain' } & AttemptToken)

/**
 * What an existing record means to a request that carries its key.
 *
 *                 | other fingerprint | same fingerprint
 *   --------------+-------------------+---------------------------------
 *   expired       | take              | take            (a lease that still runs is never expired)
 *   completed     | mismatch          | replay
 *   released      | mismatch          | take, resumed
 *   lease runs    | mismatch          | busy
 *   lease ran out | mismatch          | take, resumed; or uncertain where the route says so
 */
export function decide(
  record: SeenRecord,
  fingerprint: string,
  onLeaseExpired: OnLeaseExpired,
): Decision {
  const isHeld = record.status === 'in_progress' && record.leaseLeftMs > 0
  const { operationId, attempt } = record
  const seen = { operationId, attempt }
  if (record.isExpired && !isHeld) return { kind: 'take', seen, resumed: false }
  if (record.fingerprint !== fingerprint) return { kind: 'mismatch' }
  if (record.status === 'completed') {
    if (record.response === null) throw new TypeError('a completed record has no response')
    return { kind: 'replay', response: record.response }
  }
  if (isHeld) return { kind: 'busy', holder: record.holder, since: record.since }
  if (record.status === 'in_progress' && onLeaseExpired === 'uncertain') {
    return { kind: 'uncertain', ...seen }
  }
  return { kind: 'take', seen, resumed: true }
}
