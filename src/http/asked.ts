import type { FastifyError, FastifyRequest } from 'fastify'
import { parseKey } from '../core/key.js'
import { bindToPrincipal } from '../core/principal.js'
import { BodyUnusable, KeyMalformed, KeyMissing } from '../errors.js'
import type { IgnoredReason, Report } from '../events.js'
import { type CallerSettings, identifyCaller } from './caller.js'

/** What is known of a body before validation: its fingerprint, or that it has none. */
export type Fingerprinted =
  | { kind: 'fingerprint'; value: string }
  | { kind: 'unusable' }
  | { kind: 'not compared' }

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
  fingerprinted: Fingerprinted,
  settings: CallerSettings,
  report: Report,
): Promise<Asked> {
  const header = headerOf(request)
  if (header === undefined) {
    if (fingerprinted.kind === 'not compared') return { kind: 'nothing' }
    return { kind: 'refused', error: new KeyMissing(), reason: 'it is missing' }
  }
  const parsed = parseKey(header)
  if (parsed.kind === 'malformed') {
    const { reason } = parsed
    return { kind: 'refused', error: new KeyMalformed(reason), reason }
  }
  if (fingerprinted.kind !== 'fingerprint') return { kind: 'refused', error: new BodyUnusable() }
  const caller = await identifyCaller(request, settings, report)
  if (caller.kind !== 'known') return caller
  const { tenantId, principal } = caller
  const { value } = fingerprinted
  const fingerprint = principal === undefined ? value : bindToPrincipal(value, principal)
  return { kind: 'key', key: parsed.key, tenantId, fingerprint }
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
