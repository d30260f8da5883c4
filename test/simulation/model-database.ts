import { DatabaseError } from './database-error.js'
import { type Locker, Locks } from './model-locks.js'
import {
  type Effect,
  type EventRow,
  eventKeyOf,
  eventNameOf,
  nameOf,
  type Row,
} from './model-rows.js'
import { Table } from './model-table.js'

/** What a statement needs: something locked, by its name; or that nobody else has it locked. */
export type Need = string | { readonly after: string }

/**
 * What one statement does. It yields what it needs, and goes on when it has that; everything between
 * two yields happens at one instant.
 */
export type Statement<T> = (
  transaction: Transaction,
  database: ModelDatabase,
) => Generator<Need, T, undefined>

/** Writes that become visible together, or never. */
export class Transaction implements Locker {
  readonly writes = new Map<string, { readonly table: unknown; readonly row: unknown }>()
  readonly effects: Effect[] = []
  readonly locked: string[] = []
  waitsFor: Locker['waitsFor']
  /** How often it has had to wait. */
  waits = 0
  /** What its statement fails with once it does not wait any more. */
  interruption: string | undefined
  readonly advisoryLocks: string[] = []
  /** The server ends it when nothing is said in it for so long, or when a statement takes so long. */
  silenceMs = Number.POSITIVE_INFINITY
  statementMs = Number.POSITIVE_INFINITY
  /** How long a statement waits for a lock. */
  lockMs = Number.POSITIVE_INFINITY
  isOver = false
  /** Nobody listens on its connection any more; it ends as soon as its statement does. */
  isDoomed = false

  get isWaiting(): boolean {
    return this.waitsFor !== undefined
  }
}

/** A row as it was, and as it is from now on. */
export interface Change<R = Row> {
  readonly before: R | undefined
  readonly after: R | undefined
}

/** What becomes visible by one commit. */
export interface Commit {
  readonly records: readonly Change[]
  readonly events: readonly Change<EventRow>[]
  readonly effects: readonly Effect[]
}

/** Is told of everything that becomes visible. */
export interface Watch {
  committed(commit: Commit, database: ModelDatabase): void
  /** A list is to write these rows. */
  listed(rows: readonly string[]): void
  /** A transaction that had written a row has ended after so long. */
  unlocked(afterMs: number): void
}

/**
 * Two tables, as PostgreSQL keeps them at READ COMMITTED: a statement sees what is committed, a write
 * locks its row until its transaction is over, and who waited for a row looks at it again.
 */
export class ModelDatabase {
  readonly records: Table<Row>
  readonly events: Table<EventRow>
  readonly watch: Watch | undefined
  readonly #locks: Locks
  readonly #advisoryLocks = new Map<string, Transaction>()
  readonly #open = new Set<Transaction>()
  readonly #now: () => number

  constructor(now: () => number, watch?: Watch) {
    this.#now = now
    this.watch = watch
    this.#locks = new Locks(now)
    this.records = new Table<Row>(this, { nameOf, uniques: {} })
    this.events = new Table<EventRow>(this, {
      nameOf: eventNameOf,
      uniques: { name: eventKeyOf, lane: ({ runningLane }) => runningLane ?? undefined },
    })
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
      // It was rolled back while it waited.
      if (transaction.isOver) {
        return failed(new DatabaseError(transaction.interruption ?? '57P01'))
      }
      try {
        for (;;) {
          const { done: isDone, value } = generator.next()
          if (isDone) {
            if (transaction.isDoomed) this.rollback(transaction)
            return done(value as T)
          }
          if (!this.#has(transaction, value as Need, goOn)) return
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
    transaction: Transaction,
    statement: Statement<T>,
    done: (result: T) => void,
    failed: (error: unknown) => void,
  ): void {
    const commit = (result: T) => {
      this.commit(transaction)
      done(result)
    }
    this.run(transaction, statement, commit, failed)
  }

  /** `false` when it had been rolled back. */
  commit(transaction: Transaction): boolean {
    if (transaction.isOver) return false
    const records: Change[] = []
    const events: Change<EventRow>[] = []
    for (const [name, { table, row }] of transaction.writes) {
      if (table === this.records) {
        records.push(this.records.commit(name, row as Row | undefined))
      } else events.push(this.events.commit(name, row as EventRow | undefined))
    }
    this.watch?.committed({ records, events, effects: transaction.effects }, this)
    this.#end(transaction)
    return true
  }

  rollback(transaction: Transaction): void {
    if (!transaction.isOver) this.#end(transaction)
  }

  /** Ends the statement that waits for a lock, and with it all of its transaction. */
  interrupt(transaction: Transaction, code: string): void {
    transaction.interruption = code
    this.rollback(transaction)
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

  isLocked(name: string): boolean {
    return this.#locks.isLocked(name)
  }

  /** Whether another transaction has written it, and it is not known yet what becomes of that. */
  isUndecided(name: string, transaction: Transaction): boolean {
    const holder = this.#locks.holderOf(name)
    if (!(holder instanceof Transaction)) return false
    return holder !== transaction && holder.writes.has(name)
  }

  /** pg_try_advisory_xact_lock */
  tryAdvisoryLock(transaction: Transaction, name: string): boolean {
    const holder = this.#advisoryLocks.get(name)
    if (holder !== undefined) return holder === transaction
    this.#advisoryLocks.set(name, transaction)
    transaction.advisoryLocks.push(name)
    return true
  }

  /** `false` when it has to wait; `goOn` is called when it has what it needs. */
  #has(transaction: Transaction, need: Need, goOn: () => void): boolean {
    if (typeof need === 'string') return this.#locks.lock(transaction, need, goOn)
    const { after: name } = need
    if (!this.#locks.isLocked(name)) return true
    return this.#locks.lock(transaction, name, () => {
      if (!transaction.isOver) {
        transaction.locked.splice(transaction.locked.indexOf(name), 1)
        this.#locks.handOn(name)
      }
      goOn()
    })
  }

  #end(transaction: Transaction): void {
    transaction.isOver = true
    this.#open.delete(transaction)
    for (const name of transaction.locked) {
      if (transaction.writes.has(name)) this.watch?.unlocked(this.#locks.heldForMs(name))
      this.#locks.handOn(name)
    }
    for (const name of transaction.advisoryLocks) this.#advisoryLocks.delete(name)
    if (transaction.isWaiting) this.#locks.leave(transaction)
  }
}
