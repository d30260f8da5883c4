import { AsyncLocalStorage } from 'node:async_hooks'
import { downstreamKey } from '../core/downstream-key.js'
import { ISOLATION_LEVELS } from '../core/isolation.js'
import type { StepResults } from '../core/record.js'
import { stepPath } from '../core/step-path.js'
import { isStorableText } from '../core/text.js'
import { isThrown } from '../core/thrown.js'
import { crashPoint } from '../crash-points.js'
import {
  LeaseLost,
  OptionInvalid,
  RunOpen,
  StepNameInvalid,
  StepNameUsed,
  StepNested,
  StepTooLate,
  TransactionEnded,
  TransactionOpen,
} from '../errors.js'
import type { ApplicationTransaction } from '../register.js'
import { seal } from '../sealed.js'
import type { PrismaClientLike, TransactionClient } from '../store/client.js'
import { HiddenDuplicate, isRolledBack, sayAgain } from '../store/say-again.js'
import { boundInteractive, isStillOpen, transactInTime } from '../store/transaction-bounds.js'
import { decode, encode } from './codec.js'
import { StepPromise } from './step-promise.js'

export interface TransactionOptions {
  /** Tells this transaction from others of the same handler. Default `'transaction'`. */
  name?: string
  /** As Prisma names it: `'Serializable'`. Default: the database's. */
  isolationLevel?: string
  /** How long to wait for a connection, in milliseconds. Default: Prisma's, 2,000. */
  maxWait?: number
  /**
   * How long the transaction may take, in milliseconds; `transaction()` ends two seconds later, whatever
   * hangs. Default: Prisma's, 5,000.
   */
  timeout?: number
}

export interface EventTransactionOptions extends TransactionOptions {
  /**
   * Nothing comes after this transaction: the event is `processed` by the same commit. Default
   * `false`: it is once the handler returns, and what a crash cuts off after the commit is done by
   * the next attempt, for which this transaction is done already.
   */
  final?: boolean
}

/** Stores results by the last write of a transaction; `false` when another attempt has taken over. */
export type KeepInTransaction = (tx: TransactionClient, results: StepResults) => Promise<boolean>

/** What the present code runs in. */
interface Place {
  readonly steps: Steps
  /** The handlers that are run as parts of the operation: the names within them are their own. */
  readonly scope: readonly string[]
  /** A step that is done is not run again, and what it began would lend its name to something else. */
  readonly isStep: boolean
}

type Kind = 'step' | 'part' | 'transaction'

const CALLS: Record<Kind, string> = { step: 'step()', part: 'run()', transaction: 'transaction()' }

/** What each is for people. */
const CALLED: Record<Kind, string> = { step: 'step', part: 'handler', transaction: 'transaction' }

/** How long the last write of a transaction waits for its row: the transaction has a connection meanwhile. */
const NOTE_LOCK_MS = 1_000

const place = new AsyncLocalStorage<Place>()

/** What a handler leaves behind when it ends. */
export interface ClosedSteps {
  /** Whether all that it began is over, and it has asked for the outcome of what failed. */
  readonly isAwaited: boolean
  /** Fulfilled when what is still under way is over; `undefined` when nothing is. */
  readonly over: Promise<void> | undefined
}

/** What the steps of an attempt need of it. */
export interface StepsContext {
  readonly prisma: PrismaClientLike
  /** The same in every attempt at the operation, and in no other one. */
  readonly operationId: string
  /** What earlier attempts have done. */
  readonly earlier: StepResults
  /** Stores results outside of transactions, under the attempt's guard; `false` as above. */
  readonly keep: (results: StepResults) => Promise<boolean>
  /**
   * Finds out what keeping them in a transaction will need, such as the time. Before it begins, because
   * that may need a connection of its own, and the pool may have but one.
   */
  readonly prepare: (isFinal: boolean) => Promise<KeepInTransaction>
  /** Whether the attempt is the only one, and may begin something. Default: it is. */
  readonly isHeld?: () => boolean | Promise<boolean>
  /**
   * Whether `close` is called when the handler ends. If not, Node reports a failure that is not awaited.
   * Default: it is.
   */
  readonly isClosed?: boolean
}

