import type { FastifyRequest } from 'fastify'
import { exchangeOf } from './hooks.js'

/** What a handler can know of its own protection. */
export interface RequestIdempotency {
  /** The Idempotency-Key that protects this request; `undefined` when nothing does. */
  readonly key: string | undefined
  /** Which attempt at the operation this is, from 1; 0 when nothing protects the request. */
  readonly attempt: number
  /** Whether an earlier attempt was interrupted and may have left something done. */
  readonly resumed: boolean
  /**
   * Aborted when another attempt may start, because the lease could not be kept or the handler ran
   * longer than `maxRun`. What has not been done by then should not be done.
   */
  readonly signal: AbortSignal
}

/** The view of a request's claim that handlers get. */
export function requestIdempotency(request: FastifyRequest): RequestIdempotency {
  const exchange = exchangeOf(request)
  const claim = exchange?.claim
  return {
    key: claim?.key,
    attempt: claim?.fence ?? 0,
    resumed: claim?.resumed ?? false,
    get signal() {
      return claim?.signal ?? new AbortController().signal
    },
  }
}
