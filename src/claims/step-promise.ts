/**
 * The promise of a step. It knows whether the application has asked for its outcome: the failure of one that it
 * has not would end the process as an unhandled rejection, and is told when the handler ends instead.
 */
export class StepPromise<T> extends Promise<T> {
  /** What `then` returns is the application's own: Node says when that is not handled. */
  static override get [Symbol.species](): PromiseConstructor {
    return Promise
  }

  static follow<T>(work: Promise<T>): StepPromise<T> {
    const promise = new StepPromise<T>((resolve) => resolve(work))
    Promise.prototype.then.call(promise, undefined, () => {})
    return promise
  }

  #isAwaited = false

  get isAwaited(): boolean {
    return this.#isAwaited
  }

  /** Called by `await`, `return`, `Promise.all`, `catch` and `finally`, too. */
  // biome-ignore lint/suspicious/noThenProperty: a promise has one
  override then<A = T, B = never>(
    onFulfilled?: ((value: T) => A | PromiseLike<A>) | null,
    onRejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.#isAwaited = true
    return super.then(onFulfilled, onRejected)
  }
}
