/** What is to be locked, by whom, and for how long. */
export interface LockAsk {
  /** Whose names they are; `''` for those of the application itself. */
  readonly tenantId: string
  /** Sorted, each once, at least one: all of them are taken, or none. */
  readonly names: readonly string[]
  /** For people. */
  readonly holder: string
  /** Free again after so long, unless it is extended. */
  readonly ttlMs: number
}

/** Somebody else has one of the names. */
export interface LockBusy {
  readonly kind: 'busy'
  /** Which of them, who has it and until when (by the clock of whoever keeps it), if that is known. */
  readonly name: string | undefined
  readonly holder: string | undefined
  readonly until: Date | undefined
}

/** One acquisition. What it writes is guarded by a token that no other acquisition has. */
export interface HeldLock {
  /**
   * The number of the acquisition: higher than that of every earlier one of any of the names.
   * `undefined` where nobody remembers those.
   */
  readonly fence: number | undefined
  /** When the ttl began, at the earliest, by `performance.now()`. */
  readonly askedAt: number
  /**
   * Lets the ttl begin again. `false`: it is somebody else's, or nobody's. As late as it may arrive,
   * it shortens nothing.
   */
  extend(): Promise<boolean>
  /** Gives all names back; `false` when they were not all held any more. */
  release(): Promise<boolean>
}

export type Acquisition = { readonly kind: 'acquired'; readonly held: HeldLock } | LockBusy

/**
 * Who keeps locks. Asked once, it answers once, without waiting for a lock to become free; it
 * rejects when it cannot answer, and then the lock may be taken until its ttl has passed.
 */
export interface LockBackend {
  acquire(ask: LockAsk): Promise<Acquisition>
  /**
   * Deletes at most `limit` rows that nobody has held for a day, and tells how many; 0 where locks
   * are no rows.
   */
  prune(limit: number): Promise<number>
}

export const BUSY: LockBusy = {
  kind: 'busy',
  name: undefined,
  holder: undefined,
  until: undefined,
}
