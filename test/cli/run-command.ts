import { spawn } from 'node:child_process'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'

const main = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))
const prisma = fileURLToPath(import.meta.resolve('prisma/build/index.js'))

export interface Ending {
  stdout: string
  stderr: string
  exitCode: number | null
}

/** Runs `fastify-idempotency` from its source, as a process of its own. */
export function runCommand(cwd: string, ...words: string[]): Promise<Ending> {
  return runNode(cwd, ['--import', import.meta.resolve('tsx'), main, ...words])
}

/** Runs Prisma's command; `validate`, `format` and `generate` need neither internet nor database. */
export function runPrisma(cwd: string, ...words: string[]): Promise<Ending> {
  return runNode(cwd, [prisma, ...words])
}

/** Runs TypeScript source given as text. */
export function runSource(cwd: string, source: string): Promise<Ending> {
  const tsx = import.meta.resolve('tsx')
  return runNode(cwd, ['--import', tsx, '--input-type=module', '--eval', source])
}

/** Runs Node without what the test runner gives to it. */
export async function runNode(
  cwd: string,
  args: string[],
  variables: Record<string, string> = {},
): Promise<Ending> {
  const { NODE_OPTIONS: _ofTheTestRunner, ...inherited } = process.env
  const env = {
    ...inherited,
    ...variables,
    CHECKPOINT_DISABLE: '1',
    NO_COLOR: '1',
    // Any existing file keeps Prisma from downloading an engine that these commands do not start.
    PRISMA_SCHEMA_ENGINE_BINARY: process.env.PRISMA_SCHEMA_ENGINE_BINARY ?? process.execPath,
  }
  const child = spawn(process.execPath, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject).once('close', resolve)
  })
  const [stdout, stderr, exitCode] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    ended,
  ])
  return { stdout, stderr, exitCode }
}
