import type { FastifyError, FastifyRequest } from 'fastify'
import { type ParsedKey, parseKey } from '../core/key.js'
import { bindToPrincipal } from '../core/principal.js'
import { BodyUnusable, KeyMalformed, KeyMissing } from '../errors.js'
import type { IgnoredReason, Report } from '../events.js'
import type { RouteSettings } from '../options.js'
import { type CallerSettings, identifyCaller } from './caller.js'

/** The key of a request, as its header has it. */
export type ReceivedKey = ParsedKey | { kind: 'unkeyed' }

/** What a request came with, before validation and other hooks could change it. */
export type Received =
  | { kind: 'keyed'; key: string; fingerprint: string }
  /**
   * Its body had not been read, and may be by the time the handler would run; `undefined` when it cannot be
   * compared in reasonable time.
   */
  | { kind: 'unread'; key: string; fingerprint: () => Promise<string | undefined> }
  /** It has a key, and a body that cannot be compared in reasonable time. */
  | { kind: 'unusable' }
  | Exclude<ReceivedKey, { kind: 'key' }>

/** What a request to a protected route asks for, before the database is asked. */
export type Asked =
  | { kind: 'key'; key: string; tenantId: string; fingerprint: string }
  /** It has no key, and needs none. */
  | { kind: 'nothing' }
  /** It has a key, nobody knows whose, and runs without protection: the route says so. */
  | { kind: 'ignored'; reason: IgnoredReason }
  /** `reason`: what is wrong with its key. */
  | { kind: 'refused'; error: FastifyError; reason?: string }

/** @throws what `tenant` or `principal` throws, where that says itself what to answer. */
export async function whatIsAsked(
  request: FastifyRequest,
  received: Received,
  settings: CallerSettings & Pick<RouteSettings, 'required'>,
  report: Report,
): Promise<Asked> {
  switch (received.kind) {
    case 'unkeyed':
      return settings.required
        ? { kind: 'refused', error: new KeyMissing(), reason: 'it is missing' }
        : { kind: 'nothing' }
    case 'malformed': {
      const { reason } = received
      return { kind: 'refused', error: new KeyMalformed(reason), reason }
    }
    case 'unusable':
      return { kind: 'refused', error: new BodyUnusable() }
  }
  const caller = await identifyCaller(request, settings, report)
  if (caller.kind !== 'known') return caller
  const { tenantId, principal } = caller
  const { key } = received
  const value = received.kind === 'keyed' ? received.fingerprint : await received.fingerprint()
  if (value === undefined) return { kind: 'refused', error: new BodyUnusable() }
  const fingerprint = principal === undefined ? value : bindToPrincipal(value, principal)
  return { kind: 'key', key, tenantId, fingerprint }
}

/** Reads the header. */
export function receivedKey(request: FastifyRequest): ReceivedKey {
  const header = headerOf(request)
  return header === undefined ? { kind: 'unkeyed' } : parseKey(header)
}

/**
 * The header as it was sent: Node joins two of them with a comma, and two halves of a quoted string
 * would become a key that nobody sent.
 */
function headerOf({ headers, raw }: FastifyRequest): string | string[] | undefined {
  const header = headers['idempotency-key']
  if (typeof header !== 'string' || !header.includes(',')) return header
  const distinct = raw.rawHeaders.filter(
    (name, n) => n % 2 === 0 && name.toLowerCase() === 'idempotency-key',
  )
  return distinct.length > 1 ? distinct : header
}
