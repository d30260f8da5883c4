import type { RunError } from '../core/event.js'
import { isThrown } from '../core/thrown.js'

/** Enough of a message for a person to know it, not enough to fill a table with. */
const LONGEST_MESSAGE = 1_000

/** What is kept with an event of a failure. */
export function runErrorOf(attempt: number, error: unknown): RunError {
  const message = messageOf(error).slice(0, LONGEST_MESSAGE).replaceAll('\0', '').toWellFormed()
  return { attempt, at: new Date().toISOString(), message }
}

/** An error is the application's: its name may be no text, and its message may throw. */
function messageOf(error: unknown): string {
  if (!isThrown(error, Error)) return typeof error
  try {
    return `${String(error.name)}: ${String(error.message)}`
  } catch {
    return 'Error'
  }
}
