// The part of a Prisma client that the library calls, over the model database: enough for
// src/store/prisma.ts, steps, transactions, run() and recover() to run on it as they are.
import type { ModelDelegate, PrismaClientLike } from '../../src/store/client.js'
import {
  DatabaseError,
  EMPTY,
  insertNew,
  lockedIf,
  type ModelDatabase,
  nameOf,
  type Row,
  type Statement,
  type Transaction,
} from './model-database.js'
import type { Send } from './model-store.js'

type Where = Readonly<Record<string, unknown>>
type Data = Readonly<Record<string, unknown>>

/** What the application does in a transaction. */
export interface LedgerTransaction {
  readonly ledger: { create(effect: { id: string; key: string; fence: number }): Promise<void> }
}

/** How a transaction travels. */
export interface Connect {
  readonly send: Send
  /** Runs `fn` with a client whose statements are of one transaction. */
  transact<T>(fn: (send: Send) => Promise<T>, options: { timeout?: number }): Promise<T>
}

export function modelPrisma(connect: Connect): PrismaClientLike {
  const { send } = connect
  return {
    idempotencyRecord: recordsOver(send),
    async $queryRawUnsafe<T>(): Promise<T> {
      // The only statement of the library's own that this client is asked for: the time.
      const now = await send(['clock'], (_, database) => reading(() => database.now().getTime()))
      return [{ now }] as T
    },
    $transaction: (fn, options = {}) =>
      connect.transact((sendInside) => fn(transactionClient(sendInside)), options),
  }
}

function transactionClient(send: Send): LedgerTransaction & { idempotencyRecord: ModelDelegate } {
  return {
    idempotencyRecord: recordsOver(send),
    ledger: {
      create: (effect) =>
        send(['effect', effect], (transaction) =>
          reading(() => void transaction.effects.push(effect)),
        ),
    },
  }
}

export function recordsOver(send: Send): ModelDelegate {
  return {
    create: ({ data }: { data: Data }) =>
      send(['create', data.key], (transaction, database) =>
        reading(() => {
          const row = { ...EMPTY, ...data } as unknown as Row
          if (!insertNew(database, transaction, row)) throw new DatabaseError('P2002')
          return row
        }),
      ),
    createMany: async () => unknownCall(),
    findUnique: ({ where }: { where: { tenantId_key: Row } }) =>
      send(['read', where.tenantId_key.key], (transaction, database) =>
        reading(() => database.see(nameOf(where.tenantId_key), transaction) ?? null),
      ),
    findFirst: ({ where }: { where: Where }) =>
      send(['read', where], (_, database) =>
        reading(() => [...database.rows].find((row) => matches(row, where)) ?? null),
      ),
    findMany: ({ where = {}, take }: { where?: Where; take?: number }) =>
      send(['find many', where], (_, database) =>
        reading(() => {
          const found = [...database.rows].filter((row) => matches(row, where))
          return found.slice(0, take)
        }),
      ),
    updateMany: ({ where, data }: { where: Where; data: Data }) =>
      send(
        ['update', where, data],
        eachMatching(where, (database, transaction, row) =>
          database.put(transaction, written(row, data)),
        ),
      ),
    deleteMany: ({ where = {} }: { where?: Where }) =>
      send(
        ['delete', where],
        eachMatching(where, (database, transaction, row) =>
          database.delete(transaction, nameOf(row)),
        ),
      ),
  }
}

function eachMatching(
  where: Where,
  write: (database: ModelDatabase, transaction: Transaction, row: Row) => void,
): Statement<{ count: number }> {
  return function* (transaction, database) {
    let count = 0
    for (const name of namesFor(where, database)) {
      const row = yield* lockedIf(database, transaction, name, (row) => matches(row, where))
      if (row === undefined) continue
      write(database, transaction, row)
      count += 1
    }
    return { count }
  }
}

/** By the primary key, where the condition names one. */
function namesFor({ tenantId, key }: Where, database: ModelDatabase): string[] {
  if (typeof tenantId === 'string' && typeof key === 'string') return [nameOf({ tenantId, key })]
  return [...database.rows].map(nameOf)
}

/** A condition as Prisma takes it. What is not known here is an error, and never a match. */
function matches(row: Row, where: Where): boolean {
  return Object.entries(where).every(([field, condition]) => {
    // As Prisma has it: what is undefined was not said.
    if (condition === undefined) return true
    if (field === 'OR') return (condition as Where[]).some((one) => matches(row, one))
    if (field === 'AND') return (condition as Where[]).every((one) => matches(row, one))
    if (!(field in row)) throw new TypeError(`no field ${field}`)
    const value = row[field as keyof Row]
    if (typeof condition !== 'object' || condition === null) return value === condition
    return Object.entries(condition).every(([name, other]) => compares(value, name, other))
  })
}

function compares(value: unknown, name: string, other: unknown): boolean {
  switch (name) {
    case 'lte':
      return Number(value) <= Number(other)
    case 'lt':
      return Number(value) < Number(other)
    case 'gt':
      return Number(value) > Number(other)
    case 'in':
      return (other as unknown[]).includes(value)
    case 'not':
      return value !== other
    default:
      throw new TypeError(`no condition ${name}`)
  }
}

function written(row: Row, data: Data): Row {
  const changes = Object.entries(data).map(([field, value]) => {
    if (!(field in row)) throw new TypeError(`no field ${field}`)
    const increment: unknown = Reflect.get(Object(value), 'increment')
    return [field, typeof increment === 'number' ? row.fence + increment : value]
  })
  return { ...row, ...Object.fromEntries(changes) }
}

/** A statement that waits for no lock. */
// biome-ignore lint/correctness/useYield: see above
export function* reading<T>(read: () => T): Generator<string, T, undefined> {
  return read()
}

function unknownCall(): never {
  throw new TypeError('the model has no such call')
}
