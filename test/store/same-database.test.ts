import Fastify from 'fastify'
import t, { type Test } from 'tap'
import idempotency, { type PluginOptions } from '../../src/index.js'
import type { PoolLike } from '../../src/store/pool.js'
import { clientOn, postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'

const options = { skip: await missing('postgres') }

async function start(
  t: Test,
  { prisma, pool, storeTimeout = '5s' }: Pick<PluginOptions, 'prisma' | 'pool' | 'storeTimeout'>,
) {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(idempotency, { prisma, pool, storeTimeout, tenant: false } as PluginOptions)
  await app.ready()
}

t.test('a pool of another database than the client stops the start', options, async (t) => {
  const shop = await postgresDatabase(t)
  const other = await postgresDatabase(t)
  const prisma = shop.prisma
  await t.rejects(start(t, { prisma, pool: other.pool }), {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message:
      /option "pool" reaches another database than option "prisma".*the same pool: new PrismaPg\(pool\)/,
  })
  await t.resolves(start(t, { prisma, pool: shop.pool }))
  await t.resolves(start(t, { prisma, pool: clientOn(t, shop.url, { max: 1 }).pool }), 'one more')
})

/** A pool whose connections answer in this way. */
function answering(answer: () => Promise<{ rows: readonly object[] }>): PoolLike {
  const ignore = () => {}
  return { connect: async () => ({ query: answer, release: ignore, on: ignore, off: ignore }) }
}

t.test(
  'where the database does not say which it is, the application starts',
  options,
  async (t) => {
    const { pool, prisma } = await postgresDatabase(t)
    for (const answer of [
      () => pool.query('SELECT no_such_function()'),
      () => Promise.reject(new Error('away')),
      async () => ({ rows: [] }),
    ]) {
      await t.resolves(start(t, { prisma, pool: answering(answer) }))
    }
  },
)

t.test(
  'a database that hangs holds up the start for less than Fastify waits',
  options,
  async (t) => {
    const { prisma } = await postgresDatabase(t)
    let release: (answer: { rows: object[] }) => void = () => {}
    const hanging = new Promise<{ rows: object[] }>((resolve) => {
      release = resolve
    })
    const pool = answering(() => hanging)
    await t.resolves(start(t, { prisma, pool, storeTimeout: '60s' }))
    release({ rows: [] })
  },
)
