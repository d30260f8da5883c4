// Several operations under one key, one after the other or at once: none ever gets what is another's.
import t, { type Test, test } from 'tap'
import type { PluginOptions } from '../../src/index.js'
import {
  begin,
  buildApp,
  type Latch,
  latch,
  newKey,
  recordOf,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { effectOf, effects } from '../fixtures/atomic.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)
const { prisma } = database
const PAST = new Date(0)

/** A handler that runs on, whatever its signal says, until the test lets it answer. */
async function heldApp(t: Test, plugin: Partial<PluginOptions> = {}) {
  const began: Latch[] = [latch(), latch()]
  const go: Latch[] = [latch(), latch()]
  let runs = 0
  const charges: string[] = []
  const app = await buildApp(t, database, {
    plugin,
    async routes(app) {
      app.post('/held', async ({ body, idempotency }) => {
        const run = runs++
        charges.push(idempotency.keyFor('charge'))
        began[run]?.open()
        await go[run]?.opened
        const { work } = body as { work?: string }
        if (work === 'step') await idempotency.step('late', () => run)
        if (work === 'transaction') {
          const effect = effectOf(`${idempotency.key} ${run}`)
          await idempotency.transaction((tx) => tx.payment.create(effect))
        }
        return { run, body }
      })
    },
  })
  return { app, began, go, charges }
}

for (const forgotten of ['expired', 'pruned', 'expired and used again', 'pruned and used again']) {
  for (const work of ['response', 'step', 'transaction']) {
    const title = `an attempt that outlives its key, ${forgotten}, changes nothing by its ${work}`
    test(title, async (t) => {
      const { app, began, go, charges } = await heldApp(t)
      const key = newKey()
      const old = begin(app, '/held', { key, payload: { amount: 1, work } })
      await began[0]?.opened
      await prisma.idempotencyRecord.updateMany({
        where: { key },
        data: { leaseUntil: PAST, expiresAt: PAST },
      })
      if (forgotten.startsWith('pruned')) await app.idempotency.prune()
      const isUsedAgain = forgotten.endsWith('used again')
      const other = isUsedAgain
        ? begin(app, '/held', { key, payload: { amount: 1_000 } })
        : undefined
      if (isUsedAgain) await began[1]?.opened
      const before = await recordOf(database, key)
      go[0]?.open()
      const answer = await old
      if (forgotten === 'expired') {
        t.equal(answer.statusCode, 200, 'the record is still its own: it is stored')
        t.equal(await effects(database, `${key} 0`), work === 'transaction' ? 1 : 0)
        return
      }
      t.equal(await effects(database, `${key} 0`), 0)
      t.equal(answer.json().code, 'IDEMPOTENCY_LEASE_LOST')
      t.strictSame(await recordOf(database, key), before, 'the record of the key is as it was')
      go[1]?.open()
      if (other === undefined) return
      t.same((await other).json(), { run: 1, body: { amount: 1_000 } })
      const retry = await send(app, '/held', { key, payload: { amount: 1_000 } })
      t.same(retry.json(), { run: 1, body: { amount: 1_000 } }, 'the retry gets its own response')
      t.equal(charges.length, 2)
      t.not(charges[0], charges[1], 'another operation has other downstream keys')
    })
  }
}

test('every attempt at one operation has the same downstream keys', async (t) => {
  const charges: string[] = []
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/flaky', ({ idempotency }, reply) => {
        charges.push(idempotency.keyFor('charge'))
        return charges.length < 3 ? reply.code(503).send() : reply.send('done')
      })
    },
  })
  const key = newKey()
  for (let n = 0; n < 3; n += 1) await send(app, '/flaky', { key })
  t.equal(charges.length, 3)
  t.equal(new Set(charges).size, 1)
  await send(app, '/flaky', { key: newKey() })
  t.equal(new Set(charges).size, 2, 'another key is another operation')
})

test('of two routes under one key at once, in batches, each client gets its own answer or 422', async (t) => {
  const ran = new Map<string, string[]>()
  const note = (route: string) => (request: { idempotency: { key: string | undefined } }) => {
    const key = String(request.idempotency.key)
    ran.set(key, [...(ran.get(key) ?? []), route])
    return { route }
  }
  const app = await buildApp(t, database, {
    routes(app) {
      app.post('/pay', note('pay'))
      app.post('/refund', note('refund'))
    },
  })
  const wrong: string[] = []
  for (let burst = 0; burst < 20; burst += 1) {
    const pairs = await Promise.all(
      Array.from({ length: 24 }, async () => {
        const key = newKey()
        const routes = Math.random() < 0.5 ? ['pay', 'refund'] : ['refund', 'pay']
        const answers = await Promise.all(routes.map((route) => begin(app, `/${route}`, { key })))
        return { key, routes, answers }
      }),
    )
    for (const { key, routes, answers } of pairs) {
      for (const [n, { statusCode, body }] of answers.entries()) {
        const isOwn = statusCode === 200 && JSON.parse(body).route === routes[n]
        if (!isOwn && statusCode !== 422) wrong.push(`${routes[n]}: ${statusCode} ${body}`)
      }
      if (ran.get(key)?.length !== 1) wrong.push(`${key} ran ${ran.get(key)}`)
    }
  }
  t.strictSame(wrong, [])
})

