import t, { type Test } from 'tap'
import type { Happening } from '../../src/events.js'
import { autoLock } from '../../src/locks/auto.js'
import type { Acquisition, HeldLock, LockAsk, LockBackend } from '../../src/locks/lock.js'
import { memoryLock } from '../../src/locks/memory.js'
import { heldOf } from '../contracts/lock.js'

const ASK: LockAsk = { tenantId: 'acme', names: ['a'], holder: 'the test', ttlMs: 30_000 }

/** A database and a Redis that can be away, counted; time passes when the test says so. */
function setUp(t: Test) {
  const { now } = performance
  let passedMs = 0
  t.intercept(performance, 'now', { value: () => now.call(performance) + passedMs })
  const [row, redis] = [breakable(memoryLock()), breakable(memoryLock())]
  const happened: Happening['kind'][] = []
  const locks = () => autoLock(row.backend, redis.backend, ({ kind }) => happened.push(kind))
  return {
    row,
    redis,
    happened,
    here: locks(),
    there: locks(),
    pass: (ms: number) => (passedMs += ms),
  }
}

function breakable(first: LockBackend) {
  const state = { isAway: false, asks: 0, extensions: 0, releases: 0, kept: first }
  const unlessAway = async <T>(answer: () => Promise<T>): Promise<T> => {
    if (state.isAway) throw new Error('away')
    return answer()
  }
  const counted = (held: HeldLock): HeldLock => ({
    ...held,
    extend() {
      state.extensions += 1
      return unlessAway(held.extend)
    },
    release() {
      state.releases += 1
      return unlessAway(held.release)
    },
  })
  const backend: LockBackend = {
    ...first,
    async acquire(ask): Promise<Acquisition> {
      state.asks += 1
      const answer = await unlessAway(() => state.kept.acquire(ask))
      return answer.kind === 'busy' ? answer : { kind: 'acquired', held: counted(answer.held) }
    },
  }
  return Object.assign(state, { backend })
}

t.test('who finds the gate in Redis shut does not ask the database', async (t) => {
  const { row, here, there } = setUp(t)
  const held = heldOf(await here.acquire(ASK))
  for (let n = 0; n < 10; n += 1) t.equal((await there.acquire(ASK)).kind, 'busy')
  t.equal(row.asks, 1)
  await held.release()
  await heldOf(await there.acquire(ASK)).release()
})

t.test('what Redis forgets lets nobody in', async (t) => {
  const { redis, here, there } = setUp(t)
  const held = heldOf(await here.acquire(ASK))
  redis.kept = memoryLock()
  t.match(await there.acquire(ASK), { kind: 'busy', holder: 'the test' }, 'the row tells who')
  t.equal(await held.extend(), true, 'and it is kept')
  t.equal(await held.release(), true)
  await heldOf(await there.acquire(ASK)).release()
})

t.test('whether Redis goes or comes back while a lock is held, nobody else gets in', async (t) => {
  const { redis, here, there, happened, pass } = setUp(t)
  const held = heldOf(await here.acquire(ASK))
  redis.isAway = true
  t.equal((await there.acquire(ASK)).kind, 'busy')
  t.equal(await held.extend(), true)
  redis.isAway = false
  redis.kept = memoryLock()
  pass(6_000)
  t.equal((await there.acquire(ASK)).kind, 'busy')
  t.equal(await held.release(), true)
  const next = heldOf(await there.acquire(ASK))
  t.equal((await here.acquire(ASK)).kind, 'busy')
  t.equal(await next.release(), true)
  t.match(new Set(happened), new Set(['lock_redis_lost', 'lock_redis_back']))
})

t.test('a lock that was taken without Redis is held when Redis is back', async (t) => {
  const { redis, here, there, pass } = setUp(t)
  redis.isAway = true
  const held = heldOf(await here.acquire(ASK))
  redis.isAway = false
  pass(6_000)
  t.equal((await here.acquire(ASK)).kind, 'busy')
  t.equal((await there.acquire(ASK)).kind, 'busy')
  t.equal(await held.release(), true)
  await heldOf(await there.acquire(ASK)).release()
})

t.test('a Redis that is away is said to be so once, and tried again by one', async (t) => {
  const { redis, here, happened, pass } = setUp(t)
  redis.isAway = true
  for (let n = 0; n < 5; n += 1) await heldOf(await here.acquire(ASK)).release()
  t.equal(redis.asks, 1)
  pass(6_000)
  await Promise.all(Array.from({ length: 5 }, () => here.acquire(ASK)))
  t.equal(redis.asks, 2)
  t.strictSame(happened, ['lock_redis_lost'])
  redis.isAway = false
  pass(6_000)
  await here.acquire(ASK)
  await here.acquire(ASK)
  t.equal(redis.asks, 4)
  t.strictSame(happened, ['lock_redis_lost', 'lock_redis_back'])
})

t.test('the gate is given back when the row is not to be had', async (t) => {
  const { row, redis, here, there } = setUp(t)
  redis.isAway = true
  const held = heldOf(await here.acquire(ASK))
  redis.isAway = false
  t.equal((await there.acquire(ASK)).kind, 'busy')
  t.equal(redis.releases, 1)
  await held.release()
  row.isAway = true
  await t.rejects(there.acquire(ASK), { message: 'away' })
  t.equal(redis.releases, 2)
  row.isAway = false
  await heldOf(await there.acquire(ASK)).release()
})

t.test('giving back is said to a Redis that does not answer, too', async (t) => {
  const { redis, here } = setUp(t)
  const held = heldOf(await here.acquire(ASK))
  redis.isAway = true
  await here.acquire({ ...ASK, names: ['b'] })
  t.equal(await held.release(), true)
  t.equal(redis.releases, 1)
})

t.test('the row says whether a lock is kept, and a failed release of it is one', async (t) => {
  const { row, redis, here } = setUp(t)
  const held = heldOf(await here.acquire(ASK))
  row.isAway = true
  await t.rejects(held.extend(), { message: 'away' })
  await t.rejects(held.release(), { message: 'away' })
  t.equal(redis.releases, 1, 'the gate is opened all the same: the row decides')
  t.equal(redis.extensions, 1)
})
