export type { TransactionOptions } from './claims/steps.js'
export type { OnLeaseExpired } from './core/decide.js'
export type { Duration } from './core/duration.js'
export type { Dispatch, Job, Work } from './dispatch/dispatch.js'
export { type InProcessOptions, inProcess } from './dispatch/in-process.js'
export * as errors from './errors.js'
export {
  CHANNEL,
  type EventSubject,
  type Failure,
  type Happening,
  type IdempotencyEvent,
} from './events.js'
export type { Idempotency } from './fastify.js'
export type { RequestIdempotency } from './http/request.js'
export { isAnswer, type PluginOptions, type RouteOptions, type TenantId } from './options.js'
export { default } from './plugin.js'
export type { Register } from './register.js'
export type { PrismaClientLike } from './store/client.js'
export type { PoolLike } from './store/statements.js'
export type { WebhookHandler } from './webhooks/endpoint.js'
export type { WebhookEvent } from './webhooks/event.js'
export type { Delivered, Replayed } from './webhooks/inbox.js'
export type { EventToIngest } from './webhooks/ingest.js'
export type { EventFacts, WebhookOptions } from './webhooks/options.js'
export type { EventToRecord, KnownEvent, RecordedEvent } from './webhooks/record-event.js'
