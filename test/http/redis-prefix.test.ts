// What several applications keep in one Redis stays apart.
import { Redis } from 'ioredis'
import t, { type Test, test } from 'tap'
import type { PluginOptions } from '../../src/index.js'
import { buildApp, newKey, send } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { redisClient } from '../fixtures/redis.js'
import { missing } from '../fixtures/services.js'

const database = await anyDatabase(t)
const skip = await missing('redis')

async function appOn(t: Test, redis: Redis, plugin: Partial<PluginOptions>) {
  return buildApp(t, database, {
    plugin: { redis, locks: 'redis', rateLimit: { max: 2, timeWindow: '1m' }, ...plugin },
    routes: (app) => app.post('/things', () => 'ran'),
  })
}

test('applications with a prefix each share neither locks nor counts of new keys', {
  skip,
}, async (t) => {
  const { redis, prefix } = await redisClient(t)
  const shop = await appOn(t, redis, { redisPrefix: `${prefix}shop:` })
  const bank = await appOn(t, redis, { redisPrefix: `${prefix}bank:` })

  const held = await shop.idempotency.lock('invoices', {}, () =>
    bank.idempotency.lock('invoices', {}, () => 'both'),
  )
  t.match(held, { kind: 'done', value: { kind: 'done', value: 'both' } })
  for (const app of [shop, bank]) {
    const statuses: number[] = []
    for (let n = 0; n < 3; n += 1) {
      statuses.push((await send(app, '/things', { key: newKey() })).statusCode)
    }
    t.strictSame(statuses, [200, 200, 429])
  }
})

test('processes of one application share both', { skip }, async (t) => {
  const { redis, prefix } = await redisClient(t)
  const redisPrefix = `${prefix}shop:`
  const here = await appOn(t, redis, { redisPrefix })
  const there = await appOn(t, redis, { redisPrefix })
  const held = await here.idempotency.lock('invoices', {}, () =>
    there.idempotency.lock('invoices', {}, () => 'both'),
  )
  t.match(held, { kind: 'done', value: { kind: 'busy' } })
  const statuses: number[] = []
  for (const app of [here, there, here]) {
    statuses.push((await send(app, '/things', { key: newKey() })).statusCode)
  }
  t.strictSame(statuses, [200, 200, 429])
})

test('every key begins with the keyPrefix of the client and the redisPrefix', {
  skip,
}, async (t) => {
  const { redis, prefix, url } = await redisClient(t)
  const own = new Redis(url, { keyPrefix: prefix })
  t.teardown(() => own.disconnect())
  const app = await appOn(t, own, { redisPrefix: 'shop:' })
  let keys: string[] = []
  await app.idempotency.lock('invoices', {}, async () => {
    await send(app, '/things', { key: newKey() })
    keys = await redis.keys(`${prefix}*`)
  })
  t.equal(keys.length, 2)
  t.match(keys.sort(), [
    new RegExp(`^${prefix}shop:lock:\\["","invoices"\\]$`),
    new RegExp(`^${prefix}shop:.*limit:keys:$`),
  ])
})
