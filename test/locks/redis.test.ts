import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import type { Happening } from '../../src/events.js'
import { warnOfEviction } from '../../src/locks/eviction.js'
import type { LockAsk, LockBackend } from '../../src/locks/lock.js'
import { readRedisClients, redisLock } from '../../src/locks/redis.js'
import { runSource } from '../cli/run-command.js'
import { heldOf } from '../contracts/lock.js'
import { missingRedisServer, type RedisServer, redisServer } from '../fixtures/redis.js'

const skip = await missingRedisServer()

const ASK: LockAsk = { tenantId: 'acme', names: ['a', 'b'], holder: 'the test', ttlMs: 30_000 }

function connect(t: Test, url: string, options: object = {}): Redis {
  const redis = new Redis(url, options)
  // The application's own affair.
  redis.on('error', () => {})
  t.teardown(() => redis.disconnect())
  return redis
}

async function threeServers(t: Test): Promise<[RedisServer[], LockBackend, LockBackend]> {
  const servers = await Promise.all([redisServer(t), redisServer(t), redisServer(t)])
  const lock = () => redisLock(servers.map(({ url }) => connect(t, url)))
  return [servers, lock(), lock()]
}

t.test('one of three servers may be lost', { skip }, async (t) => {
  const [[, , third], here, there] = await threeServers(t)
  for (const lose of [() => third?.pause(), () => third?.kill()]) {
    const before = heldOf(await here.acquire(ASK))
    await lose()
    t.equal((await there.acquire(ASK)).kind, 'busy')
    t.equal(await before.extend(), true)
    t.equal(await before.release(), true)
    const after = heldOf(await there.acquire(ASK))
    t.equal((await here.acquire(ASK)).kind, 'busy')
    t.equal(await after.release(), true)
  }
})

t.test('without two of three servers nobody can say, which is not busy', { skip }, async (t) => {
  const [[, second, third], here, there] = await threeServers(t)
  const held = heldOf(await here.acquire(ASK))
  await second?.kill()
  await third?.pause()
  await t.rejects(there.acquire(ASK))
  await t.rejects(held.extend())
  await t.rejects(held.release())
})

t.test('a server that is paused is not waited for, and keeps nothing', { skip }, async (t) => {
  const server = await redisServer(t)
  const backend = redisLock([connect(t, server.url)])
  await heldOf(await backend.acquire(ASK)).release()
  await server.pause()
  const startedAt = performance.now()
  await t.rejects(backend.acquire(ASK), { name: 'StoreTimeout' })
  t.ok(performance.now() - startedAt < 5_000)
  server.resume()
  // It does what it was sent: takes the lock, and gives it back.
  await heldOf(await backend.acquire(ASK)).release()
})

t.test('a server that was restarted empty has lost the lock, and says so', { skip }, async (t) => {
  const server = await redisServer(t)
  const backend = redisLock([connect(t, server.url, { retryStrategy: () => 10 })])
  const held = heldOf(await backend.acquire(ASK))
  await server.kill()
  await t.rejects(backend.acquire(ASK))
  await server.start()
  const ready = connect(t, server.url)
  await ready.ping()
  let isHeld: unknown = 'not asked'
  while (typeof isHeld !== 'boolean') isHeld = await held.extend().catch(() => undefined)
  t.equal(isHeld, false)
})

t.test('the application’s client may have any options', { skip }, async (t) => {
  const server = await redisServer(t)
  for (const options of [
    {},
    { keyPrefix: 'shop:' },
    { lazyConnect: true },
    { enableOfflineQueue: false },
    { maxRetriesPerRequest: null },
    { enableAutoPipelining: true },
    { stringNumbers: true, db: 3 },
  ]) {
    const redis = connect(t, server.url, options)
    if ('enableOfflineQueue' in options) await new Promise((ready) => redis.once('ready', ready))
    const backend = redisLock([redis])
    const held = heldOf(await backend.acquire(ASK))
    t.equal((await backend.acquire(ASK)).kind, 'busy', JSON.stringify(options))
    if ('keyPrefix' in options) {
      const keys = await connect(t, server.url).keys('*')
      t.match(keys.sort(), [/^shop:fastify-idempotency:lock:\["acme","a"\]$/, /"b"\]$/])
    }
    t.equal(await held.extend(), true)
    t.equal(await held.release(), true)
    t.equal(redis.status, 'ready', 'it is left open')
  }
})

t.test('a Redis that may evict is warned of, once; one that does not say is not', async (t) => {
  const warned = async (...answers: (() => unknown)[]) => {
    const happened: Happening[] = []
    const clients = answers.map((config) => ({ config: async () => config() }))
    await warnOfEviction(clients as never, (event) => happened.push(event))
    return happened
  }
  const says = (policy: string) => () => ['maxmemory-policy', policy]
  t.strictSame(await warned(says('noeviction'), says('noeviction')), [])
  t.strictSame(await warned(says('noeviction'), says('allkeys-lru'), says('volatile-ttl')), [
    { kind: 'redis_may_evict', policy: 'allkeys-lru' },
  ])
  const refuse = () => {
    throw new Error("NOPERM this user has no permissions to run the 'config|get' command")
  }
  t.strictSame(
    await warned(
      refuse,
      () => [],
      () => undefined,
    ),
    [],
  )
})

t.test('clients that cannot keep locks by their majority are refused', async (t) => {
  const client = { evalsha() {}, eval() {}, config() {} }
  for (const [clients, message] of [
    [[], /has 0 clients, and locks are kept by their majority: give an odd number/],
    [[client, client], /has 2 clients/],
    [[{}], /must be an ioredis client of one Redis/],
    [[{ ...client, isCluster: true }], /not of a cluster/],
  ] as const) {
    t.throws(() => readRedisClients(clients), { code: 'IDEMPOTENCY_OPTION_INVALID', message })
  }
  t.equal(readRedisClients([client, client, client]).length, 3)
})

t.test('redlock is loaded by the first lock in Redis, and by nothing before it', async (t) => {
  const refuseRedlock = `export const resolve = (name, context, next) => {
    if (name === 'redlock') throw new Error('redlock was loaded')
    return next(name, context)
  }`
  const source = `
    import { register } from 'node:module'
    register(${JSON.stringify(`data:text/javascript,${encodeURIComponent(refuseRedlock)}`)})
    await import(${JSON.stringify(import.meta.resolve('../../src/index.ts'))})
    const { redisLock } = await import(${JSON.stringify(import.meta.resolve('../../src/locks/redis.ts'))})
    const backend = redisLock([{}])
    console.log('not yet')
    await backend.acquire(${JSON.stringify(ASK)}).catch(({ message }) => console.log(message))`
  const { stdout, stderr } = await runSource(process.cwd(), source)
  t.equal(stdout, 'not yet\nredlock was loaded\n', stderr)
})
