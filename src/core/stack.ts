/** An array of more items is moved whenever it grows, which costs more than what is pushed. */
const CHUNK_LENGTH = 2_000

/** A stack of any size: to push and to pop takes the same time whatever lies on it. */
export class Stack<T> {
  readonly #full: T[][] = []
  #top: T[] = []
  #length = 0

  get isEmpty(): boolean {
    return this.#length === 0 && this.#full.length === 0
  }

  push(item: T): void {
    if (this.#length === CHUNK_LENGTH) {
      this.#full.push(this.#top)
      this.#top = new Array(CHUNK_LENGTH)
      this.#length = 0
    }
    this.#top[this.#length++] = item
  }

  /** The item that was pushed last; the stack must not be empty. */
  pop(): T {
    if (this.#length === 0) {
      this.#top = this.#full.pop() ?? []
      this.#length = this.#top.length
    }
    this.#length -= 1
    return this.#top[this.#length] as T
  }
}
