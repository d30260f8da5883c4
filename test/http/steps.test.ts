// Transactions and steps of a protected request: each takes effect once over all attempts.
import { randomUUID } from 'node:crypto'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import t, { test } from 'tap'
import type { RequestIdempotency } from '../../src/index.js'
import {
  type AppSetup,
  begin,
  buildApp,
  collectEvents,
  latch,
  newKey,
  recordOf,
  send,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)
const { prisma } = database
const oneSession =
  database.kind === 'pglite' &&
  'PGlite is one session, without a second transaction, or levels of isolation'
const PAST = new Date('2001-01-01T00:00:00Z')

type Handle = (
  idempotency: RequestIdempotency,
  context: { request: FastifyRequest; reply: FastifyReply; account: string },
) => unknown

/** An application whose only handler is given, and what its effects count on. */
async function serve(
  t: Parameters<typeof buildApp>[0],
  handle: Handle,
  { routes, ...setup }: Partial<AppSetup> = {},
) {
  const account = randomUUID()
  const app = await buildApp(t, database, {
    ...setup,
    routes(app) {
      app.post('/pay', (request, reply) => handle(request.idempotency, { request, reply, account }))
      return routes?.(app)
    },
  })
  return { app, account, effects: () => prisma.payment.count({ where: { tenantId: account } }) }
}

const payment = (tenantId: string) => ({ data: { tenantId, amount: 1, currency: 'EUR' } })

const runOut = (key: string) =>
  prisma.idempotencyRecord.updateMany({ where: { key }, data: { leaseUntil: PAST } })

test('a retry goes on behind what the first attempt has done', async (t) => {
  let calls = 0
  const { app, effects } = await serve(t, async (idempotency, { account, reply }) => {
    const { id } = await idempotency.transaction((tx) => tx.payment.create(payment(account)))
    const charge = await idempotency.step('charge', () => {
      calls += 1
      return { number: calls, at: new Date(5), key: idempotency.keyFor('charge') }
    })
    if (idempotency.attempt < 3) throw new Error('boom')
    t.ok(charge.at instanceof Date)
    t.equal(charge.key, idempotency.keyFor('charge'), 'the same in every attempt')
    return reply.code(201).send({ id, charge: charge.number, resumed: idempotency.resumed })
  })
  const key = newKey()
  t.equal((await send(app, '/pay', { key })).statusCode, 500)
  const [id] = await prisma.payment.findMany({ orderBy: { createdAt: 'desc' }, take: 1 })
  t.equal((await send(app, '/pay', { key })).statusCode, 500)
  t.match((await recordOf(database, key))?.steps, {
    '["transaction"]': /id/,
    '["charge"]': /number/,
  })
  const answer = await send(app, '/pay', { key })
  t.strictSame(answer.json(), { id: id?.id, charge: 1, resumed: true })
  t.equal((await send(app, '/pay', { key })).body, answer.body)
  t.equal(await effects(), 1)
  t.equal(calls, 1)
  t.equal((await recordOf(database, key))?.steps, null, 'a response is all that is kept')
})

test('an attempt that was taken over can write nothing, and says so', async (t) => {
  const began = latch()
  const go = latch()
  const { app, effects } = await serve(t, async (idempotency, { account }) => {
    if (idempotency.attempt === 1) {
      began.open()
      await go.opened
    }
    const { id } = await idempotency.transaction((tx) => tx.payment.create(payment(account)))
    return { id, attempt: idempotency.attempt }
  })
  const key = newKey()
  const late = begin(app, '/pay', { key })
  await began.opened
  await runOut(key)
  const answer = await send(app, '/pay', { key })
  t.match(answer.json(), { attempt: 2 })
  go.open()
  t.match((await late).json(), { code: 'IDEMPOTENCY_LEASE_LOST' })
  t.equal((await late).statusCode, 409)
  t.equal(await effects(), 1)
  t.equal((await send(app, '/pay', { key })).body, answer.body)
})

test('the commit decides: one that is taken over in its transaction rolls back', {
  skip: oneSession,
}, async (t) => {
  const inside = latch()
  const go = latch()
  const { app, effects } = await serve(t, async (idempotency, { account }) => {
    await idempotency.transaction(async (tx) => {
      await tx.payment.create(payment(account))
      if (idempotency.attempt > 1) return
      inside.open()
      await go.opened
    })
    return { attempt: idempotency.attempt }
  })
  const key = newKey()
  const late = begin(app, '/pay', { key })
  await inside.opened
  await runOut(key)
  t.match((await send(app, '/pay', { key })).json(), { attempt: 2 })
  go.open()
  t.equal((await late).statusCode, 409)
  t.equal(await effects(), 1)
})

