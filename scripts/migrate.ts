// Writes and applies prisma/migrations with Prisma's own engine, and without a download:
//   npm run migrate                 applies what is missing to DATABASE_URL
//   npm run migrate -- new <name>   writes a migration from what changed in prisma/*.prisma
import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readSchema } from './generate.js'
import {
  type AdapterFactory,
  type MigrationList,
  type SchemasContainer,
  withSchemaEngine,
} from './schema-engine.js'

const folder = fileURLToPath(new URL('../prisma/migrations/', import.meta.url))
const LOCK_FILE = 'migration_lock.toml'
// What the engine wants to see before there is a first migration, too.
const LOCK_TEXT =
  '# Kept by Prisma: the provider that the migrations are written for.\nprovider = "postgresql"\n'
const everything = { externalTables: [], externalEnums: [] }

/** Applies what is missing, as `prisma migrate deploy` does. Returns the names of what it applied. */
export async function applyMigrations(adapterFactory: AdapterFactory): Promise<string[]> {
  const migrationsList = await readMigrations()
  const result = await withSchemaEngine(adapterFactory, await readSchemaFiles(), (engine) =>
    engine.applyMigrations({ migrationsList, filters: everything }),
  )
  return result.appliedMigrationNames
}

/**
 * The SQL that is still needed, after all migrations, to reach the schema: empty when both agree.
 * The database must be empty: the migrations are run in it.
 */
export async function schemaDrift(adapterFactory: AdapterFactory): Promise<string> {
  const schema = await readSchemaFiles()
  const from = { tag: 'migrations' as const, ...(await readMigrations()) }
  const result = await withSchemaEngine(asShadow(adapterFactory), schema, (engine) =>
    engine.diff({
      from,
      to: { tag: 'schemaDatamodel', ...schema },
      script: true,
      exitCode: null,
      filters: everything,
    }),
  )
  const sql = result.stdout ?? ''
  return /^\s*(--.*\s*)*$/.test(sql) ? '' : sql
}

/** The text of every migration, in the order in which they run. */
export async function readMigrationScripts(): Promise<string[]> {
  const { migrationDirectories } = await readMigrations()
  return migrationDirectories.map(({ path, migrationFile }) => {
    if (migrationFile.content.tag === 'ok') return migrationFile.content.value
    throw new Error(`Cannot read migration ${path}: ${migrationFile.content.value}`)
  })
}

/** Writes a migration from the difference, and returns its name; undefined when there is none. */
async function writeMigration(name: string): Promise<string | undefined> {
  // An in-memory PostgreSQL stands in for the shadow database, so nothing has to be running.
  const { memoryDatabase } = await import('./memory-database.js')
  const database = await memoryDatabase()
  const sql = await schemaDrift(database.adapterFactory).finally(database.close)
  if (!sql) return undefined
  const timestamp = new Date().toISOString().replace(/\D/g, '').slice(0, 14)
  const migration = `${timestamp}_${name.toLowerCase().replace(/[^a-z0-9]+/g, '_')}`
  await mkdir(join(folder, migration), { recursive: true })
  await writeFile(join(folder, migration, 'migration.sql'), sql)
  await writeFile(join(folder, LOCK_FILE), LOCK_TEXT)
  return migration
}

async function readMigrations(): Promise<MigrationList> {
  const entries = existsSync(folder) ? await readdir(folder, { withFileTypes: true }) : []
  const names = entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name)
  return {
    baseDir: folder,
    lockfile: { path: LOCK_FILE, content: (await read(LOCK_FILE)) ?? LOCK_TEXT },
    shadowDbInitScript: '',
    migrationDirectories: await Promise.all(
      names.sort().map(async (path) => {
        const sql = await read(join(path, 'migration.sql'))
        const content =
          sql === null
            ? { tag: 'error' as const, value: 'migration.sql is missing' }
            : { tag: 'ok' as const, value: sql }
        return { path, migrationFile: { path: 'migration.sql', content } }
      }),
    ),
  }
}

function read(path: string): Promise<string | null> {
  return readFile(join(folder, path), 'utf8').catch(() => null)
}

async function readSchemaFiles(): Promise<SchemasContainer> {
  const schema = await readSchema('postgresql')
  return { files: schema.map(([path, content]) => ({ path, content })) }
}

// The engine replays migrations in a shadow database of the adapter's making. The one that
// @prisma/adapter-pg makes is the wrong one when it was given a connection string (the string's
// database wins), so the caller's own empty database takes its place.
function asShadow(adapterFactory: AdapterFactory): AdapterFactory {
  return {
    provider: adapterFactory.provider,
    adapterName: adapterFactory.adapterName,
    connect: () => adapterFactory.connect(),
    connectToShadowDb: () => adapterFactory.connect(),
  }
}

async function main([command, ...words]: string[]): Promise<void> {
  if (command === 'new' && words.length > 0) {
    const name = await writeMigration(words.join('_'))
    console.log(name ? `Wrote prisma/migrations/${name}` : 'The migrations and the schema agree')
  } else if (command === undefined) {
    if (existsSync('.env')) process.loadEnvFile('.env')
    const connectionString = process.env.DATABASE_URL
    if (!connectionString) throw new Error('Set DATABASE_URL: see .env.example')
    const { PrismaPg } = await import('@prisma/adapter-pg')
    const applied = await applyMigrations(new PrismaPg({ connectionString }))
    console.log(applied.length > 0 ? `Applied ${applied.join(', ')}` : 'Nothing to apply')
  } else {
    throw new Error('Usage: npm run migrate [-- new <name>]')
  }
}

if (process.argv[1] === import.meta.filename) {
  await main(process.argv.slice(2)).catch((error: Error) => {
    console.error(error.message)
    process.exitCode = 1
  })
}
