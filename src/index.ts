export type { Operation } from './claims/operation.js'
export type { EventTransactionOptions, TransactionOptions } from './claims/steps.js'
export type { OnLeaseExpired } from './core/decide.js'
export type { Duration } from './core/duration.js'
export type { BlockedReason, Flow, Move } from './core/flow.js'
export type { Dispatch, Job, Work } from './dispatch/dispatch.js'
export { type InProcessOptions, inProcess } from './dispatch/in-process.js'
export * as errors from './errors.js'
export {
  type AtomicHappening,
  CHANNEL,
  type EventSubject,
  type Failure,
  type GuardHappening,
  type Happening,
  type IdempotencyEvent,
  type IgnoredReason,
  type OperationHappening,
} from './events.js'
export type { Idempotency } from './fastify.js'
export type { Guards } from './guards.js'
export type { RequestIdempotency } from './http/request.js'
export type { LockBusy } from './locks/lock.js'
export type { LockResult, LockRoutine } from './locks/locks.js'
export type { LockOptions } from './locks/options.js'
export { type Once, once } from './once.js'
export type { Decision, OperationName, ResponseToKeep } from './operations/decision.js'
export type { OperationHandler, RunningOperation } from './operations/handlers.js'
export type { RunResult, RunsOperations } from './operations/operations.js'
export type {
  OperationTimes,
  RecoverOptions,
  ResolveOptions,
  RunOptions,
} from './operations/options.js'
export type { Recovered } from './operations/recover.js'
export type { Resolved } from './operations/resolve.js'
export {
  type AtomicOptions,
  isAnswer,
  type PluginOptions,
  type PrincipalId,
  type RedactedResponse,
  type RedisLike,
  type ResponseToRedact,
  type RouteOptions,
  type TenantId,
} from './options.js'
export { default } from './plugin.js'
export type { Register } from './register.js'
export type {
  Availability,
  AvailabilityOptions,
  Cancelled,
  Confirmed,
  Missing,
  ReservationTransaction,
  Reserved,
  ReserveOptions,
  SlotsOptions,
  Taken,
} from './reservations.js'
export { databaseErrorOf, WriteConflict } from './sealed.js'
export type { AdvanceResult } from './status/advance.js'
export { defineFlow, type FlowOptions } from './status/define-flow.js'
export type { AdvanceOptions, Override, StatusDelegate, StatusFields } from './status/options.js'
export type { PrismaClientLike } from './store/client.js'
export type { PoolClientLike, PoolLike } from './store/pool.js'
export { HiddenDuplicate } from './store/say-again.js'
export type { WebhookHandler } from './webhooks/endpoint.js'
export type { WebhookEvent } from './webhooks/event.js'
export type { Delivered, Replayed } from './webhooks/inbox.js'
export type { EventToIngest } from './webhooks/ingest.js'
export type { EventFacts, WebhookOptions } from './webhooks/options.js'
export type { EventToRecord, KnownEvent, RecordedEvent } from './webhooks/record-event.js'