test('what a dead attempt commits after its lease is not done again', {
  skip: oneSession,
}, async (t) => {
  const { app, account, effects } = await serve(t, async (idempotency, { account }) => {
    await idempotency.transaction((tx) => tx.payment.create(payment(account)))
    return { attempt: idempotency.attempt }
  })
  // A dead attempt whose transaction is still open when its lease has run out.
  const key = newKey()
  await send(app, '/pay', { key, payload: { n: 1 } })
  await prisma.payment.deleteMany({ where: { tenantId: account } })
  await prisma.idempotencyRecord.updateMany({
    where: { key },
    data: { status: 'in_progress', leaseUntil: PAST },
  })
  const isOpen = latch()
  const go = latch()
  const dying = prisma.$transaction(async (tx) => {
    await tx.payment.create(payment(account))
    await tx.idempotencyRecord.updateMany({
      where: { key, attempt: 1, status: 'in_progress' },
      data: { steps: { '["transaction"]': '[{}]' } },
    })
    isOpen.open()
    await go.opened
  })
  await isOpen.opened
  const retry = await send(app, '/pay', { key, payload: { n: 1 } })
  t.equal(retry.statusCode, 409, 'the row is locked, and the retry does not wait for it')
  go.open()
  await dying
  t.match((await send(app, '/pay', { key, payload: { n: 1 } })).json(), { attempt: 2 })
  t.equal(await effects(), 1)
})

test('nested and concurrent use is refused, and loses nothing', async (t) => {
  const seen: unknown[] = []
  const note = (error: { code: string }) => void seen.push(error.code)
  const { app, effects } = await serve(t, async (idempotency, { account }) => {
    await idempotency.transaction(async (tx) => {
      await idempotency.transaction(async () => {}, { name: 'inner' }).catch(note)
      await idempotency.step('step', () => 1).catch(note)
      await tx.payment.create(payment(account))
    })
    const first = idempotency.transaction((tx) => tx.payment.create(payment(account)), {
      name: 'first',
    })
    await idempotency.transaction(async () => {}, { name: 'second' }).catch(note)
    await first
    await idempotency.step('step', () => 1)
    await idempotency.step('step', () => 2).catch(note)
    await idempotency.step('', () => 2).catch(note)
    return 'done'
  })
  t.equal((await send(app, '/pay', { key: newKey() })).body, 'done')
  t.strictSame(seen, [
    'IDEMPOTENCY_TRANSACTION_OPEN',
    'IDEMPOTENCY_TRANSACTION_OPEN',
    'IDEMPOTENCY_TRANSACTION_OPEN',
    'IDEMPOTENCY_STEP_NAME_USED',
    'IDEMPOTENCY_STEP_NAME_INVALID',
  ])
  t.equal(await effects(), 2)
})

test('isolation level and timeout reach the database', { skip: oneSession }, async (t) => {
  const { app, effects } = await serve(t, async (idempotency, { account }) => {
    const level = await idempotency.transaction(
      async (tx) => tx.$queryRaw`SELECT current_setting('transaction_isolation') AS level`,
      { isolationLevel: 'Serializable', name: 'level' },
    )
    const failed = await idempotency
      .transaction(
        async (tx) => {
          await tx.payment.create(payment(account))
          await tx.$queryRaw`SELECT 1 FROM pg_sleep(0.5)`
        },
        { timeout: 200, name: 'long' },
      )
      .catch(({ code, cause }) => [code, cause.code])
    return { level, failed }
  })
  const answer = await send(app, '/pay', { key: newKey() })
  t.strictSame(answer.json(), {
    level: [{ level: 'serializable' }],
    failed: ['IDEMPOTENCY_DATABASE_FAILED', 'P2028'],
  })
  t.equal(await effects(), 0)
})

for (const statement of ['ROLLBACK', 'COMMIT AND CHAIN', 'END']) {
  test(`a transaction whose function ends it is not noted as done: ${statement}`, {
    skip: oneSession,
  }, async (t) => {
    const { app, effects } = await serve(t, async (idempotency, { account }) =>
      idempotency.transaction(async (tx) => {
        await tx.payment.create(payment(account))
        if (idempotency.attempt === 1) await tx.$executeRawUnsafe(statement)
        return 'done'
      }),
    )
    const key = newKey()
    const refused = await send(app, '/pay', { key })
    t.match(refused, { statusCode: 500 })
    t.match(refused.json(), { code: 'IDEMPOTENCY_TRANSACTION_ENDED' })
    t.notOk((await recordOf(database, key))?.steps, 'no result is stored')
    const before = await effects()
    t.equal((await send(app, '/pay', { key })).body, 'done')
    t.equal(await effects(), before + 1, 'a retry runs it')
  })
}

