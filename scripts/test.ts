// What `npm test` runs. Brings the clients up to date, finds the services once for all test files,
// runs tap, and says in its last line how many assertions passed and failed.
//   npm test -- test/core                    files or folders
//   npm test -- --grep=/replay/ test/http    any of tap's options
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { removeLeftovers } from '../test/fixtures/leftovers.js'
import { environmentOfServices, findService, SERVICE_NAMES } from '../test/fixtures/services.js'
import { generate } from './generate.js'
import { TapProgress } from './tap-progress.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const tapProgram = join(root, 'node_modules/tap/dist/esm/run.mjs')
process.chdir(root)
if (existsSync('.env')) process.loadEnvFile('.env')

// Ends what was started for this run when the run is interrupted.
process.once('SIGINT', () => process.exit(130))
process.once('SIGTERM', () => process.exit(143))

await generate()
await leaveOutPlugins()
for (const name of SERVICE_NAMES) {
  const service = await findService(name)
  console.log(service instanceof Error ? service.message : `${name}: ${service.source}`)
}

const isCi = process.env.CI === 'true'
const options = ['--reporter=tap', '--no-color', ...(isCi ? ['--fail-skip'] : [])]
const tap = spawn(
  process.execPath,
  [tapProgram, ...options, ...process.argv.slice(2).map(filesIn)],
  {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...(await environmentOfServices()) },
  },
)
const progress = new TapProgress((line) => console.log(line))
const lines = createInterface({ input: tap.stdout })
lines.on('line', (line) => progress.line(line))
// Both: the last lines can arrive after the exit.
const [[code]] = await Promise.all([once(tap, 'exit'), once(lines, 'close')])

await removeLeftovers()
for (const name of SERVICE_NAMES) {
  const service = await findService(name)
  if (!(service instanceof Error)) await service.stop()
}
progress.printSkips()
const { passed, failed, skipped } = progress.summary ?? { passed: 0, failed: 1, skipped: 0 }
// A run that went wrong without a failed assertion (no file found, a crash) is a failure as well.
const failures = code === 0 ? failed : Math.max(failed, 1)
console.log(`\n${passed} passed, ${failures} failed${skipped ? `, ${skipped} skipped` : ''}`)
process.exit(failures === 0 ? 0 : 1)

/**
 * tap rebuilds itself without the plugins that .taprc leaves out, but a run that does so still loads them
 * into each test file.
 */
async function leaveOutPlugins(): Promise<void> {
  const tap = (command: string) => promisify(execFile)(process.execPath, [tapProgram, command])
  const { stdout } = await tap('node-options')
  if (stdout.includes('@tapjs/typescript')) await tap('build')
}

/** tap takes files and patterns; a folder means the tests in it. */
function filesIn(argument: string): string {
  const isFolder = statSync(argument, { throwIfNoEntry: false })?.isDirectory() === true
  return isFolder ? join(argument, '**/*.test.ts') : argument
}
