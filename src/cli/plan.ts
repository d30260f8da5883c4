import { isAnotherModel, type Provider } from '../store/client.js'
import { readDatasource } from './datasource.js'
import { readModel, type Shortcoming, shortcomings } from './model-declaration.js'
import { adaptModels } from './models.js'
import { type Block, readBlocks } from './schema-text.js'
import { isOptional, refusalOf, type TakenName } from './taken-name.js'

export interface SchemaFile {
  readonly path: string
  readonly text: string
}

/** An application's schema, and the file that takes what is added; it need not exist yet. */
export interface Schema {
  readonly files: readonly SchemaFile[]
  readonly target: string
}

/** Text that goes to the end of a file. What is there already has no way to change. */
export interface Change {
  readonly path: string
  readonly isNewFile: boolean
  readonly added: string
}

export interface IncompleteModel {
  readonly name: string
  readonly path: string
  readonly shortcomings: readonly Shortcoming[]
}

export type Plan =
  | {
      readonly kind: 'complete'
      readonly models: readonly string[]
      /** Whose parts the application goes without, by what its schema says. */
      readonly taken: readonly TakenName[]
    }
  | {
      readonly kind: 'add'
      readonly models: readonly string[]
      readonly taken: readonly TakenName[]
      readonly provider: Provider
      readonly change: Change
    }
  /** Models that the application has, but not as the library needs them: for its team to mend. */
  | { readonly kind: 'incomplete'; readonly models: readonly IncompleteModel[] }
  | { readonly kind: 'refused'; readonly reason: string }

const HEADING = '// The models of fastify-idempotency, added by `npx fastify-idempotency init`.'

interface Placed {
  readonly file: SchemaFile
  readonly block: Block
}

/** Decides what must be added to a schema so that it has the models, written for PostgreSQL. */
export function plan(schema: Schema, models: string): Plan {
  const placed: Placed[] = []
  for (const file of schema.files) {
    const reading = readBlocks(file.text)
    if (reading.kind === 'unclosed') {
      return refused(
        `${file.path} has ${reading.what} that starts in line ${reading.line} and never ends.`,
      )
    }
    for (const block of reading.blocks) placed.push({ file, block })
  }

  const home = placed.find(({ block }) => block.kind === 'datasource')
  if (!home) {
    const searched = schema.files.map(({ path }) => path).join(', ')
    return refused(
      `There is no \`datasource\` block in ${searched || 'the folder'}, so the database is unknown. Name the file that has it, or the folder of a schema in several files.`,
    )
  }
  const datasource = readDatasource(home.block)
  if (datasource.kind === 'unsupported') {
    const named =
      datasource.provider === undefined ? 'no provider' : `the provider "${datasource.provider}"`
    return refused(
      `The datasource in ${home.file.path} has ${named}. fastify-idempotency works on "postgresql", "mysql" and "sqlite".`,
    )
  }

  const source = adaptModels(models.replaceAll('\r\n', '\n'), datasource.provider)
  const needed = blocksOf(source)
  const missing: Block[] = []
  const incomplete: IncompleteModel[] = []
  const taken: TakenName[] = []
  for (const block of needed) {
    const present = placed.find(({ block: { kind, name } }) => name === block.name && isType(kind))
    // In a datasource of several schemas, tables of one name can be in two of them.
    const rival =
      present ?? (datasource.schemas.length > 0 ? undefined : withTableOf(placed, block))
    if (rival === undefined) {
      missing.push(block)
    } else if (isSomethingElse(rival.block, block)) {
      taken.push(takenName(block, rival))
    } else {
      const found = shortcomings(readModel(rival.block), readModel(block), datasource.provider)
      if (found.length === 0) continue
      incomplete.push({ name: block.name, path: rival.file.path, shortcomings: found })
    }
  }
  const indispensable = taken.find((one) => !isOptional(one))
  if (indispensable) return refused(refusalOf(indispensable))
  if (incomplete.length > 0) return { kind: 'incomplete', models: incomplete }
  if (missing.length === 0) {
    const names = needed.map(({ name }) => name)
    const models = names.filter((name) => !taken.some((one) => one.name === name))
    return { kind: 'complete', models, taken }
  }

  const target = schema.files.find(({ path }) => path === schema.target)
  const texts = missing.map((block) => inSchema(documented(source, block), datasource.schemas))
  const added = `${gapAfter(target?.text ?? '')}${[HEADING, ...texts].join('\n\n')}\n`
  return {
    kind: 'add',
    models: missing.map(({ name }) => name),
    taken,
    provider: datasource.provider,
    change: {
      path: schema.target,
      isNewFile: target === undefined,
      added: added.replaceAll('\n', newlineOf((target ?? home.file).text)),
    },
  }
}

