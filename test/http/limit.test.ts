// The limit of new keys: a client that invents keys cannot fill the table.
import { randomUUID } from 'node:crypto'
import rateLimit from '@fastify/rate-limit'
import { Redis } from 'ioredis'
import t, { type Test, test } from 'tap'
import type { PluginOptions } from '../../src/index.js'
import {
  begin,
  buildApp,
  collectEvents,
  latch,
  newKey,
  recordOf,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { proxyTo } from '../fixtures/proxy.js'
import { redisClient } from '../fixtures/redis.js'
import { missing, service } from '../fixtures/services.js'

const database = await anyDatabase(t)

type Teardown = Parameters<typeof buildApp>[0]

/** A Redis client whose keys are its own, and gone when the test is over. */
async function ownRedis(t: Teardown, url?: string): Promise<Redis> {
  const { prefix, url: usual } = await redisClient(t as Test)
  const redis = new Redis(url ?? usual, { keyPrefix: prefix })
  redis.on('error', () => {})
  t.teardown(() => redis.disconnect())
  return redis
}

/** An application with a tenant for each value of `x-tenant`, and room for `max` new keys of each. */
async function limitedApp(t: Teardown, max: number, plugin: Partial<PluginOptions> = {}) {
  const counted = { runs: 0 }
  const app = await buildApp(t, database, {
    plugin: {
      tenant: ({ headers }) => (headers['x-tenant'] as string | undefined) ?? 'one',
      rateLimit: { max, timeWindow: '1m' },
      ...plugin,
    },
    routes: (app) => app.post('/things', () => ({ run: ++counted.runs })),
  })
  return { app, counted }
}

const backends: {
  name: string
  skip: string | false
  options: (t: Teardown) => Promise<{ redis?: Redis }>
}[] = [
  { name: 'in memory', skip: false, options: async () => ({}) },
  {
    name: 'on Redis',
    skip: await missing('redis'),
    options: async (t) => ({ redis: await ownRedis(t) }),
  },
]

for (const { name, skip, options } of backends) {
  test(`${name}: one key too many is 429 with Retry-After, and is neither run nor stored`, {
    skip,
  }, async (t) => {
    const events = collectEvents(t)
    const { app, counted } = await limitedApp(t, 3, await options(t))
    for (let turn = 0; turn < 3; turn += 1) {
      t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
    }
    for (let turn = 0; turn < 3; turn += 1) {
      const key = newKey()
      const refused = await send(app, '/things', { key })
      t.equal(refused.statusCode, 429)
      t.equal(refused.json().code, 'IDEMPOTENCY_TOO_MANY_KEYS')
      t.equal(refused.headers['content-type'], 'application/problem+json')
      const seconds = Number(refused.headers['retry-after'])
      t.ok(seconds >= 1 && seconds <= 60, `${seconds} s`)
      t.equal(await recordOf(database, key, 'one'), null)
    }
    t.equal(counted.runs, 3)
    t.equal(events.kinds().filter((kind) => kind === 'too_many_keys').length, 3)
  })

  test(`${name}: replays, mismatches and requests without a key do not count`, {
    skip,
  }, async (t) => {
    const { app, counted } = await limitedApp(t, 2, await options(t))
    const key = newKey()
    for (let turn = 0; turn < 5; turn += 1) {
      t.equal((await send(app, '/things', { key })).statusCode, 200)
      t.equal((await send(app, '/things', { key, payload: { a: 1 } })).statusCode, 422)
      t.equal((await send(app, '/things')).statusCode, 200)
    }
    t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
    t.equal((await send(app, '/things', { key: newKey() })).statusCode, 429)
    t.equal((await send(app, '/things', { key })).statusCode, 200, 'a replay is still answered')
    t.equal(counted.runs, 2 + 5, 'two new keys, five without one')
  })

  test(`${name}: parallel duplicates of one key count once`, { skip }, async (t) => {
    const { app, counted } = await limitedApp(t, 2, { ...(await options(t)), wait: '10s' })
    const key = newKey()
    const answers = await Promise.all(
      Array.from({ length: 30 }, () => send(app, '/things', { key })),
    )
    t.same(new Set(answers.map(({ statusCode }) => statusCode)), new Set([200]))
    t.equal(counted.runs, 1)
    t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
    t.equal((await send(app, '/things', { key: newKey() })).statusCode, 429)
  })

  test(`${name}: of many parallel new keys, as many as are allowed run, and the table holds no other`, {
    skip,
  }, async (t) => {
    const tenant = randomUUID()
    const { app, counted } = await limitedApp(t, 5, { ...(await options(t)), tenant: () => tenant })
    const answers = await Promise.all(
      Array.from({ length: 40 }, () => send(app, '/things', { key: newKey() })),
    )
    t.equal(answers.filter(({ statusCode }) => statusCode === 200).length, 5)
    t.equal(answers.filter(({ statusCode }) => statusCode === 429).length, 35)
    t.equal(counted.runs, 5)
    t.equal(await database.prisma.idempotencyRecord.count({ where: { tenantId: tenant } }), 5)
  })

  test(`${name}: each tenant has a count of its own`, { skip }, async (t) => {
    const { app } = await limitedApp(t, 1, await options(t))
    for (const tenant of ['a', 'b']) {
      const headers = { 'x-tenant': tenant }
      t.equal((await send(app, '/things', { key: newKey(), headers })).statusCode, 200)
      t.equal((await send(app, '/things', { key: newKey(), headers })).statusCode, 429)
    }
  })

  test(`${name}: a key that was refused is a new key once the window is over`, {
    skip,
  }, async (t) => {
    const { app } = await limitedApp(t, 1, {
      ...(await options(t)),
      rateLimit: { max: 1, timeWindow: 300 },
    })
    const key = newKey()
    t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
    const refused = await send(app, '/things', { key })
    t.equal(refused.statusCode, 429)
    t.equal(refused.headers['retry-after'], '1')
    await new Promise((resolve) => setTimeout(resolve, 350))
    t.equal((await send(app, '/things', { key })).statusCode, 200)
  })

  test(`${name}: a retry after a failure is no new key`, { skip }, async (t) => {
    let runs = 0
    const app = await buildApp(t, database, {
      plugin: { rateLimit: { max: 1, timeWindow: '1m' }, ...(await options(t)) },
      routes: (app) =>
        app.post('/things', () => {
          runs += 1
          if (runs < 3) throw new Error('broken')
          return 'done'
        }),
    })
    const key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, 500)
    t.equal((await send(app, '/things', { key })).statusCode, 500)
    t.equal((await send(app, '/things', { key })).body, 'done')
  })
}

