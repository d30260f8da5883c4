// PGlite: PostgreSQL as WebAssembly, inside this process.
import { PGlite, type PGliteOptions } from '@electric-sql/pglite'
import { PrismaPGlite } from 'pglite-prisma-adapter'
import type { AdapterFactory } from './schema-engine.js'

export interface MemoryDatabase {
  pglite: PGlite
  adapterFactory: AdapterFactory
  close: () => Promise<void>
}

/** An empty PostgreSQL database in memory. It has one session, which all queries share. */
export async function memoryDatabase(options: PGliteOptions = {}): Promise<MemoryDatabase> {
  const pglite = await PGlite.create(options)
  return { pglite, adapterFactory: adapterFor(pglite), close: () => pglite.close() }
}

// The adapter's own executeScript does not wait for the script and so loses its errors.
function adapterFor(pglite: PGlite): AdapterFactory {
  const factory = new PrismaPGlite(pglite)
  const connect = async () => {
    const adapter = await factory.connect()
    adapter.executeScript = async (script) => {
      await pglite.exec(script)
    }
    return adapter
  }
  return {
    provider: factory.provider,
    adapterName: factory.adapterName,
    connect,
    connectToShadowDb: connect,
  }
}
