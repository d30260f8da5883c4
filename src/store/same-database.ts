import { within } from '../within.js'
import type { RunStatement } from './statements.js'

// The cluster, by what its standbys and a pooler in front of it share with it, and the database in it.
const IDENTITY = `
SELECT system_identifier || '/' || oid AS identity
FROM pg_control_system(), pg_database WHERE datname = current_database()`

/**
 * Whether both are answered by one database of PostgreSQL; `true` as well where one of them does not say: it
 * is away, or has taken the right to this function away. A copy of a cluster's files has its identity.
 */
export async function isSameDatabase(
  one: RunStatement,
  other: RunStatement,
  timeoutMs: number,
): Promise<boolean> {
  const [first, second] = await Promise.all([identityOf(one), identityOf(other)])
  return first === undefined || second === undefined || first === second

  async function identityOf(run: RunStatement): Promise<unknown> {
    try {
      const [row] = await within(
        Promise.resolve(run('idempotency_database', IDENTITY, [])),
        timeoutMs,
      )
      return Reflect.get(Object(row), 'identity')
    } catch {
      return undefined
    }
  }
}
