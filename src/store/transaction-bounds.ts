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

const SELECT_IS_SAME = `SELECT ${IS_SAME_TRANSACTION}::int4 AS is_same`

/**
 * Whether the application is still in the transaction that `boundInteractive` has seen begin. After a raw
 * COMMIT or ROLLBACK each further statement would be committed by itself. Known on PostgreSQL only.
 */
export async function isStillOpen(
  prisma: PrismaClientLike,
  tx: Pick<TransactionClient, '$queryRawUnsafe'>,
): Promise<boolean> {
  if (providerOf(prisma) !== 'postgresql') return true
  const [row] = await tx.$queryRawUnsafe<{ is_same: number }[]>(SELECT_IS_SAME)
  return Number(row?.is_same) === 1
}

/** Prisma's own default, in milliseconds. */
const PRISMA_TIMEOUT_MS = 5_000

/**
 * Bounds an interactive transaction of Prisma's that may take `timeoutMs`, where the database can: a
 * process that stands still in it holds its locks no longer. Prisma's own timer, which needs that
 * process, comes first.
 */
export function boundInteractive(
  prisma: PrismaClientLike,
  tx: TransactionClient,
  timeoutMs: number = PRISMA_TIMEOUT_MS,
): Promise<void> | undefined {
  if (providerOf(prisma) !== 'postgresql') return undefined
  const boundMs = Math.ceil(timeoutMs) + 1_000
  return boundTransaction(tx, { statementMs: boundMs, silenceMs: boundMs })
}
