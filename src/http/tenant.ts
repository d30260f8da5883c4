import type { FastifyRequest } from 'fastify'
import type { PluginSettings } from '../options.js'

/** The request belongs to no tenant. */
export class NoTenant extends Error {}

/**
 * Whose keys a request uses. Never a key that several share by accident: nothing, an empty string
 * or something that is no name is refused.
 *
 * @throws {NoTenant} when the function returned nothing; whatever the function throws.
 */
export async function tenantOf(
  request: FastifyRequest,
  tenant: PluginSettings['tenant'],
): Promise<string> {
  if (tenant === false) return ''
  const value: unknown = await tenant(request)
  if (value === undefined || value === null || value === '') throw new NoTenant()
  const name = typeof value === 'number' || typeof value === 'bigint' ? String(value) : value
  if (typeof name !== 'string' || name === 'NaN') {
    throw new TypeError(
      `the tenant function returned ${typeof value}; it must return a string or a number`,
    )
  }
  // PostgreSQL stores no NUL, the column is as wide as a key's, and halves of characters would all
  // become the same one on their way into the database.
  if (name.length > 255 || name.includes('\0') || Buffer.from(name).toString() !== name) {
    throw new TypeError('the tenant function returned more than 255 characters, or no valid text')
  }
  return name
}

/** Whether an error says itself what to answer, as those of authentication do. */
export function hasStatus(error: unknown): boolean {
  const status: unknown = Reflect.get(Object(error), 'statusCode')
  return typeof status === 'number' && status >= 400
}
