// What a lock costs: acquired and released again, per second, beside redlock by itself. Rounds are
// interleaved, so that what slows the machine for a while slows all of them alike.
//   npx tsx bench/locks.ts [--rounds 5] [--seconds 1]
import { randomUUID } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { PrismaPg } from '@prisma/adapter-pg'
import { Redis } from 'ioredis'
import pg from 'pg'
import Redlock from 'redlock'
import { PrismaClient } from '../prisma/generated/postgresql/client.js'
import { createLocks, type LocksSettings } from '../src/locks/create-locks.js'
import { databaseClock } from '../src/store/clock.js'
import { createStatementLimits, defaultMaxConnections } from '../src/store/statement-limit.js'

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '1' },
  },
})
const rounds = Number(values.rounds)
const seconds = Number(values.seconds)
const MANY = 16

/** Takes the lock of this name and gives it back. */
type Turn = (name: string) => Promise<unknown>

const admin = process.env.DATABASE_URL ?? 'postgres://postgres@127.0.0.1:5432/postgres'
const database = `fi_bench_locks_${process.pid}`
const databaseUrl = Object.assign(new URL(admin), { pathname: `/${database}` }).href

function turns(prisma: PrismaClient, redis: Redis): Record<string, Turn> {
  const redlock = new Redlock([redis], { retryCount: 0 })
  const locksOf = (kind: LocksSettings['kind']): Turn => {
    const locks = createLocks({
      ...{ kind, prisma, clock: databaseClock(prisma, 'postgresql'), provider: 'postgresql' },
      ...{ redis: [redis], redisPrefix: 'bench:', patienceMs: 5_000, report: () => {} },
      limits: createStatementLimits(defaultMaxConnections(), 5_000),
    })
    return async (name) => {
      const { kind } = await locks.lock(
        '',
        () => {},
        name,
        {},
        () => {},
      )
      if (kind !== 'done') throw new Error(`${name} is ${kind}`)
    }
  }
  return {
    'redlock by itself': async (name) => redlock.release(await redlock.acquire([name], 30_000)),
    memory: locksOf('memory'),
    redis: locksOf('redis'),
    database: locksOf('database'),
    auto: locksOf('auto'),
  }
}

/** How many turns a second, with so many at once, each on a name of its own. */
async function measure(turn: Turn, atOnce: number, prefix: string): Promise<number> {
  const startedAt = performance.now()
  const deadline = startedAt + seconds * 1_000
  let done = 0
  await Promise.all(
    Array.from({ length: atOnce }, async (_, n) => {
      while (performance.now() < deadline) {
        await turn(`${prefix}${n}`)
        done += 1
      }
    }),
  )
  return (done * 1_000) / (performance.now() - startedAt)
}

async function run(prisma: PrismaClient, redis: Redis): Promise<void> {
  const kinds = Object.entries(turns(prisma, redis))
  const prefix = `fi-bench:${randomUUID()}:`
  for (const atOnce of [1, MANY]) {
    const results = new Map<string, number[]>(kinds.map(([name]) => [name, []]))
    for (let round = 0; round <= rounds; round += 1) {
      for (const [name, turn] of kinds) {
        const perSecond = await measure(turn, atOnce, prefix)
        // The first round warms up.
        if (round > 0) results.get(name)?.push(perSecond)
      }
    }
    print(atOnce, results)
  }
}

function print(atOnce: number, results: Map<string, number[]>): void {
  const bare = median(results.get('redlock by itself') as number[])
  const how = atOnce === 1 ? 'one after the other' : `${atOnce} at once, on names of their own`
  console.log(`\n${how}; ${rounds} rounds of ${seconds} s, Node ${process.version}; medians`)
  console.log(`${''.padEnd(17)}  locks/s  ratio`)
  for (const [name, rates] of results) {
    const ratio = median(rates) / bare
    // What is kept in memory is off the scale.
    const bar = ratio > 3 ? `${'█'.repeat(48)}…` : '█'.repeat(Math.max(1, Math.round(ratio * 16)))
    console.log(
      `${name.padEnd(17)}${median(rates).toFixed(0).padStart(9)}${ratio.toFixed(2).padStart(7)}  ${bar}`,
    )
  }
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const upper = sorted[middle] as number
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] as number) + upper) / 2
}

async function asAdmin(sql: string): Promise<void> {
  const client = new pg.Client(admin)
  await client.connect()
  await client.query(sql)
  await client.end()
}

await asAdmin(`CREATE DATABASE ${database}`)
const pool = new pg.Pool({ connectionString: databaseUrl, max: 10 })
// Dropping the database cuts what is left of its connections.
pool.on('error', () => {})
const prisma = new PrismaClient({ adapter: new PrismaPg(pool) })
const redis = new Redis(process.env.REDIS_URL ?? 'redis://127.0.0.1:6379')
try {
  const folder = new URL('../prisma/migrations/', import.meta.url)
  for (const name of (await readdir(folder)).sort()) {
    if (name.endsWith('.toml')) continue
    await pool.query(await readFile(new URL(`${name}/migration.sql`, folder), 'utf8'))
  }
  await run(prisma, redis)
} finally {
  redis.disconnect()
  await prisma.$disconnect()
  await pool.end()
  await asAdmin(`DROP DATABASE ${database} WITH (FORCE)`)
}
