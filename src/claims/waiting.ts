import { backoff } from '../core/backoff.js'
import type { RecordKey } from '../core/record.js'

/** Who waits for which operation, and for how long. */
export interface Patience extends RecordKey {
  /** How long to wait for another attempt that is running; 0 for not at all. */
  readonly waitMs: number
  /** Ends the wait early: the client is gone. */
  readonly signal?: AbortSignal
}

/** How often another process's attempt is polled. In the same process, its end wakes the waiters. */
const POLL_BACKOFF = { firstMs: 25, mostMs: 1_000 }

interface Waiter {
  /** Ends its present pause. */
  wake: () => void
}

/**
 * The requests of this process that wait for an operation to end. Of those that wait for the same
 * operation only the first polls; the others are woken when it gets another answer than `busy`.
 */
export class WaitingRoom {
  readonly #waiters = new Map<string, Set<Waiter>>()
  readonly #maxWaiters: number
  #count = 0
  #isOpen = true

  /** `maxWaiters`: how many requests may wait at once; those above are answered as it is. */
  constructor(maxWaiters: number) {
    this.#maxWaiters = maxWaiters
  }

  /**
   * Asks until the answer is another than `busy`, for as long as the patience lasts, and only once when
   * too many wait already. An answer that has `waitedMs` gets how long that took.
   */
  async whileBusy<T extends { readonly kind: string }>(
    patience: Patience,
    ask: () => Promise<T>,
  ): Promise<T> {
    const startedAt = performance.now()
    const first = await ask()
    const answer =
      first.kind === 'busy' && patience.waitMs > 0 && this.#count < this.#maxWaiters
        ? await this.#poll(patience, startedAt + patience.waitMs, first, ask)
        : first
    const waitedMs = Math.round(performance.now() - startedAt)
    return 'waitedMs' in answer ? { ...answer, waitedMs } : answer
  }

  async #poll<T extends { readonly kind: string }>(
    { signal, ...operation }: Patience,
    deadline: number,
    first: T,
    ask: () => Promise<T>,
  ): Promise<T> {
    const name = nameOf(operation)
    const waiters = this.#waiters.get(name) ?? new Set<Waiter>()
    this.#waiters.set(name, waiters)
    const waiter: Waiter = { wake: () => {} }
    waiters.add(waiter)
    this.#count += 1
    try {
      let answer = first
      for (let poll = 0; ; poll += 1) {
        const leftMs = deadline - performance.now()
        if (leftMs <= 0 || signal?.aborted || !this.#isOpen) return answer
        const isPoller = waiters.values().next().value === waiter
        const pauseMs = isPoller ? backoff(POLL_BACKOFF, poll, Math.random()) : leftMs
        await pause(waiter, Math.min(leftMs, pauseMs), signal)
        answer = await ask()
        if (answer.kind === 'busy') continue
        // The others get the same answer, unless it was the right to run.
        if (answer.kind !== 'run') wakeAll(waiters)
        return answer
      }
    } finally {
      this.#count -= 1
      const wasPoller = waiters.values().next().value === waiter
      waiters.delete(waiter)
      if (waiters.size === 0) {
        if (this.#waiters.get(name) === waiters) this.#waiters.delete(name)
      } else if (wasPoller) waiters.values().next().value?.wake()
    }
  }

  /** The operation has ended in this process, or may have. */
  wake(operation: RecordKey): void {
    wakeAll(this.#waiters.get(nameOf(operation)) ?? [])
  }

  /** Wakes all; none waits from now on. */
  close(): void {
    this.#isOpen = false
    for (const waiters of this.#waiters.values()) wakeAll(waiters)
  }
}

function wakeAll(waiters: Iterable<Waiter>): void {
  for (const waiter of [...waiters]) waiter.wake()
}

/** Ends after `ms`, when the waiter is woken, or when `signal` is aborted. */
function pause(waiter: Waiter, ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', done)
      resolve()
    }
    const timer = setTimeout(done, ms)
    waiter.wake = done
    signal?.addEventListener('abort', done)
    if (signal?.aborted) done()
  })
}

function nameOf({ tenantId, key }: RecordKey): string {
  return JSON.stringify([tenantId, key])
}
