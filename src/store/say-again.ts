import { backoff } from '../core/backoff.js'
import { isThrown, readThrown } from '../core/thrown.js'
import { errorCode, type ModelDelegate } from './client.js'

// Serialization failure and deadlock: the server has rolled all of it back, and what is said is
// guarded, so it can be said again. The first comes with a stricter isolation level than usual; the
// last is MySQL's own number for a deadlock.
const ROLLED_BACK = ['40001', '40P01', '1213']

// SQLite's file is locked by another process: the statement was not run, or the transaction is undone.
// libSQL gives the number (SQLITE_BUSY, and its _RECOVERY, _SNAPSHOT and _TIMEOUT), better-sqlite3 the name.
const FILE_IS_BUSY = /^(5|261|517|773|SQLITE_BUSY(_\w+)?)$/

const SAY_AGAIN = { firstMs: 5, mostMs: 100 }
const TRIES = 10

/**
 * A unique constraint was hit by a row that the transaction cannot find: it reads from a snapshot that is
 * older than the row, or another constraint was hit (`cause`, a P2002). It has the code of Prisma's own
 * error for a conflict, so that whoever repeats a transaction after that repeats it after this, too.
 */
export class HiddenDuplicate extends Error {
  readonly code = 'P2034'
  override readonly name = 'HiddenDuplicate'
}

/**
 * Says one guarded statement, or one transaction, again when the server rolled it back, unless it cannot
 * be repeated any more.
 */
export async function sayAgain<T>(
  statement: () => PromiseLike<T>,
  isRepeatable: () => boolean = () => true,
): Promise<T> {
  let wasHidden = false
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await statement()
    } catch (error) {
      const isHidden = isThrown(error, HiddenDuplicate)
      // A new snapshot would have shown the row: it was another constraint.
      if (isHidden && wasHidden) throw error.cause
      wasHidden = isHidden
      if (!isRolledBack(error) || attempt === TRIES || !isRepeatable()) throw error
      const pauseMs = backoff(SAY_AGAIN, attempt, Math.random())
      await new Promise((resolve) => setTimeout(resolve, pauseMs))
    }
  }
}

/**
 * A delegate whose statements are said again when the server rolled them back: each must be a read, or
 * guarded by itself, and none may be part of a transaction.
 */
export function sayingAgainEach(delegate: ModelDelegate): ModelDelegate {
  const again =
    (name: keyof ModelDelegate): ModelDelegate[typeof name] =>
    (args) =>
      sayAgain(() => delegate[name](args))
  return {
    create: again('create'),
    createMany: again('createMany'),
    findUnique: again('findUnique'),
    findFirst: again('findFirst'),
    findMany: again('findMany'),
    updateMany: again('updateMany'),
    deleteMany: again('deleteMany'),
  }
}

/** Whether the server has said that nothing of it is kept. */
export function isRolledBack(error: unknown): boolean {
  const code = errorCode(error) ?? ''
  return ROLLED_BACK.includes(code) || (FILE_IS_BUSY.test(code) && isPrismas(error))
}

/** An application's own error may have a code that is as short as one of SQLite's. */
function isPrismas(error: unknown): boolean {
  const name = readThrown(error, 'name')
  // The second is an error that COMMIT met, as the adapter threw it.
  return readThrown(error, 'code') === 'P1008' || name === 'DriverAdapterError'
}
