interface Waiting {
  wake: () => void
}

/** Those in this process who want the same: each has a place, and the first one's turn it is. */
export class Lines {
  readonly #lines = new Map<string, Waiting[]>()
  #isOpen = true

  /** Whether waiting still makes sense. */
  get isOpen(): boolean {
    return this.#isOpen
  }

  join(name: string): Place {
    const line = this.#lines.get(name) ?? []
    this.#lines.set(name, line)
    return new Place(line, () => {
      if (line.length === 0 && this.#lines.get(name) === line) this.#lines.delete(name)
    })
  }

  /** Wakes everybody; nobody waits from now on. */
  close(): void {
    this.#isOpen = false
    for (const line of this.#lines.values()) for (const { wake } of [...line]) wake()
  }
}

export class Place {
  readonly #line: Waiting[]
  readonly #waiting: Waiting = { wake: () => {} }
  readonly #onLeave: () => void

  constructor(line: Waiting[], onLeave: () => void) {
    this.#line = line
    this.#onLeave = onLeave
    line.push(this.#waiting)
  }

  get isFirst(): boolean {
    return this.#line[0] === this.#waiting
  }

  /** Ends after `ms`, when this becomes the first place, or when the lines close. */
  pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer)
        resolve()
      }
      const timer = setTimeout(wake, ms)
      this.#waiting.wake = wake
    })
  }

  /** Whoever is first now gets his turn. */
  leave(): void {
    const at = this.#line.indexOf(this.#waiting)
    if (at === -1) return
    this.#line.splice(at, 1)
    if (at === 0) this.#line[0]?.wake()
    this.#onLeave()
  }
}