test('a conflict runs the transaction again; it is done once', { skip: oneSession }, async (t) => {
  const both = { arrived: 0, ...latch() }
  let runs = 0
  const { app, account } = await serve(t, async (idempotency, { account }) =>
    idempotency.transaction(
      async (tx) => {
        runs += 1
        const sum = await tx.payment.count({ where: { tenantId: account } })
        both.arrived += 1
        if (both.arrived === 2) both.open()
        await both.opened
        await tx.payment.create({ data: { ...payment(account).data, amount: sum } })
        return { sum }
      },
      { isolationLevel: 'Serializable' },
    ),
  )
  const answers = await Promise.all([
    send(app, '/pay', { key: newKey() }),
    send(app, '/pay', { key: newKey() }),
  ])
  t.strictSame(answers.map((answer) => answer.json().sum).sort(), [0, 1])
  t.ok(runs >= 3)
  t.equal(await prisma.payment.count({ where: { tenantId: account } }), 2)
})

test('a result that cannot be stored is an error at once, and named', async (t) => {
  let calls = 0
  const { app } = await serve(t, (idempotency) =>
    idempotency.step('charge', () => {
      calls += 1
      return calls === 1 ? { sent: [{ send: () => {} }] } : 'text'
    }),
  )
  const key = newKey()
  const answer = await send(app, '/pay', { key })
  t.equal(answer.statusCode, 500)
  t.match(answer.json(), {
    code: 'IDEMPOTENCY_STEP_NOT_STORABLE',
    detail: /result of step "charge".*`\.sent\[0\]\.send` is a function/,
  })
  t.equal((await send(app, '/pay', { key })).body, 'text')
})

test('keyFor differs by name, key, tenant and content', async (t) => {
  const { app } = await serve(
    t,
    (idempotency) => [idempotency.keyFor('charge'), idempotency.keyFor('mail')],
    { plugin: { tenant: (request) => String(request.headers['x-tenant'] ?? 'a') } },
  )
  const key = newKey()
  const keys = [
    (await send(app, '/pay', { key })).json(),
    (await send(app, '/pay', { key, headers: { 'x-tenant': 'b' } })).json(),
    (await send(app, '/pay', { key: newKey() })).json(),
  ].flat()
  t.equal(new Set(keys).size, 6)
  for (const one of keys) t.match(one, /^[\w-]{43}$/, 'fits every provider’s header')
})

test('a request without a key runs its steps and transactions as they are', async (t) => {
  const { app, effects } = await serve(t, async (idempotency, { account }) => {
    await idempotency.transaction((tx) => tx.payment.create(payment(account)))
    const keys = [idempotency.keyFor('charge'), idempotency.keyFor('charge')]
    const { key, attempt, resumed } = idempotency
    return { charge: await idempotency.step('charge', () => 'ch'), keys, key, attempt, resumed }
  })
  const [first, second] = [(await send(app, '/pay')).json(), (await send(app, '/pay')).json()]
  t.match(first, { charge: 'ch', attempt: 0, resumed: false })
  t.equal(first.keys[0], first.keys[1])
  t.not(first.keys[0], second.keys[0], 'two payments are two payments')
  t.equal(await effects(), 2)
})

test('a handler that answers before its transaction is done has failed; its effect is there once', async (t) => {
  const { app, effects } = await serve(t, (idempotency, { account }) => {
    const done = idempotency.transaction((tx) => tx.payment.create(payment(account)))
    if (idempotency.attempt > 1) return done.then(() => 'awaited')
    done.catch(() => {})
    return { answered: 'early' }
  })
  const events = collectEvents(t)
  const key = newKey()
  const early = await send(app, '/pay', { key })
  t.equal(early.statusCode, 500)
  t.match(early.json(), { code: 'IDEMPOTENCY_STEP_NOT_AWAITED' })
  await events.first('released')
  t.equal((await send(app, '/pay', { key })).body, 'awaited')
  t.equal(await effects(), 1)
})

