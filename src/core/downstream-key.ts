import { createHash } from 'node:crypto'

/**
 * The idempotency key for a call that an operation makes to another service: the same in every
 * attempt at the operation, another one for every other operation, also for a later one under the
 * same key. 43 characters of base64url.
 */
export function downstreamKey(operationId: string, name: string): string {
  return createHash('sha256').update(`${operationId}\0${name}`).digest('base64url')
}
