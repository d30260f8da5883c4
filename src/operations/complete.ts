import type { Claim } from '../claims/claim.js'
import { StepNotStorable } from '../errors.js'
import type { Report } from '../events.js'
import { storedResult } from './stored.js'

export interface CompleteTerms {
  readonly storeTimeoutMs: number
  readonly report: Report
}

export interface Completed {
  /** As `Claim.complete` says. */
  readonly stored: 'stored' | 'lost' | 'failed'
  /** Why the result is not kept, if it is not. */
  readonly refused: Error | undefined
}

/**
 * Ends an operation whose work has returned. It has run, and must not run again because its result is not
 * plain data: then it is completed without one, as a response that is too large to keep.
 */
export async function complete(
  claim: Claim,
  value: unknown,
  { storeTimeoutMs, report }: CompleteTerms,
): Promise<Completed> {
  try {
    const result = storedResult('run()', value)
    return { stored: await claim.complete(result, storeTimeoutMs), refused: undefined }
  } catch (error) {
    if (!(error instanceof StepNotStorable)) throw error
    const nothing = { statusCode: 200, headers: {}, body: null }
    const stored = await claim.complete(nothing, storeTimeoutMs)
    report({ kind: 'response_omitted', attempt: claim.attempt, reason: 'not storable' })
    return { stored, refused: error }
  }
}
