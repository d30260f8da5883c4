import { AsyncLocalStorage } from 'node:async_hooks'

const current = new AsyncLocalStorage<BeforeSend | undefined>()

/**
 * What runs for one request in front of the plugin's `onSend` hook: the handler, earlier hooks, and all
 * that these begin. Later hooks run outside. Both may call `reply.send()`, on the same reply.
 *
 * It refers to nothing, because it lives as long as what was begun within it: a connection of a pool, say.
 */
export class BeforeSend {
  get isCurrent(): boolean {
    return current.getStore() === this
  }

  run(begin: () => void): void {
    current.run(this, begin)
  }

  leave(go: () => void): void {
    current.run(undefined, go)
  }
}
