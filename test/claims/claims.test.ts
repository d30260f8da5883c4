import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import t, { type Test } from 'tap'
import type { Claim } from '../../src/claims/claim.js'
import { Claims, type Outcome, type Wish } from '../../src/claims/claims.js'
import type { Happening } from '../../src/events.js'
import { postgresStore } from '../../src/store/postgres.js'
import { onPrisma } from '../../src/store/statements.js'
import type { Store } from '../../src/store/store.js'
import { anyDatabase } from '../fixtures/database.js'

const { prisma } = await anyDatabase(t)
const database = postgresStore(onPrisma(prisma))
const response = { statusCode: 201, headers: {}, body: Buffer.from('done') }

/** A process of its own: claims, what they reported, and a store that the test can disturb. */
function processOn(t: Test, disturbed: Partial<Store> = {}, storeTimeoutMs = 5_000) {
  const claims = new Claims({ ...database, ...disturbed }, { prisma, storeTimeoutMs })
  const events: Happening[] = []
  const listeners = new Set<(event: Happening) => void>()
  t.teardown(() => claims.close())
  return {
    claims,
    events,
    wish: (over: Partial<Wish> = {}): Wish => ({
      tenantId: 'acme',
      key: randomUUID(),
      fingerprint: 'f',
      leaseMs: 30_000,
      maxRunMs: 900_000,
      retentionMs: 86_400_000,
      onLeaseExpired: 'rerun',
      waitMs: 0,
      report: (event) => {
        events.push(event)
        for (const listener of listeners) listener(event)
      },
      ...over,
    }),
    /** Resolves when an event of this kind is reported. */
    reported: (kind: Happening['kind']) =>
      new Promise<Happening>((resolve) => {
        const listener = (event: Happening) => {
          if (event.kind !== kind) return
          listeners.delete(listener)
          resolve(event)
        }
        listeners.add(listener)
      }),
  }
}

function claimOf(outcome: Outcome): Claim {
  if (outcome.kind !== 'run') throw new Error(`expected to run, not ${outcome.kind}`)
  return outcome.claim
}

const recordOf = ({ tenantId, key }: { tenantId: string; key: string }) =>
  prisma.idempotencyRecord.findUnique({ where: { tenantId_key: { tenantId, key } } })

/** What a crash leaves: nobody renews any more, and the lease is over. */
const letLeaseRunOut = async ({ tenantId, key }: { tenantId: string; key: string }) => {
  await prisma.idempotencyRecord.updateMany({
    where: { tenantId, key },
    data: { leaseUntil: new Date(0) },
  })
}

t.test(
  'the first runs, the second is told to come back, later ones get the response',
  async (t) => {
    const { claims, wish, events } = processOn(t)
    const w = wish()
    const claim = claimOf(await claims.begin(w))
    t.match(claim, { attempt: 1, resumed: false })
    t.match(await claims.begin(w), { kind: 'busy' })
    t.match(await claims.begin({ ...w, fingerprint: 'g' }), { kind: 'mismatch' })
    t.equal(await claim.complete(response, 1_000), 'stored')
    const replay = await claims.begin(w)
    t.match(replay, { kind: 'replay', response: { statusCode: 201 } })
    t.match(await claims.begin({ ...w, fingerprint: 'g' }), { kind: 'mismatch' })
    t.equal(claims.openCount, 0)
    t.strictSame(
      events.map(({ kind }) => kind),
      ['claimed', 'completed'],
    )
  },
)

t.test('a released claim is free at once, for the next attempt', async (t) => {
  const { claims, wish } = processOn(t)
  const w = wish()
  const first = claimOf(await claims.begin(w))
  await first.release('status 500', 1_000)
  t.match(claimOf(await claims.begin(w)), { attempt: 2, resumed: true })
  t.equal(await first.complete(response, 1_000), 'lost', 'the first one has no say any more')
})

