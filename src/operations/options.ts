import { readRouteOptions } from '../check-options.js'
import {
  type Check,
  check,
  defined,
  isBoolean,
  isDuration,
  isInteger,
  isOneOf,
  LARGEST_COLUMN_INTEGER,
  LONGEST_RETENTION_MS,
} from '../checks.js'
import type { OnLeaseExpired } from '../core/decide.js'
import type { Duration } from '../core/duration.js'
import type { AttemptToken } from '../core/record.js'
import { isStorableText } from '../core/text.js'
import { OptionInvalid } from '../errors.js'
import type { PluginOptions, RouteSettings } from '../options.js'

/** How long an operation outside a request holds its key. The plugin's own by default. */
export interface OperationTimes {
  /** How long nobody may take it over after its process was last heard of. Default `'30s'`. */
  lease?: Duration
  /** How long its lease is renewed for one attempt. Default `'15m'`. */
  maxRun?: Duration
  /** How long its result is remembered, from the start of its last attempt. Default `'24h'`. */
  retention?: Duration
}

/** Options of `run()`. */
export interface RunOptions<Input = unknown> extends OperationTimes {
  /**
   * What the work is given, and what must stay the same when the key is used again: plain data, without
   * references to itself. For a handler it is stored until the operation is done.
   */
  input?: Input
  /** How long to wait for another process that runs it. Default `0`: not at all. */
  wait?: Duration
  /**
   * What happens when the process that ran it died: `'rerun'` (default) runs it again, and what its
   * steps have done stays done; `'uncertain'` leaves it to `resolve()`.
   */
  onLeaseExpired?: OnLeaseExpired
}

/** Options of `recover()`. */
export interface RecoverOptions {
  /** How many operations to take at most. Default 100. */
  limit?: number
  /** How many of them to run at once. Default 4. */
  concurrency?: number
  /** Operations that were begun so often are left to a person. Default 10. */
  attempts?: number
}

export const RECOVER_DEFAULTS = { limit: 100, concurrency: 4, attempts: 10 } as const

/** Options of `resolve()`. */
export interface ResolveOptions {
  /**
   * The operation and the attempt that the decision is about, both or neither: as in the log event
   * `uncertain`, in what `run()` returned, and in the record. When another attempt or another operation
   * has begun since, nothing is decided. Default: whichever it is.
   */
  operationId?: string
  attempt?: number
  /**
   * Ends an operation whose lease still runs, too: for one that is stuck while its process lives. What
   * its handler stores from then on is refused (`IDEMPOTENCY_LEASE_LOST`), and its `signal` is aborted at
   * the next renewal of the lease, after at most a third of it. What it does elsewhere is not undone:
   * before a release, make sure that it does nothing more there. Default `false`.
   */
  force?: boolean
}

const TIMES: Record<keyof OperationTimes, Check> = {
  lease: isDuration(1_000, '30s'),
  maxRun: isDuration(1_000, '15m'),
  retention: isDuration(1_000, '24h', LONGEST_RETENTION_MS),
}

const RUN: Record<keyof RunOptions, Check> = {
  ...TIMES,
  input: () => undefined,
  wait: isDuration(0, '5s'),
  onLeaseExpired: isOneOf('rerun', 'uncertain'),
}

const RECOVER: Record<keyof RecoverOptions, Check> = {
  limit: isInteger(1, 10_000),
  concurrency: isInteger(1, 1_000),
  attempts: isInteger(1, LARGEST_COLUMN_INTEGER),
}

const RESOLVE: Record<keyof ResolveOptions, Check> = {
  operationId: (value) =>
    isStorableText(value) ? undefined : 'must be the operationId of the log event, or be left out',
  attempt: isInteger(1, LARGEST_COLUMN_INTEGER),
  force: isBoolean,
}

/** @throws OptionInvalid */
export function readRun(
  plugin: PluginOptions,
  options: RunOptions,
  times?: OperationTimes,
): RouteSettings {
  check(' of run()', RUN, options)
  const { input: _, ...given } = { ...times, ...options }
  // What the plugin says of these two is about clients and their retries.
  const own = { wait: 0, onLeaseExpired: 'rerun', ...defined(given) } as const
  return readRouteOptions(plugin, ' of run()', own)
}

/** @throws OptionInvalid */
export function readTimes(
  plugin: PluginOptions,
  handler: string,
  times: OperationTimes,
): RouteSettings {
  const where = ` of handler ${JSON.stringify(handler)}`
  check(where, TIMES, times)
  return readRouteOptions(plugin, where, times)
}

/** @throws OptionInvalid */
export function readResolve(options: ResolveOptions): {
  readonly attempt: AttemptToken | undefined
  readonly isForced: boolean
} {
  check(' of resolve()', RESOLVE, options)
  const { operationId, attempt, force: isForced = false } = options
  if (operationId === undefined && attempt === undefined) return { attempt: undefined, isForced }
  if (operationId !== undefined && attempt !== undefined) {
    return { attempt: { operationId, attempt }, isForced }
  }
  throw new OptionInvalid(
    'resolve() needs both "operationId" and "attempt", or neither: attempts are counted anew for each operation under a key',
  )
}

/** @throws OptionInvalid */
export function readRecover(options: RecoverOptions): Required<RecoverOptions> {
  check(' of recover()', RECOVER, options)
  return { ...RECOVER_DEFAULTS, ...options }
}

/** With what tells it from a client's key, it fits into the same column. */
const LONGEST_NAME = 200

/** Names what is run: no more than a column holds, and nothing that a database would change. */
export function readName(what: string, value: unknown, longest = LONGEST_NAME): string {
  if (isStorableText(value, longest)) return value
  throw new OptionInvalid(
    `${what} must be text of 1 to ${longest} characters, such as 'payout-2026-11'`,
  )
}
