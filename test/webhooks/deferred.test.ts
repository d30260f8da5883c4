// What becomes of an event that is acknowledged first and run then: over each dispatch.
import { once } from 'node:events'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { bullmq } from '../../src/dispatch/bullmq.js'
import { inProcess } from '../../src/dispatch/in-process.js'
import type { Dispatch, WebhookEvent, WebhookHandler, WebhookOptions } from '../../src/index.js'
import {
  type AppSetup,
  collectEvents,
  latch,
  listen,
  newKey,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { redisClient } from '../fixtures/redis.js'
import { missing } from '../fixtures/services.js'
import {
  bank,
  eventOf,
  inboxApp,
  postBank,
  postStripe,
  type StripeEvent,
  stripeEvent,
} from '../fixtures/webhooks.js'

// Most of a minute on two busy cores.
t.setTimeout(120_000)
const database = await anyDatabase(t)
const { prisma } = database

/** How often a process looks at what others left: seldom enough to be of no help, or often. */
const NEVER = '1h'
const OFTEN = 20

interface Setup {
  webhook?: Partial<WebhookOptions>
  plugin?: AppSetup['plugin']
  look?: typeof NEVER | typeof OFTEN
  concurrency?: number
}

interface DispatchUnderTest {
  create(queue: string, look: number | '1h', concurrency?: number): Dispatch
  /** Whether a process hears of what another one enqueues; or else it has to look. */
  readonly tellsOthers: boolean
}

type Start = (handler: WebhookHandler, setup?: Setup) => ReturnType<typeof inboxApp>

/** Processes of one application that no other test has events of. */
function processes(t: Test, { create }: DispatchUnderTest): Start {
  const name = newKey()
  return (handler, { webhook, plugin, look = NEVER, concurrency = 10 } = {}) =>
    inboxApp(t, database, handler, {
      plugin: { dispatch: create(name, look, concurrency), ...plugin },
      webhook: { mode: 'deferred', name, ...webhook },
    })
}

type Stored = NonNullable<Awaited<ReturnType<typeof eventOf>>>

/** The event once it is so: in the table, where everybody sees the same. */
async function untilStored(
  { id }: StripeEvent,
  isSo: (stored: Stored) => boolean,
): Promise<Stored> {
  const deadline = performance.now() + 10_000
  for (;;) {
    const stored = await eventOf(database, id)
    if (stored !== null && isSo(stored)) return stored
    if (performance.now() > deadline) {
      throw new Error(`not in time: ${isSo}; ${stored?.status}, run ${stored?.fence} times`)
    }
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

const untilStatus = (event: StripeEvent, status: string) =>
  untilStored(event, (stored) => stored.status === status)

/** An effect that can be counted. */
const pay = (event: WebhookEvent, tx: { payment: typeof prisma.payment }) =>
  tx.payment.create({ data: { tenantId: event.id, amount: 1, currency: 'EUR' } })

const effectsOf = ({ id }: Stored) => prisma.payment.count({ where: { tenantId: id } })

/** As if a process had begun to run it, and died: after this time its lease is over. */
async function interrupt(event: StripeEvent, leaseMs: number, attempts = 1): Promise<void> {
  const { id } = (await eventOf(database, event.id)) as Stored
  await prisma.webhookEvent.update({
    where: { id },
    data: {
      status: 'processing',
      fence: attempts,
      attempts,
      dueAt: new Date(Date.now() + leaseMs),
    },
  })
}

function deferredEvents(t: Test, dispatch: DispatchUnderTest): void {
  t.test('it is acknowledged as soon as it is durable, and run then', async (t) => {
    const start = processes(t, dispatch)
    const go = latch()
    const seen: unknown[] = []
    const app = await start(async (event) => {
      seen.push(event.payload, event.attempt, event.rawBody.toString())
      await go.opened
    })
    const event = stripeEvent()
    const answer = await postStripe(app, event)
    t.equal(answer.statusCode, 200)
    t.strictSame(answer.json(), { outcome: 'accepted' })
    await untilStatus(event, 'processing')
    const again = await postStripe(app, event)
    t.equal(again.statusCode, 200)
    t.strictSame(again.json(), { outcome: 'accepted' })
    go.open()
    t.match(await untilStatus(event, 'processed'), { fence: 1, attempts: 1, deliveries: 2 })
    t.strictSame(seen, [event, 1, JSON.stringify(event)])
    t.strictSame((await postStripe(app, event)).json(), { outcome: 'duplicate' })
  })

  t.test('one that fails is run again after pauses of full jitter', async (t) => {
    const start = processes(t, dispatch)
    const events = collectEvents(t)
    const app = await start(
      ({ attempt }) => {
        if (attempt < 4) throw new Error(`attempt ${attempt}`)
      },
      { webhook: { retry: { first: 40, most: 60 } } },
    )
    const event = stripeEvent()
    await postStripe(app, event)
    t.match(await untilStatus(event, 'processed'), {
      fence: 4,
      attempts: 4,
      errors: [
        { attempt: 1, message: 'Error: attempt 1' },
        { attempt: 2, message: 'Error: attempt 2' },
        { attempt: 3, message: 'Error: attempt 3' },
      ],
    })
    const pauses = events.all.flatMap((e) => (e.kind === 'webhook_failed' ? [e.retryInMs] : []))
    t.equal(pauses.length, 3)
    for (const [n, pause] of pauses.entries()) {
      t.ok(pause !== null && pause >= 0 && pause <= (n === 0 ? 40 : 60), `${pause} ms`)
    }
  })

  t.test('one that fails too often is dead, and acknowledged', async (t) => {
    const start = processes(t, dispatch)
    const events = collectEvents(t)
    let runs = 0
    const app = await start(
      () => {
        runs += 1
        throw new Error('always')
      },
      { webhook: { retry: { attempts: 3, first: 1, most: 1 } } },
    )
    const event = stripeEvent()
    await postStripe(app, event)
    t.match(await untilStatus(event, 'dead'), { attempts: 3, dueAt: null })
    const answer = await postStripe(app, event)
    t.equal(answer.statusCode, 200)
    t.strictSame(answer.json(), { outcome: 'dead' })
    t.equal(runs, 3)
    t.match(await events.first('webhook_dead'), { eventId: event.id, attempt: 3 })
  })

  t.test('one that runs longer than its lease is run once', async (t) => {
    const start = processes(t, dispatch)
    let runs = 0
    const handler = async (event: WebhookEvent) => {
      runs += 1
      await new Promise((resolve) => setTimeout(resolve, 2_200))
      t.notOk(event.signal.aborted)
      await event.transaction((tx) => pay(event, tx))
    }
    const webhook = { lease: '1s' } as const
    const app = await start(handler, { webhook, look: OFTEN })
    const other = await start(handler, { webhook, look: OFTEN })
    other.idempotency.work()
    const event = stripeEvent()
    await postStripe(app, event)
    const stored = await untilStatus(event, 'processed')
    t.equal(stored.fence, 1)
    t.equal(runs, 1)
    t.equal(await effectsOf(stored), 1)
  })

  t.test('handlers that never end keep their places until their leases are over', async (t) => {
    const start = processes(t, dispatch)
    const events = collectEvents(t)
    const go = latch()
    const late: Promise<unknown>[] = []
    const app = await start(
      async (event) => {
        if (event.type === 'endless' && event.attempt === 1) {
          // As one does that waits for an answer, and does not listen to its signal.
          await go.opened
          const paying = event.transaction((tx) => pay(event, tx))
          late.push(paying.catch((error) => error))
          event.reject('too late')
          return paying
        }
        return event.transaction((tx) => pay(event, tx))
      },
      { concurrency: 2, look: OFTEN, webhook: { lease: '1s', maxRun: '1s' } },
    )
    const endless = [stripeEvent({ type: 'endless' }), stripeEvent({ type: 'endless' })]
    for (const event of endless) {
      await postStripe(app, event)
      await untilStatus(event, 'processing')
    }
    const other = stripeEvent()
    await postStripe(app, other)
    await untilStatus(other, 'processed')
    const stored = await Promise.all(endless.map((event) => untilStatus(event, 'processed')))
    t.match(stored, Array(2).fill({ fence: 2, attempts: 2, errors: [] }))
    await events.first('webhook_overdue', 2)
    const overdue = events.all.filter(({ kind }) => kind === 'webhook_overdue')
    t.match(overdue, [
      { attempt: 1, overdue: 1 },
      { attempt: 1, overdue: 2 },
    ])
    const names = overdue.map((event) => Reflect.get(event, 'eventId'))
    t.strictSame(new Set(names), new Set(endless.map(({ id }) => id)))

    go.open()
    await new Promise((resolve) => setImmediate(resolve))
    t.match(await Promise.all(late), Array(2).fill({ code: 'IDEMPOTENCY_LEASE_LOST' }))
    for (const before of stored) {
      t.strictSame(await eventOf(database, before.eventId as string), before)
      t.equal(await effectsOf(before), 1)
    }
    t.notOk(events.kinds().includes('webhook_dead'), 'what ends too late decides nothing')
  })

  t.test('serialize: a handler that never ends does not keep the lane', async (t) => {
    const start = processes(t, dispatch)
    const events = collectEvents(t)
    const running: string[] = []
    const ended: string[] = []
    const app = await start(
      async (event) => {
        const run = `${event.type} ${event.attempt}`
        running.push(run)
        if (run === 'first 1') await new Promise(() => {})
        await event.transaction((tx) => pay(event, tx))
        ended.push(run)
      },
      { look: OFTEN, webhook: { serialize: true, lease: '1s', maxRun: '1s' } },
    )
    const data = { object: { id: newKey() } }
    const [first, second] = [
      stripeEvent({ data, type: 'first' }),
      stripeEvent({ data, type: 'second' }),
    ]
    await postStripe(app, first)
    await untilStatus(first, 'processing')
    await postStripe(app, second)
    await untilStatus(second, 'processed')
    await events.first('webhook_overdue')
    t.strictSame(running, ['first 1', 'first 2', 'second 1'])
    t.strictSame(ended, ['first 2', 'second 1'])
    t.match(await eventOf(database, first.id), { status: 'processed', fence: 2 })
  })

  t.test('a handler whose lease is over does not hold up a server that closes', async (t) => {
    const start = processes(t, dispatch)
    const events = collectEvents(t)
    const go = latch()
    const app = await start(
      async ({ attempt }) => {
        if (attempt === 1) await go.opened
        if (attempt === 1) throw new Error('too late')
      },
      // Longer than this test may take.
      { look: OFTEN, plugin: { drain: '1h' }, webhook: { lease: '1s', maxRun: '1s' } },
    )
    await listen(app)
    const event = stripeEvent()
    await postStripe(app, event)
    const stored = await untilStatus(event, 'processed')
    t.match(stored, { fence: 2, attempts: 2 })
    await events.first('webhook_overdue')
    await app.close()
    t.match(await events.first('abandoned'), { attempt: 1 })
    t.notOk(events.kinds().includes('webhook_handed_back'))
    go.open()
    await new Promise((resolve) => setImmediate(resolve))
    t.strictSame(await eventOf(database, event.id), stored)
  })

  t.test('a handler that ends after its lease, before anybody took over, counts', async (t) => {
    const start = processes(t, dispatch)
    const events = collectEvents(t)
    const go = latch()
    const app = await start(() => go.opened, { webhook: { lease: '1s', maxRun: '1s' } })
    const event = stripeEvent()
    await postStripe(app, event)
    const { id } = await untilStatus(event, 'processing')
    // Nobody looks: it is its own for as long as nobody does.
    t.match(await events.first('webhook_overdue'), { event: id, overdue: 1 })
    go.open()
    t.match(await untilStatus(event, 'processed'), { fence: 1, attempts: 1 })
  })

  t.test('replay() of one that never ends is told that it runs', async (t) => {
    const start = processes(t, dispatch)
    const app = await start(
      ({ attempt }) => {
        if (attempt === 1) throw new Error('replay it')
        return new Promise(() => {})
      },
      { webhook: { lease: '1s', maxRun: '1s', retry: { attempts: 1 } } },
    )
    const event = stripeEvent()
    await postStripe(app, event)
    const { id } = await untilStatus(event, 'dead')
    t.strictSame(await app.idempotency.replay(id), { kind: 'running' })
  })

  t.test('one whose process died is taken over when its lease has run out', async (t) => {
    const start = processes(t, dispatch)
    const ranAt: number[] = []
    const handler = () => {
      ranAt.push(performance.now())
    }
    const receiver = await start(handler, { plugin: { worker: false } })
    const event = stripeEvent()
    await postStripe(receiver, event)
    const interruptedAt = performance.now()
    await interrupt(event, 400)
    const app = await start(handler, { look: OFTEN })
    app.idempotency.work()
    t.match(await untilStatus(event, 'processed'), { fence: 2, attempts: 2 })
    t.ok((ranAt[0] as number) - interruptedAt >= 390)
    t.equal(ranAt.length, 1)
  })

  t.test(
    'one that kills its process each time is dead in the end, and not run for that',
    async (t) => {
      const start = processes(t, dispatch)
      let runs = 0
      const handler = () => {
        runs += 1
      }
      const webhook = { retry: { attempts: 3 } }
      const receiver = await start(handler, { webhook, plugin: { worker: false } })
      const event = stripeEvent()
      await postStripe(receiver, event)
      await interrupt(event, 0, 3)
      const app = await start(handler, { webhook, look: OFTEN })
      app.idempotency.work()
      const stored = await untilStatus(event, 'dead')
      t.match(stored, {
        attempts: 3,
        errors: [{ attempt: 3, message: /^It did not end: its process died/ }],
      })
      t.equal(runs, 0)
    },
  )

  t.test('a server that closes waits for what it runs, and begins nothing more', async (t) => {
    const start = processes(t, dispatch)
    const go = latch()
    let runs = 0
    const app = await start(
      async () => {
        runs += 1
        await go.opened
      },
      { look: OFTEN },
    )
    await listen(app)
    const event = stripeEvent()
    await postStripe(app, event)
    await untilStatus(event, 'processing')
    const closed = app.close()
    // Recorded by another process, meanwhile.
    const late = stripeEvent()
    const receiver = await start(() => {}, { plugin: { worker: false } })
    await postStripe(receiver, late)
    t.equal((await eventOf(database, event.id))?.status, 'processing')
    go.open()
    await closed
    t.match(await eventOf(database, event.id), { status: 'processed', fence: 1 })
    t.match(await eventOf(database, late.id), { status: 'received' })
    t.equal(runs, 1)
  })

  t.test('what takes longer than that is handed back to another process', async (t) => {
    const start = processes(t, dispatch)
    const events = collectEvents(t)
    const isTakenOver = latch()
    const late: Error[] = []
    const handlerIsOver = latch()
    const app = await start(
      async (event) => {
        await once(event.signal, 'abort')
        await isTakenOver.opened
        await event.transaction((tx) => pay(event, tx)).catch((error) => late.push(error))
        await event.step('charge', () => 1).catch((error) => late.push(error))
        event.defer()
        handlerIsOver.open()
      },
      { plugin: { drain: 20 } },
    )
    await listen(app)
    const event = stripeEvent()
    await postStripe(app, event)
    await untilStatus(event, 'processing')
    await app.close()
    t.match(await events.first('webhook_handed_back'), { eventId: event.id })

    const other = await start((event) => event.transaction((tx) => pay(event, tx)))
    other.idempotency.work()
    // It is no attempt of the event's that the server closed.
    const stored = await untilStatus(event, 'processed')
    t.match(stored, { fence: 2, attempts: 1 })
    isTakenOver.open()
    await handlerIsOver.opened
    await new Promise((resolve) => setImmediate(resolve))
    t.match(late, [{ code: 'IDEMPOTENCY_LEASE_LOST' }, { code: 'IDEMPOTENCY_LEASE_LOST' }])
    t.strictSame(await eventOf(database, event.id), stored, 'nothing was changed late')
    t.equal(await effectsOf(stored), 1)
    t.notOk(events.kinds().includes('webhook_postponed'), 'nor told of')
  })

  t.test('what was handed back is nobody’s until somebody takes it over', async (t) => {
    const start = processes(t, dispatch)
    let refused: Error | undefined
    const handlerIsOver = latch()
    const go = latch()
    const app = await start(
      async (event) => {
        await go.opened
        await event
          .transaction((tx) => pay(event, tx))
          .catch((error) => {
            refused = error
          })
        handlerIsOver.open()
        throw new Error('too late')
      },
      { plugin: { drain: 0 } },
    )
    await listen(app)
    const event = stripeEvent()
    await postStripe(app, event)
    await untilStatus(event, 'processing')
    await app.close()
    const handedBack = (await eventOf(database, event.id)) as Stored
    t.match(handedBack, { status: 'retrying', fence: 1, attempts: 0, errors: [] })
    go.open()
    await handlerIsOver.opened
    await new Promise((resolve) => setImmediate(resolve))
    t.match(refused, { code: 'IDEMPOTENCY_LEASE_LOST' })
    t.strictSame(await eventOf(database, event.id), handedBack)
    t.equal(await effectsOf(handedBack), 0)
  })

  t.test('a running process begins at once what another one handed back', async (t) => {
    const start = processes(t, dispatch)
    const app = await start(({ signal }) => once(signal, 'abort'), { plugin: { drain: 20 } })
    await listen(app)
    const event = stripeEvent()
    await postStripe(app, event)
    await untilStatus(event, 'processing')
    const other = await start(() => {}, { look: dispatch.tellsOthers ? NEVER : OFTEN })
    other.idempotency.work()
    const closed = app.close()
    t.match(await untilStatus(event, 'processed'), { fence: 2, attempts: 1 })
    await closed
  })

  t.test('serialize: one at a time for an object, side by side for several', async (t) => {
    const start = processes(t, dispatch)
    const running = new Map<string, number>()
    const both = latch()
    const wrong: string[] = []
    // Nobody looks regularly: the next one is started when the lane is free.
    const app = await start(
      async ({ payload }) => {
        const { id } = payload.data.object
        const count = (running.get(id) ?? 0) + 1
        running.set(id, count)
        if (count > 1) wrong.push(id)
        if ([...running.values()].filter((n) => n > 0).length === 2) both.open()
        await both.opened
        running.set(id, 0)
      },
      { webhook: { serialize: true } },
    )
    const objects = [newKey(), newKey()]
    const posted = Array.from({ length: 20 }, (_, n) =>
      stripeEvent({ data: { object: { id: objects[n % 2] as string } } }),
    )
    await Promise.all(posted.map((event) => postStripe(app, event)))
    for (const event of posted) t.match(await untilStatus(event, 'processed'), { fence: 1 })
    t.strictSame(wrong, [])
  })

  t.test('serialize: a failed event does not hold up the others of its object', async (t) => {
    const start = processes(t, dispatch)
    const app = await start(
      ({ type }) => {
        if (type === 'bad') throw new Error('bad')
      },
      { webhook: { serialize: true, retry: { first: '1h', most: '1h' } } },
    )
    const data = { object: { id: newKey() } }
    const bad = stripeEvent({ data, type: 'bad' })
    await postStripe(app, bad)
    await untilStatus(bad, 'retrying')
    const good = stripeEvent({ data })
    await postStripe(app, good)
    await untilStatus(good, 'processed')
  })

  t.test('defer(): what it depends on wakes it', async (t) => {
    const start = processes(t, dispatch)
    const arrived = new Set<string>()
    const app = await start(
      (event) => {
        const { id } = event.payload.data.object
        if (event.type === 'order') arrived.add(id)
        else if (!arrived.has(id)) event.defer({ after: '1h' })
      },
      { webhook: { serialize: true } },
    )
    const data = { object: { id: newKey() } }
    const payment = stripeEvent({ data, type: 'payment' })
    await postStripe(app, payment)
    t.match(await untilStatus(payment, 'retrying'), { deferrals: 1, attempts: 0, fence: 1 })
    await postStripe(app, stripeEvent({ data, type: 'order' }))
    t.match(await untilStatus(payment, 'processed'), { deferrals: 1, attempts: 1, fence: 2 })
  })

  t.test('defer(): what never arrives makes it dead', async (t) => {
    const start = processes(t, dispatch)
    const app = await start((event) => event.defer({ after: 1 }), { webhook: { deferrals: 3 } })
    const event = stripeEvent()
    await postStripe(app, event)
    const stored = await untilStatus(event, 'dead')
    t.match(stored, { deferrals: 3, fence: 4, errors: [{ message: /put back too often/ }] })
  })

  t.test('final: the effect and "processed" are one commit', async (t) => {
    const start = processes(t, dispatch)
    const events = collectEvents(t)
    const go = latch()
    let runs = 0
    const app = await start(
      async (event) => {
        runs += 1
        await event.transaction((tx) => pay(event, tx), { final: true })
        await go.opened
        t.notOk(event.signal.aborted)
        throw new Error('after the end')
      },
      { webhook: { serialize: true, lease: '1s' } },
    )
    const event = stripeEvent()
    await postStripe(app, event)
    const stored = await untilStatus(event, 'processed')
    t.equal(await effectsOf(stored), 1)
    t.ok((stored.dueAt as Date).getTime() > Date.now() + 29 * 86_400_000, 'kept for its retention')
    // Past the time in which a lease would be renewed.
    await new Promise((resolve) => setTimeout(resolve, 400))
    go.open()
    t.match(await events.first('webhook_failed'), { retryInMs: null })
    t.notOk(events.kinds().includes('lease_lost'))
    await events.first('webhook_processed')
    t.match(await eventOf(database, event.id), { status: 'processed', fence: 1, attempts: 1 })
    t.equal(runs, 1)
  })

  t.test('steps and transactions are done once over all attempts', async (t) => {
    const start = processes(t, dispatch)
    const keys = new Set<string>()
    let charges = 0
    const results: unknown[] = []
    const app = await start(
      async (event) => {
        const booked = await event.transaction(
          async (tx) => ({ id: (await pay(event, tx)).id, at: new Date(7) }),
          { name: '__proto__' },
        )
        if (event.attempt === 1) throw new Error('after the transaction')
        const charge = await event.step('charge', () => {
          charges += 1
          keys.add(event.keyFor('charge'))
          return { cents: 12n }
        })
        results.push(booked, charge)
        if (event.attempt === 2) throw new Error('after the step')
        await event.transaction((tx) => pay(event, tx), { name: 'second' })
      },
      { webhook: { retry: { first: 1, most: 1 } } },
    )
    const event = stripeEvent()
    await postStripe(app, event)
    const stored = await untilStatus(event, 'processed')
    t.equal(stored.fence, 3)
    t.equal(charges, 1)
    t.equal(keys.size, 1)
    t.equal(await effectsOf(stored), 2)
    t.strictSame(results.slice(0, 2), results.slice(2))
    t.match(results[1], { cents: 12n })
    const names = Object.keys(stored.steps as object).map((path) => JSON.parse(path).join())
    t.strictSame(names.sort(), ['__proto__', 'charge', 'second'])
  })

  t.test(
    'a transaction in or beside another one is refused, and the first one stands',
    async (t) => {
      const start = processes(t, dispatch)
      const refused: unknown[] = []
      const keep = (error: unknown) => void refused.push(error)
      const app = await start(async (event) => {
        await event.transaction(async (tx) => {
          await pay(event, tx)
          await event.transaction((inner) => pay(event, inner), { name: 'nested' }).catch(keep)
          await event.step('nested, too', () => 1).catch(keep)
        })
        const first = event.transaction((tx) => pay(event, tx), { name: 'one' })
        await event.transaction((tx) => pay(event, tx), { name: 'two' }).catch(keep)
        await first
      })
      const event = stripeEvent()
      await postStripe(app, event)
      const stored = await untilStatus(event, 'processed')
      t.match(refused, Array(3).fill({ code: 'IDEMPOTENCY_TRANSACTION_OPEN' }))
      t.equal(await effectsOf(stored), 2)
    },
  )

  t.test(
    'a result that cannot be stored is refused at once, and its effects with it',
    async (t) => {
      const start = processes(t, dispatch)
      const refused: unknown[] = []
      const app = await start(async (event) => {
        await event
          .transaction(async (tx) => {
            await pay(event, tx)
            return () => 'a function'
          })
          .catch((error) => void refused.push(error))
      })
      const event = stripeEvent()
      await postStripe(app, event)
      const stored = await untilStatus(event, 'processed')
      t.match(refused, [{ code: 'IDEMPOTENCY_STEP_NOT_STORABLE' }])
      t.equal(await effectsOf(stored), 0)
      t.strictSame(stored.steps, {})
    },
  )

  t.test('replay: one that is dead is run again, with all its attempts', async (t) => {
    const start = processes(t, dispatch)
    let isMended = false
    const app = await start(
      () => {
        if (!isMended) throw new Error('broken')
      },
      { webhook: { retry: { attempts: 2, first: 1, most: 1 } } },
    )
    const event = stripeEvent()
    await postStripe(app, event)
    const { id } = await untilStatus(event, 'dead')
    t.strictSame(await app.idempotency.replay(id), { kind: 'failed' })
    await untilStatus(event, 'dead')
    isMended = true
    t.strictSame(await app.idempotency.replay({ provider: 'stripe', eventId: event.id }), {
      kind: 'processed',
    })
    t.match(await eventOf(database, event.id), { status: 'processed', fence: 5, attempts: 1 })
  })

  t.test('replay: one that is processed only when forced, and then with its steps', async (t) => {
    const start = processes(t, dispatch)
    let steps = 0
    const app = await start((event) => event.step('count', () => (steps += 1)))
    const event = stripeEvent()
    await postStripe(app, event)
    const { id } = await untilStatus(event, 'processed')
    t.strictSame(await app.idempotency.replay(id), { kind: 'refused' })
    t.equal(steps, 1)
    t.strictSame(await app.idempotency.replay(id, { force: true }), { kind: 'processed' })
    t.equal(steps, 2)
  })

  t.test('replay: not one that is missing, or running', async (t) => {
    const start = processes(t, dispatch)
    const go = latch()
    const app = await start(() => go.opened)
    t.strictSame(await app.idempotency.replay(newKey()), { kind: 'missing' })
    const unknown = { provider: 'stripe', eventId: newKey() }
    t.strictSame(await app.idempotency.replay(unknown), { kind: 'missing' })
    const event = stripeEvent()
    await postStripe(app, event)
    const { id } = await untilStatus(event, 'processing')
    t.strictSame(await app.idempotency.replay(id, { force: true }), { kind: 'running' })
    go.open()
    t.match(await untilStatus(event, 'processed'), { fence: 1 })
  })

  t.test('ingest: an event that nobody delivered goes the same way', async (t) => {
    const start = processes(t, dispatch)
    const seen: unknown[] = []
    const name = newKey()
    const app = await start((event) => void seen.push(event.payload), { webhook: { name } })
    const event = stripeEvent()
    const given = { endpoint: name, payload: event }
    t.match(await app.idempotency.ingest(given), { outcome: 'accepted', deliveries: 1 })
    await untilStatus(event, 'processed')
    t.match(await app.idempotency.ingest(given), { outcome: 'duplicate', deliveries: 2 })
    t.strictSame((await postStripe(app, event)).json(), { outcome: 'duplicate' })
    t.strictSame(seen, [event])
    await t.rejects(app.idempotency.ingest({ endpoint: '/nowhere', payload: event }), {
      code: 'IDEMPOTENCY_EVENT_MISSING',
    })
  })

  t.test('work(): a process that does not listen runs what others receive', async (t) => {
    const start = processes(t, dispatch)
    const ranBy: string[] = []
    const receiver = await start(() => void ranBy.push('receiver'), { plugin: { worker: false } })
    await listen(receiver)
    const before = stripeEvent()
    await postStripe(receiver, before)
    const worker = await start(() => void ranBy.push('worker'), { look: OFTEN })
    worker.idempotency.work()
    await untilStatus(before, 'processed')
    const after = stripeEvent()
    await postStripe(receiver, after)
    await untilStatus(after, 'processed')
    t.strictSame(ranBy, ['worker', 'worker'])
  })

  t.test('100 deliveries at once to two processes are one run', async (t) => {
    const start = processes(t, dispatch)
    let runs = 0
    const handler = async (event: WebhookEvent) => {
      runs += 1
      await event.transaction((tx) => pay(event, tx))
    }
    const apps = await Promise.all([start(handler), start(handler)])
    const event = stripeEvent()
    const answers = await Promise.all(
      Array.from({ length: 100 }, (_, n) => postStripe(apps[n % 2] as (typeof apps)[0], event)),
    )
    t.ok(answers.every(({ statusCode }) => statusCode === 200))
    const stored = await untilStatus(event, 'processed')
    t.match(stored, { deliveries: 100, fence: 1 })
    t.equal(await effectsOf(stored), 1)
    t.equal(runs, 1)
  })
}

t.test('in the process', async (t) => {
  deferredEvents(t, {
    create: (_queue, look, concurrency = 10) => inProcess({ pollEvery: look, concurrency }),
    tellsOthers: false,
  })
})

t.test('BullMQ', { skip: await missing('redis') }, async (t) => {
  const { url, prefix } = await redisClient(t)
  const connection = new Redis(url)
  t.teardown(() => connection.disconnect())
  deferredEvents(t, {
    create: (queue, look, concurrency = 10) =>
      bullmq({ connection, prefix, queue, sweepEvery: look, concurrency }),
    tellsOthers: true,
  })
})

t.test('a large batch is stored by few statements', async (t) => {
  const pool = new WatchedPool(database)
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/bank',
    plugin: { pool, worker: false },
    webhook: { provider: bank(), mode: 'deferred', serialize: () => 'one lane' },
  })
  const items = Array.from({ length: 1_000 }, () => ({ id: newKey() }))
  t.strictSame((await postBank(app, items)).json(), { outcome: 'accepted' })
  const statements = pool.asked.filter((name) => name === 'fi_event_record').length
  t.ok(statements <= 50, `${statements} statements`)
})
