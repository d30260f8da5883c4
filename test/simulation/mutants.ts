import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Mutation } from './mutations.js'
import type { simulate } from './simulate.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** The simulation over sources of which one guard is taken away, until it is disposed of. */
export interface Mutant {
  readonly simulate: typeof simulate
  readonly dispose: () => Promise<void>
}

/** Copies the sources beside the originals, so that they find the same packages. */
export async function mutantOf(mutation: Mutation): Promise<Mutant> {
  const text = await mutatedText(mutation)
  const folder = await mkdtemp(join(root, '.simulation-'))
  const dispose = () => rm(folder, { recursive: true, force: true })
  try {
    for (const part of ['src', 'test/simulation']) {
      await cp(join(root, part), join(folder, part), { recursive: true })
    }
    await writeFile(join(folder, mutation.file), text)
    const path = join(folder, 'test/simulation/simulate.ts')
    const { simulate } = (await import(path)) as typeof import('./simulate.js')
    return { simulate, dispose }
  } catch (error) {
    await dispose()
    throw error
  }
}

/** @throws where the list does not name exactly one place. */
export async function mutatedText({ name, file, edits }: Mutation): Promise<string> {
  let text = await readFile(join(root, file), 'utf8')
  for (const [find, replace] of edits) {
    const parts = text.split(find)
    if (parts.length !== 2) {
      throw new Error(`"${name}": ${file} has this ${parts.length - 1} times, not once: ${find}`)
    }
    text = parts.join(replace)
  }
  return text
}

/** The first of these seeds whose schedule shows that something is wrong, and what. */
export async function firstFailure(
  { simulate }: Pick<Mutant, 'simulate'>,
  from: number,
  count: number,
): Promise<{ seed: number; violation: string } | undefined> {
  for (let seed = from; seed < from + count; seed += 1) {
    const [violation] = (await simulate(seed)).violations
    if (violation !== undefined) return { seed, violation }
  }
  return undefined
}