for (const [what, call] of [
  ['a step', (idempotency) => idempotency.step('charge', () => Promise.reject(new Error('down')))],
  ['a transaction', (idempotency) => idempotency.transaction(() => Promise.reject(new Error('x')))],
  ['a name that is used', (idempotency) => idempotency.step('look', () => 1)],
  ['run() of no handler', (idempotency) => idempotency.run({ name: 'none' } as never, 1)],
] as [string, (idempotency: RequestIdempotency) => Promise<unknown>][]) {
  test(`${what} that fails without being awaited fails the handler that goes on`, async (t) => {
    const { app } = await serve(t, async (idempotency) => {
      await idempotency.step('look', () => 1)
      const unawaited = call(idempotency)
      if (idempotency.attempt > 1) return unawaited.catch(() => 'seen')
      await prisma.payment.count()
      return 'charged'
    })
    const events = collectEvents(t)
    const key = newKey()
    const answer = await send(app, '/pay', { key })
    t.equal(answer.statusCode, 500)
    t.match(answer.json(), { code: 'IDEMPOTENCY_STEP_NOT_AWAITED' })
    await events.first('released')
    t.equal((await send(app, '/pay', { key })).body, 'seen')
  })
}

test('a failure that is awaited late is the handler’s to deal with', async (t) => {
  const { app } = await serve(t, async (idempotency) => {
    const charge = idempotency.step('charge', () => Promise.reject(new Error('declined')))
    await prisma.payment.count()
    return charge.catch(({ message }) => message)
  })
  t.equal((await send(app, '/pay', { key: newKey() })).body, 'declined')
})

test('when one of two steps fails, the other is not cut off', async (t) => {
  const go = latch()
  let mails = 0
  const { app } = await serve(t, async (idempotency) => {
    const mail = idempotency.step('mail', async () => {
      mails += 1
      await go.opened
      return 'sent'
    })
    const charge = idempotency.step('charge', async () => {
      if (idempotency.attempt === 1) throw new Error('declined')
      return 'charged'
    })
    return Promise.all([mail, charge])
  })
  const events = collectEvents(t)
  const key = newKey()
  t.equal((await send(app, '/pay', { key })).statusCode, 500, 'nobody waits for the other')
  t.match((await send(app, '/pay', { key })).json(), { code: 'IDEMPOTENCY_IN_PROGRESS' })
  go.open()
  await events.first('released')
  t.strictSame((await send(app, '/pay', { key })).json(), ['sent', 'charged'])
  t.equal(mails, 1)
})

test('nothing is begun after the answer', async (t) => {
  const failed = latch<{ code: string }>()
  const { app, effects } = await serve(t, async (idempotency, { reply, account }) => {
    await reply.send('answered')
    await idempotency
      .transaction((tx) => tx.payment.create(payment(account)))
      .catch((error) => failed.open(error))
  })
  t.equal((await send(app, '/pay', { key: newKey() })).body, 'answered')
  t.equal((await failed.opened).code, 'IDEMPOTENCY_STEP_TOO_LATE')
  t.equal(await effects(), 0)
})

test('Fastify’s handlerTimeout answers first; what the handler does then counts', async (t) => {
  const go = latch()
  const done = latch()
  const { app, effects } = await serve(
    t,
    async (idempotency, { account }) => {
      await go.opened
      await idempotency.transaction((tx) => tx.payment.create(payment(account)))
      done.open()
      return 'late'
    },
    { server: { handlerTimeout: 50 } },
  )
  const events = collectEvents(t)
  const key = newKey()
  t.equal((await send(app, '/pay', { key })).statusCode, 503)
  go.open()
  await done.opened
  await events.first('completed')
  t.match((await send(app, '/pay', { key })).json(), { code: 'IDEMPOTENCY_NOT_REPLAYABLE' })
  t.equal(await effects(), 1)
})

test('wrong options say what to write', async (t) => {
  const wrong: Record<string, [object, RegExp]> = {
    final: [{ final: true }, /"final" of transaction\(\) is for webhook events/],
    misspelt: [{ isolation: 'Serializable' }, /no option "isolation"; it has name, isolationLevel/],
    level: [{ isolationLevel: 8 }, /"isolationLevel" .* 'Serializable'/],
    timeout: [{ timeout: '5s' }, /"timeout" .* milliseconds/],
  }
  const { app, effects } = await serve(t, (idempotency, { request, account }) => {
    const [options] = wrong[(request.body as { which: string }).which] as [object, RegExp]
    return idempotency.transaction((tx) => tx.payment.create(payment(account)), options)
  })
  for (const [which, [, message]] of Object.entries(wrong)) {
    const answer = await send(app, '/pay', { key: newKey(), payload: { which } })
    t.match(answer.json(), { code: 'IDEMPOTENCY_OPTION_INVALID', detail: message })
  }
  t.equal(await effects(), 0)
})

