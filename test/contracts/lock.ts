// What everybody who keeps locks promises, run against each of them.
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import type { Acquisition, HeldLock, LockAsk, LockBackend } from '../../src/locks/lock.js'

export interface LockUnderTest {
  /** Two of them, as in two processes; the same one where there is but one. */
  readonly backends: readonly [LockBackend, LockBackend]
  readonly hasFence: boolean
  /** Whether `busy` tells who has it. */
  readonly tellsWho: boolean
}

const LONG = 30_000
/** Long enough to be extended in time, unless the machine pauses. */
const SHORT = 250

const ask = (names: readonly string[], over: Partial<LockAsk> = {}): LockAsk => ({
  tenantId: 'acme',
  names: [...names].sort(),
  holder: 'the test',
  ttlMs: LONG,
  ...over,
})

export async function lockContract(
  t: Test,
  { backends, hasFence, tellsWho }: LockUnderTest,
): Promise<void> {
  const [here, there] = backends

  await t.test('one has it, and nobody else until it is given back', async (t) => {
    const name = randomUUID()
    const held = heldOf(await here.acquire(ask([name])))
    for (const backend of backends) t.equal((await backend.acquire(ask([name]))).kind, 'busy')
    t.equal(await held.release(), true)
    t.equal(await held.release(), false, 'it is nobody’s any more')
    t.equal(await held.extend(), false)
    await heldOf(await there.acquire(ask([name]))).release()
  })

  await t.test('of 50 who ask at once, one gets it', async (t) => {
    const [fresh, used] = [randomUUID(), randomUUID()]
    await heldOf(await here.acquire(ask([used]))).release()
    for (const name of [fresh, used]) await oneGets(t, name)
  })

  async function oneGets(t: Test, name: string): Promise<void> {
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, n) => (n % 2 ? here : there).acquire(ask([name]))),
    )
    const held = answers.flatMap((answer) => (answer.kind === 'acquired' ? [answer.held] : []))
    // With several Redis servers the votes may be split; then nobody gets it, and all ask again.
    t.ok(held.length <= 1, `${held.length} got it`)
    await Promise.all(held.map((one) => one.release()))
    await heldOf(await here.acquire(ask([name]))).release()
  }

  await t.test('tenants, and names that differ in case or a space, are apart', async (t) => {
    const name = `Name-${randomUUID()}`
    for (const [tenantId, other] of [
      ['acme', name],
      ['ACME', name],
      ['', name],
      ['acme', name.toUpperCase()],
      ['acme', `${name} `],
      ['acme"', `,${name}`],
      ['ünïcode ✓', 'n'.repeat(255)],
    ] as const) {
      const answer = await here.acquire(ask([other], { tenantId }))
      t.equal(answer.kind, 'acquired', JSON.stringify([tenantId, other]))
    }
  })

  await t.test('all names are taken, or none', async (t) => {
    const [a, b, c] = [randomUUID(), randomUUID(), randomUUID()]
    const held = heldOf(await here.acquire(ask([b])))
    t.equal((await there.acquire(ask([a, b, c]))).kind, 'busy')
    const others = heldOf(await there.acquire(ask([a, c])))
    await held.release()
    t.equal((await here.acquire(ask([a, b]))).kind, 'busy')
    t.equal(await others.release(), true)
    const all = heldOf(await here.acquire(ask([a, b, c])))
    for (const name of [a, b, c]) t.equal((await there.acquire(ask([name]))).kind, 'busy')
    t.equal(await all.extend(), true)
    await all.release()
  })

  await t.test('sets that overlap never share a name, and do not block each other', async (t) => {
    const names = Array.from({ length: 6 }, () => randomUUID())
    const inside = new Map<string, number>()
    const shared: string[] = []
    let taken = 0
    await Promise.all(
      Array.from({ length: 30 }, async (_, n) => {
        const wanted = [0, 1, 2].map((step) => names[(n + step * (n % 3)) % 6] as string)
        const set = [...new Set(wanted)]
        const answer = await (n % 2 ? here : there).acquire(ask(set))
        if (answer.kind === 'busy') return
        taken += 1
        for (const name of set) {
          inside.set(name, (inside.get(name) ?? 0) + 1)
          if (inside.get(name) !== 1) shared.push(name)
        }
        await sleep(1)
        for (const name of set) inside.set(name, (inside.get(name) ?? 0) - 1)
        await answer.held.release()
      }),
    )
    t.strictSame(shared, [])
    t.comment(`${taken} of 30 got theirs`)
    await heldOf(await here.acquire(ask(names))).release()
  })

  await t.test('who has not extended it in its ttl has lost it', async (t) => {
    const name = randomUUID()
    const first = heldOf(await here.acquire(ask([name], { ttlMs: SHORT })))
    const second = await untilTaken(t, there, first, ask([name]))
    t.equal(await first.extend(), false)
    t.equal(await first.release(), false, 'nor does it free what is another’s')
    t.equal((await here.acquire(ask([name]))).kind, 'busy')
    t.equal(await second.release(), true)
  })

  await t.test('who extends it keeps it', async (t) => {
    for (;;) {
      const names = [randomUUID(), randomUUID()]
      const held = heldOf(await here.acquire(ask(names, { ttlMs: SHORT })))
      let extendedAt = held.askedAt
      let turns = 0
      for (; turns < 6; turns += 1) {
        await sleep(SHORT / 4)
        const askedAt = performance.now()
        const extended = await held.extend()
        const isInTime = performance.now() - extendedAt < SHORT
        if (isInTime) t.equal(extended, true)
        const other = await there.acquire(ask(names.slice(turns % 2, 1 + (turns % 2))))
        const isHeld = isInTime && performance.now() - askedAt < SHORT
        if (isHeld) t.equal(other.kind, 'busy')
        if (other.kind === 'acquired') await other.held.release()
        // On a machine that paused this process for a ttl, the lock ran out: take another.
        if (!isHeld) break
        extendedAt = askedAt
      }
      const askedAt = performance.now()
      const released = await held.release()
      if (turns < 6 || performance.now() - extendedAt > SHORT) continue
      t.ok(askedAt - held.askedAt > SHORT, 'for longer than its ttl')
      t.equal(released, true)
      return
    }
  })

  await t.test('when one of several names is lost, the lock is', async (t) => {
    const [a, b] = [randomUUID(), randomUUID()]
    const first = heldOf(await here.acquire(ask([a, b], { ttlMs: SHORT })))
    const second = await untilTaken(t, there, first, ask([b]))
    t.equal(await first.extend(), false)
    t.equal(await first.release(), false)
    t.equal(await second.release(), true)
  })

  await t.test('its fence rises with each acquisition of any of the names', async (t) => {
    const [a, b, c] = [randomUUID(), randomUUID(), randomUUID()]
    const fences: (number | undefined)[] = []
    for (const [n, names] of [[a], [a, b], [b, c], [c], [a, b, c], [a], [a], [a], [b]].entries()) {
      const held = heldOf(await (n % 2 ? here : there).acquire(ask(names)))
      fences.push(held.fence)
      await held.release()
    }
    if (!hasFence) return t.ok(fences.every((fence) => fence === undefined))
    t.ok(fences.every((fence, n) => n === 0 || (fence as number) > (fences[n - 1] as number)))
  })

  await t.test('who asks in vain hears who has it, where that is known', async (t) => {
    const [free, taken] = [randomUUID(), randomUUID()]
    const held = heldOf(await here.acquire(ask([taken], { holder: 'Ann' })))
    const answer = await there.acquire(ask([free, taken]))
    if (tellsWho) {
      t.match(answer, { kind: 'busy', name: taken, holder: 'Ann', until: Date })
    } else {
      t.match(answer, { kind: 'busy', name: undefined, holder: undefined, until: undefined })
    }
    await held.release()
  })
}

export function heldOf(answer: Acquisition): HeldLock {
  if (answer.kind !== 'acquired') throw new Error('somebody else has it')
  return answer.held
}

/** Asks until what `before` held has run out. */
async function untilTaken(
  t: Test,
  backend: LockBackend,
  before: HeldLock,
  lock: LockAsk,
): Promise<HeldLock> {
  for (;;) {
    const answer = await backend.acquire(lock)
    if (answer.kind === 'acquired') {
      t.ok(performance.now() - before.askedAt >= SHORT, 'and not before')
      return answer.held
    }
    await sleep(10)
  }
}
