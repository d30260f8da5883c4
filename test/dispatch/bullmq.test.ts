// What only the dispatch on BullMQ has to promise: that Redis may fail.
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { type BullmqOptions, bullmq } from '../../src/dispatch/bullmq.js'
import { Shelf } from '../contracts/dispatch.js'
import { latch } from '../fixtures/app.js'
import { missingRedisServer, redisClient, redisServer } from '../fixtures/redis.js'
import { missing } from '../fixtures/services.js'

const noRedis = await missing('redis')
const noRedisServer = await missingRedisServer()
const NEVER = '1h'

function clientOf(t: Test, url: string, options: object = {}): Redis {
  const connection = new Redis(url, options)
  connection.on('error', () => {})
  t.teardown(() => connection.disconnect())
  return connection
}

function dispatchOf(t: Test, options: BullmqOptions) {
  const dispatch = bullmq({ sweepEvery: NEVER, ...options })
  t.teardown(async () => {
    await dispatch.stop()
    await dispatch.close()
  })
  return dispatch
}

const job = (id: string, inMs = 0) => ({ id, fence: 0, inMs })

t.test(
  'while Redis is away nothing waits for it, and what was enqueued is run when it is back',
  { skip: noRedisServer },
  async (t) => {
    const server = await redisServer(t)
    const shelf = new Shelf()
    const dispatch = dispatchOf(t, { connection: clientOf(t, server.url) })
    dispatch.start(shelf.work('a'))
    shelf.put('before')
    dispatch.enqueue(job('before'), shelf.report)
    await shelf.until(() => shelf.done === 1)

    await server.kill()
    const began = performance.now()
    for (let n = 0; n < 1_000; n += 1) {
      shelf.put(`${n}`)
      dispatch.enqueue(job(`${n}`), shelf.report)
    }
    t.ok(performance.now() - began < 500)
    await shelf.until(() => shelf.reported.length > 0)
    t.match(shelf.reported, [{ kind: 'dispatch_failed', failure: { hint: /Redis/ } }])
    t.equal(shelf.done, 1)

    await server.start()
    await shelf.until(() => shelf.done === 1_001)
    t.equal(shelf.runs.length, 1_001)
    t.equal(shelf.reported.length, 1, 'an outage is told of once')
  },
)

t.test(
  'a Redis that is not there yet keeps nobody from starting',
  { skip: noRedisServer },
  async (t) => {
    const server = await redisServer(t)
    await server.kill()
    const shelf = new Shelf()
    const dispatch = dispatchOf(t, { connection: clientOf(t, server.url, { lazyConnect: true }) })
    shelf.put('e')
    dispatch.enqueue(job('e'), shelf.report)
    dispatch.start(shelf.work('a'))
    await shelf.until(() => shelf.reported.length > 0)
    await server.start()
    await shelf.until(() => shelf.done === 1)
  },
)

t.test(
  'a run that goes on while Redis is lost under it is not run again',
  { skip: noRedisServer },
  async (t) => {
    const server = await redisServer(t)
    const shelf = new Shelf()
    const go = latch()
    shelf.handler = () => go.opened
    const dispatch = dispatchOf(t, { connection: clientOf(t, server.url) })
    dispatch.start(shelf.work('a'))
    shelf.put('e')
    dispatch.enqueue(job('e'), shelf.report)
    await shelf.until(() => shelf.running === 1)
    await server.kill()
    await server.start()
    go.open()
    await shelf.until(() => shelf.done === 1)
    shelf.put('after')
    dispatch.enqueue(job('after'), shelf.report)
    dispatch.lookAgain()
    await shelf.until(() => shelf.done === 2)
    t.equal(shelf.runs.length, 2)
  },
)

