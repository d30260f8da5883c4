import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { bundleFolder, bundler } from '../fixtures/bundle.js'
import type { Mutation } from './mutations.js'
import type { simulate } from './simulate.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** The simulation over sources of which one guard is taken away, until it is disposed of. */
export interface Mutant {
  readonly simulate: typeof simulate
  readonly dispose: () => Promise<void>
}

let mutants = 0

/** Bundles the simulation with one file changed. */
export async function mutantOf(mutation: Mutation): Promise<Mutant> {
  const contents = await mutatedText(mutation)
  const path = join(root, mutation.file)
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
          build.onLoad({ filter: /\.ts$/ }, (file) =>
            file.path === path ? { contents, loader: 'ts' } : undefined,
          )
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
