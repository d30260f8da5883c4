import type { FastifyError, FastifyRequest } from 'fastify'
import { isThrown } from '../core/thrown.js'
import { PrincipalFailed, PrincipalUnknown, TenantFailed, TenantUnknown } from '../errors.js'
import { type Failure, failureOf, type IgnoredReason, type Report } from '../events.js'
import type { PluginSettings, RouteSettings } from '../options.js'
import { hasStatus } from '../sealed.js'
import { InvalidName, NoTenant, principalOf, tenantOf } from './tenant.js'

/** The options that say who the caller is. */
export type CallerSettings = Pick<PluginSettings, 'tenant' | 'storeTimeoutMs'> &
  Pick<RouteSettings, 'principal' | 'onUnknownCaller'>

/** Who sent a request with a key, or what becomes of it where that is not known. */
export type Caller =
  | { kind: 'known'; tenantId: string; principal: string | undefined }
  | { kind: 'ignored'; reason: IgnoredReason }
  | { kind: 'refused'; error: FastifyError; reason?: string }

const ERRORS = {
  tenant: { Unknown: TenantUnknown, Failed: TenantFailed },
  principal: { Unknown: PrincipalUnknown, Failed: PrincipalFailed },
} as const

/** @throws what `tenant` or `principal` throws, where that has a status: it is the answer. */
export async function identifyCaller(
  request: FastifyRequest,
  { tenant, principal, onUnknownCaller, storeTimeoutMs }: CallerSettings,
  report: Report,
): Promise<Caller> {
  let option: keyof typeof ERRORS = 'tenant'
  try {
    const tenantId = await tenantOf(request, tenant, storeTimeoutMs)
    if (principal === undefined) return { kind: 'known', tenantId, principal }
    option = 'principal'
    const name = await principalOf(request, principal, storeTimeoutMs)
    if (name !== undefined) return { kind: 'known', tenantId, principal: name }
  } catch (error) {
    if (!isThrown(error, NoTenant)) {
      return { kind: 'refused', error: callerFailed(option, error, report) }
    }
  }
  if (onUnknownCaller === 'bypass') return { kind: 'ignored', reason: `${option}_unknown` }
  const error = new ERRORS[option].Unknown()
  return { kind: 'refused', error, reason: `the request belongs to no ${option}` }
}

/**
 * The tenant of a request whose helper needs one, with a key or without.
 *
 * @throws TenantUnknown; TenantFailed; what `tenant` throws, where that has a status.
 */
export async function tenantOfHelpers(
  request: FastifyRequest,
  { tenant, storeTimeoutMs }: Pick<CallerSettings, 'tenant' | 'storeTimeoutMs'>,
  report: Report,
): Promise<string> {
  try {
    return await tenantOf(request, tenant, storeTimeoutMs)
  } catch (error) {
    throw isThrown(error, NoTenant) ? new TenantUnknown() : callerFailed('tenant', error, report)
  }
}

/** What it threw may quote its database. @throws that, where it has a status: it is the answer. */
function callerFailed(option: keyof typeof ERRORS, error: unknown, report: Report): FastifyError {
  if (hasStatus(error)) throw error
  report({ kind: 'caller_failed', option, failure: withHint(failureOf(error), error) })
  return new ERRORS[option].Failed()
}

/** Nearly always, these are functions that read a property of a user who is not there. */
function withHint(failure: Failure, error: unknown): Failure {
  if (isThrown(error, InvalidName)) return { ...failure, hint: error.hint }
  if (!isThrown(error, TypeError)) return failure
  const hint =
    'for a request without a user, return nothing: (request) => request.user?.orgId; `onUnknownCaller` says what happens then'
  return { ...failure, hint: failure.hint ?? hint }
}
