import { keyCollationSql } from './key-collation.js'
import type { IncompleteModel, Plan } from './plan.js'
import { choiceOf, type TakenName } from './taken-name.js'

/** What a run says and how it ends: results go to stdout, everything else to stderr. */
export interface Report {
  readonly stdout: string
  readonly stderr: string
  readonly exitCode: 0 | 1 | 2
}

export interface ReportContext {
  readonly mode: 'write' | 'dry-run' | 'check'
  /** The file or folder as the user knows it. */
  readonly schemaPath: string
  /** Whether the user named it; then Prisma must be told, too. */
  readonly isNamed: boolean
}

/** Puts a plan, carried out or not, into words. */
export function reportOn(plan: Plan, context: ReportContext): Report {
  switch (plan.kind) {
    case 'refused':
      return failure(`${plan.reason}\nNothing was changed.\n`)
    case 'incomplete':
      return failure(plan.models.map(incompleteModel).join('\n') + againAfter(context))
    case 'complete': {
      const text = `${context.schemaPath} has ${modelNames(plan.models)}; nothing to add.\n`
      return { ...success(text), stderr: choices(plan.taken, context) }
    }
    case 'add':
      return { ...reportOnAdding(plan, context), stderr: choices(plan.taken, context) }
  }
}

/** @param stderr - may have code in it, indented. */
export function failure(stderr: string, exitCode: 1 | 2 = 1): Report {
  return { stdout: '', stderr: inLines(stderr), exitCode }
}

/** @param stdout - may have code in it, indented. */
export function success(stdout: string): Report {
  return { stdout: inLines(stdout), stderr: '', exitCode: 0 }
}

// A terminal breaks longer lines, within words.
const COLUMNS = 80

/** Breaks long lines between words. Indented lines are code, and so is what is between backticks. */
function inLines(text: string): string {
  return text
    .split('\n')
    .map((line) => (/^\s/.test(line) ? line : fill(line)))
    .join('\n')
}

function fill(paragraph: string): string {
  const lines: string[] = []
  for (const word of paragraph.match(/(?:`[^`]*`|\S)+/g) ?? []) {
    const last = lines.at(-1)
    if (last !== undefined && last.length + 1 + word.length <= COLUMNS) {
      lines[lines.length - 1] = `${last} ${word}`
    } else lines.push(word)
  }
  return lines.join('\n')
}

function reportOnAdding(plan: Extract<Plan, { kind: 'add' }>, context: ReportContext): Report {
  const { path, isNewFile, added } = plan.change
  const names = modelNames(plan.models)
  if (context.mode === 'check') {
    const command = commandOf(context)
    return {
      stdout: inLines(
        `${context.schemaPath} lacks ${names}. \`${command}\` adds what is missing.\n`,
      ),
      stderr: '',
      exitCode: 1,
    }
  }
  if (context.mode === 'dry-run') {
    const where = isNewFile ? `the new file ${path}` : `the end of ${path}`
    const text = added.replaceAll('\r\n', '\n').trim()
    return { stdout: `${inLines(`Would add to ${where}:`)}\n\n${text}\n`, stderr: '', exitCode: 0 }
  }
  const where = isNewFile ? `in the new file ${path}` : `at the end of ${path}`
  const migration = plan.provider === 'mysql' ? mysqlMigration : simpleMigration
  return success(`Added ${names} ${where}.

Bring the database and the client up to date:

${migration(added, context)}

Then register the plugin with your Prisma client:

  import idempotency from 'fastify-idempotency'

  // tenant: whose key it is; \`false\` in an application with one tenant.
  await app.register(idempotency, {
    prisma,
    tenant: (request) => request.user?.orgId,
  })
`)
}

function simpleMigration(_added: string, context: ReportContext): string {
  const schema = schemaOption(context)
  return `  npx prisma migrate dev --name idempotency${schema}\n  npx prisma generate${schema}`
}

function mysqlMigration(added: string, context: ReportContext): string {
  const schema = schemaOption(context)
  return `  npx prisma migrate dev --name idempotency --create-only${schema}

Put this at the end of the new migration.sql, so that keys that differ only in case stay two keys:

${indent(keyCollationSql(added))}

  npx prisma migrate dev${schema}
  npx prisma generate${schema}`
}

function incompleteModel({ name, path, shortcomings }: IncompleteModel): string {
  const missing = shortcomings.filter(({ has }) => has === undefined)
  const different = shortcomings.filter(({ has }) => has !== undefined)
  let text = `${path} has a model ${name}, but not as fastify-idempotency needs it.\n`
  if (missing.length > 0) {
    text += `\nMissing: ${missing.map(({ what }) => what).join(', ')}. Add to the model:\n\n`
    text += `${indent(missing.map(({ needs }) => needs).join('\n'))}\n`
  }
  for (const { what, has, needs } of different) {
    text += `\nDifferent: ${what}. It is\n\n${indent(has ?? '')}\n\nand must be\n\n${indent(needs)}\n`
  }
  return text
}

function choices(taken: readonly TakenName[], context: ReportContext): string {
  return taken.map((one) => `\n${inLines(choiceOf(one, commandOf(context)))}\n`).join('')
}

function againAfter(context: ReportContext): string {
  const command = commandOf(context)
  return `\nNothing was changed, because the model is yours. When it is mended, run \`${command}\` again.\n`
}

function modelNames(names: readonly string[]): string {
  return `${names.length === 1 ? 'model' : 'models'} ${names.join(', ')}`
}

function commandOf(context: ReportContext): string {
  return `npx fastify-idempotency init${argument(context)}`
}

function argument({ isNamed, schemaPath }: ReportContext): string {
  return isNamed ? ` ${quoted(schemaPath)}` : ''
}

function schemaOption({ isNamed, schemaPath }: ReportContext): string {
  return isNamed ? ` --schema ${quoted(schemaPath)}` : ''
}

function quoted(path: string): string {
  return /^[\w./@\\:-]+$/.test(path) ? path : JSON.stringify(path)
}

function indent(lines: string): string {
  return lines.replace(/^(?=.)/gm, '  ')
}
