import { readFile } from 'node:fs/promises'
import { join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { appendAtomically } from './append-atomically.js'
import { type Found, locateSchema, schemaPaths } from './locate-schema.js'
import { plan, type Schema } from './plan.js'
import { failure, type Report, reportOn } from './report.js'

/** The models as the package ships them; the same path from src/cli and from dist/cli. */
const MODELS = fileURLToPath(new URL('../../prisma/idempotency.prisma', import.meta.url))
const FILE_IN_FOLDER = 'idempotency.prisma'

export interface InitOptions {
  readonly cwd: string
  /** The file or folder that the user named. */
  readonly path: string | undefined
  readonly mode: 'write' | 'dry-run' | 'check'
}

/**
 * Adds the library's models to an application's schema. Rejects with the file system's error when
 * a file cannot be read or written; the schema is as it was then.
 */
export async function init({ cwd, path, mode }: InitOptions): Promise<Report> {
  const location = await locateSchema(cwd, path)
  if (location.kind === 'unknown') return failure(`${location.reason}\nNothing was changed.\n`)

  const schema = await readSchema(cwd, location)
  const planned = plan(schema, await readFile(MODELS, 'utf8'))
  if (planned.kind === 'add' && mode === 'write') {
    await appendAtomically(resolve(cwd, planned.change.path), planned.change.added)
  }
  const schemaPath = relative(cwd, location.path) || '.'
  return reportOn(planned, { mode, schemaPath, isNamed: path !== undefined })
}

async function readSchema(cwd: string, location: Found): Promise<Schema> {
  const isFolder = location.kind === 'folder'
  const paths = isFolder ? await schemaPaths(location.path) : [location.path]
  const files = paths.map(async (path) => ({
    path: relative(cwd, path),
    text: await readFile(path, 'utf8'),
  }))
  const target = isFolder ? join(location.path, FILE_IN_FOLDER) : location.path
  return { files: await Promise.all(files), target: relative(cwd, target) }
}
