import { type Check, check, defined, isColumnText, isDuration, toMs } from '../checks.js'
import type { Duration } from '../core/duration.js'
import { isStorableText } from '../core/text.js'
import { OptionInvalid } from '../errors.js'
import { defaultHolder } from '../holder.js'
import type { LockAsk } from './lock.js'

export interface LockOptions {
  /**
   * How long after a crash the lock is still held: it is renewed three times in that time while the
   * routine runs. At least 1 s. Default `'30s'`.
   */
  ttl?: Duration
  /** How long to wait while somebody else has it. Default 0: `busy` at once. */
  wait?: Duration
  /** Who this is, for people. Default: the plugin's `holder`. */
  holder?: string
}

export const LOCK_DEFAULTS = { ttl: '30s', wait: 0 } as const satisfies LockOptions

/** They are taken by one statement each, in one transaction. */
const MOST_NAMES = 100

const CHECKS: Record<keyof LockOptions, Check> = {
  // Shorter than that, a moment in which the process stands still loses it.
  ttl: isDuration(1_000, '30s'),
  wait: isDuration(0, '5s'),
  holder: isColumnText('invoices'),
}

/** @throws OptionInvalid */
export function readLock(
  tenantId: string,
  given: string | readonly string[],
  options: LockOptions,
  routine: unknown,
  processHolder = defaultHolder(),
): LockAsk & { readonly waitMs: number } {
  const names: readonly unknown[] = Array.isArray(given) ? given : [given]
  const areNames = (some: readonly unknown[]): some is readonly string[] =>
    some.every((name) => isStorableText(name))
  if (names.length === 0 || names.length > MOST_NAMES || !areNames(names)) {
    throw new OptionInvalid(
      `a lock needs a name, such as 'venue:7', or a list of at most ${MOST_NAMES}, each of 1 to 255 characters, without NUL and without lone surrogates`,
    )
  }
  if (typeof routine !== 'function') {
    throw new OptionInvalid(
      "a lock needs a function as its third argument: lock('venue:7', {}, async (signal, fence) => { … })",
    )
  }
  check(' of a lock', CHECKS, options)
  const { ttl, wait, holder } = { ...LOCK_DEFAULTS, ...defined(options) }
  return {
    tenantId,
    // In the same order everywhere: two who want the same names do not wait for each other.
    names: [...new Set(names)].sort(),
    holder: holder ?? processHolder,
    ttlMs: Math.ceil(toMs(ttl)),
    waitMs: toMs(wait),
  }
}
