import type { RecordKey, RecordStatus, StepResults, StoredResponse } from '../../src/core/record.js'

/** A row of `idempotency_record`. Never changed, always replaced. */
export interface Row extends RecordKey {
  readonly fingerprint: string
  readonly status: RecordStatus
  readonly fence: number
  readonly leaseUntil: Date
  readonly expiresAt: Date
  readonly createdAt: Date
  readonly statusCode: number | null
  readonly headers: StoredResponse['headers'] | null
  readonly body: Uint8Array | null
  readonly steps: StepResults | null
  readonly handler: string | null
  readonly input: unknown
}

export const EMPTY = {
  ...{ statusCode: null, headers: null, body: null },
  ...{ steps: null, handler: null, input: null },
}

/** A row of the application's own table: what an operation does. */
export interface Effect {
  readonly id: string
  readonly key: string
  /** The attempt that did it. */
  readonly fence: number
}

/**
 * What one statement does. It yields the name of each row that it needs locked, and goes on when it
 * is; everything between two yields happens at one instant.
 */
export type Statement<T> = (
  transaction: Transaction,
  database: ModelDatabase,
) => Generator<string, T, undefined>

/** Writes that become visible together, or never. */
export class Transaction {
  readonly rows = new Map<string, Row | undefined>()
  readonly effects: Effect[] = []
  readonly locked: string[] = []
  isOver = false
  /** Nobody listens on its connection any more; it ends as soon as its statement does. */
  isDoomed = false
  isWaiting = false
}

/** Is told of everything that becomes visible. */
export interface Watch {
  wrote(before: Row | undefined, after: Row | undefined): void
  took(effect: Effect, row: Row | undefined): void
}

interface Lock {
  holder: Transaction
  readonly waiting: { readonly transaction: Transaction; readonly goOn: () => void }[]
}

/** A conflict that a database answers with; what was asked has not happened. */
export class DatabaseError extends Error {
  readonly code: string

  constructor(code: string) {
    super(`the database says ${code}`)
    this.code = code
  }
}

/**
 * One table, as PostgreSQL keeps it at READ COMMITTED: a statement sees what is committed, a write
 * locks its row until its transaction is over, and who waited for a row looks at it again.
 */
export class ModelDatabase {
  readonly #rows = new Map<string, Row>()
  readonly #locks = new Map<string, Lock>()
  readonly #open = new Set<Transaction>()
  readonly #now: () => number
  readonly #watch: Watch | undefined
  /** As an index that somebody else has made would be. */
  uniqueField: keyof Row | undefined

  constructor(now: () => number, watch?: Watch) {
    this.#now = now
    this.#watch = watch
  }