t.test('the lease is renewed for as long as the claim is open', async (t) => {
  let renewals = 0
  let enough: () => void = () => {}
  const renewedOften = new Promise<void>((resolve) => {
    enough = resolve
  })
  const { claims, wish } = processOn(t, {
    extend: (list) => {
      renewals += 1
      if (renewals === 5) enough()
      return database.extend(list)
    },
  })
  const w = wish({ leaseMs: 300 })
  const claim = claimOf(await claims.begin(w))
  await renewedOften
  t.match(await claims.begin(w), { kind: 'busy' }, 'long after the first lease would have ended')
  t.equal(claim.signal.aborted, false)
  await claim.complete(response, 1_000)
  const before = renewals
  await new Promise((resolve) => setTimeout(resolve, 250))
  t.equal(renewals, before, 'no heartbeat outlives its claim')
})

t.test('what a crashed process left is taken over once its lease ran out', async (t) => {
  const one = processOn(t)
  const two = processOn(t)
  const w = one.wish()
  const crashed = claimOf(await one.claims.begin(w))
  t.match(await two.claims.begin(w), { kind: 'busy' })
  await letLeaseRunOut(w)
  const outcomes = await Promise.all(Array.from({ length: 20 }, () => two.claims.begin(w)))
  const runs = outcomes.filter(({ kind }) => kind === 'run')
  t.equal(runs.length, 1)
  t.match(claimOf(runs[0] as Outcome), { attempt: 2, resumed: true })
  t.equal(await crashed.complete(response, 1_000), 'lost')
  t.equal(crashed.signal.aborted, true)
  t.match(one.events.at(-1), { kind: 'lease_lost', attempt: 1 })
  t.equal((await recordOf(w))?.status, 'in_progress', 'the late result changed nothing')
})

t.test('a route may leave an interrupted operation to a person', async (t) => {
  const { claims, wish } = processOn(t)
  const w = wish({ onLeaseExpired: 'uncertain' })
  await claims.begin(w)
  await letLeaseRunOut(w)
  t.match(await claims.begin(w), { kind: 'uncertain' })
  t.match(await claims.begin(w), { kind: 'uncertain' }, 'until somebody decides')
})

t.test('a holder is told that it was taken over by the next renewal', async (t) => {
  const { claims, wish, reported } = processOn(t)
  const w = wish({ leaseMs: 3_000 })
  const claim = claimOf(await claims.begin(w))
  const lost = reported('lease_lost')
  const aborted = new Promise((resolve) => claim.signal.addEventListener('abort', resolve))
  await prisma.idempotencyRecord.updateMany({ where: { key: w.key }, data: { attempt: 2 } })
  await Promise.all([lost, aborted])
  t.match(claim.signal.reason, { message: /another attempt/ })
  t.equal(await claim.complete(response, 1_000), 'lost')
})

t.test(
  'a claim that cannot be renewed in time says so, and completes if nobody came',
  async (t) => {
    const { claims, wish, reported } = processOn(t, {
      extend: () => Promise.reject(new Error('down')),
    })
    const w = wish({ leaseMs: 1_500 })
    const claim = claimOf(await claims.begin(w))
    await Promise.all([reported('heartbeat_failed'), reported('lease_lost')])
    t.equal(claim.signal.aborted, true)
    t.equal(await claim.complete(response, 1_000), 'stored', 'the guard decides, not the clock')
  },
)

/** Stops this process, its timers included, as SIGSTOP would. */
const standStill = (ms: number) =>
  void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)

t.test('a process that stood still begins no step that another attempt may run', async (t) => {
  const [one, two] = [processOn(t), processOn(t)]
  const w = one.wish({ leaseMs: 500 })
  const claim = claimOf(await one.claims.begin(w))
  await letLeaseRunOut(w)
  await two.claims.begin(w)
  standStill(600)
  const charge = claim.steps.step('charge', () => t.fail('it is not run'))
  await t.rejects(charge, { code: 'IDEMPOTENCY_LEASE_LOST' })
  t.equal(claim.signal.aborted, true)
})

