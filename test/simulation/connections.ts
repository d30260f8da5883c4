/** The connections of one process to its database. Who finds none free waits for one, in a line. */
export class Connections {
  readonly #waiting: (() => void)[] = []
  #free: number

  constructor(count: number) {
    this.#free = count
  }

  /** Calls back with a connection, at once if one is free. Giving it back twice is giving it back once. */
  take(use: (giveBack: () => void) => void): void {
    const begin = () => {
      let isTaken = true
      use(() => {
        if (!isTaken) return
        isTaken = false
        const next = this.#waiting.shift()
        if (next === undefined) this.#free += 1
        else next()
      })
    }
    if (this.#free === 0) {
      this.#waiting.push(begin)
      return
    }
    this.#free -= 1
    begin()
  }
}
