/** Chance that a seed repeats: sfc32, started from one number. */
export class Random {
  #a: number
  #b: number
  #c = 0x9e3779b9
  #counter = 1

  constructor(seed: number) {
    this.#a = seed | 0
    this.#b = (seed / 2 ** 32) | 0
    // Seeds that are neighbours have nothing in common after this.
    for (let i = 0; i < 12; i += 1) this.next()
  }

  /** From 0 up to, and without, 1. */
  next = (): number => {
    const sum = (((this.#a + this.#b) | 0) + this.#counter) | 0
    this.#counter = (this.#counter + 1) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + sum) | 0
    return (sum >>> 0) / 2 ** 32
  }

  chance(probability: number): boolean {
    // Nothing is drawn for what cannot happen.
    return probability > 0 && this.next() < probability
  }

  between(least: number, most: number): number {
    return least + (most - least) * this.next()
  }

  integer(least: number, most: number): number {
    return Math.floor(this.between(least, most + 1))
  }

  pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.next() * list.length)] as T
  }
}