t.test('one that stood still goes on when no other attempt has begun', async (t) => {
  const { claims, wish } = processOn(t)
  const w = wish({ leaseMs: 500 })
  const claim = claimOf(await claims.begin(w))
  standStill(600)
  t.equal(await claim.steps.step('charge', () => 'charged'), 'charged')
  t.match(await claims.begin(w), { kind: 'busy' }, 'the lease was renewed first')
  t.equal(await claim.complete(response, 1_000), 'stored')
})

t.test('a step does not wait for a store that never answers whether it may begin', async (t) => {
  const { claims, wish } = processOn(t, { extend: () => new Promise(() => {}) })
  const claim = claimOf(await claims.begin(wish({ leaseMs: 500 })))
  standStill(600)
  const charge = claim.steps.step('charge', () => t.fail('it is not run'))
  await t.rejects(charge, { code: 'IDEMPOTENCY_DATABASE_FAILED', cause: { code: 'ETIMEDOUT' } })
})

t.test('what has run longer than maxRun begins no step once its lease is over', async (t) => {
  const { claims, wish } = processOn(t)
  const claim = claimOf(await claims.begin(wish({ leaseMs: 500, maxRunMs: 550 })))
  standStill(600)
  const charge = claim.steps.step('charge', () => t.fail('it is not run'))
  await t.rejects(charge, { code: 'IDEMPOTENCY_LEASE_LOST' })
})

t.test('after maxRun the lease is left to run out', async (t) => {
  const { claims, wish, reported } = processOn(t)
  const w = wish({ leaseMs: 1_500, maxRunMs: 1_000 })
  const claim = claimOf(await claims.begin(w))
  t.match(await reported('lease_lost'), { why: /maxRun/ })
  t.equal(claim.signal.aborted, true)
  const second = claimOf(await claims.begin({ ...w, waitMs: 5_000 }))
  t.match(second, { attempt: 2 })
  t.equal(await claim.complete(response, 1_000), 'lost')
  t.equal(await second.complete(response, 1_000), 'stored')
})

t.test('one that waits is woken in the same process when the first ends', async (t) => {
  let looks = 0
  const { claims, wish } = processOn(t, {
    insert: (list) => {
      looks += list.length
      return database.insert(list)
    },
  })
  const w = wish()
  const claim = claimOf(await claims.begin(w))
  const waiting = claims.begin({ ...w, waitMs: 10_000 })
  while (looks < 2) await new Promise(setImmediate)
  await claim.complete(response, 1_000)
  t.match(await waiting, { kind: 'replay', response: { statusCode: 201 } })
  t.ok(looks <= 5, `${looks} looks`)
})

t.test('one that waits in another process finds out by looking', async (t) => {
  const one = processOn(t)
  const two = processOn(t)
  const w = one.wish()
  const claim = claimOf(await one.claims.begin(w))
  const waiting = two.claims.begin({ ...w, waitMs: 10_000 })
  await claim.complete(response, 1_000)
  t.match(await waiting, { kind: 'replay' })
})

t.test('one that waits for an attempt that fails runs itself', async (t) => {
  const { claims, wish } = processOn(t)
  const w = wish()
  const claim = claimOf(await claims.begin(w))
  const waiting = [1, 2, 3].map(() => claims.begin({ ...w, waitMs: 200 }))
  await claim.release('status 500', 1_000)
  const kinds = (await Promise.all(waiting)).map(({ kind }) => kind).sort()
  t.strictSame(kinds, ['busy', 'busy', 'run'], 'one of them')
})

