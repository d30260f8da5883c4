// What run(), resolve() and recover() promise, on every way to a database.
import { randomUUID } from 'node:crypto'
import { hostname } from 'node:os'
import t from 'tap'
import { storedKey } from '../../src/operations/stored.js'
import { latch } from '../fixtures/app.js'
import { letLeaseRunOut, operationsProcess } from '../fixtures/operations.js'
import { WAYS } from '../fixtures/ways.js'

interface Input {
  amount: number
  at: Date
}

/** Names as they come out of data: special to JavaScript, or to how results are stored. */
const ODD_NAMES = [
  ...['__proto__', 'constructor', 'toString', 'hasOwnProperty', 'length', '0'],
  ...['a › b', '["a"]', 'a.b', '$', ' ', '\n', '\u2028', '"', '\\', '😀', 'é', 'e\u0301', 'E', 'e'],
  'x'.repeat(250),
]

interface Ledger {
  create(args: object): Promise<unknown>
  count(args: object): Promise<number>
}

for (const { name, skip, open } of WAYS) {
  t.test(name, { skip }, async (t) => {
    const way = await open(t)
    const { prisma } = way
    const ledger = Reflect.get(prisma, 'payment') as Ledger
    const entry = (key: string) => ({ data: { tenantId: key, amount: 1, currency: 'EUR' } })
    const entries = (key: string) => ledger.count({ where: { tenantId: key } })
    const start = (over = {}) => operationsProcess(t, way, over)
    const newName = () => `job-${randomUUID()}`

    await t.test('what was run is not run again: a later call gets its result', async (t) => {
      const key = newName()
      const result = { at: new Date(7), cents: 12n, none: undefined, list: [new Map([['a', 1]])] }
      const [first, second] = [start(), start()]
      t.strictSame(await first.operations.of('').run(key, () => result), {
        kind: 'ran',
        value: result,
        isStored: true,
      })
      const again = await second.operations.of('').run(key, () => t.fail('it ran again'))
      t.strictSame(again, { kind: 'replayed', value: result })
      t.match(await second.operations.of('acme').run(key, () => 'theirs'), {
        kind: 'ran',
        value: 'theirs',
      })
      t.match(await second.operations.of('').run(key, () => 1, { input: 'other' }), {
        kind: 'mismatch',
      })
    })

    await t.test('of 20 calls at once one runs it; those who wait get its result', async (t) => {
      const key = newName()
      const processes = [start(), start()]
      let runs = 0
      const results = await Promise.all(
        Array.from({ length: 20 }, (_, n) =>
          processes[n % 2]?.operations.of('').run(
            key,
            async () => {
              runs += 1
              return runs
            },
            { wait: '10s' },
          ),
        ),
      )
      t.equal(runs, 1)
      t.equal(results.filter((result) => result?.kind === 'ran').length, 1)
      t.ok(results.every((result) => (result as { value: unknown }).value === 1))
    })

    await t.test('one that runs elsewhere is busy, with the same input and without', async (t) => {
      const key = newName()
      const began = latch()
      const end = latch()
      const running = start()
        .operations.of('')
        .run(key, async () => {
          began.open()
          await end.opened
        })
      await began.opened
      const other = start().operations.of('')
      const { holder, since, ...busy } = (await other.run(key, () => 1)) as {
        kind: 'busy'
        holder?: string
        since?: Date
      }
      t.strictSame([busy, holder], [{ kind: 'busy' }, `${hostname()}:${process.pid}`])
      const agoMs = (await way.clock.ask()).getTime() - Number(since)
      t.ok(agoMs >= -5 && agoMs < 60_000, `it began ${agoMs} ms ago`)
      t.strictSame(await other.run(key, () => 1, { input: 2 }), { kind: 'mismatch' })
      end.open()
      t.match(await running, { kind: 'ran' })
    })

    await t.test('what fails can be called again, and goes on behind its steps', async (t) => {
      const key = newName()
      const { operations } = start()
      const calls: string[] = []
      const attempts: unknown[] = []
      const run = (isBroken: boolean) =>
        operations.of('').run(key, async (operation) => {
          attempts.push([operation.attempt, operation.resumed])
          await operation.transaction(async (tx) => {
            await tx.payment.create(entry(key))
          })
          const charge = await operation.step('charge', () => {
            calls.push(operation.keyFor('charge'))
            return { id: 'ch_1' }
          })
          if (isBroken) throw new Error('boom')
          return { charge, downstream: operation.keyFor('charge') }
        })
      await t.rejects(run(true), { message: 'boom' })
      const result = await run(false)
      t.match(result, { kind: 'ran', value: { charge: { id: 'ch_1' }, downstream: calls[0] } })
      t.strictSame(attempts, [
        [1, false],
        [2, true],
      ])
      t.equal(calls.length, 1)
      t.equal(await entries(key), 1)
      t.match(
        await start()
          .operations.of('')
          .run(key, () => 1),
        { kind: 'replayed' },
      )
    })

    await t.test('a step or transaction is done once, whatever its name is', async (t) => {
      const key = newName()
      const done: string[] = []
      const run = () =>
        start()
          .operations.of('')
          .run(key, async (operation) => {
            const results: string[] = []
            for (const name of ODD_NAMES) {
              results.push(
                await operation.transaction(
                  (tx) => tx.payment.create(entry(key)).then(() => `transaction ${name}`),
                  { name },
                ),
                await operation.step(`step ${name}`, () => {
                  done.push(name)
                  return `step ${name}`
                }),
              )
            }
            if (operation.attempt < 3) throw new Error('not yet')
            return results
          })
      await t.rejects(run(), { message: 'not yet' })
      await t.rejects(run(), { message: 'not yet' })
      t.strictSame(await run(), {
        kind: 'ran',
        value: ODD_NAMES.flatMap((name) => [`transaction ${name}`, `step ${name}`]),
        isStored: true,
      })
      t.equal(await entries(key), ODD_NAMES.length)
      t.strictSame(done, ODD_NAMES)
    })

    await t.test(
      'after a crash it runs again behind its steps, and what the dead one does is refused',
      async (t) => {
        const key = newName()
        const died = latch()
        const back = latch()
        const refused: unknown[] = []
        const running = start()
          .operations.of('')
          .run(key, async (operation) => {
            await operation.transaction((tx) => tx.payment.create(entry(key)))
            died.open()
            await back.opened
            const late = { name: 'late' }
            for (const write of [
              () => operation.step('charge', () => 1),
              () => operation.transaction((tx) => tx.payment.create(entry(key)), late),
            ]) {
              await write().catch((error) => refused.push(error.code))
            }
            return 'of the dead'
          })
        await died.opened
        await letLeaseRunOut(way, storedKey(key))
        const result = await start()
          .operations.of('')
          .run(key, async (operation) => {
            t.match(operation, { attempt: 2, resumed: true })
            await operation.transaction((tx) => tx.payment.create(entry(key)))
            return 'of the living'
          })
        t.match(result, { kind: 'ran', value: 'of the living', isStored: true })
        back.open()
        await t.rejects(running, { code: 'IDEMPOTENCY_LEASE_LOST' })
        t.strictSame(refused, ['IDEMPOTENCY_LEASE_LOST', 'IDEMPOTENCY_LEASE_LOST'])
        t.equal(await entries(key), 1)
        const later = await start()
          .operations.of('')
          .run(key, () => 1)
        t.match(later, { kind: 'replayed', value: 'of the living' })
      },
    )

    await t.test('uncertain waits for a decision, and each decision ends it', async (t) => {
      const { operations } = start()
      const uncertain = { onLeaseExpired: 'uncertain' } as const
      const interrupted = async () => {
        const key = newName()
        const dead = start()
        const died = latch()
        dead.operations
          .of('')
          .run(key, async () => {
            died.open()
            await new Promise(() => {})
          })
          .catch(() => {})
        await died.opened
        t.match(await operations.of('').resolve({ run: key }, { release: true }), {
          kind: 'running',
        })
        await letLeaseRunOut(way, storedKey(key))
        const outcome = await operations.of('').run(key, () => 'again', uncertain)
        t.match(outcome, { kind: 'uncertain', operationId: /^[0-9a-f-]{36}$/, attempt: 1 })
        if (outcome.kind !== 'uncertain') throw new Error(`expected uncertain, not ${outcome.kind}`)
        const { operationId, attempt } = outcome
        return { key, operationId, attempt }
      }
      const known = await interrupted()
      const result = { paid: true }
      const { key: knownKey, ...token } = known
      for (const other of [
        { ...token, attempt: 2 },
        { ...token, operationId: 'another' },
      ]) {
        t.strictSame(
          await operations.of('').resolve({ run: knownKey }, { result }, other),
          { kind: 'changed', ...token },
          'the decision is about another attempt',
        )
      }
      await t.rejects(operations.of('').resolve({ run: knownKey }, { result }, { attempt: 1 }), {
        code: 'IDEMPOTENCY_OPTION_INVALID',
        message: /"operationId" and "attempt"/,
      })
      t.strictSame(await operations.of('').resolve({ run: knownKey }, { result }, token), {
        kind: 'resolved',
      })
      t.strictSame(await operations.of('').run(knownKey, () => 'again', uncertain), {
        kind: 'replayed',
        value: { paid: true },
      })
      t.strictSame(await operations.of('').resolve({ run: knownKey }, { release: true }), {
        kind: 'completed',
      })

      const { key: undone } = await interrupted()
      t.strictSame(await operations.of('').resolve({ run: undone }, { release: true }), {
        kind: 'resolved',
      })
      t.strictSame(await operations.of('').resolve({ run: undone }, { release: true }), {
        kind: 'released',
      })
      t.match(await operations.of('').run(undone, () => 'again', uncertain), {
        kind: 'ran',
        value: 'again',
      })
      t.strictSame(await operations.of('').resolve({ run: newName() }, { release: true }), {
        kind: 'missing',
      })
      const [a, b] = await Promise.all([
        operations.of('').resolve({ run: (await interrupted()).key }, { release: true }),
        operations.of('acme').resolve({ run: knownKey }, { release: true }),
      ])
      t.strictSame([a.kind, b.kind], ['resolved', 'missing'], 'another tenant has no such key')
    })

    await t.test('a stuck operation is ended by force while its process lives', async (t) => {
      const { operations } = start({ holder: 'operator' })
      const stuckRun = async (key: string) => {
        const began = latch()
        const go = latch()
        const stuck = start({ holder: 'worker-1', lease: '1s' })
        const refused: unknown[] = []
        const running = stuck.operations.of('acme').run(key, async (operation) => {
          await operation.transaction((tx) => tx.payment.create(entry(key)))
          began.open()
          await go.opened
          const aborted = new Promise<void>((resolve) => {
            operation.signal.addEventListener('abort', () => resolve())
            if (operation.signal.aborted) resolve()
          })
          const late = { name: 'late' }
          for (const write of [
            () => operation.step('charge', () => 1),
            () => operation.transaction((tx) => tx.payment.create(entry(key)), late),
          ]) {
            await write().catch((error) => refused.push(error.code))
          }
          await aborted
          return 'of the stuck one'
        })
        running.catch(() => {})
        await began.opened
        return { running, refused, go }
      }
      const runs = operations.of('acme')
      const lost = { code: 'IDEMPOTENCY_LEASE_LOST' }

      const released = newName()
      const first = await stuckRun(released)
      const seen = await runs.resolve({ run: released }, { release: true })
      t.match(seen, { kind: 'running', holder: 'worker-1', attempt: 1, since: Date })
      if (seen.kind !== 'running') throw new Error(seen.kind)
      // A lease ends by an estimate that is ahead of the database by up to one round trip.
      t.ok(seen.leaseRemainingMs > 0 && seen.leaseRemainingMs <= 5_000)
      const { operationId, attempt } = seen
      const other = { operationId, attempt: attempt + 1, force: true }
      t.match(await runs.resolve({ run: released }, { release: true }, other), { kind: 'changed' })
      const meant = { operationId, attempt, force: true }
      t.strictSame(await runs.resolve({ run: released }, { release: true }, meant), {
        kind: 'resolved',
      })
      t.match(await runs.run(released, ({ attempt }) => attempt), { kind: 'ran', value: 3 })
      first.go.open()
      await t.rejects(first.running, lost)
      t.strictSame(first.refused, [lost.code, lost.code])
      t.equal(await entries(released), 1)
      t.match(await runs.run(released, () => 1), { kind: 'replayed', value: 3 })

      const decided = newName()
      const second = await stuckRun(decided)
      const result = { paid: true }
      t.strictSame(await runs.resolve({ run: decided }, { result }, { force: true }), {
        kind: 'resolved',
      })
      second.go.open()
      await t.rejects(second.running, lost)
      t.match(await runs.run(decided, () => 1), { kind: 'replayed', value: result })
      t.match(await runs.resolve({ run: decided }, { release: true }, { force: true }), {
        kind: 'completed',
      })
    })

    await t.test('what failed and was left is finished, too, once its lease is over', async (t) => {
      const key = newName()
      const { operations } = start()
      let isBroken = true
      const settle = operations.handler('settle', async (operation) => {
        await operation.transaction((tx) => tx.payment.create(entry(key)))
        if (isBroken) throw new Error('the other side is down')
        return 'settled'
      })
      await t.rejects(operations.of('').run(key, settle), { message: 'the other side is down' })
      isBroken = false
      t.match(await operations.recover(), { finished: 0 })
      await letLeaseRunOut(way, storedKey(key))
      t.match(await operations.recover(), { finished: 1 })
      t.match(await operations.of('').run(key, settle), { kind: 'replayed', value: 'settled' })
      t.equal(await entries(key), 1)
    })

    await t.test(
      'a decision, or a recovery, forgets a key no sooner than its route does',
      async (t) => {
        const key = newName()
        const { operations } = start()
        const fail = () => {
          throw new Error('boom')
        }
        await t.rejects(operations.of('').run(key, fail, { retention: '30d' }))
        await prisma.idempotencyRecord.updateMany({
          where: { key: storedKey(key) },
          data: { status: 'in_progress', leaseUntil: new Date(0) },
        })
        await operations.of('').resolve({ run: key }, { result: 1 })
        const record = await prisma.idempotencyRecord.findFirst({ where: { key: storedKey(key) } })
        t.ok(record.expiresAt.getTime() - (await way.clock.ask()).getTime() > 29 * 86_400_000)
      },
    )

    await t.test('of 10 decisions at once one counts', async (t) => {
      const key = newName()
      const { operations } = start()
      await operations
        .of('')
        .run(key, () => {
          throw new Error('boom')
        })
        .catch(() => {})
      await prisma.idempotencyRecord.updateMany({
        where: { key: storedKey(key) },
        data: { status: 'in_progress', leaseUntil: new Date(0) },
      })
      const decided = await Promise.all(
        Array.from({ length: 10 }, (_, n) =>
          start().operations.of('').resolve({ run: key }, { result: n }),
        ),
      )
      const kinds = decided.map(({ kind }) => kind)
      t.equal(kinds.filter((kind) => kind === 'resolved').length, 1)
      const winner = kinds.indexOf('resolved')
      t.strictSame(await operations.of('').run(key, () => 'again'), {
        kind: 'replayed',
        value: winner,
      })
    })

    await t.test('a handler gets the same from recover() as from run()', async (t) => {
      const key = newName()
      const seen: object[] = []
      const attempts: unknown[] = []
      const died = latch()
      const worker = (isDead: boolean) => {
        const { operations } = start()
        const pay = operations.handler('pays', async (operation, input: Input) => {
          const { tenantId, key, attempt, resumed } = operation
          attempts.push([attempt, resumed])
          seen.push({
            ...{ tenantId, key, keyFor: operation.keyFor('charge'), input: structuredClone(input) },
            within: await operation.step('key', () => operation.keyFor('charge')),
            isAborted: operation.signal.aborted,
            members: ['tx', 'run'].filter((name) => name in operation),
          })
          if (isDead) {
            died.open()
            await new Promise(() => {})
          }
          return operation.key
        })
        return { operations, pay }
      }
      const dead = worker(true)
      const input = { amount: 5, at: new Date(5) }
      dead.operations
        .of('acme')
        .run(key, dead.pay, { input })
        .catch(() => {})
      input.amount = 50_000
      await died.opened
      await letLeaseRunOut(way, storedKey(key))
      const living = worker(false)
      t.match(await living.operations.recover(), { finished: 1 })
      t.strictSame(seen[1], seen[0])
      t.match(seen[0], { tenantId: 'acme', key, members: [] })
      t.match(seen[0], { input: { amount: 5 } }, 'what was stored, whatever became of the object')
      t.strictSame(attempts, [
        [1, false],
        [2, true],
      ])
      t.match(
        await living.operations.of('acme').run(key, living.pay, { input: { ...input, amount: 5 } }),
        { kind: 'replayed', value: key },
      )
    })

    await t.test('recover() finishes what named a handler, once, from any process', async (t) => {
      const died = new Map<string, ReturnType<typeof latch<void>>>()
      const worker = (isDead: boolean) => {
        const { operations } = start()
        const pay = operations.handler('pay', async (operation, input: Input) => {
          await operation.transaction((tx) => tx.payment.create(entry(operation.key)))
          if (isDead) {
            died.get(operation.key)?.open()
            await new Promise(() => {})
          }
          return { ...input, attempt: operation.attempt, tenant: operation.tenantId }
        })
        return { operations, pay }
      }
      const dead = worker(true)
      const input = { amount: 5, at: new Date(5) }
      const keys = Array.from({ length: 6 }, newName)
      for (const key of keys) {
        died.set(key, latch())
        dead.operations
          .of('acme')
          .run(key, dead.pay, { input })
          .catch(() => {})
      }
      await Promise.all([...died.values()].map(({ opened }) => opened))

      const living = [worker(false), worker(false)] as const
      const recoverAll = async () => {
        const all = await Promise.all(living.map(({ operations }) => operations.recover()))
        t.ok(all.every(({ failed }) => failed === 0))
        return all.reduce((sum, { finished }) => sum + finished, 0)
      }
      t.equal(await recoverAll(), 0, 'their leases still run')
      for (const key of keys) await letLeaseRunOut(way, storedKey(key))
      const bystander = start().operations
      bystander.handler('other', async () => {})
      t.match(await bystander.recover(), { finished: 0, failed: 0, skipped: 0 })

      const few = await living[0].operations.recover({ limit: 2 })
      t.strictSame(few, { finished: 2, failed: 0, skipped: 0 }, 'no more at a time than asked')
      t.equal(await recoverAll(), 4)
      t.equal(await recoverAll(), 0)
      const { operations, pay } = living[1]
      for (const key of keys) {
        t.equal(await entries(key), 1)
        t.strictSame(await operations.of('acme').run(key, pay, { input }), {
          kind: 'replayed',
          value: { ...input, attempt: 2, tenant: 'acme' },
        })
      }
    })

    await t.test(
      'a handler that fails is tried again after its lease, and not for ever',
      async (t) => {
        const key = newName()
        const died = latch()
        const dead = start().operations
        const stuck = dead.handler('stuck', async () => {
          died.open()
          await new Promise(() => {})
        })
        dead
          .of('')
          .run(key, stuck)
          .catch(() => {})
        await died.opened
        const { operations } = start()
        let tries = 0
        const settle = operations.handler('stuck', async () => {
          tries += 1
          if (tries < 3) throw new Error('not yet')
          return 'done'
        })
        const released = async () => {
          const where = { key: storedKey(key), status: 'released' }
          while ((await prisma.idempotencyRecord.findFirst({ where })) === null) await clock()
        }
        const clock = () => way.clock.ask()
        await letLeaseRunOut(way, storedKey(key))
        t.match(await operations.recover(), { finished: 0, failed: 1 })
        t.match(await operations.recover(), { finished: 0, failed: 0 }, 'its lease is the pause')
        await released()
        await letLeaseRunOut(way, storedKey(key))
        t.match(await operations.recover({ attempts: 2 }), { failed: 0 }, 'begun twice already')
        t.match(await operations.recover({ attempts: 3 }), { finished: 0, failed: 1 })
        await released()
        await letLeaseRunOut(way, storedKey(key))
        t.match(await operations.recover(), { finished: 1 })
        t.match(await operations.of('').run(key, settle), { kind: 'replayed', value: 'done' })
        t.equal(tries, 3)
      },
    )
  })
}
