import type { Counts } from './counts.js'
import type { Owner } from './event-queue.js'
import { DatabaseError, type ModelDatabase, type Transaction } from './model-database.js'
import type { Connect } from './model-prisma.js'
import type { Send } from './model-store.js'
import { LEASE_MS, type Weather } from './plan.js'
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
}

/** How the database does what it was asked. */
type Doing<T> = (done: (result: T) => void, failed: (error: unknown) => void) => void

/** A connection that has a transaction open. */
interface Session {
  readonly transaction: Transaction
  isBroken: boolean
}

const CALM: Weather = {
  ...{ latencyMs: 2, requestLost: 0, replyLost: 0 },
  ...{ late: 0, conflict: 0, silent: 0 },
}
/** How long a request may be on its way, and a dead connection may go unnoticed. */
const LONGEST_MS = 3 * LEASE_MS

/** What is said, for people: a verb, and what it is about. */
export type What = readonly [verb: string, ...about: readonly unknown[]]

/** One thing that is asked, on its way there and back. */
class Question<T> {
  readonly #weather: Weather
  readonly #isReplyLost: boolean
  readonly #hasConflict: boolean
  #isReplyLate = false

  constructor(
    private readonly network: Network,
    private readonly owner: Owner,
    private readonly what: What,
    private readonly doing: Doing<T>,
    private readonly session: Session | undefined,
    private readonly onBroken: (() => void) | undefined,
    private readonly resolve: (result: T) => void,
    private readonly reject: (error: unknown) => void,
  ) {
    const { world, stormUntil, counts } = network
    const [, items] = what
    if (Array.isArray(items) && items.length > 1) counts['statement for several'] += 1
    this.#weather = world.now < stormUntil ? network.weather : CALM
    this.#isReplyLost = world.random.chance(this.#weather.replyLost)
    this.#hasConflict = world.random.chance(this.#weather.conflict)
  }

  send(): void {
    const { world, counts } = this.network
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

  #arrive(): void {
    const { world, counts, database, downUntil } = this.network
    const { session } = this
    if (downUntil > world.now) {
      if (session !== undefined) database.rollback(session.transaction)
      this.#fail('ECONNREFUSED')
      return
    }
    if (this.#hasConflict) {
      counts['conflict, rolled back'] += 1
      if (session !== undefined) database.rollback(session.transaction)
      this.#failed(new DatabaseError('40001'))
      return
    }
    let isDone = false
    this.doing(
      (result) => {
        isDone = true
        this.#answer(result, () => this.resolve(result))
      },
      (error) => {
        isDone = true
        this.#failed(error)
      },
    )
    if (isDone) return
    counts['statement that waited for a row'] += 1
    this.#tell('waits for the row')
  }

  #failed(error: unknown): void {
    this.#answer(error, () => this.reject(error))
  }

  #answer(told: unknown, settle: () => void): void {
    const { world, counts } = this.network
    if (this.#isReplyLost) {
      counts['reply lost'] += 1
      if (this.what[0] === 'COMMIT') counts['commit whose reply is lost'] += 1
      this.#tell('done, and the reply is lost:', told)
      this.#fail('ECONNRESET')
      return
    }
    this.#tell('done:', told)
    world.in(this.#isReplyLate ? this.#lateMs() : this.#latencyMs(), this.owner, settle)
  }

  /** Nothing comes back but, perhaps, that the connection is gone. */
  #fail(code: string): void {
    const { world } = this.network
    this.onBroken?.()
    if (world.random.chance(this.#weather.silent)) return
    world.in(this.#latencyMs(), this.owner, () => {
      this.#tell(code)
      this.reject(new DatabaseError(code))
    })
  }

  #lateMs(): number {
    return this.network.world.random.between(LEASE_MS / 10, LONGEST_MS)
  }

  #latencyMs(): number {
    return this.network.world.random.between(0.1, this.#weather.latencyMs)
  }

  #tell(...said: unknown[]): void {
    const { world } = this.network
    if (world.trace === undefined) return
    world.tell(() => [this.owner.name, ...this.what, ...said].map(written).join(' '))
  }
}

/** One process's way to the database, on which everything can get lost. */
export class Link implements Connect {
  readonly #network: Network
  readonly #owner: Owner
  readonly #sessions = new Set<Session>()

  constructor(network: Network, owner: Owner) {
    this.#network = network
    this.#owner = owner
  }

  /** A statement that is a transaction of its own. */
  send: Send = (what, statement) =>
    this.#ask(what, (done, failed) => this.#network.database.runAlone(statement, done, failed))

  /** As Prisma's interactive transactions: BEGIN, what `fn` says, COMMIT; each can get lost. */
  async transact<T>(
    fn: (send: Send) => Promise<T>,
    { timeout = 5 * LEASE_MS }: { timeout?: number },
  ): Promise<T> {
    const { database } = this.#network
    const session = await this.#ask<Session>(['BEGIN'], (done) => {
      const session = { transaction: database.begin(), isBroken: false }
      this.#sessions.add(session)
      done(session)
    })
    const { transaction } = session
    let isClosed = false
    const rollback = () =>
      this.#ask<void>(['ROLLBACK'], (done) => done(database.rollback(transaction)), session)
    const timer = setTimeout(() => {
      isClosed = true
      void rollback().catch(() => {})
    }, timeout)
    try {
      const value = await fn(async (what, statement) => {
        if (isClosed) throw new DatabaseError('P2028')
        return this.#ask(
          what,
          (done, failed) => database.run(transaction, statement, done, failed),
          session,
        )
      })
      if (isClosed) throw new DatabaseError('P2028')
      clearTimeout(timer)
      isClosed = true
      await this.#ask<void>(
        ['COMMIT'],
        (done, failed) =>
          database.commit(transaction) ? done() : failed(new DatabaseError('25P01')),
        session,
      )
      return value
    } catch (error) {
      clearTimeout(timer)
      if (!isClosed) {
        isClosed = true
        await rollback().catch(() => {})
      }
      throw error
    } finally {
      this.#sessions.delete(session)
    }
  }

  /** The process is gone. The database finds out when it finds out. */
  hangUp(): void {
    for (const session of this.#sessions) this.#break(session)
  }

  #ask<T>(what: What, doing: Doing<T>, session?: Session): Promise<T> {
    // Nothing leaves a dead process, and nothing comes back to it.
    if (this.#owner.isDead) return new Promise(() => {})
    if (session?.isBroken) return Promise.reject(new DatabaseError('P1017'))
    return new Promise((resolve, reject) => {
      const onBroken = session && (() => this.#break(session))
      new Question(
        this.#network,
        this.#owner,
        what,
        doing,
        session,
        onBroken,
        resolve,
        reject,
      ).send()
    })
  }

  #break(session: Session): void {
    if (session.isBroken) return
    session.isBroken = true
    const { world, database } = this.#network
    world.in(world.random.between(0, LONGEST_MS), undefined, () =>
      database.hangUp(session.transaction),
    )
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
