import type { TransactionClient } from '../store/client.js'

// biome-ignore lint/suspicious/noExplicitAny: the application's own models and extensions
type Callable = (...args: any[]) => unknown

/**
 * A transaction as a handler gets it: the application's own client, that knows what is under way in
 * it, and can be closed. What came after the close could undo what is being committed, or run on a
 * connection that somebody else has by then.
 */
export class Gate {
  readonly tx: TransactionClient
  #refusal: Error | undefined
  #underWay = 0
  #onIdle: (() => void)[] = []

  constructor(tx: TransactionClient) {
    const models = new Map<PropertyKey, unknown>()
    this.tx = new Proxy(tx, {
      get: (target, name) => {
        const value: unknown = Reflect.get(target, name)
        if (typeof value === 'function') return this.#call(value as Callable, target)
        if (typeof value !== 'object' || value === null || !isModel(name)) return value
        if (!models.has(name)) models.set(name, this.#model(value))
        return models.get(name)
      },
    })
  }

  get isIdle(): boolean {
    return this.#underWay === 0
  }

  /** From now on nothing begins: it fails with this error. */
  close(refusal: Error): void {
    this.#refusal ??= refusal
  }

  /** Once nothing is under way. */
  idle(): Promise<void> {
    if (this.isIdle) return Promise.resolve()
    return new Promise((resolve) => this.#onIdle.push(resolve))
  }

  #model(model: object): unknown {
    return new Proxy(model, {
      get: (target, name) => {
        // `advance(tx.payment, …)` writes its audit with it.
        if (name === '$parent') return this.tx
        const value: unknown = Reflect.get(target, name)
        return typeof value === 'function' ? this.#call(value as Callable, target) : value
      },
    })
  }

  #call(call: Callable, target: object): Callable {
    return (...args) => {
      if (this.#refusal !== undefined) return refused(this.#refusal)
      const result = call.apply(target, args)
      if (result instanceof Promise) return this.#count(result)
      return isThenable(result) ? this.#lazy(result) : result
    }
  }

  /** A query of Prisma's, which runs once somebody waits for it. */
  #lazy(query: PromiseLike<unknown>): unknown {
    return new Proxy(query, {
      get: (target, name) => {
        const value: unknown = Reflect.get(target, name)
        if (typeof value !== 'function') return value
        if (name !== 'then' && name !== 'catch' && name !== 'finally') {
          return this.#call(value as Callable, target)
        }
        return (...handlers: unknown[]) => {
          const running = this.#refusal ? Promise.reject(this.#refusal) : this.#begin(target)
          return (Reflect.get(running, name) as Callable).apply(running, handlers)
        }
      },
    })
  }

  #begin(query: PromiseLike<unknown>): Promise<unknown> {
    return this.#count(Promise.resolve(query))
  }

  #count<T>(running: Promise<T>): Promise<T> {
    this.#underWay += 1
    const over = () => {
      this.#underWay -= 1
      if (!this.isIdle) return
      for (const resolve of this.#onIdle.splice(0)) resolve()
    }
    running.then(over, over)
    return running
  }
}

const isModel = (name: PropertyKey) => typeof name === 'string' && !/^[_$]/.test(name)

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return (
    typeof value === 'object' && value !== null && typeof Reflect.get(value, 'then') === 'function'
  )
}

// Lazy as Prisma's own: one that nobody waits for must not end the process.
function refused(refusal: Error): Pick<Promise<never>, 'then' | 'catch' | 'finally'> {
  const reject = () => Promise.reject(refusal)
  return {
    // biome-ignore lint/suspicious/noThenProperty: it stands for a query, which has one
    then: (onValue, onError) => reject().then(onValue, onError),
    catch: (onError) => reject().catch(onError),
    finally: (onEnd) => reject().finally(onEnd),
  }
}