t.test('waiting ends with its time, with its client, and with the server', async (t) => {
  const { claims, wish } = processOn(t)
  const w = wish()
  await claims.begin(w)
  const timed = await claims.begin({ ...w, waitMs: 60 })
  t.match(timed, { kind: 'busy' })
  t.ok(timed.kind === 'busy' && timed.waitedMs >= 55)

  const client = new AbortController()
  const left = claims.begin({ ...w, waitMs: 60_000, signal: client.signal })
  client.abort()
  t.match(await left, { kind: 'busy' })

  const closing = claims.begin({ ...w, waitMs: 60_000 })
  await claims.close()
  t.match(await closing, { kind: 'busy' })
})

t.test('a grant that comes too late is given back', async (t) => {
  let arrive: () => void = () => {}
  const slow = new Promise<void>((resolve) => {
    arrive = resolve
  })
  let forgotten: (value: unknown) => void = () => {}
  const givenBack = new Promise((resolve) => {
    forgotten = resolve
  })
  const { claims, wish } = processOn(
    t,
    {
      insert: async (list) => {
        const inserted = await database.insert(list)
        await slow
        return inserted
      },
      forget: async (list) => {
        const done = await database.forget(list)
        forgotten(done)
        return done
      },
    },
    50,
  )
  const w = wish()
  await t.rejects(claims.begin(w), { name: 'StoreTimeout' })
  arrive()
  t.strictSame(await givenBack, [true])
  t.equal(await recordOf(w), null)
})

t.test('a request that begins anew after a late grant begins another operation', async (t) => {
  const asked: string[] = []
  let isPruned = false
  const { claims, wish } = processOn(t, {
    insert: async (list) => {
      asked.push(...list.map(({ operationId }) => operationId))
      const inserted = await database.insert(list)
      // Longer than half a lease.
      if (!isPruned) await new Promise((resolve) => setTimeout(resolve, 60))
      return inserted
    },
    extend: async (list) => {
      if (isPruned) return database.extend(list)
      isPruned = true
      await database.forget(list)
      return list.map(() => false)
    },
  })
  const claim = claimOf(await claims.begin(wish({ leaseMs: 100 })))
  t.equal(asked.length, 2)
  t.not(asked[0], asked[1], 'attempts at the first one may still run')
  t.equal(claim.operationId, asked[1])
})

t.test('a takeover that comes too late is given back', async (t) => {
  const { claims: first, wish } = processOn(t)
  const w = wish()
  await first.begin(w)
  await letLeaseRunOut(w)
  let isTaken = false
  let arrive: () => void = () => {}
  const slow = new Promise<void>((resolve) => {
    arrive = resolve
  })
  let released: (value: unknown) => void = () => {}
  const givenBack = new Promise((resolve) => {
    released = resolve
  })
  const { claims } = processOn(
    t,
    {
      takeOver: async (list) => {
        isTaken = true
        const taken = await database.takeOver(list)
        await slow
        return taken
      },
      finish: async (list) => {
        const done = await database.finish(list)
        released(done)
        return done
      },
    },
    50,
  )
  // On a busy machine, what comes before the takeover can take as long.
  while (!isTaken) await t.rejects(claims.begin(w), { name: 'StoreTimeout' })
  arrive()
  t.strictSame(await givenBack, [true])
  t.match(await recordOf(w), { status: 'released', attempt: 2 })
})

for (const outcome of ['failed', 'did not match'] as const) {
  t.test(`a takeover that ${outcome} does not release the attempt that was faster`, async (t) => {
    const other = processOn(t)
    const w = other.wish()
    await claimOf(await other.claims.begin(w)).release('over', 5_000)
    let arrive: () => void = () => {}
    const late = new Promise<void>((resolve) => {
      arrive = resolve
    })
    const finished: unknown[] = []
    const { claims } = processOn(
      t,
      {
        takeOver: async (list) => {
          t.match(await other.claims.begin(w), { kind: 'run', claim: { attempt: 2 } })
          if (outcome === 'failed') throw Object.assign(new Error('gone'), { code: 'ECONNRESET' })
          await late
          return list.map(() => undefined)
        },
        finish: async (list) => {
          finished.push(...list)
          return database.finish(list)
        },
      },
      outcome === 'failed' ? 5_000 : 100,
    )
    await t.rejects(claims.begin(w), { code: outcome === 'failed' ? 'ECONNRESET' : 'ETIMEDOUT' })
    arrive()
    await new Promise(setImmediate)
    t.strictSame(finished, [])
    t.match(await recordOf(w), { status: 'in_progress', attempt: 2 })
  })
}

