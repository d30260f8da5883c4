import { isThrown } from '../core/thrown.js'
import { errorCode } from './client.js'

// Classes of SQLSTATE in which the statement, and not the server or the connection, is at fault: its
// cardinality, its data, a constraint, its size, what a trigger of the application raises; and two of
// its own: a row that stayed locked for longer than the lock timeout, and a statement timeout that the
// application has set.
const OF_THE_STATEMENT = /^(09|21|22|23|38|39|42|44|54|P0)...$|^55P03$|^57014$/

/**
 * Whether a statement failed because of what it carried, or waited for: another one may succeed now,
 * and the same one will not. Nothing of it was kept.
 */
export function isOfItsData(error: unknown): boolean {
  const code = errorCode(error)
  if (code !== undefined) return OF_THE_STATEMENT.test(code) || code.startsWith('ERR_')
  // Thrown before it was sent: text that is longer than a string can be, a value that has no form.
  return isThrown(error, TypeError) || isThrown(error, RangeError)
}

/**
 * Whether a statement that is `isOfItsData` was cut off while it waited. Whatever else is about the same
 * row would wait, too.
 */
export function hasWaited(error: unknown): boolean {
  const code = errorCode(error)
  return code === '55P03' || code === '57014'
}

/**
 * Whether a failure says nothing of what was sent: it took too long, wherever it waited, or the server ends,
 * starts, is full, or takes no writes.
 */
export function isOfServer(error: unknown): boolean {
  return hasWaited(error) || isLockTimeout(error) || OF_THE_SERVER.has(errorCode(error) ?? '')
}

const OF_THE_SERVER = new Set([
  // Ours and the socket's; Prisma's for a connection of its pool, a transaction, a file that is locked.
  ...['ETIMEDOUT', 'P2024', 'P2028', 'P1008', 'SQLITE_BUSY'],
  // The server refuses connections.
  ...['ECONNREFUSED', 'P1001'],
  // PostgreSQL: shut down by an administrator, crashed, starting; too many connections; read-only.
  ...['57P01', '57P02', '57P03', '53300', '25006'],
])

/** Another transaction has the row, and the statement waited for it for as long as it may. */
export function isLockTimeout(error: unknown): boolean {
  const code = errorCode(error)
  // PostgreSQL; MySQL and MariaDB.
  return code === '55P03' || code === '1205'
}
