import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { GuardHappening, Happening } from '../../src/events.js'
import type { HeldLock, LockAsk, LockBackend } from '../../src/locks/lock.js'
import { Locks } from '../../src/locks/locks.js'
import { memoryLock } from '../../src/locks/memory.js'
import type { LockOptions } from '../../src/locks/options.js'
import { databaseErrorOf } from '../../src/sealed.js'

/** Locks of one process on this backend, what they asked it, and what they reported. */
function locksOn(backend: LockBackend, patienceMs = 5_000) {
  const asks: LockAsk[] = []
  const happened: Happening[] = []
  const counting = {
    ...backend,
    acquire(ask: LockAsk) {
      asks.push(ask)
      return backend.acquire(ask)
    },
  }
  const locks = new Locks({ backend: counting, patienceMs })
  const lock = <T>(
    names: string | readonly string[],
    options: LockOptions,
    routine: (signal: AbortSignal, fence: number | undefined) => T | Promise<T>,
  ) => locks.lock('acme', (event) => happened.push(event), names, options, routine)
  const kinds = () => happened.map(({ kind }) => kind as GuardHappening['kind'])
  return { locks, lock, asks, happened, kinds }
}

/** A backend whose locks do as they are told. */
function lockThat(told: Partial<HeldLock>): LockBackend {
  return {
    ...memoryLock(),
    acquire: async () => ({
      kind: 'acquired',
      held: {
        fence: 1,
        askedAt: performance.now(),
        extend: async () => true,
        release: async () => true,
        ...told,
      },
    }),
  }
}

function latch() {
  let open = () => {}
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return { open, opened }
}

const nothing = () => {}
const never = (t: Test) => () => t.fail('the routine ran')

t.test('the routine runs while the lock is held, and its value comes back', async (t) => {
  const backend = memoryLock()
  const { lock, kinds } = locksOn(backend)
  const result = await lock('a', {}, async (signal, fence) => {
    t.equal(signal.aborted, false)
    t.type(fence, 'number')
    t.match(await lock('a', {}, never(t)), { kind: 'busy', name: 'a', until: Date })
    return 'value'
  })
  t.strictSame(result, { kind: 'done', value: 'value', kept: true })
  t.match(await lock('a', {}, nothing), { kind: 'done' }, 'it was given back')
  t.strictSame(kinds(), ['locked', 'lock_busy', 'locked'])
})

t.test('who has it is told by name: the host and the process, unless said otherwise', async (t) => {
  const { lock } = locksOn(memoryLock())
  await lock('a', {}, async () => {
    const busy = await lock('a', {}, never(t))
    t.match(busy, { holder: new RegExp(`:${process.pid}$`) })
  })
  await lock('a', { holder: 'Ann' }, async () => {
    t.match(await lock('a', {}, never(t)), { holder: 'Ann' })
  })
})

t.test('names are asked for in one order, each once', async (t) => {
  const { lock, asks } = locksOn(memoryLock())
  await lock(['b', 'a', 'B', 'b'], { ttl: '2s' }, nothing)
  t.match(asks, [{ tenantId: 'acme', names: ['B', 'a', 'b'], ttlMs: 2_000 }])
})

t.test('who waits in one process stands in a line, and asks when it is his turn', async (t) => {
  const { lock, asks } = locksOn(memoryLock())
  const { open, opened } = latch()
  const order: number[] = []
  const first = lock('a', {}, () => opened)
  const rest = Array.from({ length: 20 }, (_, n) =>
    lock('a', { wait: '10s' }, () => {
      order.push(n)
    }),
  )
  const other = await lock('b', { wait: '10s' }, () => 'not in this line')
  t.match(other, { kind: 'done' })
  t.equal(asks.length, 2, 'nobody asks for what this process holds')
  open()
  await Promise.all([first, ...rest])
  t.strictSame(
    order,
    Array.from({ length: 20 }, (_, n) => n),
    'first come, first served',
  )
  t.equal(asks.length, 22)
})

t.test('the first of a line asks again while another process has it', async (t) => {
  const backend = memoryLock()
  const there = locksOn(backend)
  const here = locksOn(backend)
  const { open, opened } = latch()
  const held = there.lock('a', {}, () => opened)
  const waiting = here.lock('a', { wait: '10s' }, () => 'mine')
  const behind = here.lock('a', { wait: '10s' }, () => 'mine, then')
  while (here.asks.length < 3) await sleep(5)
  open()
  t.match(await Promise.all([held, waiting, behind]), [
    { kind: 'done' },
    { value: 'mine' },
    { value: 'mine, then' },
  ])
})

