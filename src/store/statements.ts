// What the statements of the PostgreSQL stores have in common: who runs them, the clock they read,
// and how a list of items travels in one of them.
import { sayAgain } from './say-again.js'

/** Runs one statement. `name` lets a connection keep the statement prepared. */
export type RunStatement = (
  name: string,
  text: string,
  values: readonly unknown[],
) => PromiseLike<readonly object[]>

/** The part of a `pg.Pool` that is used. */
export interface PoolLike {
  query(config: {
    name: string
    text: string
    values: unknown[]
  }): PromiseLike<{ rows: readonly object[] }>
}

// After so many doublings of its age a process leaves it to autovacuum to make plans anew.
const MOST_GENERATIONS = 12

/**
 * Statements on the application's own pool, each prepared on its connection: the fast path.
 *
 * A connection keeps the plan it made, and a plan made while the table was almost empty reads all
 * of it. Names therefore change whenever a process has become twice as old (in seconds): a plan is
 * never much older than the table's growth.
 */
export function onPool(pool: PoolLike): RunStatement {
  const startedAt = performance.now()
  return async (name, text, values) => {
    const age = Math.log2(1 + (performance.now() - startedAt) / 1_000)
    const generation = Math.min(MOST_GENERATIONS, Math.trunc(age))
    const named = { name: `${name}_${generation}`, text, values: [...values] }
    return (await pool.query(named)).rows
  }
}

/** The same statements through Prisma's raw query: no second pool, but five times the CPU a call. */
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

/**
 * A table of the list's items; `i` is an item's place in the list.
 *
 * The two subqueries are for the planner. It must not see how long the arrays are, or it plans anew
 * every time, which takes longer than the statement. And it must expect one row of them, or it
 * prefers reading all of a table that it believes to be small to a look into the index.
 */
export function asked(...columns: readonly `${string}::${string}`[]): string {
  const names = columns.map((column) => column.split('::')[0])
  const arrays = columns.map((column, n) => `(SELECT $${n + 1}::${column.split('::')[1]}[])`)
  const table = `unnest(${arrays.join(', ')}) WITH ORDINALITY AS items(${names.join(', ')}, i)`
  return `(SELECT * FROM ${table} WHERE i = i + (SELECT 0)) AS a`
}

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
  const columns = columnsOf(places.map((place) => items[place] as I))
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