t.test('a process whose Redis is away closes, and soon', { skip: noRedisServer }, async (t) => {
  const server = await redisServer(t)
  const shelf = new Shelf()
  shelf.handler = () => new Promise(() => {})
  const dispatch = dispatchOf(t, { connection: clientOf(t, server.url) })
  dispatch.start(shelf.work('a'))
  shelf.put('e')
  dispatch.enqueue(job('e'), shelf.report)
  await shelf.until(() => shelf.running === 1)
  await server.kill()
  dispatch.enqueue(job('other'), shelf.report)
  await shelf.until(() => shelf.reported.length > 0)
  const began = performance.now()
  await dispatch.stop()
  await dispatch.close()
  t.ok(performance.now() - began < 1_500, `${performance.now() - began} ms`)
})

t.test('jobs that Redis has lost are found by the sweep', { skip: noRedisServer }, async (t) => {
  const server = await redisServer(t)
  const connection = clientOf(t, server.url)
  const shelf = new Shelf()
  const sender = dispatchOf(t, { connection })
  for (let n = 0; n < 600; n += 1) {
    shelf.put(`${n}`)
    sender.enqueue(job(`${n}`), shelf.report)
  }
  const untilQueued = async (count: number) => {
    while ((await connection.llen('idempotency:webhooks:wait')) !== count);
  }
  await untilQueued(600)
  await connection.flushall()
  t.equal(await connection.dbsize(), 0)

  // Not more than it looks up at once: the rest follows when those are run.
  const dispatch = dispatchOf(t, { connection })
  dispatch.start(shelf.work('a'))
  await shelf.until(() => shelf.done === 600)
  t.equal(shelf.runs.length, 600)
})

t.test('a Redis that never answered holds up neither events nor the end', async (t) => {
  // Nobody listens on this port, which is not for everybody.
  const connection = clientOf(t, 'redis://127.0.0.1:1', { retryStrategy: () => 50 })
  const shelf = new Shelf()
  const dispatch = bullmq({ connection, prefix: 'nowhere', sweepEvery: NEVER })
  shelf.put('e')
  for (let n = 0; n < 1_000; n += 1) dispatch.enqueue(job('e'), shelf.report)
  dispatch.start(shelf.work('a'))
  const startedAt = performance.now()
  await dispatch.stop()
  await dispatch.close()
  // Below the time that Fastify gives a plugin to close.
  t.ok(performance.now() - startedAt < 5_000)
})

t.test('the queue holds names only, and nothing of what is over', { skip: noRedis }, async (t) => {
  const { redis, url, prefix } = await redisClient(t)
  const shelf = new Shelf()
  const sender = dispatchOf(t, { connection: clientOf(t, url), prefix, queue: 'q' })
  for (let n = 0; n < 50; n += 1) {
    shelf.put(`e${n}`)
    sender.enqueue(job(`e${n}`), shelf.report)
  }
  while ((await redis.llen(`${prefix}:q:wait`)) !== 50);
  t.match(await redis.hgetall(`${prefix}:q:e7-0`), { name: 'run', data: '{"id":"e7","fence":0}' })

  const dispatch = dispatchOf(t, { connection: clientOf(t, url), prefix, queue: 'q' })
  dispatch.start(shelf.work('a'))
  await shelf.until(() => shelf.done === 50)
  await dispatch.stop()
  await dispatch.close()
  const keys = await redis.keys(`${prefix}:q:*`)
  t.strictSame(
    keys.map((key) => key.slice(`${prefix}:q:`.length)).sort(),
    ['events', 'id', 'marker', 'meta', 'stalled-check'].filter((key) =>
      keys.includes(`${prefix}:q:${key}`),
    ),
  )
})

t.test('a run that outlives its process leaves no job behind', { skip: noRedis }, async (t) => {
  const { redis, url, prefix } = await redisClient(t)
  const shelf = new Shelf()
  const go = latch()
  shelf.handler = () => go.opened
  const dispatch = dispatchOf(t, { connection: clientOf(t, url), prefix, queue: 'q' })
  dispatch.start(shelf.work('a'))
  shelf.put('e')
  dispatch.enqueue(job('e'), shelf.report)
  await shelf.until(() => shelf.running === 1)
  t.equal(await redis.llen(`${prefix}:q:active`), 1)
  await dispatch.stop()
  await dispatch.close()
  t.equal(await redis.llen(`${prefix}:q:active`), 0)
  t.equal(await redis.exists(`${prefix}:q:e-0`), 0)
  go.open()
})

