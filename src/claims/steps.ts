import { createHash } from 'node:crypto'
import { parse, stringify } from 'devalue'
import type { StepResults } from '../core/event.js'
import { LeaseLost, StepNameUsed, StepNotStorable, TransactionOpen } from '../errors.js'
import type { PrismaClientLike, TransactionClient } from '../store/client.js'
import { sayAgain } from '../store/say-again.js'

export interface TransactionOptions {
  /** Tells this transaction from others of the same handler. Default `'transaction'`. */
  name?: string
  /**
   * Nothing comes after this transaction: the event is `processed` by the same commit. Default
   * `false`: it is once the handler returns, and what a crash cuts off after the commit is done by
   * the next attempt, for which this transaction is done already.
   */
  final?: boolean
  /** As Prisma names it: `'Serializable'`. Default: the database's. */
  isolationLevel?: string
  /** How long to wait for a connection, in milliseconds. Default: Prisma's, 2,000. */
  maxWait?: number
  /** How long the transaction may take, in milliseconds. Default: Prisma's, 5,000. */
  timeout?: number
}

/** Stores results under the attempt's guard; `false` when another attempt has taken over. */
export type KeepSteps = (client: TransactionClient, steps: StepResults) => Promise<boolean>

/**
 * Finds out what keeping will need, such as the time. Before a transaction, because it may need a
 * connection of its own, and the pool may have but one.
 */
export type PrepareToKeep = (isFinal: boolean) => Promise<KeepSteps>

/** The named pieces of an attempt, each done once over all attempts. */
export class Steps {
  readonly #prisma: PrismaClientLike
  readonly #operation: string
  readonly #prepare: PrepareToKeep
  readonly #used = new Set<string>()
  #results: StepResults
  readonly #underWay = new Set<Promise<unknown>>()
  #isOpen = false
  #isUndone = false
  #isFinal = false
  /** A transaction was to be committed, and nobody knows whether it is. */
  #isUncertain = false
  #uncertainty: unknown
  /** Results are written one after the other: each write holds all of them. */
  #writing: Promise<unknown> = Promise.resolve()

  /** `operation` names what is being done, the same in every attempt at it. */
  constructor(
    prisma: PrismaClientLike,
    operation: string,
    earlier: StepResults,
    prepare: PrepareToKeep,
  ) {
    this.#prisma = prisma
    this.#operation = operation
    this.#results = earlier
    this.#prepare = prepare
  }

  /** Whether a transaction has said that nothing comes after it. */
  get isFinal(): boolean {
    return this.#isFinal
  }

  /** The open transaction, if there is one, is not to be kept: its handler decided otherwise. */
  undo(): void {
    this.#isUndone = this.#isOpen
  }

  /** Waits for what is still under way; tells whether there was any: something was not awaited. */
  async settle(): Promise<boolean> {
    const hasUnfinished = this.#underWay.size > 0
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay)
    return hasUnfinished
  }

  keyFor(name: string): string {
    return createHash('sha256').update(`${this.#operation}\0${name}`).digest('base64url')
  }

  step<T>(name: string, fn: () => T | Promise<T>): Promise<T> {
    return this.#once(name, async () => {
      const value = await fn()
      const text = encode(name, value)
      const keep = await this.#prepare(false)
      await this.#alone(async () => {
        const results = { ...this.#results, [name]: text }
        if (!(await keep(this.#prisma, results))) throw new LeaseLost()
        this.#results = results
      })
      return value
    })
  }

  transaction<T>(
    fn: (tx: TransactionClient) => Promise<T>,
    { name = 'transaction', final = false, ...options }: TransactionOptions = {},
  ): Promise<T> {
    return this.#once(name, async () => {
      this.#isOpen = true
      try {
        return await sayAgain(() => this.#transact(name, fn, final, options))
      } catch (error) {
        if (error instanceof Undone) return error.value as T
        this.#uncertainty = error
        throw error
      } finally {
        this.#isOpen = false
      }
    })
  }

  #transact<T>(
    name: string,
    fn: (tx: TransactionClient) => Promise<T>,
    isFinal: boolean,
    options: object,
  ): Promise<T> {
    // No step is being written while this one's result is on its way into the database, or its
    // write would wait for this commit and then leave this result out.
    return this.#alone(async () => {
      const keep = await this.#prepare(isFinal)
      let results = this.#results
      const value: T = await this.#prisma.$transaction(async (tx: TransactionClient) => {
        this.#isUndone = false
        this.#isUncertain = false
        const value = await fn(tx)
        if (this.#isUndone) throw new Undone(value)
        results = { ...this.#results, [name]: encode(name, value) }
        // Last, so that the row is locked for a moment only: the heartbeat writes to it, too.
        if (!(await keep(tx, results))) throw new LeaseLost()
        this.#isUncertain = true
        return value
      }, options)
      this.#isUncertain = false
      this.#results = results
      this.#isFinal ||= isFinal
      return value
    })
  }

  /** Runs what has this name, unless an earlier attempt has done it. What failed may be tried again. */
  #once<T>(name: string, run: () => Promise<T>): Promise<T> {
    const running = this.#onceAlone(name, run)
    this.#underWay.add(running)
    // Handled here as well: one that nobody awaits is told of in another way.
    const over = () => void this.#underWay.delete(running)
    running.then(over, over)
    return running
  }

  async #onceAlone<T>(name: string, run: () => Promise<T>): Promise<T> {
    if (typeof name !== 'string' || name === '') throw new StepNameUsed('without a name')
    if (this.#isOpen) throw new TransactionOpen()
    // Run again, it might take effect twice; and what is written now might leave its result out.
    // The next attempt reads what has become of it.
    if (this.#isUncertain) throw this.#uncertainty
    if (this.#used.has(name)) throw new StepNameUsed(`called ${JSON.stringify(name)}`)
    this.#used.add(name)
    if (Object.hasOwn(this.#results, name)) return parse(this.#results[name] as string) as T
    try {
      return await run()
    } catch (error) {
      this.#used.delete(name)
      throw error
    }
  }

  #alone<T>(write: () => Promise<T>): Promise<T> {
    const turn = this.#writing.then(write)
    this.#writing = turn.catch(() => {})
    return turn
  }
}

/** Thrown to make the database undo a transaction that ran without an error. */
class Undone extends Error {
  readonly value: unknown

  constructor(value: unknown) {
    super('the transaction was undone')
    this.value = value
  }
}

/** At once, and not when a later attempt wants it back. */
function encode(name: string, value: unknown): string {
  try {
    return stringify(value)
  } catch (error) {
    // Its message names the place in the value, and nothing of what stands there.
    throw new StepNotStorable(JSON.stringify(name), (error as Error).message)
  }
}
