import type { Provider } from '../store/client.js'

export type { Provider }

/**
 * Fields that carry a name somebody else chose, by which a row is found. Prisma's default on MySQL,
 * VARCHAR(191), is shorter than the 255 characters that such a name may have; 255 of utf8mb4, three
 * times in one index, still fit InnoDB's limit of 3072 bytes.
 */
export const CHOSEN_BY_OTHERS: ReadonlySet<string> = new Set([
  'tenantId',
  'key',
  'eventId',
  'lane',
  'runningLane',
  'name',
  'resource',
  'slot',
  'holder',
  'entityId',
])

/**
 * Rewrites Prisma schema text, written for PostgreSQL, for another provider: the provider of a
 * `datasource` block, column types, and what only PostgreSQL's indexes can do. Relations, names
 * and documentation stay as they are, and so does the layout of `prisma format`.
 */
export function adaptModels(source: string, provider: Provider): string {
  const adapted = source.replace(
    /(\bdatasource\s+\w+\s*\{[^}]*?\bprovider\s*=\s*)"[^"]*"/g,
    `$1"${provider}"`,
  )
  if (provider === 'postgresql') return adapted
  return adapted
    .split('\n')
    .map((line, index, lines) => adaptLine(line, provider, () => attributeColumn(lines, index)))
    .join('\n')
}

function adaptLine(line: string, provider: 'mysql' | 'sqlite', column: () => number): string {
  if (/^\s*\/\//.test(line)) return line
  if (/^\s*@@(index|unique)\b/.test(line)) return withoutIndexOptions(line)
  const portable = line.replace(/\s+@db\.\w+(\([^)]*\))?/g, '')
  const field = /^\s*(\w+)\s+String\b\??/.exec(portable)
  if (provider !== 'mysql' || !field?.[1] || !CHOSEN_BY_OTHERS.has(field[1])) return portable
  const declared = portable.trimEnd()
  const hasAttributes = declared.length > field[0].length
  return `${hasAttributes ? declared : declared.padEnd(column() - 1)} @db.VarChar(255)`
}

/** `type: Brin`, `ops: …` and `where: …` are PostgreSQL's; the index itself is wanted everywhere. */
function withoutIndexOptions(line: string): string {
  return line
    .replace(/\(ops:\s*(raw\("[^"]*"\)|\w+)\)/g, '')
    .replace(/,\s*(type:\s*\w+|where:\s*raw\("[^"]*"\))/g, '')
}

/** Where `prisma format` puts the attributes of the model that has this line. */
function attributeColumn(lines: readonly string[], index: number): number {
  const start = lines.findLastIndex((line, at) => at <= index && line.includes('{'))
  const end = lines.findIndex((line, at) => at > index && line.startsWith('}'))
  const ends = lines
    .slice(start + 1, end)
    .map((line) => /^\s*\w+\s+[A-Z]\w*[?[\]]*/.exec(line)?.[0].length ?? 0)
  return Math.max(...ends) + 1
}
