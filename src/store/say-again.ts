import { backoff } from '../core/backoff.js'
import { errorCode } from './client.js'

// Serialization failure and deadlock: the server has rolled all of it back, and what is said is
// guarded, so it can be said again. The first comes with a stricter isolation level than usual; the
// last is MySQL's own number for a deadlock.
const ROLLED_BACK = ['40001', '40P01', '1213']
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
      const isHidden = error instanceof HiddenDuplicate
      // A new snapshot would have shown the row: it was another constraint.
      if (isHidden && wasHidden) throw error.cause
      wasHidden = isHidden
      if (!isRolledBack(error) || attempt === TRIES || !isRepeatable()) throw error
      const pauseMs = backoff(SAY_AGAIN, attempt, Math.random())
      await new Promise((resolve) => setTimeout(resolve, pauseMs))
    }
  }
}

/** Whether the server has said that nothing of it is kept. */
export function isRolledBack(error: unknown): boolean {
  return ROLLED_BACK.includes(errorCode(error) ?? '')
}
