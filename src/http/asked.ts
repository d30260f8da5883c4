import type { FastifyError, FastifyRequest } from 'fastify'
import { parseKey } from '../core/key.js'
import { BodyUnusable, KeyMalformed, KeyMissing, TenantFailed, TenantUnknown } from '../errors.js'
import { failureOf } from '../events.js'
import type { PluginSettings } from '../options.js'
import { hasStatus, NoTenant, tenantOf } from './tenant.js'

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
  /** `reason`: what is wrong with its key. */
  | { kind: 'refused'; error: FastifyError; reason?: string }

/** @throws what the tenant function throws, where that says itself what to answer. */
export async function whatIsAsked(
  request: FastifyRequest,
  fingerprinted: Fingerprinted,
  tenant: PluginSettings['tenant'],
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
  try {
    const tenantId = await tenantOf(request, tenant)
    return { kind: 'key', key: parsed.key, tenantId, fingerprint: fingerprinted.value }
  } catch (error) {
    if (error instanceof NoTenant) return { kind: 'refused', error: new TenantUnknown() }
    if (hasStatus(error)) throw error
    request.log.error(
      { failure: failureOf(error) },
      'The tenant of a request could not be found out',
    )
    return { kind: 'refused', error: new TenantFailed() }
  }
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
