import { type Check, check, isDuration, LONGEST_RETENTION_MS } from '../../checks.js'
import type { Duration } from '../../core/duration.js'
import { OptionInvalid } from '../../errors.js'
import type { Secrets } from '../secrets.js'

/** Options that every provider with a secret has. */
export interface SecretOptions {
  secret: Secrets
}

/** Options of providers that sign a time. */
export interface TolerantOptions extends SecretOptions {
  /** How far the signed time may lie from now, on both sides. Default: what the provider says. */
  tolerance?: Duration
}

/** What a secret must be is checked where it becomes a key. */
export const isSecret: Check = () => undefined

/** Signed times are whole seconds: anything shorter is a number that was meant to be seconds. */
export const isTolerance = isDuration(1_000, '5m', LONGEST_RETENTION_MS)

export const SECRET: Record<keyof SecretOptions, Check> = { secret: isSecret }
export const TOLERANT: Record<keyof TolerantOptions, Check> = { ...SECRET, tolerance: isTolerance }

/**
 * The options of a provider. None is ignored: a misspelled one would switch a check off.
 *
 * @throws OptionInvalid
 */
export function readOptions<O extends object>(
  name: string,
  checks: { readonly [Name in keyof Required<O>]: Check },
  options: O,
  required: readonly (keyof O & string)[] = [],
): O {
  if (typeof options !== 'object' || options === null) {
    const [first] = Object.keys(checks)
    throw new OptionInvalid(`${name} needs an object with its options, such as { ${first}: '…' }`)
  }
  check(` of ${name}`, checks, options, required)
  return options
}
