import type { OmittedReason } from '../events.js'
import { isDataRefused } from '../store/client.js'
import { isOfServer } from '../store/failures.js'
import type { Finish } from '../store/store.js'

/** A response that failed to be stored so often, in one attempt after another, is tried without its body. */
const MAX_FAILURES = 3
/** A smaller body never is the reason: no database has such a limit by default, and connections do fail. */
const MIN_SUSPECT_BYTES = 256 * 1024

/**
 * Stores how an operation ends, once more without the body where that is why it cannot be stored. A
 * database that refuses a response for its size refuses it each time, and the handler would run again
 * when the lease is over.
 *
 * Some databases say that it is the size. Others close the connection, so whatever the failure is: when
 * a large body has failed several times, and what is left of the response is stored right after it has
 * failed once more, it was the body.
 */
export function finishDespiteBody(
  finish: (finish: Finish) => Promise<boolean>,
  onOmitted: (reason: OmittedReason) => void,
): (finish: Finish) => Promise<boolean> {
  let failures = 0
  return async (ending) => {
    try {
      return await finish(ending)
    } catch (error) {
      if (isOfServer(error)) throw error
      failures += 1
      const { response } = ending
      if (!response?.body?.byteLength) throw error
      const isSuspect = failures >= MAX_FAILURES && response.body.byteLength >= MIN_SUSPECT_BYTES
      if (!isDataRefused(error) && !isSuspect) throw error
      const bare = { ...response, headers: {}, body: null }
      const isStored = await finish({ ...ending, response: bare })
      if (isStored) onOmitted('database_limit')
      return isStored
    }
  }
}
