import { backoff } from '../core/backoff.js'
import { errorCode } from './client.js'

// Serialization failure and deadlock: the server has rolled all of it back, and what is said is
// guarded, so it can be said again. The first comes with a stricter isolation level than usual; the
// last is MySQL's own number for a deadlock.
const ROLLED_BACK = ['40001', '40P01', '1213']
const SAY_AGAIN = { firstMs: 5, mostMs: 100 }
const TRIES = 10

/** Says one guarded statement, or one transaction, again when the server rolled it back. */
export async function sayAgain<T>(statement: () => PromiseLike<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await statement()
    } catch (error) {
      if (!isRolledBack(error) || attempt === TRIES) throw error
      const pauseMs = backoff(SAY_AGAIN, attempt, Math.random())
      await new Promise((resolve) => setTimeout(resolve, pauseMs))
    }
  }
}

/** Whether the server has said that nothing of it is kept. */
export function isRolledBack(error: unknown): boolean {
  return ROLLED_BACK.includes(errorCode(error) ?? '')
}
