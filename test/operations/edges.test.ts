// Operations outside requests where things go wrong, and what is told of them.
import { randomUUID } from 'node:crypto'
import t, { test } from 'tap'
import { storedKey } from '../../src/operations/stored.js'
import { databaseClock } from '../../src/store/clock.js'
import { postgresStore } from '../../src/store/postgres.js'
import { onPrisma } from '../../src/store/statements.js'
import { buildApp, collectEvents, latch, recordOf, send } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { letLeaseRunOut, operationsProcess } from '../fixtures/operations.js'
import type { Way } from '../fixtures/ways.js'

const database = await anyDatabase(t)
const { prisma } = database
const way = {
  prisma,
  provider: 'postgresql',
  run: onPrisma(prisma),
  clock: databaseClock(prisma, 'postgresql'),
} as unknown as Way
const newName = () => `job-${randomUUID()}`

const down = () =>
  Promise.reject(Object.assign(new Error('canary of the database'), { code: 'ECONNREFUSED' }))

test('while nobody can say whether it ran, nothing is run, and the caller is told', async (t) => {
  const events = collectEvents(t)
  const { operations } = operationsProcess(t, way, { disturbed: { insert: down } })
  const running = operations.of('').run(newName(), () => t.fail('it ran'))
  await t.rejects(running, {
    code: 'IDEMPOTENCY_STORE_UNAVAILABLE',
    statusCode: 503,
    message: /^Whether run\(\) has done this before cannot be found out now; nothing was executed/,
  })
  t.match(await events.first('store_unavailable'), { failure: { code: 'ECONNREFUSED' } })
  t.notMatch(JSON.stringify(events.all), /canary/)
})

test('a result that could not be stored is the caller’s; storing it goes on', async (t) => {
  const events = collectEvents(t)
  let failures = 1
  const healthy = operationsProcess(t, way)
  const store = postgresStore(onPrisma(prisma))
  const { operations } = operationsProcess(t, way, {
    disturbed: {
      finish: (list) => (failures-- > 0 ? down() : store.finish(list)),
    },
  })
  const key = newName()
  t.match(await operations.of('').run(key, () => 'result'), { kind: 'ran', value: 'result' })
  t.ok(events.kinds().includes('response_not_stored'))
  const replay = await healthy.operations
    .of('')
    .run(key, () => t.fail('it ran again'), { wait: '8s' })
  t.match(replay, { kind: 'replayed', value: 'result' })
})

test('work whose result cannot be stored is not run again: a later call gets a typed error', async (t) => {
  const events = collectEvents(t)
  const { operations } = operationsProcess(t, way)
  const runs = operations.of('')
  for (const result of [() => {}, Object.create({ price: 1 }), Promise.resolve, nested(100_000)]) {
    const key = newName()
    await t.rejects(
      runs.run(key, () => result),
      { code: 'IDEMPOTENCY_STEP_NOT_STORABLE', message: /^The result of run\(\) cannot be stored/ },
    )
    await t.rejects(
      runs.run(key, () => t.fail('it ran again')),
      {
        code: 'IDEMPOTENCY_NOT_REPLAYABLE',
        statusCode: 409,
        message: /^What run\(\) was called with is done, but its result was not kept/,
      },
    )
    t.match(await runs.run(key, () => t.fail('it ran'), { input: 1 }), { kind: 'mismatch' })
    t.match(await runs.resolve({ run: key }, { result: 1 }), { kind: 'completed' })
  }
  t.match(await events.first('response_omitted'), { attempt: 1, reason: 'not storable' })
  t.ok(events.kinds().includes('not_replayable'))
})

const nested = (levels: number) => {
  let value: unknown = 1
  for (let level = 0; level < levels; level += 1) value = [value]
  return value
}

test('recover() does not run a handler again whose result cannot be stored', async (t) => {
  const { operations } = operationsProcess(t, way)
  const key = newName()
  let runs = 0
  const pay = operations.handler('unstorable', async () => {
    runs += 1
    if (runs === 1) throw new Error('not yet')
    return () => {}
  })
  await t.rejects(operations.of('').run(key, pay), { message: 'not yet' })
  await letLeaseRunOut(way, storedKey(key))
  t.match(await operations.recover(), { finished: 1, failed: 0 })
  t.match(await operations.recover(), { finished: 0, failed: 0 })
  t.equal(runs, 2)
  await t.rejects(operations.of('').run(key, pay), { code: 'IDEMPOTENCY_NOT_REPLAYABLE' })
})