test('secrets in a step’s result reach no event', async (t) => {
  const events = collectEvents(t)
  const { app } = await serve(t, async (idempotency) => {
    await idempotency.step('charge', () => ({ secret: 'canary' }))
    throw new Error('boom')
  })
  await send(app, '/pay', { key: newKey() })
  t.ok(events.all.length > 1)
  t.notMatch(JSON.stringify(events.all), /canary/)
})

/** A handler that dies in its first attempt, and two processes that know it. */
async function recoverable(t: Parameters<typeof buildApp>[0], config: object = {}) {
  const account = randomUUID()
  const died = latch()
  const build = async (isDead: boolean) => {
    const app: FastifyInstance = await buildApp(t, database, {
      routes(app) {
        const pay = app.idempotency.handler('pay', async (operation, input: { amount: number }) => {
          const { id } = await operation.transaction((tx) =>
            tx.payment.create({ data: { tenantId: account, currency: 'EUR', ...input } }),
          )
          if (isDead && operation.attempt === 1) {
            died.open()
            await new Promise(() => {})
          }
          return { id, amount: input.amount, key: operation.key, attempt: operation.attempt }
        })
        app.post('/pay', { config: { idempotency: config } }, async (request, reply) => {
          const result = await request.idempotency.run(pay, { amount: 7 })
          return reply.code(201).send({ result, attempt: request.idempotency.attempt })
        })
      },
    })
    return app
  }
  return { account, died: died.opened, dead: await build(true), living: await build(false) }
}

test('recover() finishes a request that named a handler; its retry gets the route’s answer', async (t) => {
  const { account, died, dead, living } = await recoverable(t)
  const events = collectEvents(t)
  const key = newKey()
  begin(dead, '/pay', { key }).catch(() => {})
  await died
  t.match(await living.idempotency.recover(), { finished: 0 }, 'its lease runs')
  await runOut(key)
  t.strictSame(await living.idempotency.recover(), { finished: 1, failed: 0, skipped: 0 })
  t.match(await recordOf(database, key), { status: 'released', handler: null })
  t.match(await events.first('recovered'), { attempt: 2 })
  const answer = await send(living, '/pay', { key })
  t.equal(answer.statusCode, 201)
  t.match(answer.json(), { result: { amount: 7, key, attempt: 2 }, attempt: 3 })
  t.equal((await send(living, '/pay', { key })).body, answer.body)
  t.equal(await prisma.payment.count({ where: { tenantId: account } }), 1)
})

test('a handler gets the same from recover() as in its request', async (t) => {
  const seen: object[] = []
  const died = latch()
  const build = (isDead: boolean) =>
    buildApp(t, database, {
      plugin: { tenant: () => 'acme' },
      routes(app) {
        const pay = app.idempotency.handler('pay', async (operation, input: { amount: number }) => {
          const { tenantId, key } = operation
          seen.push({
            ...{ tenantId, key, input: structuredClone(input), keyFor: operation.keyFor('charge') },
            within: await operation.step('key', () => operation.keyFor('charge')),
            isAborted: operation.signal.aborted,
            members: ['tx', 'run'].filter((name) => name in operation),
          })
          if (isDead) {
            died.open()
            await new Promise(() => {})
          }
          return key
        })
        app.post('/pay', (request) => {
          const input = { amount: 5 }
          const paid = request.idempotency.run(pay, input)
          input.amount = 50_000
          return paid
        })
      },
    })
  const [dead, living] = [await build(true), await build(false)]
  const key = newKey()
  begin(dead, '/pay', { key }).catch(() => {})
  await died.opened
  await runOut(key)
  t.match(await living.idempotency.recover(), { finished: 1 })
  t.strictSame(seen[1], seen[0])
  t.match(seen[0], { tenantId: 'acme', key, input: { amount: 5 }, members: [] })
  t.equal((await send(living, '/pay', { key })).body, key)
  t.equal(seen.length, 2)
})