t.test('a response that could not be stored is stored later', async (t) => {
  let failures = 2
  let stored: (value: unknown) => void = () => {}
  const isStored = new Promise((resolve) => {
    stored = resolve
  })
  const { claims, wish, events } = processOn(t, {
    finish: async (list) => {
      if (failures-- > 0) throw Object.assign(new Error('secret'), { code: 'ECONNREFUSED' })
      const done = await database.finish(list)
      stored(done)
      return done
    },
  })
  const w = wish()
  const claim = claimOf(await claims.begin(w))
  t.equal(await claim.complete(response, 1_000), 'failed')
  t.match(events.at(-1), { kind: 'response_not_stored', failure: { code: 'ECONNREFUSED' } })
  t.match(await claims.begin(w), { kind: 'busy' }, 'meanwhile nobody runs it again')
  t.strictSame(await isStored, [true])
  t.match(await claims.begin(w), { kind: 'replay' })
})

t.test(
  'a response that could not be stored while the lease was held is not given out',
  async (t) => {
    let stored: () => void = () => {}
    const go = new Promise<void>((resolve) => {
      stored = resolve
    })
    let isGone = false
    const { claims, wish, events } = processOn(t, {
      finish: async (list) => {
        await go
        return database.finish(list)
      },
      extend: async (list) => {
        if (isGone) throw Object.assign(new Error('gone'), { code: 'ECONNREFUSED' })
        return database.extend(list)
      },
    })
    const w = wish({ leaseMs: 1_000 })
    const claim = claimOf(await claims.begin(w))
    isGone = true
    t.equal(await claim.complete(response, 2_500), 'lost')
    t.match(claim.signal.reason, { message: 'its lease could not be renewed in time' })
    t.equal(events.filter(({ kind }) => kind === 'lease_lost').length, 1)
    const second = claimOf(await processOn(t).claims.begin({ ...w, leaseMs: 30_000 }))
    t.equal(second.attempt, 2)
    stored()
    t.equal(await second.complete(response, 1_000), 'stored')
  },
)

t.test('a reply of the store that got lost does not lose the response', async (t) => {
  let replies = 0
  let second: () => void = () => {}
  const saidAgain = new Promise<void>((resolve) => {
    second = resolve
  })
  const { claims, wish, events } = processOn(t, {
    finish: async (list) => {
      const done = await database.finish(list)
      replies += 1
      if (replies === 1) throw new Error('connection lost after the commit')
      second()
      return done
    },
  })
  const w = wish()
  const claim = claimOf(await claims.begin(w))
  t.equal(await claim.complete(response, 1_000), 'failed')
  await saidAgain
  t.match(await claims.begin(w), { kind: 'replay' })
  t.notOk(events.some(({ kind }) => kind === 'lease_lost'))
})

t.test('a key that may not be added is forgotten, and asked for once', async (t) => {
  const { claims, wish } = processOn(t)
  let asked = 0
  const w = wish({
    mayAdd: async () => {
      asked += 1
      return false
    },
  })
  t.match(await claims.begin(w), { kind: 'refused' })
  t.equal(await recordOf(w), null)
  const allowed = claimOf(await claims.begin({ ...w, mayAdd: async () => true }))
  await allowed.complete(response, 1_000)
  t.match(await claims.begin(w), { kind: 'replay' }, 'a retry is not counted')
  t.equal(asked, 1)
})

