import type { FastifyRequest } from 'fastify'
import { isStorable, isStorableText } from '../core/text.js'
import type { PluginSettings, RouteSettings } from '../options.js'
import { within } from '../within.js'

/** What a `tenant` or `principal` function returned is no name. */
export class InvalidName extends TypeError {
  /** For people, without anything of the value. */
  readonly hint: string

  constructor(option: 'tenant' | 'principal', returned: string) {
    super(`the ${option} function returned no name`)
    this.hint = `it returned ${returned}: return text, a safe integer or a bigint; for a request without a user, nothing`
  }
}

/** The request belongs to no tenant. */
export class NoTenant extends Error {}

/**
 * Whose keys a request uses. Never a key that several share by accident: nothing, an empty string
 * or something that is no name is refused.
 *
 * @throws {NoTenant} when the function returned nothing; whatever the function throws; `StoreTimeout`
 * when it does not answer within `timeoutMs`.
 */
export async function tenantOf(
  request: FastifyRequest,
  tenant: PluginSettings['tenant'],
  timeoutMs: number,
): Promise<string> {
  if (tenant === false) return ''
  const name = nameFrom('tenant', await answerOf(tenant(request), timeoutMs))
  if (name === undefined) throw new NoTenant()
  if (!isStorableText(name)) {
    throw new InvalidName(
      'tenant',
      'more than 255 characters, or text that cannot be stored as it is',
    )
  }
  return name
}

/**
 * The caller within the tenant, or `undefined` when the function returned nothing.
 *
 * @throws as `tenantOf` does, except for nothing.
 */
export async function principalOf(
  request: FastifyRequest,
  principal: NonNullable<RouteSettings['principal']>,
  timeoutMs: number,
): Promise<string | undefined> {
  const name = nameFrom('principal', await answerOf(principal(request), timeoutMs))
  // Of any length, because it is hashed. Halves of characters would all be hashed as the same one.
  if (name === undefined || isStorable(name)) return name
  throw new InvalidName('principal', 'text that cannot be stored as it is')
}

/** Bounded, where there is something to wait for. */
function answerOf(answer: unknown, timeoutMs: number): unknown {
  const isPending = typeof Reflect.get(Object(answer), 'then') === 'function'
  return isPending ? within(Promise.resolve(answer), timeoutMs) : answer
}

const RETURNED: Partial<Record<string, string>> = {
  object: 'an object',
  number: 'a number that is no safe integer',
  string: '"NaN"',
}

function nameFrom(option: 'tenant' | 'principal', value: unknown): string | undefined {
  if (value === undefined || value === null || value === '') return undefined
  const isWhole = typeof value === 'bigint' || Number.isSafeInteger(value)
  const name = isWhole ? String(value) : value
  if (typeof name === 'string' && name !== 'NaN') return name
  // Beyond the safe integers, two ids may have been rounded to one number.
  throw new InvalidName(option, RETURNED[typeof value] ?? `a ${typeof value}`)
}
