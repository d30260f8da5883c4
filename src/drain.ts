/** The time that a closing server gives to what it runs. Over early once that has ended. */
export class Drain {
  readonly #ms: number
  readonly #onOver: () => void
  readonly #over: Promise<void>
  #endWaiting: () => void = () => {}
  #timer: NodeJS.Timeout | undefined
  #isOver = false

  constructor(ms: number, onOver: () => void) {
    this.#ms = ms
    this.#onOver = onOver
    this.#over = new Promise((resolve) => {
      this.#endWaiting = resolve
    })
  }

  get isOver(): boolean {
    return this.#isOver
  }

  /** Begins to count. Once. */
  begin(): void {
    this.#timer ??= setTimeout(() => this.#end(), this.#ms)
  }

  /** Waits until all has ended or the time is over, which it is after that. */
  async untilEnded(ended: Promise<unknown>): Promise<void> {
    this.begin()
    await Promise.race([ended, this.#over])
    this.#end()
  }

  #end(): void {
    if (this.#isOver) return
    this.#isOver = true
    clearTimeout(this.#timer)
    this.#endWaiting()
    this.#onOver()
  }
}
