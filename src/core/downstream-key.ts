import { createHash } from 'node:crypto'
import type { RecordKey } from './record.js'

/**
 * Names what is done under a key, the same in every attempt. The fingerprint tells it from what used
 * the same key before that had expired.
 */
export function operationName({ tenantId, key }: RecordKey, fingerprint: string): string {
  return JSON.stringify([tenantId, key, fingerprint])
}

/** A key for a call to somebody else, by which he recognizes the call: 43 characters of base64url. */
export function downstreamKey(operation: string, name: string): string {
  return createHash('sha256').update(`${operation}\0${name}`).digest('base64url')
}
