import type { HeldLock, LockBackend } from './lock.js'

interface Holding {
  readonly held: HeldLock
  readonly holder: string
  until: number
}

/** Locks of this process alone: for tests, and for an application of one process. */
export function memoryLock(): LockBackend {
  const holdings = new Map<string, Holding>()
  let lastFence = 0

  return {
    async acquire({ tenantId, names, holder, ttlMs }) {
      const askedAt = performance.now()
      const keys = names.map((name) => JSON.stringify([tenantId, name]))
      for (const [n, key] of keys.entries()) {
        const other = holdings.get(key)
        if (other === undefined || other.until <= askedAt) continue
        const until = new Date(Date.now() + other.until - askedAt)
        return { kind: 'busy', name: names[n], holder: other.holder, until }
      }
      const isMine = (key: string) => holdings.get(key)?.held === held
      // The host's clock, so that it goes on rising when the process starts again.
      lastFence = Math.max(lastFence + 1, Date.now())
      const held: HeldLock = {
        fence: lastFence,
        askedAt,
        async extend() {
          if (!keys.every(isMine)) return false
          holding.until = performance.now() + ttlMs
          return true
        },
        async release() {
          const mine = keys.filter(isMine)
          for (const key of mine) holdings.delete(key)
          return mine.length === keys.length
        },
      }
      const holding = { held, holder, until: askedAt + ttlMs }
      for (const key of keys) holdings.set(key, holding)
      return { kind: 'acquired', held }
    },
    prune: async () => 0,
  }
}
