import type { Provider } from '../store/client.js'
import type { Block } from './schema-text.js'

/** A field of a model, as declared. */
export interface Field {
  readonly name: string
  /** With its `?` or `[]`. */
  readonly type: string
  readonly column: string
  /** The declaration itself, ready to be copied. */
  readonly line: string
}

/** What of a model the library depends on. */
export interface ModelDeclaration {
  readonly name: string
  readonly table: string
  readonly fields: readonly Field[]
  /** The field lists that are unique, by `@@id` or `@@unique`, each with its declaration. */
  readonly uniques: ReadonlyMap<string, string>
}

export function readModel({ name, lines }: Block): ModelDeclaration {
  const uniques = new Map<string, string>()
  const fields: Field[] = []
  let table = name
  for (const line of lines.map((raw) => raw.trim())) {
    const unique = /^@@(?:id|unique)\((?:\s*fields:)?\s*\[([^\]]*)\]/.exec(line)
    const field = /^(\w+)\s+(\w+(?:\([^)]*\))?\s*(?:\[\]|\?)?)/.exec(line)
    if (unique?.[1]) uniques.set(unique[1].replace(/\s/g, ''), line)
    else if (line.startsWith('@@map')) table = mappedName(line) ?? table
    else if (field?.[1] && field[2]) {
      const [, fieldName, type] = field
      const attributes = line.slice(field[0].length)
      const column = /@map\(/.test(attributes) ? mappedName(attributes) : undefined
      fields.push({ name: fieldName, type: type.trim(), column: column ?? fieldName, line })
      if (/@(?:id|unique)\b/.test(attributes)) uniques.set(fieldName, line)
    }
  }
  return { name, table, fields, uniques }
}

/** What a model has that does not do, or lacks. */
export interface Shortcoming {
  /** `field IdempotencyRecord.fence` */
  readonly what: string
  /** The line that is there now and must change; absent when a line is missing. */
  readonly has?: string
  /** The line that must be there. */
  readonly needs: string
}

const IN_STATEMENTS = ['IdempotencyRecord', 'WebhookEvent']

/** Compares a model of the application with what the library needs of it. Order does not matter. */
export function shortcomings(
  present: ModelDeclaration,
  needed: ModelDeclaration,
  provider: Provider,
): Shortcoming[] {
  // The library writes SQL of its own about them there; elsewhere Prisma translates the names.
  const namesMatter = provider === 'postgresql' && IN_STATEMENTS.includes(needed.name)
  const found: Shortcoming[] = []
  for (const field of needed.fields) {
    const what = `field ${needed.name}.${field.name}`
    const other = present.fields.find(({ name }) => name === field.name)
    if (!other) found.push({ what, needs: field.line })
    else if (other.type !== field.type || (namesMatter && other.column !== field.column)) {
      found.push({ what, has: other.line, needs: field.line })
    }
  }
  for (const [fields, line] of needed.uniques) {
    if (present.uniques.has(fields) || found.some(({ needs }) => needs === line)) continue
    const what = `unique constraint of ${needed.name} on (${fields})`
    // Declared in the line of its field, which may be there without it.
    const isInField = needed.fields.some((field) => field.line === line)
    const has = isInField ? present.fields.find(({ name }) => name === fields)?.line : undefined
    found.push({ what, ...(has === undefined ? {} : { has }), needs: line })
  }
  if (namesMatter && present.table !== needed.table) {
    const has = present.table === present.name ? undefined : `@@map("${present.table}")`
    const needs = `@@map("${needed.table}")`
    found.push({
      what: `table name of ${needed.name}`,
      ...(has === undefined ? {} : { has }),
      needs,
    })
  }
  return found
}

function mappedName(attribute: string): string | undefined {
  return /@map\((?:\s*name:)?\s*"([^"]*)"/.exec(attribute)?.[1]
}
