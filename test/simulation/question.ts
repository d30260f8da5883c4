import type { Counts } from './counts.js'
import { DatabaseError } from './database-error.js'
import type { Owner } from './event-queue.js'
import type { ModelDatabase, Transaction } from './model-database.js'
import { CALM, LEASE_MS, type Weather } from './plan.js'
import type { World } from './world.js'

/** What is between processes and their database. */
export interface Network {
  readonly world: World
  readonly database: ModelDatabase
  readonly weather: Weather
  readonly counts: Counts
  /** When faults end. */
  readonly stormUntil: number
  /** Nothing can be asked until then. */
  downUntil: number
  /** The tables are locked until then: statements wait in the order in which they came. */
  lockedUntil: number
  /** How many connections each process has. */
  readonly connections: number
}

/** How the database does what it was asked. */
export type Doing<T> = (done: (result: T) => void, failed: (error: unknown) => void) => void

/** A connection that has a transaction open. */
export interface Session {
  readonly transaction: Transaction
  isBroken: boolean
  /** How many were executed in it. */
  statements: number
}

/** How long a request may be on its way, and a dead connection may go unnoticed. */
export const LONGEST_MS = 3 * LEASE_MS

/** What is said, for people: a verb, and what it is about. */
export type What = readonly [verb: string, ...about: readonly unknown[]]

/** What a lock on the tables does not keep waiting. */
const NOT_ON_A_TABLE = new Set([
  'BEGIN',
  'COMMIT',
  'ROLLBACK',
  'clock',
  'effect',
  'nothing',
  'bounds',
  'is open',
])

export interface Asked<T> {
  readonly what: What
  readonly doing: Doing<T>
  /** The transaction that a statement runs in, or is. */
  readonly transaction?: Transaction | undefined
  readonly session?: Session | undefined
  /** How long a statement waits for one lock, if it does not wait as long as it takes, and what ends it. */
  readonly limit?: { readonly ms: number; readonly code: '55P03' | '57014' } | undefined
  /** The connection is of no use any more. */
  readonly onBroken?: (() => void) | undefined
  /** Called once or more when the connection may be used for something else. */
  readonly onOver?: () => void
  readonly resolve: (result: T) => void
  readonly reject: (error: unknown) => void
}

/** One thing that is asked, on its way there and back. */
export class Question<T> {
  readonly #network: Network
  readonly #owner: Owner
  readonly #asked: Asked<T>
  readonly #weather: Weather
  readonly #isReplyLost: boolean
  readonly #hasConflict: boolean
  #isReplyLate = false
  /** It waits for the tables. */
  #isStalled = false
  #isDone = false

  constructor(network: Network, owner: Owner, asked: Asked<T>) {
    const { world, stormUntil, counts } = network
    this.#network = network
    this.#owner = owner
    this.#asked = asked
    const [, items] = asked.what
    if (Array.isArray(items) && items.length > 1) counts['statement for several'] += 1
    if (Array.isArray(items) && items.length >= 8) counts['statement for eight or more'] += 1
    this.#weather = world.now < stormUntil ? network.weather : CALM
    this.#isReplyLost = world.random.chance(this.#weather.replyLost)
    this.#hasConflict = world.random.chance(this.#weather.conflict)
  }

