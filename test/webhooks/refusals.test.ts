// The limit of failed signatures: whoever guesses is slowed down, and nobody else is.
import rateLimit from '@fastify/rate-limit'
import { Redis } from 'ioredis'
import t, { type Test, test } from 'tap'
import type { PluginOptions } from '../../src/index.js'
import { type AppSetup, type buildApp, collectEvents } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { proxyTo } from '../fixtures/proxy.js'
import { redisClient } from '../fixtures/redis.js'
import { missing, service } from '../fixtures/services.js'
import { bank, inboxApp, postStripe, stripeEvent } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

type Teardown = Parameters<typeof buildApp>[0]
type App = Awaited<ReturnType<typeof inboxApp>>

/** A Redis client whose keys are its own, and gone when the test is over. */
async function ownRedis(t: Teardown, url?: string): Promise<Redis> {
  const { prefix, url: usual } = await redisClient(t as Test)
  const redis = new Redis(url ?? usual, { keyPrefix: prefix })
  redis.on('error', () => {})
  t.teardown(() => redis.disconnect())
  return redis
}

function limitedApp(
  t: Teardown,
  plugin: Partial<PluginOptions> = {},
  setup: Partial<AppSetup> = {},
) {
  return inboxApp(t, database, () => {}, {
    plugin: { failedSignatures: { max: 3, timeWindow: '1m' }, ...plugin },
    ...setup,
  })
}

/** The status of a request with a wrong signature. */
async function guess(
  app: App,
  remoteAddress?: string,
  headers: Record<string, string> = {},
  url = '/webhooks/stripe',
) {
  const answer = await app.inject({
    method: 'POST',
    url,
    headers: { 'stripe-signature': 't=1,v1=00', ...headers },
    payload: '{}',
    ...(remoteAddress && { remoteAddress }),
  })
  return answer.statusCode
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
  test(`${name}: after so many wrong signatures, 429 with Retry-After in place of 401`, {
    skip,
  }, async (t) => {
    const events = collectEvents(t)
    const app = await limitedApp(t, await options(t))
    for (let turn = 0; turn < 3; turn += 1) t.equal(await guess(app), 401)
    const answer = await postStripe(app, stripeEvent(), { secret: 'whsec_guess' })
    t.equal(answer.statusCode, 429)
    t.equal(answer.headers['content-type'], 'application/problem+json')
    t.equal(answer.json().code, 'IDEMPOTENCY_TOO_MANY_REFUSALS')
    t.notOk('reason' in answer.json(), 'whoever guesses learns no more')
    const seconds = Number(answer.headers['retry-after'])
    t.ok(seconds >= 1 && seconds <= 60, `${seconds} s`)
    t.strictSame(events.kinds(), Array(4).fill('webhook_refused'), 'all are counted by reason')
  })

  test(`${name}: those with a right signature always pass, and are not counted`, {
    skip,
  }, async (t) => {
    const app = await limitedApp(t, await options(t))
    for (let turn = 0; turn < 6; turn += 1) {
      t.equal((await postStripe(app, stripeEvent())).statusCode, 200)
    }
    const statuses: number[] = []
    for (let turn = 0; turn < 6; turn += 1) {
      statuses.push(await guess(app))
      t.equal((await postStripe(app, stripeEvent())).statusCode, 200)
    }
    t.strictSame(statuses, [401, 401, 401, 429, 429, 429])
  })

  test(`${name}: of many in parallel, as many as are allowed get 401`, { skip }, async (t) => {
    const app = await limitedApp(t, await options(t))
    const statuses = await Promise.all(Array.from({ length: 30 }, () => guess(app)))
    t.equal(statuses.filter((status) => status === 401).length, 3)
    t.equal(statuses.filter((status) => status === 429).length, 27)
  })

  test(`${name}: each address and each endpoint has a count of its own`, { skip }, async (t) => {
    const app = await limitedApp(t, await options(t), {
      routes: (app) => app.webhook('/webhooks/bank', { provider: bank() }, () => {}),
    })
    for (const address of ['10.0.0.1', '10.0.0.2', '2001:db8::1']) {
      for (const expected of [401, 401, 401, 429]) t.equal(await guess(app, address), expected)
    }
    t.equal(await guess(app, '10.0.0.1', {}, '/webhooks/bank'), 401)
  })

  test(`${name}: when the window is over, it is 401 again`, { skip }, async (t) => {
    const app = await limitedApp(t, {
      ...(await options(t)),
      failedSignatures: { max: 1, timeWindow: 200 },
    })
    t.equal(await guess(app), 401)
    t.equal(await guess(app), 429)
    await new Promise((resolve) => setTimeout(resolve, 250))
    t.equal(await guess(app), 401)
  })
}

