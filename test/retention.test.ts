import t, { test } from 'tap'
import { pruneAll } from '../src/retention.js'
import { StoreTimeout } from '../src/within.js'
import { buildApp, collectEvents, listen, newKey, send } from './fixtures/app.js'
import { anyDatabase } from './fixtures/database.js'

const database = await anyDatabase(t)
const { prisma } = database
const PAST = new Date('2001-01-01T00:00:00Z')

const expire = (count: number, name: string) =>
  prisma.idempotencyRecord.createMany({
    data: Array.from({ length: count }, (_, n) => ({
      tenantId: '',
      key: `${name}-${n}`,
      operationId: `${name}-${n}`,
      fingerprint: 'f',
      status: 'completed',
      leaseUntil: PAST,
      expiresAt: PAST,
    })),
  })

test('several that prune at once delete every expired record once, and no other', async (t) => {
  await expire(3_500, 'old')
  const apps = await Promise.all(
    [1, 2, 3].map(() => buildApp(t, database, { routes: (app) => app.post('/things', () => 'x') })),
  )
  const key = newKey()
  await send(apps[0] as never, '/things', { key })
  const counts = await Promise.all(apps.map((app) => app.idempotency.prune()))
  // One that met only rows which others had locked stops early; the next turn finds the rest.
  const rest = (await apps[0]?.idempotency.prune()) ?? 0
  t.equal(
    counts.reduce((sum, count) => sum + count, rest),
    3_500,
  )
  const left = await prisma.idempotencyRecord.findMany()
  t.strictSame(
    left.map((record) => record.key),
    [key],
  )
})

test('a batch that the database does not answer ends the turn', async (t) => {
  const batches = [() => Promise.resolve(3), () => new Promise<number>(() => {})]
  await t.rejects(
    pruneAll(batches, 10, () => t.fail('it has pruned')),
    StoreTimeout,
  )
})

test('a key that is expired is free before anybody prunes', async (t) => {
  let runs = 0
  const app = await buildApp(t, database, {
    routes: (app) => app.post('/things', () => ({ runs: ++runs })),
  })
  const key = newKey()
  t.equal((await send(app, '/things', { key })).body, '{"runs":1}')
  await prisma.idempotencyRecord.updateMany({ where: { key }, data: { expiresAt: PAST } })
  const other = { key, payload: { another: 'body' } }
  t.equal((await send(app, '/things', other)).body, '{"runs":2}')
  t.equal((await send(app, '/things', other)).headers['idempotent-replayed'], 'true')
})

test('an application that listens prunes by itself, and stops when it closes', async (t) => {
  await expire(10, 'timed')
  const events = collectEvents(t)
  const app = await buildApp(t, database, { plugin: { pruneEvery: '1s' }, routes: () => {} })
  await listen(app)
  const pruned = await events.first('pruned')
  t.match(pruned, { kind: 'pruned', count: 10 })
  await app.close()
  t.equal(await prisma.idempotencyRecord.count({ where: { expiresAt: PAST } }), 0)
})
