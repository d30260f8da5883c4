import { DatabaseError } from './database-error.js'

/** Whoever holds locks until it ends, and waits for one at a time. */
export interface Locker {
  readonly locked: string[]
  waitsFor: Lock | undefined
  waits: number
}

interface Lock {
  holder: Locker
  since: number
  readonly waiting: { readonly locker: Locker; readonly goOn: () => void }[]
}

/** The locks of the model database, by name. */
export class Locks {
  readonly #locks = new Map<string, Lock>()
  readonly #now: () => number

  constructor(now: () => number) {
    this.#now = now
  }

  isLocked(name: string): boolean {
    return this.#locks.has(name)
  }

  holderOf(name: string): Locker | undefined {
    return this.#locks.get(name)?.holder
  }

  heldForMs(name: string): number {
    return this.#now() - (this.#locks.get(name)?.since ?? this.#now())
  }

  /**
   * `false` when somebody else has it; `goOn` is called when it is this one's.
   *
   * @throws DatabaseError for the one that would make a deadlock.
   */
  lock(locker: Locker, name: string, goOn: () => void): boolean {
    const lock = this.#locks.get(name)
    if (lock === undefined) {
      this.#locks.set(name, { holder: locker, since: this.#now(), waiting: [] })
      locker.locked.push(name)
      return true
    }
    if (lock.holder === locker) return true
    for (let next: Lock | undefined = lock; next !== undefined; next = next.holder.waitsFor) {
      if (next.holder === locker) throw new DatabaseError('40P01')
    }
    lock.waiting.push({ locker, goOn })
    locker.waitsFor = lock
    locker.waits += 1
    return false
  }

  /** A lock goes to whoever waits for it longest. */
  handOn(name: string): void {
    const lock = this.#locks.get(name) as Lock
    const next = lock.waiting.shift()
    if (next === undefined) {
      this.#locks.delete(name)
      return
    }
    lock.holder = next.locker
    lock.since = this.#now()
    next.locker.waitsFor = undefined
    next.locker.locked.push(name)
    next.goOn()
  }

  /** It does not want any more what it waits for. */
  leave(locker: Locker): void {
    const waiting = locker.waitsFor?.waiting
    locker.waitsFor = undefined
    const place = waiting?.findIndex((waiter) => waiter.locker === locker) ?? -1
    if (place !== -1) waiting?.splice(place, 1)[0]?.goOn()
  }
}