test('60 in a minute, unless it is said otherwise', async (t) => {
  const app = await inboxApp(t, database, () => {})
  const statuses = await Promise.all(Array.from({ length: 70 }, () => guess(app)))
  t.equal(statuses.filter((status) => status === 401).length, 60)
})

test('failedSignatures: false sets no limit', async (t) => {
  const app = await limitedApp(t, { failedSignatures: false })
  const statuses = await Promise.all(Array.from({ length: 200 }, () => guess(app)))
  t.ok(statuses.every((status) => status === 401))
})

test('behind a proxy that is trusted, the address is that of the sender', async (t) => {
  const trusting = await limitedApp(t, {}, { server: { trustProxy: true } })
  const from = (address: string) => ({ 'x-forwarded-for': address })
  for (const sender of ['203.0.113.1', '203.0.113.2']) {
    for (const expected of [401, 401, 401, 429]) {
      t.equal(await guess(trusting, '10.0.0.1', from(sender)), expected)
    }
  }
  const careful = await limitedApp(t)
  const statuses: number[] = []
  for (let n = 1; n <= 4; n += 1) {
    statuses.push(await guess(careful, '10.0.0.1', from(`203.0.113.${n}`)))
  }
  t.strictSame(statuses, [401, 401, 401, 429], 'without trust, nobody invents addresses')
})

test('on Redis, all processes count together', { skip: await missing('redis') }, async (t) => {
  const redis = await ownRedis(t)
  const one = await limitedApp(t, { redis })
  const other = await limitedApp(t, { redis })
  const statuses: number[] = []
  for (const app of [one, other, one, other]) statuses.push(await guess(app))
  t.strictSame(statuses, [401, 401, 401, 429])
})

for (const trouble of ['cut', 'pause'] as const) {
  test(`a Redis that is ${trouble === 'cut' ? 'down' : 'hanging'} holds nobody up, and an event says so`, {
    skip: await missing('redis'),
  }, async (t) => {
    const events = collectEvents(t)
    const proxy = await proxyTo(t, (await service('redis')).url)
    const app = await limitedApp(t, { redis: await ownRedis(t, proxy.url) })
    t.equal(await guess(app), 401)
    proxy[trouble]()
    const startedAt = performance.now()
    for (let turn = 0; turn < 4; turn += 1) t.equal(await guess(app), 401)
    t.equal((await postStripe(app, stripeEvent())).statusCode, 200)
    t.ok(performance.now() - startedAt < 4_000)
    await events.first('limiter_failed', 4)
    proxy.resume()
  })
}

test('the limits of an application that uses @fastify/rate-limit itself stay apart', async (t) => {
  const app = await limitedApp(
    t,
    {},
    { before: (app) => app.register(rateLimit, { max: 100, timeWindow: 60_000 }) },
  )
  const statuses: number[] = []
  for (let turn = 0; turn < 4; turn += 1) statuses.push(await guess(app))
  t.strictSame(statuses, [401, 401, 401, 429])
  t.equal((await postStripe(app, stripeEvent())).headers['x-ratelimit-limit'], '100')
})

test('applications with a prefix each do not share the count', async (t) => {
  const redis = await ownRedis(t)
  const failedSignatures = { max: 1, timeWindow: '1m' } as const
  const [shop, bank] = [
    await limitedApp(t, { redis, redisPrefix: 'shop:', failedSignatures }),
    await limitedApp(t, { redis, redisPrefix: 'bank:', failedSignatures }),
  ]
  t.equal(await guess(shop), 401)
  t.equal(await guess(shop), 429)
  t.equal(await guess(bank), 401)
  t.equal(await guess(bank), 429)
})
