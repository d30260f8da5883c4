// Generates the Prisma clients of the tests, the example and the benchmark, one for each provider,
// into prisma/generated/<provider>/. Takes milliseconds when nothing has changed.
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { adaptModels, type Provider } from '../src/cli/models.js'

const PROVIDERS: Provider[] = ['postgresql', 'mysql', 'sqlite']
const schemaFolder = fileURLToPath(new URL('../prisma/', import.meta.url))
const generatedFolder = join(schemaFolder, 'generated')

/** A Prisma schema as [file name, text] pairs, in an order that does not depend on the disk. */
export type Schema = [name: string, text: string][]

/** The schema folder, adapted to a provider. */
export async function readSchema(provider: Provider): Promise<Schema> {
  const names = (await readdir(schemaFolder)).filter((name) => name.endsWith('.prisma')).sort()
  return Promise.all(
    names.map(async (name): Promise<Schema[number]> => {
      const text = await readFile(join(schemaFolder, name), 'utf8')
      return [name, adaptModels(text, provider)]
    }),
  )
}

/** Brings every client up to date, and returns the providers that needed it. */
export async function generate(): Promise<Provider[]> {
  const stale = await Promise.all(PROVIDERS.map(generateClient))
  return PROVIDERS.filter((_, index) => stale[index])
}

async function generateClient(provider: Provider): Promise<boolean> {
  const schema = await readSchema(provider)
  const output = join(generatedFolder, provider)
  const inputs = JSON.stringify([
    schema,
    await prismaVersion(),
    await readFile(import.meta.filename),
  ])
  const fingerprint = createHash('sha256').update(inputs).digest('hex')
  if ((await readFile(join(output, '.inputs'), 'utf8').catch(() => '')) === fingerprint)
    return false

  // Generated aside and moved into place, so that a test run that started a moment ago in the same
  // checkout never imports half a client. Inside the project, because the generator looks upwards
  // from its output for the tsconfig.json that says how imports are written.
  await mkdir(generatedFolder, { recursive: true })
  const workFolder = await mkdtemp(join(generatedFolder, `.${provider}-`))
  try {
    const schemaCopy = join(workFolder, 'schema')
    const client = join(workFolder, 'client')
    await mkdir(schemaCopy)
    for (const [name, text] of schema) {
      const redirected = text.replace(/^(\s*output\s*=\s*)"[^"]*"/m, '$1"../client"')
      await writeFile(join(schemaCopy, name), redirected)
    }
    await runPrisma(['generate', '--no-hints', '--schema', schemaCopy])
    await writeFile(join(client, '.inputs'), fingerprint)
    await rename(output, join(workFolder, 'previous')).catch(ignoreMissing)
    await rename(client, output)
  } finally {
    await rm(workFolder, { recursive: true, force: true })
  }
  return true
}

function ignoreMissing(error: NodeJS.ErrnoException): void {
  if (error.code !== 'ENOENT') throw error
}

async function runPrisma(args: string[]): Promise<void> {
  const require = createRequire(import.meta.url)
  const command = require.resolve('prisma/build/index.js')
  const env = {
    ...process.env,
    CHECKPOINT_DISABLE: '1',
    // The prisma command downloads its native schema engine before it does anything, even for
    // `generate`, which never starts it. Any existing file keeps it from trying, so that this
    // works the same with and without internet.
    PRISMA_SCHEMA_ENGINE_BINARY: process.env.PRISMA_SCHEMA_ENGINE_BINARY ?? process.execPath,
  }
  await promisify(execFile)(process.execPath, [command, ...args], { env }).catch((cause) => {
    throw new Error(`prisma ${args[0]} failed:\n${cause.stdout}${cause.stderr}`, { cause })
  })
}

async function prismaVersion(): Promise<string> {
  const require = createRequire(import.meta.url)
  return JSON.parse(await readFile(require.resolve('prisma/package.json'), 'utf8')).version
}

if (process.argv[1] === import.meta.filename) {
  const started = performance.now()
  const generated = await generate()
  if (generated.length > 0) {
    const seconds = ((performance.now() - started) / 1000).toFixed(1)
    console.log(`Generated Prisma clients for ${generated.join(', ')} in ${seconds} s`)
  }
}