test('without rateLimit, or with false, there is no limit', async (t) => {
  for (const rateLimit of [undefined, false] as const) {
    const app = await buildApp(t, database, {
      plugin: { rateLimit },
      routes: (app) => app.post('/things', () => 'ran'),
    })
    for (let turn = 0; turn < 20; turn += 1) {
      t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
    }
  }
})

test('on Redis, all processes count together', { skip: await missing('redis') }, async (t) => {
  const redis = await ownRedis(t)
  const one = await limitedApp(t, 2, { redis })
  const other = await limitedApp(t, 2, { redis })
  t.equal((await send(one.app, '/things', { key: newKey() })).statusCode, 200)
  t.equal((await send(other.app, '/things', { key: newKey() })).statusCode, 200)
  t.equal((await send(one.app, '/things', { key: newKey() })).statusCode, 429)
  t.equal((await send(other.app, '/things', { key: newKey() })).statusCode, 429)
})

test('a Redis that is down lets new keys in, and an event says so', {
  skip: await missing('redis'),
}, async (t) => {
  const events = collectEvents(t)
  const proxy = await proxyTo(t, (await service('redis')).url)
  const redis = await ownRedis(t, proxy.url)
  const { app, counted } = await limitedApp(t, 1, { redis, storeTimeout: 150 })
  t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
  t.equal((await send(app, '/things', { key: newKey() })).statusCode, 429)
  proxy.cut()
  for (let turn = 0; turn < 3; turn += 1) {
    t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
  }
  t.equal(counted.runs, 4)
  await events.first('limiter_failed', 3)
})

test('a Redis that hangs lets new keys in after storeTimeout', {
  skip: await missing('redis'),
}, async (t) => {
  const proxy = await proxyTo(t, (await service('redis')).url)
  const redis = await ownRedis(t, proxy.url)
  const { app } = await limitedApp(t, 1, { redis, storeTimeout: 150 })
  t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
  proxy.pause()
  const startedAt = performance.now()
  t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
  t.ok(performance.now() - startedAt < 1_000)
  proxy.resume()
})

test('an application that uses @fastify/rate-limit itself keeps its limits apart from this one', async (t) => {
  for (const order of ['before', 'after'] as const) {
    const app = await buildApp(t, database, {
      plugin: { rateLimit: { max: 2, timeWindow: '1m' } },
      ...(order === 'before' && {
        before: (app) => app.register(rateLimit, { max: 100, timeWindow: 60_000 }),
      }),
      async routes(app) {
        if (order === 'after') await app.register(rateLimit, { max: 100, timeWindow: 60_000 })
        app.post('/things', () => 'ran')
      },
    })
    const statuses: number[] = []
    for (let turn = 0; turn < 4; turn += 1) {
      const answer = await send(app, '/things', { key: newKey() })
      statuses.push(answer.statusCode)
      t.equal(answer.headers['x-ratelimit-limit'], '100')
    }
    t.same(statuses, [200, 200, 429, 429], order)
  }
})

test('a duplicate of a key that is being refused is never run', async (t) => {
  const pool = new WatchedPool(database)
  const { app, counted } = await limitedApp(t, 1, { pool })
  await send(app, '/things', { key: newKey() })
  const go = latch()
  const forgetting = latch()
  pool.before = (name) => {
    if (name !== 'fi_forget') return undefined
    forgetting.open()
    return go.opened
  }
  const key = newKey()
  const refused = begin(app, '/things', { key })
  await forgetting.opened
  t.equal((await send(app, '/things', { key })).statusCode, 409)
  go.open()
  t.equal((await refused).statusCode, 429)
  t.equal((await send(app, '/things', { key })).statusCode, 429)
  t.equal(counted.runs, 1)
})
