import type { Report } from '../events.js'
import { limitedClient } from '../store/bounded-client.js'
import type { PrismaClientLike, Provider } from '../store/client.js'
import type { DatabaseClock } from '../store/clock.js'
import type { PlaceLimits, StatementLimit } from '../store/statement-limit.js'
import { autoLock } from './auto.js'
import { databaseLock } from './database.js'
import { warnOfEviction } from './eviction.js'
import type { LockBackend } from './lock.js'
import { Locks } from './locks.js'
import { memoryLock } from './memory.js'
import { readRedisClients, redisLock } from './redis.js'

export interface LocksSettings {
  readonly kind: 'auto' | 'redis' | 'database' | 'memory'
  /** The application's clients, each of one Redis; an odd number, if any. */
  readonly redis: readonly object[]
  readonly redisPrefix: string
  /** Reads from the primary, if there are replicas. */
  readonly prisma: PrismaClientLike
  readonly clock: DatabaseClock
  readonly provider: Provider
  readonly patienceMs: number
  readonly limits: PlaceLimits
  /** How this process is named in locks that name no holder. */
  readonly holder?: string | undefined
  /** For what happens to all locks, and not to one of them. */
  readonly report: Report
}

/**
 * Picks who keeps the locks.
 *
 * @throws OptionInvalid for Redis clients that cannot keep any.
 * @throws ModelsMissing when the database is to keep them and has no table for it.
 */
export function createLocks(settings: LocksSettings): Locks {
  const { patienceMs, holder } = settings
  return new Locks({ backend: backendOf(settings), patienceMs, holder })
}

function backendOf(settings: LocksSettings): LockBackend {
  const { kind, redis, redisPrefix: prefix, patienceMs, report } = settings
  if (kind === 'memory') return memoryLock()
  if (kind === 'database' || (kind === 'auto' && redis.length === 0)) {
    return inDatabase(settings)
  }
  const clients = readRedisClients(redis)
  void warnOfEviction(clients, report)
  const inRedis = redisLock(clients, { patienceMs, prefix })
  if (kind === 'redis') return inRedis
  return autoLock(inDatabase(settings), inRedis, report)
}

/**
 * What holds a lock never queues behind those who want one. How long each waits is bounded by its caller, who
 * gives back what is taken too late.
 */
function inDatabase({ prisma, clock, provider, patienceMs, limits }: LocksSettings): LockBackend {
  const connect = (limit: StatementLimit) => {
    const client = limitedClient(prisma, { limit, timeoutMs: patienceMs })
    return { client, clock: clock.through(client) }
  }
  const asking = connect(limits.begin)
  return databaseLock(asking.client, asking.clock, provider, connect(limits.hold))
}
