import type { RecordKey } from '../core/record.js'

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

  wake(operation: RecordKey): void {
    for (const done of [...(this.#waiting.get(nameOf(operation)) ?? [])]) done()
  }

  /** Whether waiting still makes sense. */
  get isOpen(): boolean {
    return this.#isOpen
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
