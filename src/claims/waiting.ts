import { backoff } from '../core/backoff.js'
import type { RecordKey } from '../core/record.js'

/** Who waits for which operation, and for how long. */
export interface Patience extends RecordKey {
  /** How long to wait for another attempt that is running; 0 for not at all. */
  readonly waitMs: number
  /** Ends the wait early: nobody wants the answer any more. */
  readonly signal?: AbortSignal
}

/** How often another process's attempt is looked at. In the same process, its end wakes us. */
const LOOK_AGAIN = { firstMs: 25, mostMs: 1_000 }

/** Those in this process who wait for an operation to end. Only saves them time: they look again. */
export class WaitingRoom {
  readonly #waiting = new Map<string, Set<() => void>>()
  #isOpen = true

  /** Ends when the operation ends in this process, after `ms`, or when `signal` is aborted. */
  wait(operation: RecordKey, ms: number, signal: AbortSignal | undefined): Promise<void> {
    const name = nameOf(operation)
    return new Promise((resolve) => {
      const waiters = this.#waiting.get(name) ?? new Set()
      this.#waiting.set(name, waiters)
      const done = () => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', done)
        waiters.delete(done)
        if (waiters.size === 0 && this.#waiting.get(name) === waiters) this.#waiting.delete(name)
        resolve()
      }
      const timer = setTimeout(done, ms)
      waiters.add(done)
      signal?.addEventListener('abort', done)
      if (signal?.aborted || !this.#isOpen) done()
    })
  }

  /**
   * Asks until the answer is another than `busy`, for as long as the patience lasts. An answer that
   * tells how long that took is told.
   */
  async whileBusy<T extends { readonly kind: string }>(
    patience: Patience,
    ask: () => Promise<T>,
  ): Promise<T> {
    const startedAt = performance.now()
    for (let look = 0; ; look += 1) {
      const answer = await ask()
      const waitedMs = Math.round(performance.now() - startedAt)
      const leftMs = patience.waitMs - waitedMs
      const isWanted = patience.signal?.aborted !== true && this.#isOpen
      if (answer.kind !== 'busy' || leftMs <= 0 || !isWanted) {
        return 'waitedMs' in answer ? { ...answer, waitedMs } : answer
      }
      const pauseMs = Math.min(leftMs, backoff(LOOK_AGAIN, look, Math.random()))
      await this.wait(patience, pauseMs, patience.signal)
    }
  }

  wake(operation: RecordKey): void {
    for (const done of [...(this.#waiting.get(nameOf(operation)) ?? [])]) done()
  }

  /** Wakes everybody; nobody waits from now on. */
  close(): void {
    this.#isOpen = false
    for (const waiters of [...this.#waiting.values()]) for (const done of [...waiters]) done()
  }
}

function nameOf({ tenantId, key }: RecordKey): string {
  return JSON.stringify([tenantId, key])
}