test('a result may contain itself', async (t) => {
  const { operations } = operationsProcess(t, way)
  const key = newName()
  const cyclic: { name: string; self?: unknown } = { name: 'cyclic' }
  cyclic.self = cyclic
  await operations.of('').run(key, () => cyclic)
  const replay = await operations.of('').run(key, () => t.fail('it ran again'))
  t.match(replay, { kind: 'replayed', value: { name: 'cyclic' } })
  const { value } = replay as unknown as { value: typeof cyclic }
  t.equal(value.self, value)
})

test('what is not awaited is a failure, and its effect is there once', async (t) => {
  const { operations } = operationsProcess(t, way)
  const account = randomUUID()
  const data = { tenantId: account, amount: 1, currency: 'EUR' }
  const key = newName()
  const run = (isHasty: boolean) =>
    operations.of('').run(key, async (operation) => {
      const paid = operation.transaction((tx) => tx.payment.create({ data }))
      if (!isHasty) await paid
      paid.catch(() => {})
    })
  await t.rejects(run(true), { code: 'IDEMPOTENCY_STEP_NOT_AWAITED' })
  t.match(await run(false), { kind: 'ran' })
  t.equal(await prisma.payment.count({ where: { tenantId: account } }), 1)
})

test('what fails without being awaited is a failure, also when the work ends later', async (t) => {
  const { operations } = operationsProcess(t, way)
  const run = operations.of('').run(newName(), async (operation) => {
    void operation.step('charge', () => Promise.reject(new Error('down')))
    await prisma.payment.count()
  })
  await t.rejects(run, { code: 'IDEMPOTENCY_STEP_NOT_AWAITED' })
})

test('a client cannot answer, or see, an operation of the application', async (t) => {
  const name = newName()
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/pay', () => 'of a client'),
  })
  t.equal((await send(app, '/pay', { key: name })).body, 'of a client')
  t.match(await app.idempotency.run(name, () => 'of a job'), { kind: 'ran', value: 'of a job' })
  t.equal((await send(app, '/pay', { key: name })).body, 'of a client')
  const forged = await send(app, '/pay', { key: storedKey(name) })
  t.match(forged.json(), { code: 'IDEMPOTENCY_KEY_MALFORMED' })
  t.match(await app.idempotency.resolve(name, { release: true }), { kind: 'completed' })
})

test('a server that closes lets operations end, for a while', async (t) => {
  const app = await buildApp(t, database, { plugin: { drain: '5s' }, routes: () => {} })
  const began = latch()
  const go = latch()
  const key = newName()
  const running = app.idempotency.run(key, async () => {
    began.open()
    await go.opened
    return 'done'
  })
  await began.opened
  const closing = app.close()
  go.open()
  t.match(await running, { kind: 'ran', value: 'done' })
  await closing
  t.match(await recordOf(database, storedKey(key)), { status: 'completed' })
})

test('one that takes longer than the drain loses its lease, and is told so', async (t) => {
  const app = await buildApp(t, database, { plugin: { drain: '50ms' }, routes: () => {} })
  const began = latch()
  const key = newName()
  const running = app.idempotency.run(key, async ({ signal }) => {
    began.open()
    await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
  })
  running.catch(() => {})
  await began.opened
  await app.close()
  await t.rejects(running, { message: /closed/ })
  t.match(await recordOf(database, storedKey(key)), { status: 'in_progress' })
})

test('each thing that happens after a crash is told, and no input with it', async (t) => {
  const events = collectEvents(t)
  const dead = operationsProcess(t, way).operations
  const living = operationsProcess(t, way).operations
  const died = latch()
  let failures = 1
  const stuck = dead.handler('told', async () => {
    died.open()
    await new Promise(() => {})
  })
  living.handler('told', async (_, input: unknown) => {
    if (failures-- > 0) throw new Error(`failed with ${input}`)
  })
  const key = newName()
  dead
    .of('acme')
    .run(key, stuck as never, { input: 'canary of the input' })
    .catch(() => {})
  await died.opened
  const subject = { tenantId: 'acme', keyId: /^[0-9a-f]{12}$/ }
  await letLeaseRunOut(way, storedKey(key))
  await living.recover()
  t.match(await events.first('recovery_failed'), { ...subject, attempt: 2 })
  // The release sets the pause before the next attempt, which the test cuts short.
  await events.first('released')
  await letLeaseRunOut(way, storedKey(key))
  await living.recover()
  t.match(await events.first('recovered'), { ...subject, attempt: 3 })

  const other = newName()
  await t.rejects(living.of('acme').run(other, () => Promise.reject(new Error('boom'))))
  await prisma.idempotencyRecord.updateMany({
    where: { key: storedKey(other) },
    data: { status: 'in_progress', leaseUntil: new Date(0) },
  })
  await living.of('acme').resolve({ run: other }, { result: 'canary of the result' })
  t.match(await events.first('resolved'), { ...subject, attempt: 2, to: 'completed' })
  t.notMatch(JSON.stringify(events.all), /canary|job-/)
})