  send(): void {
    const { world, counts } = this.#network
    const { random } = world
    if (random.chance(this.#weather.requestLost)) {
      counts['request lost'] += 1
      this.#tell('lost on its way')
      this.#fail('ECONNRESET')
      return
    }
    const isLate = random.chance(this.#weather.late)
    if (isLate) {
      counts['late arrival'] += 1
      // Whoever sent it may hear that its connection is gone, while the server still reads it.
      if (random.chance(0.5)) this.#fail('ECONNRESET')
    }
    this.#isReplyLate = isLate && random.chance(0.5)
    const ms = isLate && !this.#isReplyLate ? this.#lateMs() : this.#latencyMs()
    world.in(ms, undefined, () => this.#arrive())
  }

  /** The server ends what it does at this moment; what has not come there yet, it knows nothing of. */
  cancel(): void {
    const { counts, database } = this.#network
    const { transaction } = this.#asked
    if (this.#isDone || (!this.#isStalled && transaction?.isWaiting !== true)) return
    counts['statement canceled'] += 1
    if (this.#isStalled) this.#end('57014')
    else if (transaction) database.interrupt(transaction, '57014')
  }

  #arrive(): void {
    const { world, counts, database, downUntil } = this.#network
    const { session, doing, transaction } = this.#asked
    if (downUntil > world.now) {
      if (session !== undefined) database.rollback(session.transaction)
      this.#fail('ECONNREFUSED')
      return
    }
    if (this.#waitsForTheTables()) return
    if (this.#hasConflict) {
      counts['conflict, rolled back'] += 1
      this.#end('40001')
      return
    }
    doing(
      (result) => {
        this.#isDone = true
        this.#answer(result, () => this.#settle(() => this.#asked.resolve(result)))
      },
      (error) => {
        this.#isDone = true
        this.#failed(error)
      },
    )
    if (this.#isDone) return
    counts['statement that waited for a row'] += 1
    this.#tell('waits for the row')
    if (transaction !== undefined) this.#boundWait(transaction)
  }

  #waitsForTheTables(): boolean {
    const { world, counts, lockedUntil } = this.#network
    const { what, limit } = this.#asked
    if (lockedUntil <= world.now || NOT_ON_A_TABLE.has(what[0])) return false
    this.#isStalled = true
    counts['statement that waited for the table'] += 1
    this.#tell('waits for the table')
    const forMs = lockedUntil - world.now
    // What came first is done first.
    world.in(Math.min(forMs, limit?.ms ?? forMs), undefined, () => {
      if (this.#isDone) return
      this.#isStalled = false
      if (limit === undefined || limit.ms >= forMs) return this.#arrive()
      counts['lock timeout'] += 1
      this.#end(limit.code)
    })
    return true
  }

  /** For each lock anew. */
  #boundWait(transaction: Transaction): void {
    const { world, database, counts } = this.#network
    const { limit } = this.#asked
    if (limit === undefined || limit.ms === Number.POSITIVE_INFINITY) return
    const { waits } = transaction
    world.in(limit.ms, undefined, () => {
      if (this.#isDone || !transaction.isWaiting) return
      if (transaction.waits > waits) return this.#boundWait(transaction)
      counts['lock timeout'] += 1
      database.interrupt(transaction, limit.code)
    })
  }

  /** The server says that nothing of it is kept. */
  #end(code: string): void {
    const { session } = this.#asked
    this.#isDone = true
    if (session !== undefined) this.#network.database.rollback(session.transaction)
    this.#failed(new DatabaseError(code))
  }

  #failed(error: unknown): void {
    this.#answer(error, () => this.#settle(() => this.#asked.reject(error)))
  }

  #settle(settle: () => void): void {
    this.#asked.onOver?.()
    settle()
  }

  #answer(told: unknown, settle: () => void): void {
    const { world, counts } = this.#network
    if (this.#isReplyLost) {
      counts['reply lost'] += 1
      if (this.#asked.what[0] === 'COMMIT') counts['commit whose reply is lost'] += 1
      this.#tell('done, and the reply is lost:', told)
      this.#fail('ECONNRESET')
      return
    }
    this.#tell('done:', told)
    world.in(this.#isReplyLate ? this.#lateMs() : this.#latencyMs(), this.#owner, settle)
  }

  /** Nothing comes back but, perhaps, that the connection is gone. */
  #fail(code: string): void {
    const { world } = this.#network
    const { onBroken, onOver = () => {}, reject } = this.#asked
    onBroken?.()
    if (world.random.chance(this.#weather.silent)) {
      world.in(LONGEST_MS, this.#owner, onOver)
      return
    }
    world.in(this.#latencyMs(), this.#owner, () => {
      this.#tell(code)
      this.#settle(() => reject(new DatabaseError(code)))
    })
  }

  #lateMs(): number {
    return this.#network.world.random.between(LEASE_MS / 10, LONGEST_MS)
  }

  #latencyMs(): number {
    return this.#network.world.random.between(0.1, this.#weather.latencyMs)
  }

  #tell(...said: unknown[]): void {
    const { world } = this.#network
    if (world.trace === undefined) return
    world.tell(() => [this.#owner.name, ...this.#asked.what, ...said].map(written).join(' '))
  }
}

/** For people, who want to read a line. */
function written(part: unknown): string {
  if (typeof part === 'string') return part
  if (part instanceof Error) return String(part)
  const text = JSON.stringify(part, (name, value) => {
    if (name === 'transaction' || value === null) return undefined
    return value?.type === 'Buffer' ? Buffer.from(value.data).toString() : value
  })
  return text?.slice(0, 200) ?? ''
}
