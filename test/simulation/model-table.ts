import { DatabaseError } from './database-error.js'
import type { ModelDatabase, Need, Transaction } from './model-database.js'
import type { Version } from './model-rows.js'

export interface TableOptions<R> {
  /** What locks and writes know a row by; no two tables have the same names. */
  readonly nameOf: (row: R) => string
  /** Constraints besides the primary key: what must be there once, by their names. */
  readonly uniques: Readonly<Record<string, (row: R) => string | undefined>>
}

/** What one table holds: committed, or in a transaction. */
export class Table<R extends Version> {
  readonly nameOf: (row: R) => string
  /** A test adds to them as somebody adds an index. */
  readonly uniques: Record<string, (row: R) => string | undefined>
  readonly #database: ModelDatabase
  readonly #rows = new Map<string, R>()
  /** What stood in the place of a row before it was written last, and when that was. */
  readonly #earlier = new Map<string, { readonly row: R | undefined; readonly until: number }>()
  #chains = 0

  constructor(database: ModelDatabase, { nameOf, uniques }: TableOptions<R>) {
    this.#database = database
    this.nameOf = nameOf
    this.uniques = { ...uniques }
  }

  /** What is committed. */
  get rows(): IterableIterator<R> {
    return this.#rows.values()
  }

  /** The name of a new row, as a row of the table and not of its key. */
  newChain(): number {
    this.#chains += 1
    return this.#chains
  }

  /** The row as a transaction sees it: its own write, or what is committed. */
  see(name: string, transaction?: Transaction): R | undefined {
    const written = transaction?.writes.get(name)
    return written === undefined ? this.#rows.get(name) : (written.row as R | undefined)
  }

  /** The row as a statement sees it that began up to so long ago. */
  seeEarlier(name: string, ms: number): R | undefined {
    const earlier = this.#earlier.get(name)
    return earlier && earlier.until > this.#database.now().getTime() - ms
      ? earlier.row
      : this.#rows.get(name)
  }

  *seenBy(transaction: Transaction): Generator<R, void, undefined> {
    for (const [name, committed] of this.#rows) {
      const row = transaction.writes.has(name) ? this.see(name, transaction) : committed
      if (row !== undefined) yield row
    }
    for (const [name, { table, row }] of transaction.writes) {
      if (table === this && row !== undefined && !this.#rows.has(name)) yield row as R
    }
  }

  /** Writes a row that is locked; waits for whoever has, or had, one of its unique values. */
  *put(transaction: Transaction, row: R): Generator<Need, void, undefined> {
    const name = this.nameOf(row)
    const before = this.see(name, transaction)
    for (const [unique, value] of Object.entries(this.uniques)) {
      const [had, has] = [before && value(before), value(row)]
      if (had === has) continue
      if (had !== undefined) yield `${unique}\0${had}`
      if (has === undefined) continue
      yield `${unique}\0${has}`
      for (const other of this.seenBy(transaction)) {
        if (value(other) === has && this.nameOf(other) !== name) {
          throw new DatabaseError('23505')
        }
      }
    }
    transaction.writes.set(name, { table: this, row })
  }

  delete(transaction: Transaction, name: string): void {
    transaction.writes.set(name, { table: this, row: undefined })
  }

  /** Only for the database: what a transaction wrote is what everybody sees. */
  commit(name: string, after: R | undefined): { before: R | undefined; after: R | undefined } {
    const before = this.#rows.get(name)
    if (after === undefined) this.#rows.delete(name)
    else this.#rows.set(name, after)
    this.#earlier.set(name, { row: before, until: this.#database.now().getTime() })
    return { before, after }
  }

  /**
   * The row, locked, if it passes the guard: as the statement saw it when it began, and again, as it is by
   * then, when nobody else has it any more.
   */
  *lockedIf(
    transaction: Transaction,
    name: string,
    guard: (row: R) => boolean,
    seen = this.see(name, transaction),
  ): Generator<Need, R | undefined, undefined> {
    if (seen === undefined || !guard(seen)) return undefined
    yield name
    const row = this.see(name, transaction)
    return row?.chain === seen.chain && guard(row) ? row : undefined
  }

  /**
   * Makes a row that is not there yet; tells whether it did. As the constraint has it, it waits for a
   * transaction that has written a row of that name, and not for one that only has it locked.
   */
  *insert(transaction: Transaction, row: R): Generator<Need, boolean, undefined> {
    const name = this.nameOf(row)
    while (this.#database.isUndecided(name, transaction)) yield { after: name }
    if (this.see(name, transaction) !== undefined) return false
    yield name
    if (this.see(name, transaction) !== undefined) return false
    yield* this.put(transaction, row)
    return true
  }
}
