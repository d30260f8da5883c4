import { createHash } from 'node:crypto'

/**
 * Binds a fingerprint to the caller, so that another caller's request is another request. A hash again:
 * who the caller was cannot be read from the table.
 */
export function bindToPrincipal(fingerprint: string, principal: string): string {
  // Fingerprints have one length, so no two pairs become the same text. The tag keeps the result apart
  // from a fingerprint that is bound to nobody.
  return createHash('sha256')
    .update(`\0principal\0${fingerprint}`)
    .update(principal)
    .digest('base64url')
}
