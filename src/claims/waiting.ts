import type { RecordKey } from '../core/record.js'

/** Those in this process who wait for an operation to end. Only saves them time: they look again. */
export class WaitingRoom {
  readonly #waiting = new Map<string, Set<() => void>>()

  /** Ends when the operation ends in this process, after `ms`, or when a signal is aborted. */
  wait(
    operation: RecordKey,
    ms: number,
    signals: readonly (AbortSignal | undefined)[],
  ): Promise<void> {
    const name = nameOf(operation)
    return new Promise((resolve) => {
      const waiters = this.#waiting.get(name) ?? new Set()
      this.#waiting.set(name, waiters)
      const done = () => {
        clearTimeout(timer)
        for (const signal of signals) signal?.removeEventListener('abort', done)
        waiters.delete(done)
        if (waiters.size === 0 && this.#waiting.get(name) === waiters) this.#waiting.delete(name)
        resolve()
      }
      const timer = setTimeout(done, ms)
      waiters.add(done)
      for (const signal of signals) {
        signal?.addEventListener('abort', done)
        if (signal?.aborted) done()
      }
    })
  }

  wake(operation: RecordKey): void {
    for (const done of [...(this.#waiting.get(nameOf(operation)) ?? [])]) done()
  }

  /** How many operations are waited for. */
  get size(): number {
    return this.#waiting.size
  }
}

function nameOf({ tenantId, key }: RecordKey): string {
  return JSON.stringify([tenantId, key])
}
