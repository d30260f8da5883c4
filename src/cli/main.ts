#!/usr/bin/env node
// What `npx fastify-idempotency` runs.
import { readFile } from 'node:fs/promises'
import { HELP, readCommand } from './command.js'
import { init } from './init.js'
import { failure, type Report, success } from './report.js'

async function run(words: readonly string[]): Promise<Report> {
  const command = readCommand(words)
  switch (command.kind) {
    case 'help':
      return success(HELP)
    case 'version': {
      const description = await readFile(new URL('../../package.json', import.meta.url), 'utf8')
      return success(`${JSON.parse(description).version}\n`)
    }
    case 'misuse':
      return failure(`${command.problem} \`npx fastify-idempotency --help\` says more.\n`, 2)
    case 'init':
      return init({ ...command, cwd: process.cwd() })
  }
}

const report = await run(process.argv.slice(2)).catch((error: Error) =>
  failure(`${error.message}\nNothing was changed.\n`),
)
process.stdout.write(report.stdout)
process.stderr.write(report.stderr)
process.exitCode = report.exitCode
