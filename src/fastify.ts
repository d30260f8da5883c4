import type { RequestIdempotency } from './http/request.js'
import type { RouteOptions as IdempotencyOptions } from './options.js'

/** Idempotency outside a request: `app.idempotency`. */
export interface Idempotency {
  /**
   * Deletes expired records, 1,000 at a time, until none is left; several processes may do it at
   * once. An expired key is free whether its record is deleted or not. Returns how many were
   * deleted. Rejects when the database does; what was deleted by then stays deleted.
   */
  prune(): Promise<number>
}

declare module 'fastify' {
  interface FastifyInstance {
    /** Idempotency outside a request. */
    idempotency: Idempotency
  }

  interface FastifyRequest {
    /** Idempotency of this request. */
    idempotency: RequestIdempotency
  }

  interface FastifyContextConfig {
    /** `false` leaves the route alone; `true` or options protect it, whatever its method. */
    idempotency?: boolean | IdempotencyOptions
  }
}