t.test('a closing process lets go of what runs and keeps what is being stored', async (t) => {
  let storing: () => void = () => {}
  const latch = new Promise<void>((resolve) => {
    storing = resolve
  })
  const { claims, wish, events } = processOn(t, {
    finish: async (list) => {
      await latch
      return database.finish(list)
    },
  })
  const running = claimOf(await claims.begin(wish()))
  const w = wish()
  const completing = claimOf(await claims.begin(w)).complete(response, 5_000)
  const isTold = once(running.signal, 'abort')
  const closed = claims.close()
  await isTold
  storing()
  t.equal(await completing, 'stored')
  await closed
  t.equal(claims.openCount, 0)
  t.match(events.filter(({ kind }) => kind === 'abandoned').length, 1)
  t.equal((await recordOf(running))?.status, 'in_progress', 'its lease runs out by itself')
})

t.test('many may wait for one operation without a warning', async (t) => {
  const warnings: Error[] = []
  const listener = (warning: Error) => warnings.push(warning)
  process.on('warning', listener)
  t.teardown(() => process.off('warning', listener))
  const { claims, wish } = processOn(t)
  const w = wish()
  const claim = claimOf(await claims.begin(w))
  const waiting = Array.from({ length: 50 }, () => claims.begin({ ...w, waitMs: 10_000 }))
  await claim.complete(response, 1_000)
  for (const outcome of await Promise.all(waiting)) t.match(outcome, { kind: 'replay' })
  await new Promise(setImmediate)
  t.strictSame(warnings, [])
})

t.test(
  'a grant that arrives after its lease is renewed before anything runs, or given up',
  async (t) => {
    let arrive: () => void = () => {}
    let isSlow = true
    const arrived = new Promise<void>((resolve) => {
      arrive = resolve
    })
    let insert: () => void = () => {}
    const isInserted = new Promise<void>((resolve) => {
      insert = resolve
    })
    const slow = processOn(t, {
      insert: async (list) => {
        const inserted = await database.insert(list)
        insert()
        if (isSlow) await arrived
        isSlow = false
        return inserted
      },
    })
    const other = processOn(t)
    const w = slow.wish({ leaseMs: 100 })
    const late = slow.claims.begin(w)
    await isInserted
    const again = { ...w, leaseMs: 30_000 }
    let outcome = await other.claims.begin(again)
    while (outcome.kind === 'busy') outcome = await other.claims.begin(again)
    const taken = claimOf(outcome)
    t.equal(taken.attempt, 2)
    arrive()
    t.match(await late, { kind: 'busy' }, 'it looked again')
    await taken.complete(response, 1_000)
  },
)

t.test('a store that takes items one by one never gets two together', async (t) => {
  const sizes = new Set<number>()
  const { claims, wish } = processOn(t, {
    combinesLists: false,
    insert: (list) => {
      sizes.add(list.length)
      return database.insert(list)
    },
  })
  await Promise.all(Array.from({ length: 40 }, () => claims.begin(wish())))
  t.strictSame([...sizes], [1])
})

t.test('the loss of a lease is told before another attempt may start', async (t) => {
  const { claims, wish, reported } = processOn(t, {
    extend: () => Promise.reject(new Error('down')),
  })
  const leaseMs = 600
  const claim = claimOf(await claims.begin(wish({ leaseMs })))
  await reported('lease_lost')
  const after = performance.now() - claim.startedAt
  t.ok(after <= leaseMs + 100, `${Math.round(after)} ms after a lease of ${leaseMs} ms`)
})

t.test('a store that is slower than the lease is one that does not answer', async (t) => {
  const slowly = async <T>(answer: Promise<T>) => {
    await new Promise((resolve) => setTimeout(resolve, 60))
    return answer
  }
  const { claims, wish } = processOn(t, {
    insert: (list) => slowly(database.insert(list)),
    extend: (list) => slowly(database.extend(list)),
  })
  await t.rejects(claims.begin(wish({ leaseMs: 100 })), { name: 'StoreTimeout' })
})