t.test(
  "the application's client is left alone, whatever its options are",
  { skip: noRedis },
  async (t) => {
    const { url, prefix } = await redisClient(t)
    const connection = clientOf(t, url, {
      keyPrefix: `${prefix}app:`,
      maxRetriesPerRequest: 3,
      commandTimeout: 200,
      lazyConnect: true,
      retryStrategy: () => null,
    })
    const shelf = new Shelf()
    const dispatch = dispatchOf(t, { connection, queue: 'q' })
    dispatch.start(shelf.work('a'))
    shelf.put('e', 400)
    dispatch.enqueue(job('e', 400), shelf.report)
    await shelf.until(() => shelf.done === 1)
    t.equal(connection.status, 'wait', 'not even connected')
    await connection.connect()
    t.equal(await connection.exists('idempotency:q:meta'), 1, 'under its prefix')
    await dispatch.stop()
    await dispatch.close()
    t.equal(await connection.ping(), 'PONG')
    t.equal(connection.listenerCount('error'), 1)
    t.strictSame(shelf.reported, [])
  },
)

t.test(
  'a job that was fetched while its worker stopped is for another',
  { skip: noRedis },
  async (t) => {
    const { url, prefix } = await redisClient(t)
    const shelf = new Shelf()
    const stopped = dispatchOf(t, { connection: clientOf(t, url), prefix, queue: 'q' })
    stopped.start(shelf.work('stopped'))
    shelf.put('first')
    stopped.enqueue(job('first'), shelf.report)
    await shelf.until(() => shelf.done === 1)
    // It waits for a job now, and will get this one.
    await stopped.stop()
    shelf.put('e')
    stopped.enqueue(job('e'), shelf.report)
    const other = dispatchOf(t, { connection: clientOf(t, url), prefix, queue: 'q' })
    // It hears of the event from the queue alone.
    const work = { ...shelf.work('other'), listDue: async () => [] }
    other.start(work)
    await shelf.until(() => shelf.done === 2)
    t.match(shelf.runsOf('e'), [{ process: 'other' }])
  },
)

t.test('options are checked, and the message says what to write', async (t) => {
  const connection = new Redis({ lazyConnect: true })
  t.teardown(() => connection.disconnect())
  const cluster = Object.assign(Object.create(connection), { isCluster: true })
  for (const [options, message] of [
    [undefined, /the options of bullmq\(\) must be an object/],
    [{}, /option "connection" of bullmq\(\) must be an ioredis client, such as new Redis/],
    [{ connection: { host: 'localhost' } }, /must be an ioredis client/],
    [{ connection: cluster }, /of one Redis, and not of a cluster/],
    [{ connection, prefix: '' }, /option "prefix" of bullmq\(\) must be .*'idempotency'/],
    [{ connection, queue: 'a:b' }, /option "queue" .* without a colon, such as 'webhooks'/],
    [{ connection, queue: '' }, /option "queue"/],
    [{ connection, concurrency: 0 }, /option "concurrency" .* whole number from 1/],
    [{ connection, sweepEvery: 'often' }, /option "sweepEvery" .* such as '10s'/],
    [{ connection, sweepEvery: 1 }, /option "sweepEvery"/],
    [{ connection, pollEvery: '1s' }, /option "pollEvery" of bullmq\(\) is not known/],
  ] as const) {
    t.throws(() => bullmq(options as unknown as BullmqOptions), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
      message,
    })
  }
  t.equal(connection.status, 'wait', 'nothing is connected before there is something to do')
})
