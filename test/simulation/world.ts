import crypto from 'node:crypto'
import { syncBuiltinESMExports } from 'node:module'
import { EventQueue, type Owner } from './event-queue.js'
import { Random } from './random.js'

/** So many steps are let go at once: a turn of the real event loop costs more than a step. */
const STEPS_A_TURN = 64
/** A schedule that has not come to rest by then never will. */
const MOST_STEPS = 20_000
/** When the monotonic clock of a process begins. */
const EPOCH_MS = 5_000

/**
 * A world with a clock of its own: one event at a time, in the order of virtual time. A step is an
 * event and everything that promises make of it, and belongs to one owner.
 *
 * While it runs, the clock, the timers and the dice of JavaScript are this world's, so that the
 * library runs in it as it is.
 */
export class World {
  readonly random: Random
  readonly trace: string[] | undefined
  now = EPOCH_MS
  /** Whose step this is; `undefined` for the database, the network and fate. */
  owner: Owner | undefined
  readonly #queue = new EventQueue()
  #planned = 0
  #steps = 0
  #failure: unknown

  constructor(seed: number, isTraced: boolean) {
    this.random = new Random(seed)
    this.trace = isTraced ? [] : undefined
  }

  /** Whether it stopped before it came to rest. */
  get isRestless(): boolean {
    return this.#steps >= MOST_STEPS
  }

  get steps(): number {
    return this.#steps
  }

  /** Plans an event for an owner. It does not happen if the owner has died by then. */
  in(ms: number, owner: Owner | undefined, happen: () => void): void {
    this.#plan(ms, owner, happen, false)
  }

  /** For code of the simulation that waits; the step in which it goes on is its owner's. */
  sleep(ms: number): Promise<void> {
    const { owner } = this
    return new Promise((resolve) => this.in(ms, owner, resolve))
  }

  /** One line of what happened. Costs nothing where nobody reads it. */
  tell(line: () => string): void {
    this.trace?.push(
      `${(this.now - EPOCH_MS).toFixed(1).padStart(8)}  ${(this.owner?.name ?? '-').padEnd(9)} ${line()}`,
    )
  }

  /** Begins, and runs until nothing is planned any more. */
  async run(begin: () => void): Promise<void> {
    const restore = this.#replaceGlobals()
    try {
      begin()
      await new Promise<void>((resolve) => {
        let isOver = false
        let turns = 0
        const letGo = () => {
          for (let i = 0; i < STEPS_A_TURN; i += 1) realSetImmediate(turn)
        }
        // Between two of these Node runs every microtask there is, and tells of rejections that
        // nobody handles: both belong to the step before.
        const turn = () => {
          if (isOver) return
          if (!this.#step()) {
            isOver = true
            resolve()
            return
          }
          turns += 1
          if (turns % STEPS_A_TURN === 0) letGo()
        }
        letGo()
      })
    } finally {
      restore()
      this.owner = undefined
    }
    if (this.#failure !== undefined) throw this.#failure
  }

  #plan(ms: number, owner: Owner | undefined, happen: () => void, isTimer: boolean) {
    const event = {
      at: this.now + ms,
      place: this.#planned,
      happen,
      owner,
      isTimer,
      isCancelled: false,
    }
    this.#planned += 1
    this.#queue.push(event)
    return event
  }

  /** `false` when there is nothing left to happen. */
  #step(): boolean {
    for (;;) {
      const event = this.#queue.pop()
      if (event === undefined || this.isRestless || this.#failure !== undefined) return false
      const { owner } = event
      if (event.isCancelled || owner?.isDead) continue
      if (owner !== undefined && owner.pausedUntil > event.at) {
        // What came while it stood still is read in any order; timers keep theirs.
        event.at = owner.pausedUntil + (event.isTimer ? 1 : this.random.between(0, 2))
        this.#queue.push(event)
        continue
      }
      this.now = event.at
      this.owner = owner
      this.#steps += 1
      try {
        event.happen()
      } catch (error) {
        this.#failure = error
      }
      return true
    }
  }

  /** As many bytes of chance as there are, from the dice of this world. */
  bytes(count: number): Buffer {
    const bytes = Buffer.alloc(count)
    for (let n = 0; n < count; n += 1) bytes[n] = this.random.integer(0, 255)
    return bytes
  }

  #replaceGlobals(): () => void {
    const { setTimeout, clearTimeout } = globalThis
    const { now: hostNow } = Date
    const { random } = Math
    const { stackTraceLimit } = Error
    const timers = {
      setTimeout: (happen: (...given: unknown[]) => void, ms = 0, ...given: unknown[]) =>
        new Timer(this.#plan(Math.max(1, ms), this.owner, () => happen(...given), true)),
      clearTimeout: (timer: unknown) => {
        if (timer instanceof Timer) timer.cancel()
        else clearTimeout(timer as NodeJS.Timeout)
      },
    }
    Object.assign(globalThis, timers)
    Math.random = this.random.next
    Date.now = () => HOST_TIME_MS + Math.floor(this.now)
    performance.now = () => this.now
    running = this
    // Nobody reads them here, and with source maps each costs more than a schedule.
    Error.stackTraceLimit = 0
    return () => {
      Object.assign(globalThis, { setTimeout, clearTimeout })
      running = undefined
      Math.random = random
      Date.now = hostNow
      // It is inherited: what is not there any more is found again.
      Reflect.deleteProperty(performance, 'now')
      Error.stackTraceLimit = stackTraceLimit
    }
  }
}

/** The world that runs. */
let running: World | undefined

// Names that the library draws are of the world's dice, too. Replaced once: that takes longer than a schedule.
const { randomUUID, randomBytes } = crypto
Object.assign(crypto, {
  randomUUID: (...given: Parameters<typeof randomUUID>) => {
    if (running === undefined) return randomUUID(...given)
    const hex = running.bytes(16).toString('hex')
    const part = (from: number, to: number) => hex.slice(from, to)
    return `${part(0, 8)}-${part(8, 12)}-${part(12, 16)}-${part(16, 20)}-${part(20, 32)}`
  },
  randomBytes: (count: number) =>
    running === undefined ? randomBytes(count) : running.bytes(count),
})
syncBuiltinESMExports()

const realSetImmediate = setImmediate
/** What the clocks of the hosts say: an hour less than the database's. */
const HOST_TIME_MS = 1_800_000_000_000
export const DATABASE_TIME_MS = HOST_TIME_MS + 3_600_000

/** What `setTimeout` returns. */
class Timer {
  readonly #event: { isCancelled: boolean }

  constructor(event: { isCancelled: boolean }) {
    this.#event = event
  }

  cancel(): void {
    this.#event.isCancelled = true
  }

  ref(): this {
    return this
  }

  unref(): this {
    return this
  }
}