/** The named pieces of an attempt, each done once over all attempts. */
export class Steps {
  readonly #prisma: PrismaClientLike
  readonly #operationId: string
  readonly #keep: StepsContext['keep']
  readonly #prepare: StepsContext['prepare']
  readonly #isHeld: () => boolean | Promise<boolean>
  readonly #isClosed: boolean
  readonly #used = new Set<string>()
  /** What runs now, by its path. */
  readonly #inFlight = new Map<string, Kind>()
  #results: StepResults
  readonly #underWay = new Set<Promise<unknown>>()
  /** What failed before the application had asked for its outcome. */
  readonly #failed = new Set<StepPromise<unknown>>()
  /** What functions of the application's own have thrown. All else comes from the library's statements. */
  readonly #ownErrors = new WeakSet<object>()
  /** Why nothing can be begun any more. */
  #Refusal: (new () => Error) | undefined
  #isUndone = false
  #isFinal = false
  /** Results have been sent to the database, and its answer is awaited. */
  #isSent = false
  /** A write of results ended without an answer: they may be stored, or may be stored later. */
  #unknownWrite: { readonly error: unknown } | undefined
  /** Results are written one after the other: each write holds all of them. */
  #writing: Promise<unknown> = Promise.resolve()

  constructor({
    prisma,
    operationId,
    earlier,
    keep,
    prepare,
    isHeld = () => true,
    isClosed = true,
  }: StepsContext) {
    this.#prisma = prisma
    this.#operationId = operationId
    this.#results = earlier
    this.#keep = keep
    this.#prepare = prepare
    this.#isHeld = isHeld
    this.#isClosed = isClosed
  }

  /** Whether a transaction is open, whose last write is to the row that the heartbeat writes to. */
  get isOpen(): boolean {
    return this.#isInFlight('transaction')
  }

  /** Whether a transaction has said that nothing comes after it. */
  get isFinal(): boolean {
    return this.#isFinal
  }

  /** The open transaction, if there is one, is not to be kept: its handler decided otherwise. */
  undo(): void {
    this.#isUndone = this.isOpen
  }

  /** Nothing can be begun any more: it is refused before any of it runs. */
  close(Refusal: new () => Error = StepTooLate): ClosedSteps {
    this.#Refusal ??= Refusal
    if (this.#underWay.size > 0) return { isAwaited: false, over: this.#settle() }
    return { isAwaited: [...this.#failed].every(({ isAwaited }) => isAwaited), over: undefined }
  }

  async #settle(): Promise<void> {
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay)
  }

  /** @throws StepNameInvalid */
  keyFor(name: string): string {
    checkName(name)
    return downstreamKey(this.#operationId, stepPath(this.#scope, name))
  }

  get #place(): Place | undefined {
    const found = place.getStore()
    return found?.steps === this ? found : undefined
  }

  get #scope(): readonly string[] {
    return this.#place?.scope ?? []
  }