test('recover() leaves a request to a person where the route says so', async (t) => {
  const { account, died, dead, living } = await recoverable(t, { onLeaseExpired: 'uncertain' })
  const key = newKey()
  begin(dead, '/pay', { key }).catch(() => {})
  await died
  await runOut(key)
  t.match(await living.idempotency.recover(), { finished: 0, failed: 0 })
  t.match((await send(living, '/pay', { key })).json(), { code: 'IDEMPOTENCY_UNCERTAIN' })

  const response = { statusCode: 201, headers: { Location: '/payments/7' }, body: { id: 7 } }
  t.strictSame(await living.idempotency.resolve(key, { response }), { kind: 'resolved' })
  const answer = await send(living, '/pay', { key })
  t.equal(answer.statusCode, 201)
  t.equal(answer.headers.location, '/payments/7')
  t.match(answer.headers['content-type'], 'application/json')
  t.equal(answer.headers['idempotent-replayed'], 'true')
  t.strictSame(answer.json(), { id: 7 })
  t.strictSame(await living.idempotency.resolve(key, { release: true }), { kind: 'completed' })
  t.equal(await prisma.payment.count({ where: { tenantId: account } }), 1)
})

test('a released key runs again, and the interrupted attempt can change nothing', async (t) => {
  const began = latch()
  const go = latch()
  const { app, effects } = await serve(
    t,
    async (idempotency, { account }) => {
      if (idempotency.attempt === 1) {
        began.open()
        await go.opened
      }
      await idempotency.transaction((tx) => tx.payment.create(payment(account)))
      return { attempt: idempotency.attempt }
    },
    { plugin: { onLeaseExpired: 'uncertain' } },
  )
  const key = newKey()
  const late = begin(app, '/pay', { key })
  await began.opened
  t.match(await app.idempotency.resolve(key, { release: true }), { kind: 'running' })
  await runOut(key)
  t.match((await send(app, '/pay', { key })).json(), { code: 'IDEMPOTENCY_UNCERTAIN' })
  t.strictSame(await app.idempotency.resolve(key, { release: true }), { kind: 'resolved' })
  t.match((await send(app, '/pay', { key })).json(), { attempt: 3 })
  go.open()
  t.equal((await late).statusCode, 409)
  t.equal(await effects(), 1)
})

test('a stuck request is ended by force; which process holds it is told to no client', async (t) => {
  const holder = 'canary-host:4242'
  const began = latch()
  const go = latch()
  const { app, effects } = await serve(
    t,
    async (idempotency, { account }) => {
      began.open()
      await go.opened
      await idempotency.transaction((tx) => tx.payment.create(payment(account)))
      return 'late'
    },
    { plugin: { holder } },
  )
  const events = collectEvents(t)
  const key = newKey()
  const stuck = begin(app, '/pay', { key })
  await began.opened
  const busy = await send(app, '/pay', { key })
  t.match([busy.statusCode, busy.json().code], [409, 'IDEMPOTENCY_IN_PROGRESS'])
  t.notMatch(`${busy.body}${JSON.stringify(busy.headers)}`, /canary/)
  t.match(await events.first('busy'), { holder, since: Date })
  const response = { statusCode: 201, body: { id: 7 } }
  t.match(await app.idempotency.resolve(key, { response }), { kind: 'running', holder })
  const force = { force: true }
  t.strictSame(await app.idempotency.resolve(key, { response }, force), { kind: 'resolved' })
  t.match(await events.first('resolved'), { to: 'completed', forced: true, attempt: 2 })
  t.strictSame((await send(app, '/pay', { key })).json(), { id: 7 })
  go.open()
  t.match((await stuck).json(), {
    code: 'IDEMPOTENCY_LEASE_LOST',
    detail: /another attempt has begun or may begin, or an operator has decided it/,
  })
  t.equal(await effects(), 0)
  t.strictSame((await send(app, '/pay', { key })).json(), { id: 7 })
})

