import { readModel } from './model-declaration.js'
import { CHOSEN_BY_OTHERS } from './models.js'
import { readBlocks } from './schema-text.js'

// utf8mb4_bin, which both have, takes 'abc ' for 'abc'.
const ON_MARIADB = '-- On MariaDB, utf8mb4_nopad_bin in place of utf8mb4_0900_bin.'

/**
 * The SQL that makes MySQL and MariaDB tell 'ABC' from 'abc' in the keys of these models, which
 * their usual collations do not, and for which a Prisma schema has no word. '' when no model has
 * such a key.
 */
export function keyCollationSql(models: string): string {
  const reading = readBlocks(models)
  if (reading.kind !== 'read') return ''
  const statements = reading.blocks.map(readModel).flatMap(({ table, fields }) => {
    const columns = fields
      .filter(({ name }) => CHOSEN_BY_OTHERS.has(name))
      .map(({ column, type }) => {
        const nullability = type.endsWith('?') ? 'NULL' : 'NOT NULL'
        return `  MODIFY \`${column}\` VARCHAR(255) COLLATE utf8mb4_0900_bin ${nullability}`
      })
    return columns.length === 0 ? [] : [`ALTER TABLE \`${table}\`\n${columns.join(',\n')};`]
  })
  return statements.length === 0 ? '' : [ON_MARIADB, ...statements].join('\n')
}
