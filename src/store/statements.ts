// What the statements of the PostgreSQL stores have in common: who runs them, the clock they read,
// and how a list of items travels in one of them.
import { sayAgain } from './say-again.js'

/** Runs one statement. `name` lets a connection keep the statement prepared. */
export type RunStatement = (
  name: string,
  text: string,
  values: readonly unknown[],
) => PromiseLike<readonly object[]>

/** Statements through Prisma's raw query: no second pool, but five times the CPU of a prepared one. */
export function onPrisma(client: {
  $queryRawUnsafe(query: string, ...values: unknown[]): PromiseLike<unknown>
}): RunStatement {
  return (_name, text, values) =>
    client.$queryRawUnsafe(text, ...values) as PromiseLike<readonly object[]>
}

// Prisma keeps DateTime as `timestamp(3)` in UTC, whatever the session's time zone says.
export const NOW = `(clock_timestamp() AT TIME ZONE 'UTC')`
// Asked once for a statement: an index can be searched for it, and not for a clock that ticks on.
export const NOW_ONCE = `(SELECT ${NOW})`
/**
 * Whether a time has come, for an index that gives rows in its order. Of a range with two ends that
 * it does not know the planner expects little; otherwise it prefers to sort the table.
 */
export const hasCome = (column: string) =>
  `${column} > (SELECT '-infinity'::timestamp) AND ${column} <= ${NOW_ONCE}`

/** How long a statement waits for a row that another transaction has locked. */
const LOCK_TIMEOUT_MS = 1_000
/** The same for a list: one item that has to wait holds up the others. Then each goes alone. */
const LIST_LOCK_TIMEOUT_MS = 200

/** The last parameter of every statement over a list. */
export function lockTimeoutFor(items: readonly unknown[]): string {
  return String(items.length > 1 ? LIST_LOCK_TIMEOUT_MS : LOCK_TIMEOUT_MS)
}

// For this statement alone, and unless the application has set its own.
const limitLockWaits = (timeout: string) =>
  `CASE WHEN current_setting('lock_timeout') = '0'
    THEN 0 * length(set_config('lock_timeout', ${timeout}, true)) ELSE 0 END`

/**
 * A table of the list's items; `i` is an item's place in the list. The parameter behind its columns is
 * `lockTimeoutFor` the list, in force before the first row is locked.
 *
 * The subqueries are for the planner. It must not see how long the arrays are, or it plans anew
 * every time, which takes longer than the statement. And it must expect one row of them, or it
 * prefers reading all of a table that it believes to be small to a look into the index.
 */
export function asked(...columns: readonly `${string}::${string}`[]): string {
  const names = columns.map((column) => column.split('::')[0])
  const arrays = columns.map((column, n) => `(SELECT $${n + 1}::${column.split('::')[1]}[])`)
  const table = `unnest(${arrays.join(', ')}) WITH ORDINALITY AS items(${names.join(', ')}, i)`
  const zero = limitLockWaits(`$${columns.length + 1}::text`)
  return `(SELECT * FROM ${table} WHERE i = i + (SELECT ${zero})) AS a`
}

/** The same for a statement over one row: a condition that holds, and is evaluated before the row is locked. */
export const WAITS_BRIEFLY = `0 = ${limitLockWaits(`'${LOCK_TIMEOUT_MS}'`)}`

/** Statements that are said again when the server rolled them back: each must be guarded. */
export function sayingAgain(runOnce: RunStatement): RunStatement {
  return (name, text, values) => sayAgain(() => runOnce(name, text, values))
}

/**
 * For each item its row, if its guard matched; the statement returns the places `i` of those whose
 * did. Rows are locked in the order of their keys, so that two processes do not wait in a circle.
 */
export async function matchedRows<I>(
  run: RunStatement,
  name: string,
  text: string,
  items: readonly I[],
  {
    compare,
    columnsOf,
  }: {
    compare(a: I, b: I): number
    columnsOf(items: readonly I[]): readonly unknown[]
  },
): Promise<(object | undefined)[]> {
  const places = [...items.keys()].sort((a, b) => compare(items[a] as I, items[b] as I))
  const list = places.map((place) => items[place] as I)
  const columns = [...columnsOf(list), lockTimeoutFor(list)]
  const result = new Array<object | undefined>(items.length).fill(undefined)
  for (const row of (await run(name, text, columns)) as readonly { i: number }[]) {
    result[places[row.i - 1] as number] = row
  }
  return result
}

/** The same, where all there is to know is whether it matched. */
export async function matchedItems<I>(
  ...asked: Parameters<typeof matchedRows<I>>
): Promise<boolean[]> {
  return (await matchedRows(...asked)).map((row) => row !== undefined)
}
