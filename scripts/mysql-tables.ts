// Prisma's WebAssembly engine knows PostgreSQL and SQLite only, so for MariaDB the tables that
// `prisma db push` would make are written here, from the same models. It covers what the models of
// this project use, and throws on the rest. Foreign keys are left out.
import { CHOSEN_BY_OTHERS } from '../src/cli/models.js'
import { readSchema } from './generate.js'

const COLUMN_TYPES: Record<string, string> = {
  String: 'VARCHAR(191)',
  Boolean: 'BOOLEAN',
  Int: 'INTEGER',
  BigInt: 'BIGINT',
  Float: 'DOUBLE',
  Decimal: 'DECIMAL(65, 30)',
  DateTime: 'DATETIME(3)',
  Json: 'JSON',
  Bytes: 'LONGBLOB',
}

/** The statements that make every table in an empty MariaDB database. */
export async function mysqlTables(): Promise<string[]> {
  const text = (await readSchema('mysql')).map(([, text]) => text).join('\n')
  const models = [...text.matchAll(/^model (\w+) \{\n([\s\S]*?)^\}/gm)]
  const names = new Set(models.map(([, name]) => name))
  return models.flatMap(([, name = '', body = '']) => tableOf(name, body, names))
}

interface Column {
  name: string
  type: string
  attributes: string
  isOptional: boolean
}

function tableOf(model: string, body: string, models: Set<string | undefined>): string[] {
  const lines = body.split('\n').map((line) => line.replace(/\s*\/\/.*$/, '').trim())
  const table = /^@@map\("(\w+)"\)/m.exec(lines.join('\n'))?.[1] ?? model
  const columns = new Map<string, Column>()
  const keys: {
    kind: 'PRIMARY KEY' | 'UNIQUE INDEX' | 'INDEX'
    fields: string[]
    name?: string
  }[] = []

  for (const line of lines) {
    const key = /^@@(id|unique|index)\(\[([^\]]+)\](?:.*map: "(\w+)")?/.exec(line)
    const field = /^(\w+)\s+(\w+)(\[\]|\?)?\s*(.*)$/.exec(line)
    if (key) {
      const kind = key[1] === 'id' ? 'PRIMARY KEY' : key[1] === 'unique' ? 'UNIQUE INDEX' : 'INDEX'
      const fields = (key[2] ?? '').split(',').map((field) => field.trim().replace(/\(.*/, ''))
      keys.push({ kind, fields, ...(key[3] ? { name: key[3] } : {}) })
    } else if (field && !line.startsWith('@@')) {
      const [, name = '', type = '', arity, attributes = ''] = field
      if (models.has(type)) continue
      if (arity === '[]') throw new Error(`${model}.${name}: MariaDB has no lists`)
      const isOptional = arity === '?'
      columns.set(name, { name: mapped(name, attributes), type, attributes, isOptional })
      if (/@id\b/.test(attributes)) keys.push({ kind: 'PRIMARY KEY', fields: [name] })
      if (/@unique\b/.test(attributes)) keys.push({ kind: 'UNIQUE INDEX', fields: [name] })
    }
  }

  const identifying = new Set(keys.flatMap(({ kind, fields }) => (kind === 'INDEX' ? [] : fields)))
  const definitions = [...columns].map(([field, column]) => {
    // MariaDB compares text without regard to case and to spaces at the end, by default: then
    // "Key" is a retry of "key", and tenants 'a' and 'A' are one. What identifies a row is compared
    // byte for byte, as PostgreSQL does.
    const isText = column.type === 'String'
    const isName = identifying.has(field) || CHOSEN_BY_OTHERS.has(field)
    const collation = isText && isName ? ' COLLATE utf8mb4_nopad_bin' : ''
    const nullability = column.isOptional ? 'NULL' : 'NOT NULL'
    return `\`${column.name}\` ${columnType(model, column)}${collation} ${nullability}${defaultOf(column)}`
  })
  const declaredKeys = keys.map(({ kind, fields, name }) => {
    const names = fields.map((field) => columns.get(field)?.name ?? field)
    const suffix = kind === 'UNIQUE INDEX' ? 'key' : 'idx'
    const indexName = name ?? `${table}_${names.join('_')}_${suffix}`.slice(0, 64)
    const list = names.map((name) => `\`${name}\``).join(', ')
    return kind === 'PRIMARY KEY' ? `PRIMARY KEY (${list})` : `${kind} \`${indexName}\` (${list})`
  })
  const content = [...definitions, ...declaredKeys].map((line) => `  ${line}`).join(',\n')
  const character = 'DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci'
  return [`CREATE TABLE \`${table}\` (\n${content}\n) ${character}`]
}

function mapped(name: string, attributes: string): string {
  return /@map\("(\w+)"\)/.exec(attributes)?.[1] ?? name
}

function columnType(model: string, { name, type, attributes }: Column): string {
  const native = /@db\.(\w+)(\([^)]*\))?/.exec(attributes)
  if (native) return `${native[1]?.toUpperCase()}${native[2] ?? ''}`
  const known = COLUMN_TYPES[type]
  if (!known) throw new Error(`${model}.${name}: no MariaDB type for ${type}`)
  return known
}

/** Defaults that the database sets; uuid() and its like are the client's. */
function defaultOf({ type, attributes }: Column): string {
  const value = /@default\((.*?\)?)\)(?:\s|$)/.exec(attributes)?.[1]
  if (value === undefined) return ''
  if (value === 'autoincrement()') return ' AUTO_INCREMENT'
  if (value === 'now()') return ' DEFAULT CURRENT_TIMESTAMP(3)'
  if (/^\w+\(/.test(value)) return ''
  return ` DEFAULT ${type === 'String' || type === 'Json' ? `'${value.slice(1, -1)}'` : value}`
}
