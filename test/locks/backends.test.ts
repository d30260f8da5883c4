import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { autoLock } from '../../src/locks/auto.js'
import { databaseLock } from '../../src/locks/database.js'
import { memoryLock } from '../../src/locks/memory.js'
import { redisLock } from '../../src/locks/redis.js'
import type { PrismaClientLike, Provider } from '../../src/store/client.js'
import { databaseClock } from '../../src/store/clock.js'
import { lockContract } from '../contracts/lock.js'
import { anyDatabase } from '../fixtures/database.js'
import { mariadbDatabase } from '../fixtures/mariadb.js'
import { pgliteDatabase } from '../fixtures/pglite.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missingRedisServer, redisClient, redisServer } from '../fixtures/redis.js'
import { missing } from '../fixtures/services.js'
import { sqliteDatabase } from '../fixtures/sqlite.js'

// A machine that is busy starts databases slowly.
t.setTimeout(120_000)

const noPostgres = await missing('postgres')
const noMariadb = await missing('mariadb')
const noRedis = await missing('redis')

const rows = (prisma: PrismaClientLike, provider: Provider) =>
  databaseLock(prisma, databaseClock(prisma, provider), provider)

const inDatabase = (t: Test, prisma: PrismaClientLike, provider: Provider) =>
  lockContract(t, {
    backends: [rows(prisma, provider), rows(prisma, provider)],
    hasFence: true,
    tellsWho: true,
  })

t.test('memory', async (t) => {
  const memory = memoryLock()
  await lockContract(t, { backends: [memory, memory], hasFence: true, tellsWho: true })
})

t.test('PostgreSQL', { skip: noPostgres }, async (t) => {
  await inDatabase(t, (await postgresDatabase(t)).prisma, 'postgresql')
})

t.test('PGlite', async (t) => {
  await inDatabase(t, (await pgliteDatabase(t)).prisma, 'postgresql')
})

t.test('MariaDB', { skip: noMariadb }, async (t) => {
  await inDatabase(t, (await mariadbDatabase(t)).prisma, 'mysql')
})

t.test('SQLite', async (t) => {
  await inDatabase(t, (await sqliteDatabase(t)).prisma, 'sqlite')
})

/** A client of the application's own, with a part of the keyspace that no other test uses. */
async function prefixed(t: Test): Promise<Redis> {
  const { prefix, url } = await redisClient(t)
  const redis = new Redis(url, { keyPrefix: prefix })
  t.teardown(() => redis.disconnect())
  return redis
}

t.test('Redis', { skip: noRedis }, async (t) => {
  const redis = await prefixed(t)
  await lockContract(t, {
    backends: [redisLock([redis]), redisLock([redis])],
    hasFence: false,
    tellsWho: false,
  })
})

t.test('three Redis servers', { skip: await missingRedisServer() }, async (t) => {
  const servers = await Promise.all([redisServer(t), redisServer(t), redisServer(t)])
  const connect = () => servers.map(({ url }) => new Redis(url))
  const [here, there] = [connect(), connect()]
  t.teardown(() => {
    for (const redis of [...here, ...there]) redis.disconnect()
  })
  await lockContract(t, {
    backends: [redisLock(here), redisLock(there)],
    hasFence: false,
    tellsWho: false,
  })
})

t.test('the database behind Redis', { skip: noRedis }, async (t) => {
  const redis = await prefixed(t)
  const { prisma } = await anyDatabase(t)
  const auto = () =>
    autoLock(rows(prisma, 'postgresql'), redisLock([redis]), ({ kind }) => t.fail(kind))
  await lockContract(t, { backends: [auto(), auto()], hasFence: true, tellsWho: false })
})
