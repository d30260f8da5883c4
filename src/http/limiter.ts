import rateLimit from '@fastify/rate-limit'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { failureOf, type Report } from '../events.js'
import { within } from '../within.js'

/** How long a count may take before the key is let in without one. The claim is held meanwhile. */
const PATIENCE_MS = 500

export interface LimiterOptions {
  readonly max: number
  readonly timeWindowMs: number
  readonly redis: object | undefined
  /** What the names of counters begin with: other applications may count in the same Redis. */
  readonly prefix: string
  /** Whose count a request goes to. */
  readonly keyOf: (request: FastifyRequest) => string
}

type Count = ReturnType<FastifyInstance['createRateLimit']>

/** Counts one more; tells after how many seconds to come back when it was one too many. */
export type Limiter = (request: FastifyRequest, report: Report) => Promise<number | undefined>

/**
 * Counts new keys by tenant, or failed signatures by address. It saves space and noise and protects
 * no operation, so a counter that does not answer holds nobody up.
 *
 * An application that has registered @fastify/rate-limit itself has chosen where to count; that
 * choice is used here, too.
 */
export async function createLimiter(
  app: FastifyInstance,
  { max, timeWindowMs, redis, prefix, keyOf }: LimiterOptions,
): Promise<Limiter> {
  let count: Count | undefined
  const isInMemory = !redis && !app.hasDecorator('createRateLimit')
  // In a context of its own: the application's decorators stay what it made them.
  await app.register(async (inner) => {
    // In the key as well: where the application has registered it, its own `nameSpace` counts.
    await inner.register(rateLimit, { global: false, nameSpace: prefix, ...(redis && { redis }) })
    const limit = inner.createRateLimit({
      max,
      timeWindow: timeWindowMs,
      keyGenerator: (request) => `${prefix}limit:${keyOf(request)}`,
    })
    count = isInMemory ? oneAtATime(limit) : limit
  })
  return async (request, report) => {
    try {
      const counted = await within(Promise.resolve(count?.(request)), PATIENCE_MS)
      if (counted === undefined || counted.isAllowed || !counted.isExceeded) return undefined
      return Math.max(1, counted.ttlInSeconds)
    } catch (error) {
      report({ kind: 'limiter_failed', failure: failureOf(error) })
      return undefined
    }
  }
}

// The counter in memory hands out one object that later calls go on counting in: side by side, the
// first of many would read the number of the last.
function oneAtATime(count: Count): Count {
  let last: Promise<unknown> = Promise.resolve()
  return (request) => {
    const counted = last.then(() => count(request))
    last = counted.catch(() => {})
    return counted
  }
}
