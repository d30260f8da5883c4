// Statements on the application's own `pg` pool: the fast path on PostgreSQL.
import { StoreTimeout, within } from '../within.js'
import { cancelStatement } from './cancel-statement.js'
import { errorCode } from './client.js'
import type { RunStatement } from './statements.js'

/** The part of a `pg.Pool` that is used. */
export interface PoolLike {
  connect(): PromiseLike<PoolClientLike>
  readonly options?: { readonly max?: number | undefined } | undefined
}

/** The part of one of its clients that is used. */
export interface PoolClientLike {
  query(config: {
    name: string
    text: string
    values: unknown[]
  }): PromiseLike<{ rows: readonly object[] }>
  release(destroy?: boolean): void
  on(event: 'error', listener: () => void): unknown
  off(event: 'error', listener: () => void): unknown
}

// After so many doublings of its age a process leaves it to autovacuum to make plans anew.
const MAX_GENERATIONS = 12

/**
 * Runs statements on the pool, each prepared on its connection. One that takes longer than `timeoutMs`
 * is canceled on the server, so that it keeps neither its connection nor what it has locked.
 *
 * A connection keeps the plan it made, and a plan made while the table was almost empty reads all
 * of it. Names therefore change whenever a process has become twice as old (in seconds): a plan is
 * never much older than the table's growth.
 */
export function onPool(pool: PoolLike, timeoutMs: number): RunStatement {
  const startedAt = performance.now()
  return async (name, text, values) => {
    const client = await connect(pool, timeoutMs)
    const age = Math.log2(1 + (performance.now() - startedAt) / 1_000)
    const generation = Math.min(MAX_GENERATIONS, Math.trunc(age))
    const named = { name: `${name}_${generation}`, text, values: [...values] }
    return runBounded(client, timeoutMs, () => client.query(named))
  }
}

/** A client of the pool. One that comes too late goes back at once. */
async function connect(pool: PoolLike, timeoutMs: number): Promise<PoolClientLike> {
  const connecting = Promise.resolve(pool.connect())
  try {
    return await within(connecting, timeoutMs)
  } catch (error) {
    connecting.then(
      (late) => late.release(),
      () => {},
    )
    throw error
  }
}

async function runBounded(
  client: PoolClientLike,
  timeoutMs: number,
  query: () => PromiseLike<{ rows: readonly object[] }>,
): Promise<readonly object[]> {
  // A connection that breaks rejects the query as well; without a listener it would end the process.
  client.on('error', ignore)
  let isUsable = false
  let canceling: Promise<void> | undefined
  let timer: NodeJS.Timeout | undefined
  const deadline = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      canceling = cancelStatement(client)
      // The server cannot be reached, or does not react: then the connection is of no use.
      timer = setTimeout(() => reject(new StoreTimeout(notWithin(2 * timeoutMs))), timeoutMs)
    }, timeoutMs)
  })
  try {
    const { rows } = await Promise.race([query(), deadline])
    isUsable = true
    return rows
  } catch (error) {
    isUsable = isStatementFailure(error)
    if (canceling === undefined || !isUsable) throw error
    throw new StoreTimeout(notWithin(timeoutMs))
  } finally {
    clearTimeout(timer)
    // The cancel request must not reach the next statement of this connection.
    await canceling
    client.off('error', ignore)
    client.release(!isUsable)
  }
}

const ignore = () => {}
const notWithin = (ms: number) => `no answer within ${ms} ms`

/** Whether the server has refused the statement, and the connection goes on. */
function isStatementFailure(error: unknown): boolean {
  const code = errorCode(error)
  return code !== undefined && /^[0-9A-Z]{5}$/.test(code) && !/^(08|57P|XX)/.test(code)
}
