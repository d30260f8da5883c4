import { parseArgs } from 'node:util'

export type Command =
  | {
      readonly kind: 'init'
      readonly path: string | undefined
      readonly mode: 'write' | 'dry-run' | 'check'
    }
  | { readonly kind: 'help' | 'version' }
  | { readonly kind: 'misuse'; readonly problem: string }

export const HELP = `fastify-idempotency init [path] [options]

Adds the models of fastify-idempotency to the Prisma schema of an application.
Text that is there already is never changed, and running it again adds nothing.

  path         The schema file, or the folder of a schema in several files. By
               default what prisma7.config.ts, prisma.config.ts or package.json
               says, then schema.prisma, prisma/schema.prisma and the folder
               prisma/.

Options
  --dry-run    Print what would be added, and write nothing
  --check      Write nothing; exit with 1 if anything is missing, for CI
  --help       Print this
  --version    Print the version

Exit codes: 0 done or nothing to do, 1 not possible or (--check) something is
missing, 2 misuse.
`

/** Reads the words after the command's name. */
export function readCommand(words: readonly string[]): Command {
  const { values, positionals, tokens } = parseArgs({
    args: [...words],
    strict: false,
    allowPositionals: true,
    tokens: true,
    options: {
      'dry-run': { type: 'boolean' },
      check: { type: 'boolean' },
      help: { type: 'boolean', short: 'h' },
      version: { type: 'boolean', short: 'v' },
    },
  })
  // parseArgs is not strict because its own messages speak to the author of a program.
  const known = ['dry-run', 'check', 'help', 'version']
  for (const token of tokens) {
    if (token.kind !== 'option') continue
    if (!known.includes(token.name)) return misuse(`There is no option ${token.rawName}.`)
    if (token.value !== undefined) return misuse(`Option ${token.rawName} takes no value.`)
  }
  const [name, path, ...rest] = positionals
  if (values.help || name === 'help') return { kind: 'help' }
  if (values.version) return { kind: 'version' }

  if (name === undefined) return misuse('There is no command; the only one is `init`.')
  if (name !== 'init') return misuse(`There is no command ${name}; the only one is \`init\`.`)
  if (path === '') return misuse('The path is empty.')
  if (rest.length > 0) return misuse(`One path is enough; ${rest.join(' ')} is too much.`)
  if (values.check && values['dry-run']) {
    return misuse('--check and --dry-run do not go together; use one.')
  }
  const mode = values.check ? 'check' : values['dry-run'] ? 'dry-run' : 'write'
  return { kind: 'init', path, mode }
}

function misuse(problem: string): Command {
  return { kind: 'misuse', problem }
}
