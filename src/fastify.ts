import type { Guards } from './guards.js'
import type { RequestIdempotency } from './http/request.js'
import type { RouteOptions as IdempotencyOptions } from './options.js'
import type { WebhookHandler } from './webhooks/endpoint.js'
import type { WebhookOptions } from './webhooks/options.js'
import type { RequestEvents } from './webhooks/record-event.js'
import type { WebhookEvents } from './webhooks/webhooks.js'

/** Idempotency outside a request: `app.idempotency`. */
export interface Idempotency extends WebhookEvents, Guards {
  /**
   * The guards of a tenant: its locks, reservations and audits are its own. Those of
   * `app.idempotency` itself belong to the application, or to the only tenant.
   */
  for(tenantId: string): Guards
  /**
   * Deletes expired records and events, 1,000 at a time, until none is left; several processes may
   * do it at once. An expired key is free whether its record is deleted or not. Returns how many were
   * deleted. Rejects when the database does; what was deleted by then stays deleted.
   */
  prune(): Promise<number>
}

declare module 'fastify' {
  interface FastifyInstance {
    /** Idempotency outside a request. */
    idempotency: Idempotency

    /**
     * Adds a route for a provider's webhooks: verified, recorded once, processed once. It keeps
     * every event that it acknowledges.
     *
     * @throws IDEMPOTENCY_OPTION_INVALID for options that cannot be.
     */
    webhook(url: string, options: WebhookOptions, handler: WebhookHandler): void
  }

  interface FastifyRequest {
    /** Idempotency of this request. */
    idempotency: RequestIdempotency & RequestEvents & Guards
  }

  interface FastifyContextConfig {
    /** `false` leaves the route alone; `true` or options protect it, whatever its method. */
    idempotency?: boolean | IdempotencyOptions
  }
}
