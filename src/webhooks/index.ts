// The entry point `fastify-idempotency/webhooks`: providers, and verifying without Fastify.
export type { Answer, DeliveryOutcome, Provider } from './provider.js'
export * from './providers/index.js'
export type { Secret, Secrets } from './secrets.js'
export type { Incoming, Refusal } from './signature.js'
export {
  type HeadersToVerify,
  type Verification,
  type VerifiedEvent,
  type VerifyOptions,
  verify,
} from './verify.js'