const needsPool = database.kind === 'postgres' ? false : 'needs a pool'

test('concurrent replays of a large response read its body a few times, not once each', {
  skip: needsPool,
}, async (t) => {
  const pool = new WatchedPool(database)
  const bytes = 2 * 1024 * 1024
  const app = await buildApp(t, database, {
    // A busy machine takes its time for so many bytes.
    plugin: { pool, maxBodyBytes: bytes, storeTimeout: '60s' },
    routes: (app) => app.post('/large', () => Buffer.alloc(bytes, 'x')),
  })
  const key = newKey()
  const first = await send(app, '/large', { key })
  pool.asked.length = 0
  const replays = await Promise.all(Array.from({ length: 48 }, () => begin(app, '/large', { key })))
  for (const { statusCode, rawPayload } of replays) {
    if (statusCode !== 200 || !rawPayload.equals(first.rawPayload)) t.fail('another response')
  }
  const count = (name: string) => pool.asked.filter((asked) => asked === name).length
  t.ok(count('fi_read_bodies') <= 8, `${count('fi_read_bodies')} statements read the body`)
  t.ok(count('fi_insert') <= 8, `${count('fi_insert')} statements read the record`)
})

test('of many that wait for one operation of another process, one polls', {
  skip: needsPool,
}, async (t) => {
  const { app: there, began, go } = await heldApp(t)
  const pool = new WatchedPool(database)
  const here = await buildApp(t, database, {
    plugin: { pool, wait: '60s' },
    routes: (app) => app.post('/held', () => t.fail('it ran again')),
  })
  const key = newKey()
  const running = begin(there, '/held', { key })
  await began[0]?.opened
  const waiting = Array.from({ length: 300 }, () => begin(here, '/held', { key }))
  await pool.untilAnswered('fi_insert', 10)
  const polls = pool.asked.length
  go[0]?.open()
  await running
  for (const { statusCode, body } of await Promise.all(waiting)) {
    if (statusCode !== 200 || body !== (await running).body) t.fail('another response')
  }
  t.ok(polls < 40, `${polls} statements for 300 that wait`)
  t.ok(pool.asked.length < polls + 40, `${pool.asked.length} with their answers`)
})

test('requests above maxWaiters are answered without waiting', async (t) => {
  const { app, began, go } = await heldApp(t, { wait: '60s', maxWaiters: 2 })
  const key = newKey()
  const running = begin(app, '/held', { key })
  await began[0]?.opened
  const turnedAway: number[] = []
  const retries = Array.from({ length: 5 }, async () => {
    const answer = await begin(app, '/held', { key })
    turnedAway.push(answer.statusCode)
    return answer
  })
  while (turnedAway.length < 3) await new Promise(setImmediate)
  t.strictSame(turnedAway, [409, 409, 409])
  go[0]?.open()
  await running
  const statuses = (await Promise.all(retries)).map(({ statusCode }) => statusCode).sort()
  t.strictSame(statuses, [200, 200, 409, 409, 409])
})

test('large responses of many keys are read a few at a time', { skip: needsPool }, async (t) => {
  const pool = new WatchedPool(database)
  const bytes = 512 * 1024
  const app = await buildApp(t, database, {
    plugin: { pool, storeTimeout: '60s' },
    routes: (app) => app.post('/large', () => Buffer.alloc(bytes, 'x')),
  })
  const keys = Array.from({ length: 48 }, newKey)
  for (const key of keys) await send(app, '/large', { key })
  const lists: number[] = []
  pool.before = async (name, { values }) => {
    if (name === 'fi_read_bodies') lists.push((values[0] as unknown[]).length)
  }
  const replays = await Promise.all(keys.map((key) => begin(app, '/large', { key })))
  for (const { statusCode, rawPayload } of replays) {
    if (statusCode !== 200 || rawPayload.byteLength !== bytes) t.fail('another response')
  }
  const largest = Math.max(...lists)
  t.ok(largest > 0 && largest <= 2, `${largest} of them in one statement`)
})
