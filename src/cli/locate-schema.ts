import { readdir, readFile, stat } from 'node:fs/promises'
import { dirname, join, relative, resolve } from 'node:path'
import { schemaInConfig } from './prisma-config.js'

export interface Found {
  readonly kind: 'file' | 'folder'
  readonly path: string
}

export type Location = Found | { readonly kind: 'unknown'; readonly reason: string }

const EXTENSIONS = ['.js', '.ts', '.mjs', '.cjs', '.mts', '.cts']
// As Prisma looks for them, in its order.
const CONFIG_FILES = [
  'prisma7.config',
  '.config/prisma7',
  'prisma.config',
  '.config/prisma',
  '.config/prisma.config',
].flatMap((name) => EXTENSIONS.map((extension) => name + extension))
// The last one is for those who tell Prisma the folder on the command line.
const DEFAULTS = ['schema.prisma', 'prisma/schema.prisma', 'prisma']

/** Finds the schema that Prisma itself would read, or the one that was named. Reads no schema. */
export async function locateSchema(cwd: string, named: string | undefined): Promise<Location> {
  if (named !== undefined) {
    return (await at(resolve(cwd, named))) ?? unknown(`There is no file or folder ${named}.`)
  }
  return (await fromConfig(cwd)) ?? (await fromPackage(cwd)) ?? (await fromDefaults(cwd))
}

async function fromConfig(cwd: string): Promise<Location | undefined> {
  for (const name of CONFIG_FILES) {
    const source = await readIfPresent(join(cwd, name))
    if (source === undefined) continue
    const configured = schemaInConfig(source)
    if (configured.kind === 'unset') return undefined
    if (configured.kind === 'unreadable') {
      return unknown(
        `${name} computes where the schema is, and is not run to find out. Name the file or folder: \`npx fastify-idempotency init path/to/schema.prisma\`.`,
      )
    }
    const path = resolve(cwd, dirname(name), configured.path)
    return (
      (await at(path)) ??
      unknown(`${name} says that the schema is ${relative(cwd, path)}, but there is no such file.`)
    )
  }
  return undefined
}

async function fromPackage(cwd: string): Promise<Location | undefined> {
  const source = await readIfPresent(join(cwd, 'package.json'))
  if (source === undefined) return undefined
  const path = schemaInPackage(source)
  if (path === undefined) return undefined
  return (
    (await at(resolve(cwd, path))) ??
    unknown(`package.json says that the schema is ${path}, but there is no such file.`)
  )
}

async function fromDefaults(cwd: string): Promise<Location> {
  for (const name of DEFAULTS) {
    const location = await at(join(cwd, name))
    if (location?.kind === 'file') return location
    if (location && (await schemaPaths(location.path)).length > 0) return location
  }
  return unknown(
    'There is no Prisma schema here: no `schema` in prisma7.config.ts, prisma.config.ts or package.json, no schema.prisma, no prisma/schema.prisma, no .prisma files in prisma/. Run this in the folder of the application, or name the file or folder: `npx fastify-idempotency init path/to/schema.prisma`. An application without one starts with `npx prisma init`.',
  )
}

/** The files of a schema folder and its subfolders, in an order that does not depend on the disk. */
export async function schemaPaths(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  return entries
    .filter((entry) => !entry.isDirectory() && entry.name.endsWith('.prisma'))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort()
}

async function at(path: string): Promise<Found | undefined> {
  const found = await stat(path).catch(absent)
  if (found === undefined) return undefined
  return { kind: found.isDirectory() ? 'folder' : 'file', path }
}

function schemaInPackage(source: string): string | undefined {
  try {
    const schema: unknown = JSON.parse(source)?.prisma?.schema
    return typeof schema === 'string' ? schema : undefined
  } catch {
    // Whoever needs this package.json says so better than a command that looks for a schema.
    return undefined
  }
}

function readIfPresent(path: string): Promise<string | undefined> {
  return readFile(path, 'utf8').catch(absent)
}

function absent(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw error
}

function unknown(reason: string): Location {
  return { kind: 'unknown', reason }
}