test('what cannot be a decision is refused, and changes nothing', async (t) => {
  const { app } = await serve(t, () => 'x')
  const { idempotency } = app
  const cyclic: { self?: unknown } = {}
  cyclic.self = cyclic
  const resolve = idempotency.resolve as (...args: unknown[]) => Promise<unknown>
  for (const [name, decision, message] of [
    ['', { release: true }, /the key of resolve/],
    [{ run: 7 }, { release: true }, /the key of resolve/],
    ['k', { result: 1 }, /resolve\(\{ run: key \}/],
    ['k', { release: false }, /must be true/],
    ['k', { release: true, response: {} }, /needs/],
    ['k', undefined, /needs/],
    [{ run: 'k' }, { response: { statusCode: 200 } }, /needs \{ result/],
    ['k', { response: { statusCode: 99 } }, /200 to 599/],
    ['k', { response: { statusCode: 200, headers: { 'set-cookie': 'a' } } }, /cookie/],
    ['k', { response: { statusCode: 200, headers: { 'bad name': 'a' } } }, /"bad name"/],
    [
      'k',
      { response: { statusCode: 200, headers: { 'Content-Encoding': 'gzip' }, body: 'a' } },
      /"content-encoding".* of bytes/,
    ],
    ['k', { response: { statusCode: 200, headers: 'a' } }, /"headers"/],
    ['k', { response: { statusCode: 200, headers: null } }, /"headers"/],
    ['k', { response: { statusCode: 200n } }, /200 to 599/],
    ['k', { response: null }, /must be an object/],
    ['k', { response: 'done' }, /must be an object/],
    ['k', { response: { statusCode: 200, body: 1n } }, /"body" .* cannot be written as JSON/],
    ['k', { response: { statusCode: 200, body: { a: [1n] } } }, /"body"/],
    ['k', { response: { statusCode: 200, body: cyclic } }, /"body"/],
    ['k', { response: { statusCode: 200, body: () => 1 } }, /"body"/],
    ['k', { response: { statusCode: 200, body: Symbol('a') } }, /"body"/],
    ['k', { response: { statusCode: 200, header: {} } }, /"header" .* not known/],
    [null, { release: true }, /the key of resolve/],
    [{ run: '\ud800' }, { release: true }, /the key of resolve/],
  ] as const) {
    await t.rejects(resolve(name, decision), { code: 'IDEMPOTENCY_OPTION_INVALID', message })
  }
})

test('an application that listens recovers by itself where it is told to', async (t) => {
  const account = randomUUID()
  const key = `run\t${randomUUID()}`
  const events = collectEvents(t)
  const app = await buildApp(t, database, {
    plugin: { recoverEvery: '1s' },
    routes(app) {
      app.idempotency.handler('settle', (operation, day: string) =>
        operation.transaction((tx) =>
          tx.payment.create({ data: { tenantId: account, amount: 1, currency: day } }),
        ),
      )
    },
  })
  await prisma.idempotencyRecord.create({
    data: {
      tenantId: '',
      key,
      operationId: 'interrupted',
      fingerprint: 'f',
      status: 'in_progress',
      leaseUntil: PAST,
      expiresAt: new Date(Date.now() + 60_000),
      handler: 'settle',
      input: '["EUR"]',
    },
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.match(await events.first('recovered'), { attempt: 2 })
  t.match(await prisma.payment.findMany({ where: { tenantId: account } }), [{ currency: 'EUR' }])
})

test('the steps of two handlers of one request do not lend each other their names', async (t) => {
  const accounts = [randomUUID(), randomUUID()]
  const keys: string[] = []
  let isBroken = true
  const app = await buildApp(t, database, {
    routes(app) {
      const handlers = accounts.map((account, n) =>
        app.idempotency.handler(`part ${n}`, async (operation) => {
          const { id } = await operation.transaction((tx) => tx.payment.create(payment(account)))
          keys.push(operation.keyFor('charge'))
          return id
        }),
      )
      app.post('/both', async ({ idempotency }) => {
        const first = await idempotency.run(handlers[0] as never, undefined)
        if (isBroken) throw new Error('between the two')
        const second = await idempotency.run(handlers[1] as never, undefined)
        return [first, second]
      })
    },
  })
  const key = newKey()
  t.equal((await send(app, '/both', { key })).statusCode, 500)
  isBroken = false
  const [first, second] = (await send(app, '/both', { key })).json()
  t.not(first, second)
  for (const tenantId of accounts) t.equal(await prisma.payment.count({ where: { tenantId } }), 1)
  t.equal(new Set(keys).size, 2, 'and the other side gets two keys')
})

/** Two handlers in one request; the second one dies in its first attempt, if it is to. */
async function twoHandlers(t: Parameters<typeof buildApp>[0], isSideBySide: boolean) {
  const accounts = [randomUUID(), randomUUID()]
  const reached = latch()
  const runs = [0, 0]
  const build = (isDead: boolean) =>
    buildApp(t, database, {
      routes(app) {
        const [first, second] = accounts.map((account, n) =>
          app.idempotency.handler(`${n}`, async (operation) => {
            runs[n] = (runs[n] as number) + 1
            const { id } = await operation.transaction((tx) => tx.payment.create(payment(account)))
            if (n === 0 && !isSideBySide) return id
            reached.open()
            if (isDead) await new Promise(() => {})
            return id
          }),
        )
        app.post('/both', async ({ idempotency }) => {
          const one = idempotency.run(first as never, undefined)
          if (!isSideBySide) await one
          return Promise.all([one, idempotency.run(second as never, undefined)])
        })
      },
    })
  const effects = () =>
    Promise.all(accounts.map((tenantId) => prisma.payment.count({ where: { tenantId } })))
  return { dead: await build(true), living: await build(false), reached, runs, effects }
}

test('a handler that is run beside another one is refused, and nothing of it is done', async (t) => {
  const { living, runs, effects } = await twoHandlers(t, true)
  const events = collectEvents(t)
  const answer = await send(living, '/both', { key: newKey() })
  t.match([answer.statusCode, answer.json().code], [500, 'IDEMPOTENCY_RUN_OPEN'])
  await events.first('released')
  t.equal((await effects())[1], 0)
  t.equal(runs[1], 0)
})

test('of two handlers one after the other, recover() finishes the one that was interrupted', async (t) => {
  const { dead, living, reached, runs, effects } = await twoHandlers(t, false)
  const key = newKey()
  begin(dead, '/both', { key }).catch(() => {})
  await reached.opened
  await runOut(key)
  t.match(await living.idempotency.recover(), { finished: 1 })
  t.strictSame(runs, [1, 2])
  const answer = await send(living, '/both', { key })
  t.equal(answer.json().length, 2)
  t.strictSame(runs, [1, 2], 'the retry gets both results')
  t.strictSame(await effects(), [1, 1])
})

test('a transaction that awaits a step from before it is refused, and no attempt hangs', async (t) => {
  const { app, effects } = await serve(t, async (idempotency, { account }) => {
    const charge = idempotency.step('charge', () => new Promise((resolve) => setImmediate(resolve)))
    return idempotency.transaction(async (tx) => {
      await charge
      await tx.payment.create(payment(account))
      return idempotency.attempt
    })
  })
  const events = collectEvents(t)
  const key = newKey()
  const refused = await send(app, '/pay', { key })
  t.match([refused.statusCode, refused.json().code], [500, 'IDEMPOTENCY_TRANSACTION_OPEN'])
  await events.first('released')
  t.equal((await send(app, '/pay', { key })).body, '2', 'the charge is stored by now')
  t.equal(await effects(), 1)
})

test('a step within a step is refused', async (t) => {
  const { app, effects } = await serve(t, (idempotency, { account }) =>
    idempotency.step('outer', () =>
      idempotency.transaction((tx) => tx.payment.create(payment(account))),
    ),
  )
  const answer = await send(app, '/pay', { key: newKey() })
  t.match(answer.json(), { code: 'IDEMPOTENCY_STEP_NESTED' })
  t.equal(await effects(), 0)
})

test('a handler that is run and not awaited is a failure, and done once', async (t) => {
  const account = randomUUID()
  const events = collectEvents(t)
  const app = await buildApp(t, database, {
    plugin: { tenant: async () => account },
    routes(app) {
      const pay = app.idempotency.handler('unawaited', (operation) =>
        operation.transaction((tx) => tx.payment.create(payment(account))),
      )
      app.post('/pay', async ({ idempotency }) => {
        const paid = idempotency.run(pay, undefined)
        return idempotency.attempt > 1 ? paid : 'hasty'
      })
    },
  })
  const key = newKey()
  const hasty = await send(app, '/pay', { key })
  t.match(hasty.json(), { code: 'IDEMPOTENCY_STEP_NOT_AWAITED' })
  await events.first('released')
  t.equal((await send(app, '/pay', { key })).statusCode, 200)
  t.equal(await prisma.payment.count({ where: { tenantId: account } }), 1)
})

test('a renewal does not get in the way of a strict transaction', {
  skip: oneSession,
}, async (t) => {
  let runs = 0
  const { app, effects } = await serve(
    t,
    (idempotency, { account }) =>
      idempotency.transaction(
        async (tx) => {
          runs += 1
          await tx.payment.create(payment(account))
          // Longer than the third of a lease after which it is renewed.
          await tx.$queryRaw`SELECT 1 FROM pg_sleep(2.1)`
        },
        { isolationLevel: 'RepeatableRead' },
      ),
    { plugin: { lease: '6s' } },
  )
  t.equal((await send(app, '/pay', { key: newKey() })).statusCode, 200)
  t.equal(runs, 1)
  t.equal(await effects(), 1)
})
