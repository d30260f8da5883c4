// The part of a Prisma client that the library calls, over the model database: enough for the portable
// stores, steps, transactions, run() and recover() to run on it as they are.
import type { ModelDelegate, PrismaClientLike, TransactionClient } from '../../src/store/client.js'
import { DatabaseError } from './database-error.js'
import { runInTransaction } from './model-atomic.js'
import type { ModelDatabase, Need, Statement } from './model-database.js'
import { type Effect, EMPTY, EMPTY_EVENT, eventNameOf, nameOf, type Version } from './model-rows.js'
import type { Send } from './model-statements.js'
import type { Table } from './model-table.js'
import {
  type Data,
  inOrder,
  matches,
  type OrderBy,
  type Where,
  written,
} from './prisma-conditions.js'

/** What the application does in a transaction. */
export interface LedgerTransaction {
  readonly ledger: { create(effect: Effect): Promise<void> }
}

/** How a transaction travels. */
export interface Connect {
  readonly send: Send
  /** Runs `fn` with a client whose statements are of one transaction. */
  transact<T>(
    fn: (send: Send) => Promise<T>,
    options: { maxWait?: number; timeout?: number },
  ): Promise<T>
}

/** `provider`: what the client says of its database, if it does. */
export function modelPrisma(connect: Connect, provider?: 'postgresql'): PrismaClientLike {
  const { send } = connect
  const client: PrismaClientLike & { _activeProvider?: 'postgresql' } = {
    ...(provider && { _activeProvider: provider }),
    ...delegatesOver(send),
    async $queryRawUnsafe<T>(): Promise<T> {
      // The only statement of the library's own that this client is asked for: the time.
      const now = await send(['clock'], (_, database) => reading(() => database.now().getTime()))
      return [{ now }] as T
    },
    $transaction: (fn, options = {}) =>
      connect.transact((sendInside) => fn(transactionClient(sendInside)), options),
  }
  return client
}

function transactionClient(send: Send): LedgerTransaction & TransactionClient {
  return {
    ...delegatesOver(send),
    async $queryRawUnsafe<T>(text: string, ...values: unknown[]): Promise<T> {
      return (await runInTransaction(send, text, values)) as T
    },
    ledger: {
      create: (effect) =>
        send(['effect', effect], (transaction) =>
          reading(() => void transaction.effects.push(effect)),
        ),
    },
  }
}

function delegatesOver(send: Send) {
  return { idempotencyRecord: recordsOver(send), webhookEvent: eventsOver(send) }
}

export function recordsOver(send: Send): ModelDelegate {
  return delegateOver(send, {
    table: (database) => database.records,
    isNamed: ({ tenantId, key }) =>
      typeof tenantId === 'string' && typeof key === 'string'
        ? nameOf({ tenantId, key })
        : undefined,
    unique: ({ tenantId_key }) => tenantId_key as Where,
    defaults: EMPTY,
  })
}

export function eventsOver(send: Send): ModelDelegate {
  return delegateOver(send, {
    table: (database) => database.events,
    isNamed: ({ id }) => (typeof id === 'string' ? eventNameOf({ id }) : undefined),
    unique: ({ id, tenantId_provider_eventId }) => (tenantId_provider_eventId ?? { id }) as Where,
    defaults: EMPTY_EVENT,
  })
}

interface Model<R extends Version> {
  table(database: ModelDatabase): Table<R>
  /** The row that a condition can only be about. */
  isNamed(where: Where): string | undefined
  /** The condition that a unique one stands for. */
  unique(where: Where): Where
  readonly defaults: object
}

function delegateOver<R extends Version>(send: Send, model: Model<R>): ModelDelegate {
  const { table, unique, defaults } = model
  return {
    create: ({ data }: { data: Data }) =>
      send(['create', data.key ?? data.id], function* (transaction, database) {
        refuseNul(data)
        const rows = table(database)
        const row = { ...defaults, ...data, chain: rows.newChain() } as unknown as R
        try {
          if (yield* rows.insert(transaction, row)) return row
        } catch (error) {
          throw asPrismaSays(error)
        }
        throw new DatabaseError('P2002')
      }),
    // For tests alone.
    createMany: ({ data }: { data: readonly Data[] }) =>
      send(['create many'], function* (transaction, database) {
        const rows = table(database)
        for (const one of data) {
          const row = { ...defaults, ...one, chain: rows.newChain() } as unknown as R
          yield* rows.insert(transaction, row)
        }
      }),
    findUnique: ({ where }: { where: Where }) =>
      send(['read', where], (transaction, database) =>
        reading(() => {
          const condition = unique(where)
          const name = model.isNamed(condition)
          const rows = table(database)
          if (name !== undefined) return rows.see(name, transaction) ?? null
          return [...rows.seenBy(transaction)].find((row) => matches(row, condition)) ?? null
        }),
      ),
    findFirst: ({ where }: { where: Where }) =>
      send(['read', where], (transaction, database) =>
        reading(
          () => [...table(database).seenBy(transaction)].find((row) => matches(row, where)) ?? null,
        ),
      ),
    findMany: ({
      where = {},
      orderBy,
      take,
    }: {
      where?: Where
      orderBy?: OrderBy
      take?: number
    }) =>
      send(['find many', where], (transaction, database) =>
        reading(() => {
          const rows = [...table(database).seenBy(transaction)]
          const found = rows.filter((row) => matches(row, where))
          return inOrder(found, orderBy).slice(0, take)
        }),
      ),
    updateMany: ({ where, data }: { where: Where; data: Data }) =>
      send(
        ['update', where, data],
        eachMatching(model, where, function* (rows, transaction, row) {
          refuseNul(data)
          try {
            yield* rows.put(transaction, written(row, data))
          } catch (error) {
            throw asPrismaSays(error)
          }
        }),
      ),
    deleteMany: ({ where = {} }: { where?: Where }) =>
      send(
        ['delete', where],
        // biome-ignore lint/correctness/useYield: a deletion waits for nothing more
        eachMatching(model, where, function* (rows, transaction, row) {
          rows.delete(transaction, rows.nameOf(row))
        }),
      ),
  }
}

function eachMatching<R extends Version>(
  model: Model<R>,
  where: Where,
  write: (
    rows: Table<R>,
    transaction: Parameters<Statement<void>>[0],
    row: R,
  ) => Generator<Need, void, undefined>,
): Statement<{ count: number }> {
  return function* (transaction, database) {
    const rows = model.table(database)
    const only = model.isNamed(where)
    const names = only === undefined ? [...rows.seenBy(transaction)].map(rows.nameOf) : [only]
    let count = 0
    for (const name of names) {
      const row = yield* rows.lockedIf(transaction, name, (row) => matches(row, where))
      if (row === undefined) continue
      yield* write(rows, transaction, row)
      count += 1
    }
    return { count }
  }
}

function asPrismaSays(error: unknown): unknown {
  const isDuplicate = error instanceof DatabaseError && error.code === '23505'
  return isDuplicate ? new DatabaseError('P2002') : error
}

function refuseNul({ fingerprint, headers }: Data): void {
  const text = `${fingerprint}${headers === undefined ? '' : JSON.stringify(headers)}`
  if (/\0|\\u0000/.test(text)) throw new DatabaseError('22021')
}

/** A statement that waits for no lock. */
// biome-ignore lint/correctness/useYield: see above
export function* reading<T>(read: () => T): Generator<Need, T, undefined> {
  return read()
}
