import { PrismaPg } from '@prisma/adapter-pg'
import pg from 'pg'
import { PrismaClient } from '../../prisma/generated/postgresql/client.js'
import { memoryDatabase } from '../../scripts/memory-database.js'
import { applyMigrations } from '../../scripts/migrate.js'
import { CannotStart } from './cannot-start.js'

export interface Database {
  prisma: PrismaClient
  pool?: pg.Pool
  /** For people to read; contains no password. */
  description: string
  close: () => Promise<void>
}

/** The database of the URL, or one in memory, with its tables up to date. */
export function openDatabase(url: string | undefined): Promise<Database> {
  return url === undefined ? openPglite() : openPostgres(url)
}

/** PostgreSQL inside this process: nothing to install, and nothing is left of it afterwards. */
async function openPglite(): Promise<Database> {
  const { adapterFactory, close } = await memoryDatabase()
  await applyMigrations(adapterFactory)
  const prisma = new PrismaClient({ adapter: adapterFactory })
  return {
    prisma,
    description: 'PGlite, in memory: payments are gone when this ends',
    async close() {
      await prisma.$disconnect()
      await close()
    },
  }
}

async function openPostgres(url: string): Promise<Database> {
  const { host, pathname } = readUrl(url)
  const description = `PostgreSQL, ${decodeURIComponent(pathname.slice(1))} on ${host}`
  try {
    // On connections of its own, not on the pool: the engine's lock against migrations that run at
    // the same time lasts as long as its connection.
    await applyMigrations(new PrismaPg({ connectionString: url, connectionTimeoutMillis: 5_000 }))
  } catch (cause) {
    throw new CannotStart(
      `Cannot use the database of DATABASE_URL: ${(cause as Error).message.trim().replace(/\n+/g, '\n')}\n` +
        'Without DATABASE_URL, the example brings a database of its own.',
      { cause },
    )
  }
  const pool = new pg.Pool({ connectionString: url })
  // An idle connection that breaks is replaced at the next query; without a listener, it would end
  // the process.
  pool.on('error', () => {})
  // The same in the moment in which the pool hands one out.
  pool.on('connect', (client) => client.on('error', () => {}))
  const prisma = new PrismaClient({ adapter: new PrismaPg(pool) })
  return {
    prisma,
    pool,
    description,
    async close() {
      await prisma.$disconnect()
      await pool.end()
    },
  }
}

function readUrl(url: string): URL {
  if (/^postgres(ql)?:\/\//.test(url) && URL.canParse(url)) return new URL(url)
  throw new CannotStart('DATABASE_URL must look like postgresql://user:password@host:5432/database')
}
