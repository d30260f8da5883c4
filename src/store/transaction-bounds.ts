import { StoreTimeout } from '../within.js'
import { type PrismaClientLike, providerOf, type TransactionClient } from './client.js'

/** What PostgreSQL ends by itself in a transaction, in milliseconds. What the application has set stays. */
export interface Bounds {
  /** How long one statement may take. */
  readonly statementMs: number
  /** How long the client may be silent, because its process stands still, or the network is gone. */
  readonly silenceMs: number
}

// A setting that ends with the transaction: no other one has it, whatever ends this one, and whatever
// begins after it.
const MARK = 'fastify_idempotency.transaction'

/** In a later statement: whether it is in the transaction whose first statement set the bounds. */
export const IS_SAME_TRANSACTION = `(current_setting('${MARK}', true) IS NOT DISTINCT FROM 'open')`

/**
 * The columns of a first statement that set the bounds, from the parameters of these numbers, and mark
 * the transaction.
 */
export const setBounds = (statementMs: string, silenceMs: string) => `
  set_config('${MARK}', 'open', true),
  CASE WHEN current_setting('statement_timeout') = '0'
    THEN set_config('statement_timeout', ${statementMs}, true) END,
  CASE WHEN current_setting('idle_in_transaction_session_timeout') = '0'
    THEN set_config('idle_in_transaction_session_timeout', ${silenceMs}, true) END`

const SET_BOUNDS = `SELECT ${setBounds('$1', '$2')}`

export async function boundTransaction(
  tx: Pick<TransactionClient, '$queryRawUnsafe'>,
  { statementMs, silenceMs }: Bounds,
): Promise<void> {
  await tx.$queryRawUnsafe(SET_BOUNDS, String(statementMs), String(silenceMs))
}

// From here on in this transaction, nothing is waited for that another one has locked for longer.
const SELECT_IS_SAME = `SELECT ${IS_SAME_TRANSACTION}::int4 AS is_same,
  CASE WHEN current_setting('lock_timeout') = '0' THEN set_config('lock_timeout', $1, true) END`

/**
 * Whether the application is still in the transaction that `boundInteractive` has seen begin. After a raw
 * COMMIT or ROLLBACK each further statement would be committed by itself. What the library still writes in
 * it waits for a row or a table that is locked for `lockMs`, unless the application has set a bound of its
 * own. Known on PostgreSQL only.
 */
export async function isStillOpen(
  prisma: PrismaClientLike,
  tx: Pick<TransactionClient, '$queryRawUnsafe'>,
  lockMs: number,
): Promise<boolean> {
  if (providerOf(prisma) !== 'postgresql') return true
  const [row] = await tx.$queryRawUnsafe<{ is_same: number }[]>(SELECT_IS_SAME, String(lockMs))
  return Number(row?.is_same) === 1
}

/** Prisma's own default, in milliseconds. */
const PRISMA_TIMEOUT_MS = 5_000

/** How long an interactive transaction may take: as its options say, or those of the client. */
function timeoutOf(prisma: object, { timeout }: TransactionTimes): number {
  if (timeout !== undefined) return timeout
  const config: unknown = Reflect.get(prisma, '_engineConfig')
  const ofClient: unknown = Reflect.get(Object(config), 'transactionOptions')
  const ms: unknown = Reflect.get(Object(ofClient), 'timeout')
  return typeof ms === 'number' ? ms : PRISMA_TIMEOUT_MS
}

/** Options of Prisma's `$transaction`. */
export interface TransactionTimes {
  readonly timeout?: number
}

/** Later than Prisma's own timer, which needs a process that lives. */
const SERVER_MARGIN_MS = 1_000

/**
 * Bounds an interactive transaction of Prisma's, where the database can: a process that stands still in it
 * holds its locks no longer than it may take.
 */
export function boundInteractive(
  prisma: PrismaClientLike,
  tx: TransactionClient,
  times: TransactionTimes,
): Promise<void> | undefined {
  if (providerOf(prisma) !== 'postgresql') return undefined
  const boundMs = Math.ceil(timeoutOf(prisma, times)) + SERVER_MARGIN_MS
  return boundTransaction(tx, { statementMs: boundMs, silenceMs: boundMs })
}

/** Later than the server, whose answer is better than none. */
const LAST_RESORT_MARGIN_MS = SERVER_MARGIN_MS + 1_000

/**
 * Runs an interactive transaction of Prisma's, and waits no longer for a connection that has gone silent:
 * neither Prisma nor its drivers end the wait for an answer that never comes, not even with ROLLBACK.
 * `fn` calls `check` before anything that must not happen any more once nobody waits for it.
 *
 * @throws StoreTimeout when it has not ended long after its timeout. What was sent may have happened.
 */
export function transactInTime<T>(
  prisma: Pick<PrismaClientLike, '$transaction'>,
  fn: (tx: TransactionClient, check: () => void) => Promise<T>,
  options: TransactionTimes,
): Promise<T> {
  const ms = timeoutOf(prisma, options) + LAST_RESORT_MARGIN_MS
  let givenUp: StoreTimeout | undefined
  const check = () => {
    if (givenUp !== undefined) throw givenUp
  }
  return new Promise<T>((resolve, reject) => {
    let lastResort: NodeJS.Timeout | undefined
    const run = (tx: TransactionClient) => {
      // Prisma's `maxWait` bounds what comes before. A conflict may bring it here again.
      clearTimeout(lastResort)
      lastResort = setTimeout(() => {
        givenUp = new StoreTimeout(`the transaction has not ended within ${ms} ms`)
        reject(givenUp)
      }, ms)
      return fn(tx, check)
    }
    Promise.resolve(prisma.$transaction(run, options))
      .then(resolve, reject)
      .finally(() => clearTimeout(lastResort))
  })
}
