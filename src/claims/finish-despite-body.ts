import type { OmittedReason } from '../events.js'
import { isDataRefused } from '../store/client.js'
import type { Finish } from '../store/store.js'

/** A response that failed to be stored so often, in one attempt after another, is tried without its body. */
const MAX_FAILURES = 3

/**
 * Stores how an operation ends, once more without the body where that is why it cannot be stored. A
 * database that refuses a response for its size refuses it each time, and the handler would run again
 * when the lease is over.
 *
 * Some databases say that it is the size. Others close the connection, so whatever the failure is: when
 * the body has failed several times, and what is left of the response is stored right after it has
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
      failures += 1
      const { response } = ending
      if (!response?.body?.byteLength) throw error
      if (!isDataRefused(error) && failures < MAX_FAILURES) throw error
      const bare = { ...response, headers: {}, body: null }
      const isStored = await finish({ ...ending, response: bare })
      if (isStored) onOmitted('database_limit')
      return isStored
    }
  }
}