  now(): Date {
    return new Date(this.#now())
  }

  later(ms: number): Date {
    return new Date(this.#now() + ms)
  }

  begin(): Transaction {
    const transaction = new Transaction()
    this.#open.add(transaction)
    return transaction
  }

  /** Runs a statement in an open transaction, when it gets its locks. */
  run<T>(
    transaction: Transaction,
    statement: Statement<T>,
    done: (result: T) => void,
    failed: (error: unknown) => void,
  ): void {
    if (transaction.isOver) {
      failed(new DatabaseError('25P01'))
      return
    }
    const generator = statement(transaction, this)
    const goOn = () => {
      transaction.isWaiting = false
      // It was rolled back while it waited.
      if (transaction.isOver) return failed(new DatabaseError('57P01'))
      try {
        for (;;) {
          const { done: isDone, value } = generator.next()
          if (isDone) {
            if (transaction.isDoomed) this.rollback(transaction)
            return done(value as T)
          }
          if (!this.#lock(transaction, value as string, goOn)) return
        }
      } catch (error) {
        // As in PostgreSQL: after an error, nothing of a transaction is kept.
        this.rollback(transaction)
        failed(error)
      }
    }
    goOn()
  }

  /** A statement that is a transaction of its own. */
  runAlone<T>(
    statement: Statement<T>,
    done: (result: T) => void,
    failed: (error: unknown) => void,
  ): void {
    const transaction = this.begin()
    const commit = (result: T) => {
      this.commit(transaction)
      done(result)
    }
    this.run(transaction, statement, commit, failed)
  }

  /** `false` when it had been rolled back. */
  commit(transaction: Transaction): boolean {
    if (transaction.isOver) return false
    const changes = [...transaction.rows].map(([name, after]) => {
      const before = this.#rows.get(name)
      if (after === undefined) this.#rows.delete(name)
      else this.#rows.set(name, after)
      return { before, after }
    })
    for (const { before, after } of changes) this.#watch?.wrote(before, after)
    for (const effect of transaction.effects) {
      this.#watch?.took(effect, this.#rows.get(nameOf({ tenantId: '', key: effect.key })))
    }
    this.#end(transaction)
    return true
  }

  rollback(transaction: Transaction): void {
    if (!transaction.isOver) this.#end(transaction)
  }

  /** Its connection is gone. What waits for a lock notices that later. */
  hangUp(transaction: Transaction): void {
    if (transaction.isWaiting) transaction.isDoomed = true
    else this.rollback(transaction)
  }

  /** Nothing that was open is kept. */
  restart(): void {
    const open = [...this.#open]
    // All of them first, so that none goes on with a lock that another one leaves.
    for (const transaction of open) transaction.isOver = true
    for (const transaction of open) this.#end(transaction)
  }

  /** The row as a transaction sees it: its own write, or what is committed. */
  see(name: string, transaction?: Transaction): Row | undefined {
    return transaction?.rows.has(name) ? transaction.rows.get(name) : this.#rows.get(name)
  }

  put(transaction: Transaction, row: Row): void {
    transaction.rows.set(nameOf(row), row)
  }

  delete(transaction: Transaction, name: string): void {
    transaction.rows.set(name, undefined)
  }

  /** What is committed. */
  get rows(): IterableIterator<Row> {
    return this.#rows.values()
  }

  /** `false` when somebody else has it; `goOn` is called when it is this transaction's. */
  #lock(transaction: Transaction, name: string, goOn: () => void): boolean {
    const lock = this.#locks.get(name)
    if (lock === undefined) {
      this.#locks.set(name, { holder: transaction, waiting: [] })
      transaction.locked.push(name)
      return true
    }
    if (lock.holder === transaction) return true
    lock.waiting.push({ transaction, goOn })
    transaction.isWaiting = true
    return false
  }

  #end(transaction: Transaction): void {
    transaction.isOver = true
    this.#open.delete(transaction)
    for (const name of transaction.locked) {
      const lock = this.#locks.get(name) as Lock
      const next = lock.waiting.shift()
      if (next === undefined) {
        this.#locks.delete(name)
        continue
      }
      lock.holder = next.transaction
      next.transaction.locked.push(name)
      next.goOn()
    }
    if (transaction.isWaiting) this.#leave(transaction)
  }

  /** It waits for a lock that it does not want any more. */
  #leave(transaction: Transaction): void {
    for (const { waiting } of this.#locks.values()) {
      const place = waiting.findIndex((waiter) => waiter.transaction === transaction)
      if (place !== -1) waiting.splice(place, 1)[0]?.goOn()
    }
  }
}

export function nameOf({ tenantId, key }: RecordKey): string {
  return `${tenantId}\0${key}`
}

/**
 * The row, locked, if it passes the guard: as it is committed, and again when nobody else has it any
 * more.
 */
export function* lockedIf(
  database: ModelDatabase,
  transaction: Transaction,
  name: string,
  guard: (row: Row) => boolean,
): Generator<string, Row | undefined, undefined> {
  const seen = database.see(name, transaction)
  if (seen === undefined || !guard(seen)) return undefined
  yield name
  const row = database.see(name, transaction)
  return row !== undefined && guard(row) ? row : undefined
}

/** Makes a row that is not there yet; tells whether it did. */
export function insertNew(database: ModelDatabase, transaction: Transaction, row: Row): boolean {
  if (database.see(nameOf(row), transaction) !== undefined) return false
  const { uniqueField } = database
  if (uniqueField !== undefined) {
    for (const other of database.rows) {
      if (other[uniqueField] === row[uniqueField]) throw new DatabaseError('P2002')
    }
  }
  database.put(transaction, row)
  return true
}