/** The schema after a change, as the disk will have it. */
export function applyChange(schema: Schema, { path, isNewFile, added }: Change): Schema {
  const files = isNewFile
    ? [...schema.files, { path, text: added }]
    : schema.files.map((file) => (file.path === path ? { path, text: file.text + added } : file))
  return { ...schema, files }
}

function refused(reason: string): Plan {
  return { kind: 'refused', reason }
}

function blocksOf(models: string): readonly Block[] {
  const reading = readBlocks(models)
  if (reading.kind === 'read') return reading.blocks
  throw new Error(`The models that come with fastify-idempotency have ${reading.what} with no end`)
}

/** Models, views, enums and composite types share their names; a generator may have any. */
function isType(kind: string): boolean {
  return kind !== 'generator' && kind !== 'datasource'
}

function takenName(needed: Block, { file, block }: Placed): TakenName {
  const { kind, name } = block
  const what = `${/^[aeiou]/.test(kind) ? 'an' : 'a'} ${kind}`
  return {
    name: needed.name,
    table: readModel(needed).table,
    by: { what, name, table: readModel(block).table },
    path: file.path,
  }
}

/** What has the table that a model of the library's would have, under another name. */
function withTableOf(placed: readonly Placed[], needed: Block): Placed | undefined {
  const { table } = readModel(needed)
  const isTable = ({ kind }: Block) => kind === 'model' || kind === 'view'
  return placed.find(({ block }) => isTable(block) && readModel(block).table === table)
}

/** Whether what has the name, or the table, of a model of the library's is the application's own. */
function isSomethingElse(present: Block, needed: Block): boolean {
  if (present.kind !== needed.kind || present.name !== needed.name) return true
  const names = new Set(readModel(present).fields.map(({ name }) => name))
  const { fields } = readModel(needed)
  return isAnotherModel(fields.filter(({ name }) => !names.has(name)).length, fields.length)
}

/** A block with the documentation right above it. */
function documented(source: string, { start, end }: Block): string {
  const above = /(?:\/\/\/[^\n]*\n)*$/.exec(source.slice(0, start))?.[0] ?? ''
  return above + source.slice(start, end)
}

/** With several database schemas, Prisma wants each model to name its own. */
function inSchema(model: string, schemas: readonly string[]): string {
  // The library's SQL leaves the schema to the search path, which is `public` unless told otherwise.
  const schema = schemas.includes('public') ? 'public' : schemas[0]
  return schema === undefined ? model : model.replace(/\n\}$/, `\n  @@schema("${schema}")\n}`)
}

function newlineOf(text: string): '\r\n' | '\n' {
  const newlines = text.match(/\r?\n/g) ?? []
  return newlines.filter((newline) => newline === '\r\n').length * 2 > newlines.length
    ? '\r\n'
    : '\n'
}

/** What makes one blank line between a text and what follows it. */
function gapAfter(text: string): string {
  if (text === '' || /\n\r?\n$/.test(text)) return ''
  return text.endsWith('\n') ? '\n' : '\n\n'
}