test('a database that does not answer to recoverEvery is told, and asked again', async (t) => {
  const events = collectEvents(t)
  let failures = 2
  const again = latch()
  const broken = prisma.$extends({
    query: {
      idempotencyRecord: {
        findMany: ({ args, query }) => {
          failures -= 1
          if (failures === 1) return down()
          if (failures === 0) return new Promise<never>(() => {})
          again.open()
          return query(args)
        },
      },
    },
  })
  const app = await buildApp(t, database, {
    plugin: { prisma: broken as never, recoverEvery: '1s', storeTimeout: '500ms' },
    routes(app) {
      app.idempotency.handler('idle', async () => {})
    },
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.match(await events.first('recover_failed'), { failure: { code: 'ECONNREFUSED' } })
  t.match(await events.first('recover_failed', 2), { failure: { code: 'ETIMEDOUT' } })
  await again.opened
})

test('a handler that never ends keeps recoverEvery from nothing else', async (t) => {
  const events = collectEvents(t)
  const stuck = latch()
  const app = await buildApp(t, database, {
    plugin: { recoverEvery: '1s', drain: 0 },
    routes(app) {
      app.idempotency.handler('stuck', () => {
        stuck.open()
        return new Promise(() => {})
      })
      app.idempotency.handler('settle', async () => 'settled')
    },
  })
  const interrupt = (handler: string) => {
    const key = newName()
    const data = {
      ...{ tenantId: '', key: storedKey(key), operationId: key, fingerprint: 'f', handler },
      ...{ status: 'in_progress', leaseUntil: new Date(0), input: '[1]' },
      expiresAt: new Date(Date.now() + 60_000),
    }
    return prisma.idempotencyRecord.create({ data })
  }
  await interrupt('stuck')
  await app.listen({ port: 0, host: '127.0.0.1' })
  await stuck.opened
  await interrupt('settle')
  t.match(await events.first('recovered'), { attempt: 2 })
})

test('handlers that never end keep the places of recoverEvery until their leases are over', async (t) => {
  const events = collectEvents(t)
  const allStuck = latch()
  let stuck = 0
  const app = await buildApp(t, database, {
    plugin: { recoverEvery: '1s', drain: 0 },
    routes(app) {
      app.idempotency.handler(
        'stuck',
        () => {
          stuck += 1
          if (stuck === 4) allStuck.open()
          return new Promise(() => {})
        },
        { lease: '1s', maxRun: '1s' },
      )
      app.idempotency.handler('settle', async () => 'settled')
    },
  })
  const interrupt = (handler: string) => {
    const key = newName()
    const data = {
      ...{ tenantId: '', key: storedKey(key), operationId: key, fingerprint: 'f', handler },
      ...{ status: 'in_progress', leaseUntil: new Date(0), input: '[1]' },
      expiresAt: new Date(Date.now() + 60_000),
    }
    return prisma.idempotencyRecord.create({ data })
  }
  // As many as run at once.
  for (let n = 0; n < 4; n += 1) await interrupt('stuck')
  await app.listen({ port: 0, host: '127.0.0.1' })
  await allStuck.opened
  await interrupt('settle')
  t.match(await events.first('recovered'), { attempt: 2 })
  t.match(await events.first('recovery_overdue'), { overdue: 1 })
})

test('a record that an open transaction has locked is decided once that is over', {
  skip: database.kind === 'pglite' && 'PGlite is one session, without a second transaction',
}, async (t) => {
  const { operations } = operationsProcess(t, way, { storeTimeout: 300 })
  const key = newName()
  const began = latch()
  const running = operations.of('').run(key, async () => {
    began.open()
    await new Promise(() => {})
  })
  running.catch(() => {})
  await began.opened
  const isLocked = latch()
  const go = latch()
  const standing = prisma.$transaction(async (tx) => {
    const where = { key: storedKey(key) }
    await tx.idempotencyRecord.updateMany({ where, data: { steps: {} } })
    isLocked.open()
    await go.opened
  })
  await isLocked.opened
  const decide = () => operations.of('').resolve({ run: key }, { release: true }, { force: true })
  await t.rejects(decide(), {
    code: 'IDEMPOTENCY_STORE_UNAVAILABLE',
    message: /^Whether this decision of resolve\(\) took effect cannot be found out now/,
  })
  go.open()
  await standing
  t.strictSame(await decide(), { kind: 'resolved' })
})

test('what cannot be run is refused, and says what to write', async (t) => {
  const app = await buildApp(t, database, { routes: () => {} })
  const other = await buildApp(t, database, { routes: () => {} })
  const { idempotency } = app
  const pay = idempotency.handler('pay', async () => 1)
  const foreign = other.idempotency.handler('pay', async () => 1)
  const run = idempotency.run as (...args: unknown[]) => Promise<unknown>
  class Money {}
  const cyclic = new Map<string, unknown>()
  cyclic.set('self', { cyclic })
  let repetitive: unknown = 1
  for (let level = 0; level < 100; level += 1) repetitive = [repetitive, repetitive]
  for (const [args, message] of [
    [['', () => 1], /the key of run\(\) must be text of 1 to 200 characters/],
    [['k'.repeat(201), () => 1], /the key of run\(\)/],
    [['\ud800', () => 1], /the key of run\(\)/],
    [[7, () => 1], /the key of run\(\)/],
    [['k', undefined], /run\(\) needs a function, or what app\.idempotency\.handler/],
    [['k', 'pay'], /run\(\) needs a function/],
    [['k', foreign], /of the same application/],
    [['k', () => 1, { leese: 1 }], /"leese" of run\(\) is not known/],
    [['k', () => 1, { lease: 'soon' }], /"lease" of run\(\) must be a duration/],
    [['k', () => 1, { lease: '1h', maxRun: '1m' }], /"maxRun" of run\(\) must not be shorter/],
    [['k', () => 1, { onLeaseExpired: 'ask' }], /must be 'rerun' or 'uncertain'/],
    [['k', pay, { onLeaseExpired: 'uncertain' }], /recover\(\) runs it again/],
    [['k', pay, { input: () => 1 }], /"input" of run\(\) is or holds a function.*plain data/],
    [['k', pay, { input: [new Money()] }], /"input" of run\(\) is or holds an instance of Money/],
    [['k', pay, { input: cyclic }], /"input" of run\(\) is or holds a reference to itself/],
    [['k', () => 1, { input: { cyclic } }], /a reference to itself/],
    [['k', () => 1, { input: repetitive }], /endless repetitions/],
  ] as const) {
    await t.rejects(run(...args), { code: 'IDEMPOTENCY_OPTION_INVALID', message }, String(message))
  }
  const handler = idempotency.handler as (...args: unknown[]) => unknown
  for (const [args, message] of [
    [['', async () => 1], /the name of a handler/],
    [['other'], /needs a function/],
    [['pay', async () => 1], /there is a handler "pay" already/],
    [['slow', async () => 1, { lease: 5 }], /"lease" of handler "slow"/],
  ] as const) {
    t.throws(() => handler(...args), { message }, String(message))
  }
  for (const [options, message] of [
    [{ limit: 0 }, /"limit" of recover\(\)/],
    [{ every: 1 }, /"every" of recover\(\) is not known/],
  ] as const) {
    await t.rejects(async () => idempotency.recover(options as object), { message })
  }
  t.strictSame(await idempotency.recover(), { finished: 0, failed: 0, skipped: 0 })
})

test('a decision that came too late releases nothing', async (t) => {
  const store = postgresStore(onPrisma(prisma))
  const go = latch()
  const over = latch()
  const uncertain = { onLeaseExpired: 'uncertain' } as const
  const slow = operationsProcess(t, way, {
    storeTimeout: 50,
    disturbed: {
      async takeOver(asks) {
        await go.opened
        const taken = await store.takeOver(asks)
        setImmediate(() => over.open())
        return taken
      },
    },
  })
  const { operations } = operationsProcess(t, way)
  const key = newName()
  await t.rejects(operations.of('').run(key, () => Promise.reject(new Error('boom'))))
  await prisma.idempotencyRecord.updateMany({
    where: { key: storedKey(key) },
    data: { status: 'in_progress', leaseUntil: new Date(0) },
  })
  const deciding = slow.operations.of('').resolve({ run: key }, { result: 'it took effect' })
  await t.rejects(deciding, { code: 'IDEMPOTENCY_STORE_UNAVAILABLE' })
  go.open()
  await over.opened
  t.match(await recordOf(database, storedKey(key)), { status: 'in_progress', attempt: 2 })
  t.match(await operations.of('').run(key, () => t.fail('it ran'), uncertain), { kind: 'busy' })
  await letLeaseRunOut(way, storedKey(key))
  t.match(await operations.of('').run(key, () => t.fail('it ran'), uncertain), {
    kind: 'uncertain',
  })
})

test('a key of a client can be resolved, whatever its length', async (t) => {
  const app = await buildApp(t, database, { routes: () => {} })
  t.strictSame(await app.idempotency.resolve('k'.repeat(255), { release: true }), {
    kind: 'missing',
  })
  await t.rejects(app.idempotency.resolve('k'.repeat(256), { release: true }), {
    message: /1 to 255 characters/,
  })
  for (const attempt of [0, 1.5, '1']) {
    const options = { attempt } as { attempt: number }
    await t.rejects(app.idempotency.resolve('k', { release: true }, options), {
      message: /"attempt" of resolve\(\)/,
    })
  }
})

test('a handler that never ends keeps nobody else from being recovered', async (t) => {
  const events = collectEvents(t)
  const { operations } = operationsProcess(t, way, { lease: '1s', maxRun: '1s' })
  const names = [newName(), newName()]
  let calls = 0
  const settle = operations.handler('never ends', async () => {
    calls += 1
    if (calls <= 2) throw new Error('not yet')
    if (calls === 3) await new Promise(() => {})
    return 'done'
  })
  for (const key of names) {
    await t.rejects(operations.of('').run(key, settle))
    await letLeaseRunOut(way, storedKey(key))
  }
  t.match(await operations.recover({ concurrency: 1 }), { finished: 1, failed: 1 })
  t.match(await events.first('recovery_overdue'), { attempt: 2, overdue: 1 })
  t.notOk(events.kinds().includes('recovery_failed'))
})

test('a handler that ends in what is left of its lease after maxRun has ended in time', async (t) => {
  const { operations } = operationsProcess(t, way, { lease: '1s', maxRun: '1s' })
  const key = newName()
  let calls = 0
  const settle = operations.handler('obeys its signal', async ({ signal }) => {
    calls += 1
    if (calls === 1) throw new Error('not yet')
    await new Promise((resolve) => signal.addEventListener('abort', resolve))
    return 'done'
  })
  await t.rejects(operations.of('').run(key, settle))
  await letLeaseRunOut(way, storedKey(key))
  t.match(await operations.recover(), { finished: 1, failed: 0 })
  t.match(await operations.of('').run(key, settle), { kind: 'replayed', value: 'done' })
})

test('recover() ends with its process, whatever its handlers do', async (t) => {
  const { operations, die } = operationsProcess(t, way, { drain: 0 })
  const key = newName()
  const began = latch()
  let calls = 0
  const stuck = operations.handler('never ends, too', async () => {
    calls += 1
    if (calls === 1) throw new Error('not yet')
    began.open()
    await new Promise(() => {})
  })
  await t.rejects(operations.of('').run(key, stuck))
  await letLeaseRunOut(way, storedKey(key))
  const recovering = operations.recover()
  await began.opened
  await die()
  t.match(await recovering, { finished: 0, failed: 1 })
})

test('recover() runs as many at once as it may, and all of them', async (t) => {
  const { operations } = operationsProcess(t, way)
  let [isBroken, running, most] = [true, 0, 0]
  const both = latch()
  const settle = operations.handler('counted', async () => {
    if (isBroken) throw new Error('not yet')
    running += 1
    most = Math.max(most, running)
    if (running === 2) both.open()
    await both.opened
    running -= 1
  })
  const keys = Array.from({ length: 5 }, newName)
  for (const key of keys) {
    await t.rejects(operations.of('').run(key, settle), { message: 'not yet' })
    await letLeaseRunOut(way, storedKey(key))
  }
  isBroken = false
  t.match(await operations.recover({ concurrency: 2 }), { finished: 5, failed: 0 })
  t.equal(most, 2)
})

test('what closes begins nothing', async (t) => {
  const { operations, die } = operationsProcess(t, way)
  operations.handler('late', async () => t.fail('it ran'))
  await die()
  await t.rejects(
    operations.of('').run(newName(), () => t.fail('it ran')),
    {
      code: 'IDEMPOTENCY_CLOSING',
      statusCode: 503,
    },
  )
})

test('what is granted to a process that closes is not begun, and free for the next', async (t) => {
  const store = postgresStore(onPrisma(prisma))
  const asked = latch()
  const go = latch()
  const { operations, die } = operationsProcess(t, way, {
    disturbed: {
      async insert(list) {
        const answer = await store.insert(list)
        asked.open()
        await go.opened
        return answer
      },
    },
  })
  const key = newName()
  const running = operations.of('').run(key, () => t.fail('it ran'))
  running.catch(() => {})
  await asked.opened
  const dying = die()
  go.open()
  await t.rejects(running, { code: 'IDEMPOTENCY_CLOSING' })
  await dying
  t.match(await recordOf(database, storedKey(key)), { status: 'released', attempt: 1 })
})

test('what recover() is granted when its process closes is left to others', async (t) => {
  const store = postgresStore(onPrisma(prisma))
  const asked = latch()
  const go = latch()
  const { operations, die } = operationsProcess(t, way, {
    disturbed: {
      async takeOver(list) {
        const answer = await store.takeOver(list)
        asked.open()
        await go.opened
        return answer
      },
    },
  })
  const key = newName()
  let calls = 0
  const settle = operations.handler(`granted late ${key}`, async () => {
    calls += 1
    throw new Error('not yet')
  })
  await t.rejects(operations.of('').run(key, settle))
  await letLeaseRunOut(way, storedKey(key))
  const recovering = operations.recover()
  await asked.opened
  const dying = die()
  go.open()
  t.match(await recovering, { finished: 0, failed: 0, skipped: 1 })
  await dying
  t.equal(calls, 1)
  t.match(await recordOf(database, storedKey(key)), { status: 'released', attempt: 2 })
})

test('inputs of different contents or types are told apart', async (t) => {
  const { operations } = operationsProcess(t, way)
  const time = new Date(0)
  for (const [one, other] of [
    [new Map([['a', 1]]), new Map([['a', 2]])],
    [new Set([1]), new Set([2])],
    [{ n: 1n }, { n: 2n }],
    [{ n: 1n }, { n: 1 }],
    [new URL('https://a.example'), new URL('https://b.example')],
    [/a/, /b/],
    [Uint8Array.of(1).buffer, Uint8Array.of(2).buffer],
    [{ n: Number.NaN }, { n: Number.POSITIVE_INFINITY }],
    [{ n: Number.POSITIVE_INFINITY }, { n: Number.NEGATIVE_INFINITY }],
    [{ n: Number.NaN }, { n: null }],
    [{ at: time }, { at: time.toISOString() }],
    [{ bytes: Buffer.from('a') }, { bytes: { type: 'Buffer', data: [97] } }],
  ]) {
    const key = newName()
    t.match(await operations.of('').run(key, () => 1, { input: one }), { kind: 'ran' })
    t.match(await operations.of('').run(key, () => 1, { input: other }), { kind: 'mismatch' })
    t.match(await operations.of('').run(key, () => 1, { input: one }), { kind: 'replayed' })
  }
})

test('an input may be nested as deep as it is', async (t) => {
  const { operations } = operationsProcess(t, way)
  const nested = (core: unknown) => {
    let value = core
    for (let depth = 0; depth < 100_000; depth += 1) value = [value]
    return value
  }
  const key = newName()
  t.match(await operations.of('').run(key, () => 1, { input: nested(1) }), { kind: 'ran' })
  t.match(await operations.of('').run(key, () => 1, { input: nested(2) }), { kind: 'mismatch' })
  const work = operations.handler('deep', async () => t.fail('it ran'))
  await t.rejects(operations.of('').run(newName(), work, { input: nested(1) } as never), {
    code: 'IDEMPOTENCY_STEP_NOT_STORABLE',
  })
})

test('what the plugin says of clients and their retries is not said of run()', async (t) => {
  const { operations } = operationsProcess(t, way, { onLeaseExpired: 'uncertain', wait: '1m' })
  const work = operations.handler('inherits', async () => 1)
  t.match(await operations.of('').run(newName(), work), { kind: 'ran' })
})
