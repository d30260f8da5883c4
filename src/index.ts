export type { OnLeaseExpired } from './core/decide.js'
export type { Duration } from './core/duration.js'
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
export type { PrismaClientLike } from './store/client.js'
export type { PoolLike } from './store/statements.js'
