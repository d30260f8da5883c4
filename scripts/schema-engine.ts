// Prisma's own schema engine as WebAssembly: it writes, applies and compares migrations through a
// driver adapter, so nothing native has to be downloaded.
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import {
  bindMigrationAwareSqlAdapterFactory,
  ColumnTypeEnum,
  type SqlDriverAdapter,
  type SqlMigrationAwareDriverAdapterFactory,
  type SqlQuery,
} from '@prisma/driver-adapter-utils'
import type { MigrationList, SchemaEngine, SchemasContainer } from '@prisma/schema-engine-wasm'

export type AdapterFactory = SqlMigrationAwareDriverAdapterFactory
export type { MigrationList, SchemaEngine, SchemasContainer }

/** Runs `use` with an engine that speaks to the adapter's database. */
export async function withSchemaEngine<T>(
  adapterFactory: AdapterFactory,
  schema: SchemasContainer,
  use: (engine: SchemaEngine) => Promise<T>,
): Promise<T> {
  const { SchemaEngine } = await loadEngine()
  const { factory, disconnect } = remembering(adapterFactory)
  const engine = await SchemaEngine.new(
    { datamodels: schema.files.map(({ path, content }) => [path, content]) },
    () => {}, // the engine's own log
    bindMigrationAwareSqlAdapterFactory(factory),
  )
  try {
    return await use(engine)
  } finally {
    engine.free()
    await disconnect()
  }
}

// The engine leaves the connections it asked for open, and an idle pool keeps the process alive.
function remembering(adapterFactory: AdapterFactory) {
  const connections: SqlDriverAdapter[] = []
  const remember = async (connecting: Promise<SqlDriverAdapter>) => {
    const connection = withCharColumns(await connecting)
    connections.push(connection)
    return connection
  }
  const factory: AdapterFactory = {
    provider: adapterFactory.provider,
    adapterName: adapterFactory.adapterName,
    connect: () => remember(adapterFactory.connect()),
    connectToShadowDb: () => remember(adapterFactory.connectToShadowDb()),
  }
  const disconnect = async () => {
    for (const connection of connections) await connection.dispose()
  }
  return { factory, disconnect }
}

const PG_CHAR_OID = 18
const PG_TEXT_OID = 25

interface PgResult {
  fields: { dataTypeID: number }[]
}

// @prisma/adapter-pg refuses columns of the type "char", which pg_constraint and other catalogues
// that the engine reads are full of. They are letters: shown to the adapter as text, and to the
// engine as the characters it asks for.
function withCharColumns(connection: SqlDriverAdapter): SqlDriverAdapter {
  if (connection.adapterName !== '@prisma/adapter-pg') return connection
  const inner = connection as SqlDriverAdapter & { performIO(query: SqlQuery): Promise<PgResult> }
  const queryRaw = inner.queryRaw.bind(inner)
  const performIO = inner.performIO.bind(inner)
  const charColumns = new WeakMap<SqlQuery, number[]>()
  inner.performIO = async (query) => {
    const result = await performIO(query)
    const columns = result.fields.flatMap((field, at) =>
      field.dataTypeID === PG_CHAR_OID ? [at] : [],
    )
    for (const at of columns) result.fields[at] = { ...result.fields[at], dataTypeID: PG_TEXT_OID }
    charColumns.set(query, columns)
    return result
  }
  inner.queryRaw = async (query) => {
    const result = await queryRaw(query)
    for (const at of charColumns.get(query) ?? []) {
      result.columnTypes[at] = ColumnTypeEnum.Character
    }
    return result
  }
  return inner
}

// Node has it; its type comes with the DOM's, which this project leaves out.
declare const WebAssembly: {
  instantiate(
    bytes: Uint8Array,
    imports: object,
  ): Promise<{ instance: { exports: Record<string, unknown> } }>
}

type Engine = typeof import('@prisma/schema-engine-wasm')
let loaded: Promise<Engine> | undefined

// The package's entry imports the .wasm file as a module, which Node 20 refuses: this does by hand
// what that import would do.
function loadEngine(): Promise<Engine> {
  loaded ??= (async () => {
    const require = createRequire(import.meta.url)
    const glueFile = require.resolve('@prisma/schema-engine-wasm/schema_engine_bg')
    const glue = await import('@prisma/schema-engine-wasm/schema_engine_bg')
    const bytes = await readFile(glueFile.replace(/\.js$/, '.wasm'))
    const { instance } = await WebAssembly.instantiate(bytes, {
      './schema_engine_bg.js': withQuietTimers(glue),
    })
    glue.__wbg_set_wasm(instance.exports)
    ;(instance.exports.__wbindgen_start as () => void)()
    return glue as unknown as Engine
  })()
  return loaded
}

// The engine limits its wait for the migration lock to ten seconds by a timer that it never clears:
// unless it is unref'd, every process that migrates lives ten seconds longer.
function withQuietTimers(glue: Record<string, unknown>): Record<string, unknown> {
  const quiet = (callback: () => void, delayMs: number) =>
    setTimeout(callback, delayMs >>> 0).unref()
  const names = Object.keys(glue).filter((name) => name.startsWith('__wbg_setTimeout_'))
  return { ...glue, ...Object.fromEntries(names.map((name) => [name, quiet])) }
}
