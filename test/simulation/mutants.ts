import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { bundleFolder, bundler } from '../fixtures/bundle.js'
import type { Mutation } from './mutations/mutation.js'
import type { simulate } from './simulate.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** The simulation over sources of which one guard is taken away, until it is disposed of. */
export interface Mutant {
  readonly simulate: typeof simulate
  readonly dispose: () => Promise<void>
}

let mutants = 0

/** Bundles the simulation with its files changed. */
export async function mutantOf(mutation: Mutation): Promise<Mutant> {
  const texts = await mutatedTexts(mutation)
  mutants += 1
  const outfile = join(bundleFolder(), `mutant-${process.pid}-${mutants}.mjs`)
  const dispose = () => rm(outfile, { force: true })
  await bundler().build({
    entryPoints: [join(root, 'test/simulation/simulate.ts')],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    packages: 'external',
    logLevel: 'error',
    plugins: [
      {
        name: 'mutation',
        setup(build: Build) {
          build.onLoad({ filter: /\.ts$/ }, ({ path }) => {
            const contents = texts.get(path)
            return contents === undefined ? undefined : { contents, loader: 'ts' }
          })
        },
      },
    ],
  })
  try {
    const { simulate } = (await import(outfile)) as typeof import('./simulate.js')
    return { simulate, dispose }
  } catch (error) {
    await dispose()
    throw error
  }
}

/** The part of a build that a plugin of esbuild uses. */
interface Build {
  onLoad(which: { filter: RegExp }, load: (file: { path: string }) => object | undefined): void
}

/**
 * The files of a mutation as it changes them, by their paths.
 *
 * @throws where an edit does not name exactly one place.
 */
export async function mutatedTexts({ name, file, edits }: Mutation): Promise<Map<string, string>> {
  const texts = new Map<string, string>()
  for (const [find, replace, where = file] of edits) {
    const path = join(root, where)
    const parts = (texts.get(path) ?? (await readFile(path, 'utf8'))).split(find)
    if (parts.length !== 2) {
      throw new Error(`"${name}": ${where} has this ${parts.length - 1} times, not once: ${find}`)
    }
    texts.set(path, parts.join(replace))
  }
  return texts
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
