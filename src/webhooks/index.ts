// The entry point `fastify-idempotency/webhooks`: providers, and verifying without Fastify.
export {
  type Answer,
  type DeliveryOutcome,
  type Provider,
  type Secret,
  type Secrets,
  type Verification,
  type VerifiedEvent,
  type VerifyOptions,
  verify,
} from './provider.js'
export * from './providers/index.js'
export type { Incoming, Refusal } from './signature.js'
