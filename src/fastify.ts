import type { Guards } from './guards.js'
import type { RequestIdempotency } from './http/request.js'
import type { OperationHandler, RunningOperation } from './operations/handlers.js'
import type { RunsOperations } from './operations/operations.js'
import type { OperationTimes, RecoverOptions } from './operations/options.js'
import type { Recovered } from './operations/recover.js'
import type { RouteOptions as IdempotencyOptions } from './options.js'
import type { WebhookHandler } from './webhooks/endpoint.js'
import type { WebhookOptions } from './webhooks/options.js'
import type { RequestEvents } from './webhooks/record-event.js'
import type { WebhookEvents } from './webhooks/webhooks.js'

/** Idempotency outside a request: `app.idempotency`. */
export interface Idempotency extends WebhookEvents, Guards, RunsOperations {
  /**
   * The helpers of a tenant: its keys, locks, reservations and audits are its own. Those of
   * `app.idempotency` itself belong to the application, or to the only tenant.
   */
  for(tenantId: string): Guards & RunsOperations
  /**
   * Names a piece of work, so that another process can finish it: give what this returns to `run()`.
   * Every process that recovers needs it, under the same name, and its input must be plain data.
   *
   * @throws IDEMPOTENCY_OPTION_INVALID when there is one of this name.
   */
  handler<Input = undefined, Result = unknown>(
    name: string,
    work: (operation: RunningOperation, input: Input) => Promise<Result>,
    times?: OperationTimes,
  ): OperationHandler<Input, Result>
  /**
   * Finishes operations that named a handler of this process and whose own process died: those of
   * `run()` and of `request.idempotency.run()`. Takes one batch, from any process, several at once; each
   * is taken over by one of them. One whose handler fails is left for a later call, after its lease.
   *
   * @throws IDEMPOTENCY_DATABASE_FAILED when the database does not answer.
   */
  recover(options?: RecoverOptions): Promise<Recovered>
  /**
   * Deletes expired records and events, 1,000 at a time, until none is left; several processes may
   * do it at once. An expired key is free whether its record is deleted or not. Returns how many were
   * deleted.
   *
   * @throws IDEMPOTENCY_DATABASE_FAILED when the database does not answer; what was deleted by then stays
   * deleted.
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
    /** `false` leaves the route alone; `true` or options protect it, also a PUT or DELETE. Refused for a GET. */
    idempotency?: boolean | IdempotencyOptions
  }
}
