/** The databases whose tables the library knows how to declare, by Prisma's name for them. */
export type Provider = 'postgresql' | 'mysql' | 'sqlite'

/**
 * Fields that carry a key somebody else chose. Prisma's default on MySQL, VARCHAR(191), is shorter
 * than the 255 characters that a key may have; 255 of utf8mb4, three times in one index, still fit
 * InnoDB's limit of 3072 bytes.
 */
const CHOSEN_BY_OTHERS = new Set(['tenantId', 'key'])

/**
 * Rewrites Prisma schema text, written for PostgreSQL, for another provider: the provider of a
 * `datasource` block, column types, and what only PostgreSQL's indexes can do. Relations, names
 * and documentation stay as they are.
 */
export function adaptModels(source: string, provider: Provider): string {
  const adapted = source.replace(
    /(\bdatasource\s+\w+\s*\{[^}]*?\bprovider\s*=\s*)"[^"]*"/g,
    `$1"${provider}"`,
  )
  if (provider === 'postgresql') return adapted
  return adapted
    .split('\n')
    .map((line) => adaptLine(line, provider))
    .join('\n')
}

function adaptLine(line: string, provider: 'mysql' | 'sqlite'): string {
  if (/^\s*\/\//.test(line)) return line
  if (/^\s*@@(index|unique)\b/.test(line)) return withoutIndexOptions(line)
  const portable = line.replace(/\s+@db\.\w+(\([^)]*\))?/g, '')
  const field = /^\s*(\w+)\s+String\b\??/.exec(portable)
  if (provider !== 'mysql' || !field?.[1] || !CHOSEN_BY_OTHERS.has(field[1])) return portable
  return portable.replace(/^(\s*\w+\s+String\b\??)/, '$1 @db.VarChar(255)')
}

/** `type: Brin`, `ops: …` and `where: …` are PostgreSQL's; the index itself is wanted everywhere. */
function withoutIndexOptions(line: string): string {
  return line
    .replace(/\(ops:\s*(raw\("[^"]*"\)|\w+)\)/g, '')
    .replace(/,\s*(type:\s*\w+|where:\s*raw\("[^"]*"\))/g, '')
}
