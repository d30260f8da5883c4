import { decode, encode } from '../claims/codec.js'
import { fingerprint, obstacleIn, ofValue } from '../core/fingerprint.js'
import type { RecordKey, StoredResponse } from '../core/record.js'
import { OptionInvalid } from '../errors.js'

// How an operation outside a request stands in the table of those inside one.

// No header can carry a tab, so no client can name, or guess, an operation of the application's own.
const RUN = 'run\t'

export const storedKey = (key: string): string => RUN + key

export const isOfRun = ({ key }: RecordKey): boolean => key.startsWith(RUN)

/** The key as `run()`, or the client, gave it. */
export const givenKey = ({ key }: RecordKey): string =>
  key.startsWith(RUN) ? key.slice(RUN.length) : key

/** `call`: what returned it, or was given it. @throws StepNotStorable */
export function storedResult(call: 'run()' | 'resolve()', value: unknown): StoredResponse {
  return { statusCode: 200, headers: {}, body: Buffer.from(encode(`result of ${call}`, value)) }
}

export function resultOf({ body }: StoredResponse): unknown {
  return decode(Buffer.from(body ?? new Uint8Array()).toString())
}

/**
 * What must stay the same when the key of a run is used again.
 *
 * @throws OptionInvalid for an input that cannot be compared with that of another call.
 */
export function fingerprintOfRun(handlerName: string | undefined, input: unknown): string {
  const taken = fingerprint(ofValue([handlerName ?? null, input]))
  if (taken.kind === 'exact' && !taken.isCyclic) return taken.value
  const obstacle = taken.kind === 'exact' ? 'a reference to itself' : obstacleIn(taken)
  throw new OptionInvalid(
    `the "input" of run() is or holds ${obstacle}, and cannot be compared with that of another call: pass plain data, such as a Decimal as text, or the identifier of an object`,
  )
}