t.test('who has waited long enough hears who has it, and leaves the line', async (t) => {
  const { lock, asks } = locksOn(memoryLock())
  const { open, opened } = latch()
  const held = lock('a', { holder: 'Ann' }, () => opened)
  const startedAt = performance.now()
  const busy = await lock('a', { wait: 50 }, never(t))
  t.match(busy, { kind: 'busy', holder: 'Ann' })
  t.ok(performance.now() - startedAt >= 49)
  t.equal(asks.length, 2, 'asked once, at the end')
  open()
  await held
  t.match(await lock('a', { wait: '1s' }, nothing), { kind: 'done' })
})

t.test('a server that closes lets go who waits, and what runs goes on', async (t) => {
  const { locks, lock } = locksOn(memoryLock())
  const { open, opened } = latch()
  const held = lock('a', {}, () => opened)
  const waiting = [lock('a', { wait: '1h' }, never(t)), lock('a', { wait: '1h' }, never(t))]
  locks.close()
  for (const one of waiting) t.match(await one, { kind: 'busy' })
  t.match(await lock('a', { wait: '1h' }, never(t)), { kind: 'busy' }, 'nobody waits any more')
  t.match(await lock('b', { wait: '1h' }, nothing), { kind: 'done' }, 'what is free can be had')
  open()
  t.match(await held, { kind: 'done', kept: true })
})

t.test('what the routine throws is thrown on, and the lock is given back', async (t) => {
  const { lock } = locksOn(memoryLock())
  const own = new Error('mine')
  for (const routine of [() => Promise.reject(own), () => raise(own)]) {
    const error = await lock('a', {}, routine).catch((error: unknown) => error)
    t.equal(error, own)
  }
  t.match(await lock('a', {}, nothing), { kind: 'done' })
})

t.test('a failed release hides neither the value nor the error, and is reported', async (t) => {
  const down = new Error('away')
  const { lock, kinds } = locksOn(lockThat({ release: async () => raise(down) }))
  t.match(await lock('a', {}, () => 'value'), { kind: 'done', value: 'value', kept: true })
  await t.rejects(
    lock('a', {}, () => raise(new Error('mine'))),
    { message: 'mine' },
  )
  t.strictSame(kinds(), ['locked', 'lock_release_failed', 'locked', 'lock_release_failed'])
})

t.test('a backend that cannot answer is an error, and not busy; nothing runs', async (t) => {
  const down = Object.assign(new Error('secret'), { code: 'ECONNREFUSED' })
  const { lock, happened } = locksOn({ ...memoryLock(), acquire: async () => raise(down) })
  for (const wait of [0, '5s'] as const) {
    const error = await lock('a', { wait }, never(t)).catch((error: unknown) => error)
    const cause = { name: 'Error', code: 'ECONNREFUSED' }
    t.match(error, { code: 'IDEMPOTENCY_LOCK_UNAVAILABLE', statusCode: 503, cause })
    t.equal(databaseErrorOf(error), down)
  }
  t.match(happened, [{ kind: 'lock_unavailable', failure: { code: 'ECONNREFUSED' } }, {}])
  t.notMatch(JSON.stringify(happened), 'secret')
})

t.test('a lock that is got after its asker has given up is given back', async (t) => {
  const { open, opened } = latch()
  const released = latch()
  const slow = lockThat({
    release: async () => {
      released.open()
      return true
    },
  })
  const backend = { ...slow, acquire: (ask: LockAsk) => opened.then(() => slow.acquire(ask)) }
  const { lock } = locksOn(backend, 20)
  await t.rejects(lock('a', {}, never(t)), { code: 'IDEMPOTENCY_LOCK_UNAVAILABLE' })
  open()
  await released.opened
})

t.test('a lock whose time is half over when it arrives is given back', async (t) => {
  let released = 0
  const { lock } = locksOn(
    lockThat({
      askedAt: performance.now() - 600,
      release: async () => {
        released += 1
        return true
      },
    }),
  )
  await t.rejects(lock('a', { ttl: '1s' }, never(t)), { code: 'IDEMPOTENCY_LOCK_UNAVAILABLE' })
  t.equal(released, 1)
})

