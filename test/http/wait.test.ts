import t, { test } from 'tap'
import type { RouteOptions } from '../../src/index.js'
import {
  begin,
  buildApp,
  collectEvents,
  latch,
  newKey,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

/** An application whose handler is held, and a second one on the same database: another process. */
async function heldApp(
  t: Parameters<typeof buildApp>[0],
  plugin: RouteOptions,
  answer: () => unknown = () => 'done',
) {
  const began = latch()
  const go = latch()
  const pool = new WatchedPool(database)
  const elsewherePool = new WatchedPool(database)
  const counted = { runs: 0 }
  const routes = (app: Awaited<ReturnType<typeof buildApp>>) =>
    app.post('/things', async () => {
      counted.runs += 1
      began.open()
      await go.opened
      return answer()
    })
  const app = await buildApp(t, database, { plugin: { pool, ...plugin }, routes })
  const elsewhere = await buildApp(t, database, {
    plugin: { pool: elsewherePool, ...plugin },
    routes,
  })
  return { app, elsewhere, pool, elsewherePool, began: began.opened, go: go.open, counted }
}

test('without wait, a duplicate gets 409 at once', async (t) => {
  const { app, began, go } = await heldApp(t, {})
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 409)
  t.equal(answer.headers['retry-after'], '1')
  go()
  await first
})

test('with wait, duplicates are held until the first finishes, and then replay', async (t) => {
  const { app, pool, began, go, counted } = await heldApp(t, { wait: '1m' })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  const duplicates = Array.from({ length: 5 }, () => begin(app, '/things', { key }))
  await pool.untilAnswered('fi_insert', 3)
  go()
  for (const answer of await Promise.all(duplicates)) {
    t.equal(answer.statusCode, 200)
    t.equal(answer.body, 'done')
    t.equal(answer.headers['idempotent-replayed'], 'true')
  }
  t.notOk('idempotent-replayed' in (await first).headers)
  t.equal(counted.runs, 1)
})

test('in the same process, those who wait are woken by the end and not by a clock', async (t) => {
  const { app, pool, began, go } = await heldApp(t, { wait: '1m' })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  const duplicate = begin(app, '/things', { key })
  // By now it looks about once a second.
  await pool.untilAnswered('fi_insert', 8)
  const startedAt = performance.now()
  go()
  t.equal((await duplicate).body, 'done')
  const tookMs = performance.now() - startedAt
  t.ok(tookMs < 400, `woken after ${Math.round(tookMs)} ms`)
  await first
})

test('in another process, the end is noticed by looking again', async (t) => {
  const { app, elsewhere, elsewherePool, began, go, counted } = await heldApp(t, { wait: '1m' })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  const duplicate = begin(elsewhere, '/things', { key })
  await elsewherePool.untilAnswered('fi_insert', 2)
  go()
  const answer = await duplicate
  t.equal(answer.body, 'done')
  t.equal(answer.headers['idempotent-replayed'], 'true')
  await first
  t.equal(counted.runs, 1)
})

test('it is looked at with growing intervals', async (t) => {
  const { app, pool, began, go } = await heldApp(t, { wait: '800ms' })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  await send(app, '/things', { key })
  const looks = pool.asked.filter((name) => name === 'fi_insert').length - 1
  t.ok(looks >= 3 && looks <= 9, `${looks} looks in 800 ms`)
  go()
  await first
})

test('a wait that is over ends with 409 and Retry-After', async (t) => {
  const events = collectEvents(t)
  const { app, began, go } = await heldApp(t, { wait: '100ms' })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  const startedAt = performance.now()
  const answer = await send(app, '/things', { key })
  const tookMs = performance.now() - startedAt
  t.equal(answer.statusCode, 409)
  t.equal(answer.json().code, 'IDEMPOTENCY_IN_PROGRESS')
  t.equal(answer.headers['retry-after'], '1')
  t.ok(tookMs >= 95 && tookMs < 1_000, `after ${Math.round(tookMs)} ms`)
  const busy = await events.first('busy')
  t.ok(busy.kind === 'busy' && busy.waitedMs >= 95)
  go()
  await first
})

test('one of those who wait runs the operation when the first one fails', async (t) => {
  let attempts = 0
  const { app, pool, began, go, counted } = await heldApp(t, { wait: '1m' }, () => {
    attempts += 1
    if (attempts === 1) throw new Error('broken')
    return `attempt ${attempts}`
  })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  const duplicates = Array.from({ length: 4 }, () => begin(app, '/things', { key }))
  await pool.untilAnswered('fi_insert', 2)
  go()
  t.equal((await first).statusCode, 500)
  const answers = await Promise.all(duplicates)
  t.same(
    answers.map(({ body }) => body),
    Array(4).fill('attempt 2'),
  )
  t.equal(answers.filter(({ headers }) => 'idempotent-replayed' in headers).length, 3)
  t.equal(counted.runs, 2)
})

test('a request that differs is not held: it gets 422 at once', async (t) => {
  const { app, began, go } = await heldApp(t, { wait: '1m' })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  t.equal((await send(app, '/things', { key, payload: { a: 1 } })).statusCode, 422)
  go()
  await first
})

test('a request that waits holds no connection to the database', async (t) => {
  const { app, pool, began, go } = await heldApp(t, { wait: '1m' })
  const key = newKey()
  const first = begin(app, '/things', { key })
  await began
  const waiting = Array.from({ length: 40 }, () => begin(app, '/things', { key }))
  await pool.untilAnswered('fi_insert', 3)
  const other = newKey()
  const free = begin(app, '/things', { key: other })
  await pool.untilAnswered('fi_insert', 4)
  go()
  t.equal((await free).statusCode, 200)
  for (const answer of await Promise.all(waiting)) t.equal(answer.statusCode, 200)
  await first
})
