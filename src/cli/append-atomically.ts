import { randomUUID } from 'node:crypto'
import { open, readFile, realpath, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

/**
 * Adds text to the end of a file, or creates it. The file is replaced in one step, so that a crash
 * or a full disk at any point leaves the old one or the new one; the bytes that were there, the
 * file's mode and a symbolic link to it stay. Rejects with the file system's error.
 */
export async function appendAtomically(path: string, added: string): Promise<void> {
  const target = await realpath(path).catch((error) => fallback(error, path))
  const before = await readFile(target).catch((error) => fallback(error, Buffer.alloc(0)))
  const mode = await stat(target).then(
    (stats) => stats.mode & 0o7777,
    (error) => fallback(error, 0o666 & ~process.umask()),
  )
  const aside = join(dirname(target), `.${basename(target)}.${randomUUID()}.tmp`)
  try {
    const file = await open(aside, 'wx', mode)
    try {
      await file.writeFile(Buffer.concat([before, Buffer.from(added)]))
      await file.chmod(mode)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(aside, target)
  } catch (error) {
    await rm(aside, { force: true })
    throw error
  }
}

function fallback<T>(error: NodeJS.ErrnoException, value: T): T {
  if (error.code !== 'ENOENT') throw error
  return value
}
