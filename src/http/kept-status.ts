import { failureOf, type Report } from '../events.js'
import { isAnswer, type RouteSettings } from '../options.js'

/**
 * Whether a response with this status is the operation's answer. The handler has taken effect: where the
 * application's own rule fails, the default one decides, and not a retry that does all of it again.
 */
export function isKept(
  { keepStatus }: RouteSettings,
  statusCode: number,
  attempt: number,
  report: Report,
): boolean {
  try {
    return keepStatus(statusCode)
  } catch (error) {
    report({ kind: 'keep_status_failed', attempt, statusCode, failure: failureOf(error) })
    return isAnswer(statusCode)
  }
}
