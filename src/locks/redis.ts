/// <reference path="./redlock.d.ts" />
import { OptionInvalid } from '../errors.js'
import { within } from '../within.js'
import { BUSY, type LockBackend } from './lock.js'

/** The part of an ioredis client that is used. */
export interface RedisClientLike {
  evalsha(...args: unknown[]): Promise<unknown>
  eval(...args: unknown[]): Promise<unknown>
  config(...args: unknown[]): Promise<unknown>
}

/**
 * A Redis that is paused, or away behind a client that queues, answers nothing. One that takes
 * longer counts as one that does not answer; an acquisition that fails takes twice as long, because
 * redlock gives back what it got.
 */
const MOST_PATIENCE_MS = 500

export interface RedisLockOptions {
  /** How long the store may take for one answer, the database's share included. Default: any time. */
  readonly patienceMs?: number
  /** What the names of all keys begin with, after the client's own `keyPrefix`. */
  readonly prefix?: string
}

/**
 * Locks in one Redis, or in the majority of several that know nothing of each other, through
 * redlock. What Redis forgets (a restart without persistence, an eviction, a failover) is free, so
 * there is no fence.
 *
 * @throws OptionInvalid
 */
export function redisLock(
  clients: readonly RedisClientLike[],
  {
    patienceMs: storePatienceMs = Number.POSITIVE_INFINITY,
    prefix = 'fastify-idempotency:',
  }: RedisLockOptions = {},
): LockBackend {
  // Both votes of a failed acquisition, and the database after them, in the time that a store has.
  const patienceMs = Math.min(MOST_PATIENCE_MS, storePatienceMs / 4)
  const load = async () => {
    const redlock = await import('redlock')
    const voters = clients.map((client) => impatient(client, patienceMs))
    return {
      redlock: new redlock.default(voters, { retryCount: 0 }),
      unlessRefused: votesOf(redlock),
    }
  }
  let loaded: ReturnType<typeof load> | undefined
  return {
    async acquire({ tenantId, names, ttlMs }) {
      // By the first lock: an application without locks in Redis never loads it.
      loaded ??= load()
      const { redlock, unlessRefused } = await loaded
      const askedAt = performance.now()
      const keys = names.map((name) => `${prefix}lock:${JSON.stringify([tenantId, name])}`)
      const lock = await unlessRefused(() => redlock.acquire(keys, ttlMs))
      if (lock === undefined) return BUSY
      const isDone = async (ask: () => Promise<unknown>) => (await unlessRefused(ask)) !== undefined
      const held = {
        fence: undefined,
        askedAt,
        extend() {
          // redlock would look at the clock of this process; Redis knows whether it still has it.
          lock.expiration = Number.POSITIVE_INFINITY
          return isDone(() => redlock.extend(lock, ttlMs))
        },
        release: () => isDone(() => redlock.release(lock)),
      }
      return { kind: 'acquired', held }
    },
    prune: async () => 0,
  }
}

/** @throws OptionInvalid unless they can keep locks by their majority. */
export function readRedisClients(clients: readonly object[]): readonly RedisClientLike[] {
  for (const client of clients) {
    const { evalsha, isCluster } = client as { evalsha?: unknown; isCluster?: unknown }
    if (typeof evalsha !== 'function' || isCluster === true) {
      throw new OptionInvalid(
        'option "redis" must be an ioredis client of one Redis, such as new Redis(process.env.REDIS_URL), or several of them, and not of a cluster. With locks: \'database\', locks do without it',
      )
    }
  }
  // Of two, or four, half is no majority: one more server makes it no safer, and less available.
  if (clients.length % 2 === 0) {
    throw new OptionInvalid(
      `option "redis" has ${clients.length} clients, and locks are kept by their majority: give an odd number, or say locks: 'database'`,
    )
  }
  return clients as readonly RedisClientLike[]
}

/**
 * The client as redlock sees it: each server answers in time, or its vote is lost. What was sent to
 * it may still be run, and then so is the release that redlock, or the holder, sends behind it.
 */
function impatient(client: RedisClientLike, patienceMs: number): object {
  // A client may have been told to read numbers as text.
  const asNumber = (answer: unknown) => (typeof answer === 'string' ? Number(answer) : answer)
  return {
    evalsha: (...args: unknown[]) => within(client.evalsha(...args), patienceMs).then(asNumber),
    eval: (...args: unknown[]) => within(client.eval(...args), patienceMs).then(asNumber),
  }
}

/**
 * Makes what asks the servers give `undefined` when they said no: it is somebody else's. redlock says the same
 * when they said nothing, so the votes are counted.
 */
function votesOf({ ExecutionError, ResourceLockedError }: typeof import('redlock')) {
  return async <T>(ask: () => Promise<T>): Promise<T | undefined> => {
    try {
      return await ask()
    } catch (error) {
      const stats = error instanceof ExecutionError ? await error.attempts[0] : undefined
      if (stats === undefined) throw error
      const failures = [...stats.votesAgainst.values()].filter(
        (failure) => !(failure instanceof ResourceLockedError),
      )
      if (stats.membershipSize - failures.length >= stats.quorumSize) return undefined
      throw failures[0]
    }
  }
}