t.test('the lock is extended while the routine runs, and then no more', async (t) => {
  let extended = 0
  const { open, opened } = latch()
  const { lock, kinds } = locksOn(
    lockThat({
      extend: async () => {
        extended += 1
        if (extended === 3) open()
        return true
      },
    }),
  )
  t.match(await lock('a', { ttl: '1s' }, () => opened), { kept: true })
  await sleep(400)
  t.equal(extended, 3)
  t.strictSame(kinds(), ['locked'])
})

t.test('a lock that somebody else has got aborts the signal, and was not kept', async (t) => {
  const { lock, kinds } = locksOn(
    lockThat({ extend: async () => false, release: async () => false }),
  )
  const result = await lock('a', { ttl: '1s' }, (signal) => aborted(signal))
  t.match(result, { kind: 'done', kept: false })
  t.strictSame(kinds(), ['locked', 'lock_lost'])
})

t.test('a lock that is lost at its release was not kept', async (t) => {
  const { lock, kinds } = locksOn(lockThat({ release: async () => false }))
  t.match(await lock('a', {}, nothing), { kind: 'done', kept: false })
  t.strictSame(kinds(), ['locked', 'lock_lost'])
})

t.test('a lock that cannot be extended is lost when its time is over, not before', async (t) => {
  const { lock, kinds } = locksOn(lockThat({ extend: async () => raise(new Error('away')) }))
  const startedAt = performance.now()
  const result = await lock('a', { ttl: '1s' }, (signal) => aborted(signal))
  t.match(result, { kind: 'done', kept: false })
  const tookMs = performance.now() - startedAt
  t.ok(tookMs >= 950, `${tookMs} ms`)
  t.ok(kinds().includes('lock_heartbeat_failed'))
  t.equal(kinds().filter((kind) => kind === 'lock_lost').length, 1)
})

t.test('a backend that hangs costs the lock before its ttl is over', async (t) => {
  const { lock } = locksOn(lockThat({ extend: () => new Promise(() => {}) }))
  // A timer of Node's may be late, and then so is the other one.
  let isOver = false
  setTimeout(() => {
    isOver = true
  }, 2_000)
  await lock('a', { ttl: '2s' }, async (signal) => {
    await aborted(signal)
    t.notOk(isOver)
  })
})

t.test('a renewal that is read after its time is no renewal', async (t) => {
  const standStill = (ms: number) =>
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
  const { lock } = locksOn(
    lockThat({
      extend: async () => {
        standStill(1_100)
        return true
      },
    }),
  )
  const startedAt = performance.now()
  let lostAfterMs = Number.POSITIVE_INFINITY
  await lock('a', { ttl: '1s' }, async (signal) => {
    await aborted(signal)
    lostAfterMs = performance.now() - startedAt
  })
  t.ok(lostAfterMs < 1_600, `${lostAfterMs} ms: at once when it wakes up`)
})

t.test('nobody waits for a routine that has lost its lock', async (t) => {
  const { open, opened } = latch()
  let isLost = false
  const { lock } = locksOn(
    lockThat({
      extend: async () => {
        isLost = true
        return false
      },
    }),
  )
  const stubborn = lock('a', { ttl: '1s' }, () => opened)
  const next = await lock('a', { wait: '1h' }, () => isLost)
  t.match(next, { kind: 'done', value: true })
  open()
  await stubborn
})

t.test('wrong names and options are refused, with what to write instead', async (t) => {
  const { lock, asks } = locksOn(memoryLock())
  const many = Array.from({ length: 101 }, (_, n) => `${n}`)
  for (const names of ['', [], ['a', ''], 'a\0b', '\ud800', 'x'.repeat(256), many, 7, undefined]) {
    await t.rejects(lock(names as string, {}, never(t)), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      message: /a lock needs a name, such as 'venue:7', or a list of at most 100/,
    })
  }
  for (const [options, message] of [
    [{ ttl: 999 }, /"ttl" of a lock must be a duration of at least 1000 ms/],
    [{ ttl: 'long' }, /such as '30s'/],
    [{ wait: -1 }, /"wait" of a lock must be a duration/],
    [{ holder: '' }, /"holder" of a lock must be text of 1 to 255 characters/],
    [{ lease: '1s' }, /"lease" of a lock is not known; the options are ttl, wait, holder/],
    [null, /the options of a lock must be an object/],
  ] as const) {
    await t.rejects(lock('a', options as LockOptions, never(t)), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      message,
    })
  }
  t.equal(asks.length, 0)
})

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    signal.addEventListener('abort', () => resolve(), { once: true })
  })
}

function raise(error: Error): never {
  throw error
}
