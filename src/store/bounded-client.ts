import { StoreTimeout, within } from '../within.js'
import {
  type ModelDelegate,
  type PrismaClientLike,
  providerOf,
  type TransactionClient,
} from './client.js'
import type { StatementLimit } from './statement-limit.js'
import { boundTransaction } from './transaction-bounds.js'

/** How many statements there may be at once, and how long the answer to one may take. */
export interface StatementBounds {
  readonly limit: StatementLimit
  readonly timeoutMs: number
  /** Throws when nothing waits for the answer any more: called before a transaction is committed. */
  readonly check?: () => void
}

/**
 * The application's client for what the library does through Prisma: each statement, and each transaction,
 * has a place in the limit until the database has answered. On PostgreSQL a transaction ends on the server
 * when a statement of it takes longer than `timeoutMs`.
 */
export function limitedClient(prisma: PrismaClientLike, bounds: StatementBounds): PrismaClientLike {
  const { limit: run } = bounds
  const bound = (delegate: ModelDelegate): ModelDelegate => {
    const call =
      (verb: keyof ModelDelegate): ModelDelegate[typeof verb] =>
      (args) =>
        run(() => delegate[verb](args))
    return Object.assign(
      {
        create: call('create'),
        createMany: call('createMany'),
        findUnique: call('findUnique'),
        findFirst: call('findFirst'),
        findMany: call('findMany'),
        updateMany: call('updateMany'),
        deleteMany: call('deleteMany'),
      },
      // By which the library knows what the application's schema has.
      { fields: Reflect.get(delegate, 'fields') },
    )
  }
  const { idempotencyRecord, webhookEvent, namedLock, slotReservation, statusChange } = prisma
  return {
    idempotencyRecord: bound(idempotencyRecord),
    ...(webhookEvent && { webhookEvent: bound(webhookEvent) }),
    ...(namedLock && { namedLock: bound(namedLock) }),
    ...(slotReservation && { slotReservation: bound(slotReservation) }),
    ...(statusChange && { statusChange: bound(statusChange) }),
    $queryRawUnsafe: (query, ...values) => run(() => prisma.$queryRawUnsafe(query, ...values)),
    $transaction: limitedTransaction(prisma, bounds),
  }
}

/** The same for the transactions of a client alone. */
export function limitedTransaction(
  prisma: Pick<PrismaClientLike, '$transaction'>,
  { limit: run, timeoutMs, check }: StatementBounds,
): PrismaClientLike['$transaction'] {
  return (fn, options) => {
    const inside = async (tx: TransactionClient) => {
      if (providerOf(prisma) === 'postgresql') {
        await boundTransaction(tx, { statementMs: timeoutMs, silenceMs: timeoutMs + 1_000 })
      }
      const value = await fn(tx)
      check?.()
      return value
    }
    return run(() => prisma.$transaction(inside, { ...options, timeout: timeoutMs }))
  }
}

/**
 * The same for what nobody else bounds: each rejects with `StoreTimeout` when it takes longer than
 * `timeoutMs`. What was sent may still happen.
 */
export function boundedClient(
  prisma: PrismaClientLike,
  { limit, timeoutMs }: StatementBounds,
): PrismaClientLike {
  return limitedClient(prisma, { limit: (start) => within(limit(start), timeoutMs), timeoutMs })
}

/**
 * Runs a call that may be several statements, with the bounds that each of them keeps. Together they take no
 * longer than one may: then none is begun any more, and an open transaction is not committed.
 */
export async function boundedCall<T>(
  { limit, timeoutMs }: StatementBounds,
  call: (bounds: StatementBounds) => Promise<T>,
): Promise<T> {
  let isOver = false
  const check = () => {
    if (isOver) throw new StoreTimeout(`no answer within ${timeoutMs} ms`)
  }
  const wanted: StatementLimit = (start) =>
    limit(() => {
      check()
      return start()
    })
  try {
    return await within(call({ limit: wanted, timeoutMs, check }), timeoutMs)
  } finally {
    isOver = true
  }
}