  /** A step that has steps and transactions of its own, whose names are its own. One at a time. */
  part<T>(name: string, fn: () => T | Promise<T>): Promise<T> {
    const scope = [...this.#scope, name]
    return this.#step('part', name, { steps: this, scope, isStep: false }, fn)
  }

  step<T>(name: string, fn: () => T | Promise<T>): Promise<T> {
    return this.#step('step', name, { steps: this, scope: this.#scope, isStep: true }, fn)
  }

  #step<T>(kind: Kind, name: string, inside: Place, fn: () => T | Promise<T>): Promise<T> {
    return this.#once(kind, name, async (path) => {
      checkFunction('step', fn)
      const value = await this.#ownFunction(() => place.run(inside, fn))
      const text = encode(`result of ${CALLED[kind]} ${JSON.stringify(name)}`, value)
      crashPoint('step:done')
      await this.#alone(async () => {
        const results = { ...this.#results, [path]: text }
        const isKept = await this.#knowing(() => {
          this.#isSent = true
          return this.#keep(results)
        })
        if (!isKept) throw new LeaseLost()
        this.#results = results
      })
      crashPoint('step:stored')
      return value
    })
  }

  transaction<T>(
    fn: (tx: ApplicationTransaction) => Promise<T>,
    given: EventTransactionOptions = {},
  ): Promise<T> {
    const {
      name = 'transaction',
      final = false,
      ...options
    }: EventTransactionOptions = isOptions(given) ? given : {}
    return this.#once('transaction', name, async (path) => {
      checkFunction('transaction', fn)
      if (!isOptions(given))
        throw new OptionInvalid('the options of transaction() must be an object')
      checkOptions(options)
      try {
        return await sayAgain(() => this.#transact({ path, name }, fn, final, options))
      } catch (error) {
        if (isThrown(error, Undone)) return error.value as T
        throw error
      }
    })
  }

  #transact<T>(
    { path, name }: { readonly path: string; readonly name: string },
    fn: (tx: ApplicationTransaction) => Promise<T>,
    isFinal: boolean,
    options: TransactionOptions,
  ): Promise<T> {
    // No step is being written while this one's result is on its way into the database, or its
    // write would wait for this commit and then leave this result out.
    return this.#alone(async () => {
      const keep = await this.#prepare(isFinal)
      let results = this.#results
      const transact = async (tx: TransactionClient, check: () => void) => {
        this.#isUndone = false
        await boundInteractive(this.#prisma, tx, options)
        const value = await this.#ownFunction(() => fn(tx as ApplicationTransaction))
        check()
        if (this.#isUndone) throw new Undone(value)
        if (!(await isStillOpen(this.#prisma, tx, NOTE_LOCK_MS))) throw new TransactionEnded()
        const text = encode(`result of transaction ${JSON.stringify(name)}`, value)
        results = { ...this.#results, [path]: text }
        crashPoint('transaction:inside')
        // Last, so that the row is locked for a moment only: the heartbeat writes to it, too.
        if (!(await keep(tx, results))) throw new LeaseLost()
        crashPoint('transaction:recorded')
        check()
        this.#isSent = true
        return value
      }
      const value: T = await this.#knowing(() => transactInTime(this.#prisma, transact, options))
      crashPoint('transaction:committed')
      this.#results = results
      this.#isFinal ||= isFinal
      return value
    })
  }

  /** Runs what has this name, unless an earlier attempt has done it. What failed may be tried again. */
  #once<T>(kind: Kind, name: string, run: (path: string) => Promise<T>): Promise<T> {
    const running = this.#onceAlone(kind, name, run).catch((error) => {
      throw this.#ownErrors.has(Object(error)) ? error : seal(CALLS[kind], error)
    })
    return this.#track(running)
  }

  /** A call that is refused for a reason that is not of the steps. Not awaited, it fails the handler as well. */
  refuse(error: unknown): Promise<never> {
    return this.#track(Promise.reject(error))
  }

  #track<T>(running: Promise<T>): Promise<T> {
    if (!this.#isClosed) return running
    const promise = StepPromise.follow(running)
    this.#underWay.add(running)
    const over = () => void this.#underWay.delete(running)
    running.then(over, () => {
      over()
      if (!promise.isAwaited) this.#failed.add(promise)
    })
    return promise
  }

  async #onceAlone<T>(kind: Kind, name: string, run: (path: string) => Promise<T>): Promise<T> {
    checkName(name)
    if (this.isOpen) throw new TransactionOpen()
    if (this.#place?.isStep) throw new StepNested()
    if (this.#Refusal !== undefined) throw new this.#Refusal()
    // Run again, it might take effect twice. The next attempt reads what has become of it.
    if (this.#unknownWrite) throw this.#unknownWrite.error
    // The record has room for one handler that recover() runs.
    if (kind === 'part' && this.#isInFlight('part')) throw new RunOpen()
    // A step's result would wait for the transaction, which may wait for the step.
    if (kind === 'transaction' && this.#hasOthersInFlight()) throw new TransactionOpen()
    const path = stepPath(this.#scope, name)
    if (this.#used.has(path)) throw new StepNameUsed(JSON.stringify(name))
    this.#used.add(path)
    if (Object.hasOwn(this.#results, path)) return decode(this.#results[path] as string) as T
    this.#inFlight.set(path, kind)
    try {
      const isHeld = this.#isHeld()
      if (isHeld !== true) await this.#demandHeld(isHeld)
      return await run(path)
    } catch (error) {
      this.#used.delete(path)
      throw error
    } finally {
      this.#inFlight.delete(path)
    }
  }

  /** Nothing is begun beside another attempt: what it does elsewhere would be done twice. */
  async #demandHeld(isHeld: boolean | Promise<boolean>): Promise<void> {
    if (!(await isHeld)) throw new LeaseLost()
    if (this.#Refusal !== undefined) throw new this.#Refusal()
  }

  /** Runs a function of the application's own. What that throws leaves as it is. */
  async #ownFunction<T>(fn: () => T | Promise<T>): Promise<T> {
    try {
      return await fn()
    } catch (error) {
      this.#ownErrors.add(Object(error))
      // It is thrown in its place when a new snapshot has shown that nothing was hidden.
      if (isThrown(error, HiddenDuplicate)) this.#ownErrors.add(Object(error.cause))
      throw error
    }
  }

  #isInFlight(kind: Kind): boolean {
    return [...this.#inFlight.values()].includes(kind)
  }

  /** Whether anything runs but the parts that the present code is in. */
  #hasOthersInFlight(): boolean {
    const enclosing = this.#scope.map((name, at, scope) => stepPath(scope.slice(0, at), name))
    return [...this.#inFlight.keys()].some((path) => !enclosing.includes(path))
  }

  #alone<T>(write: () => Promise<T>): Promise<T> {
    const turn = this.#writing.then(() => {
      // What waited for its turn holds all results but the one that may have been stored, or may be
      // by a statement that arrives late: one of the two would be lost.
      if (this.#unknownWrite) throw this.#unknownWrite.error
      return write()
    })
    this.#writing = turn.catch(() => {})
    return turn
  }

  /** Nothing more is begun or written in this attempt once it is not known how a write ended. */
  async #knowing<T>(write: () => PromiseLike<T>): Promise<T> {
    this.#isSent = false
    try {
      return await write()
    } catch (error) {
      if (this.#isSent && !isRolledBack(error)) this.#unknownWrite = { error }
      throw error
    }
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

/** About how many bytes they are. */
export function sizeOf({ steps }: { readonly steps: StepResults }): number {
  return Object.values(steps).reduce<number>((bytes, text) => bytes + String(text).length, 0)
}

function checkFunction(what: 'step' | 'transaction', fn: unknown): void {
  if (typeof fn === 'function') return
  throw new OptionInvalid(
    what === 'step'
      ? 'step() needs a function: step("charge", () => …)'
      : 'transaction() needs a function: transaction(async (tx) => …)',
  )
}

function isOptions(given: unknown): boolean {
  return typeof given === 'object' && given !== null && !Array.isArray(given)
}

/** Timers and PostgreSQL's settings hold 24 days; rows stay locked for as long. */
const LONGEST_TRANSACTION_MS = 86_400_000

/** What is handed to Prisma. A typing error would otherwise be no limit, or no isolation. */
function checkOptions({ isolationLevel, maxWait, timeout, ...unknown }: TransactionOptions): void {
  const [name] = Object.keys(unknown)
  if (name !== undefined) {
    throw new OptionInvalid(
      `transaction() has no option "${name}"; it has name, isolationLevel, maxWait and timeout`,
    )
  }
  if (isolationLevel !== undefined && !ISOLATION_LEVELS.some((one) => one === isolationLevel)) {
    throw new OptionInvalid(
      `option "isolationLevel" of transaction() must be one of ${ISOLATION_LEVELS.map((level) => `'${level}'`).join(', ')}`,
    )
  }
  for (const [name, ms] of Object.entries({ maxWait, timeout })) {
    if (ms !== undefined && !(typeof ms === 'number' && ms > 0 && ms <= LONGEST_TRANSACTION_MS)) {
      throw new OptionInvalid(
        `option "${name}" of transaction() must be milliseconds, such as 5_000, and at most a day`,
      )
    }
  }
}

/** @throws StepNameInvalid */
function checkName(name: unknown): void {
  if (!isStorableText(name)) throw new StepNameInvalid()
}
