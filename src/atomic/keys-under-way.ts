import type { RecordKey } from '../core/record.js'

/** A request that asks for a key, and may run its operation. */
export interface Asking {
  readonly fingerprint: string
  /** Whether it turned out to run the operation. */
  readonly isRunning: Promise<boolean>
  /** Once it neither asks nor runs any more. */
  readonly ended: Promise<void>
  run(): void
  end(): void
}

/**
 * The keys that this process asks for, or runs, through one client: who comes with the same key needs
 * no connection to hear that it is taken. It only saves work, and so it is one for all plugins on the
 * client: the first one may hold the pool's last connection.
 */
export class KeysUnderWay {
  static readonly #ofClients = new WeakMap<object, KeysUnderWay>()
  readonly #asking = new Map<string, Asking>()

  static of(client: object): KeysUnderWay {
    const known = KeysUnderWay.#ofClients.get(client) ?? new KeysUnderWay()
    KeysUnderWay.#ofClients.set(client, known)
    return known
  }

  get(key: RecordKey): Asking | undefined {
    return this.#asking.get(nameOf(key))
  }

  enter(key: RecordKey & { readonly fingerprint: string }): Asking {
    const name = nameOf(key)
    let decided: (isRunning: boolean) => void = () => {}
    let ended: () => void = () => {}
    const asking: Asking = {
      fingerprint: key.fingerprint,
      isRunning: new Promise((resolve) => {
        decided = resolve
      }),
      ended: new Promise((resolve) => {
        ended = resolve
      }),
      run: () => {
        this.#asking.set(name, asking)
        decided(true)
      },
      end: () => {
        if (this.#asking.get(name) === asking) this.#asking.delete(name)
        decided(false)
        ended()
      },
    }
    if (!this.#asking.has(name)) this.#asking.set(name, asking)
    return asking
  }
}

function nameOf({ tenantId, key }: RecordKey): string {
  return JSON.stringify([tenantId, key])
}
