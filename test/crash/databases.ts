// Databases that outlive the processes that use them.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { memoryDatabase } from '../../scripts/memory-database.js'
import { readMigrationScripts } from '../../scripts/migrate.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { databaseName } from '../fixtures/run.js'
import type { DatabaseEnvironment } from './process.js'

export type DatabaseName = 'PostgreSQL' | 'PGlite'

export const DATABASES: Readonly<
  Record<DatabaseName, (t: Pick<Test, 'teardown'>) => Promise<DatabaseEnvironment>>
> = {
  async PostgreSQL(t) {
    const { url } = await postgresDatabase(t)
    return { DATABASE_URL: url }
  },

  /** A folder. Whoever opens it has it for itself. */
  async PGlite(t) {
    const folder = await mkdtemp(join(tmpdir(), databaseName()))
    t.teardown(() => rm(folder, { recursive: true, force: true }))
    const DATA_DIR = join(folder, 'data')
    const { pglite, close } = await memoryDatabase({ dataDir: DATA_DIR })
    for (const script of await readMigrationScripts()) await pglite.exec(script)
    await close()
    // Empty, not left out: one that the tests have found their server by would be inherited.
    return { DATABASE_URL: '', DATA_DIR }
  },
}
