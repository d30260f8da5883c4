import { readModel } from './model-declaration.js'
import { CHOSEN_BY_OTHERS } from './models.js'
import { readBlocks } from './schema-text.js'

/**
 * The SQL that makes MySQL and MariaDB tell 'ABC' from 'abc' in the keys of these models, which
 * their usual collations do not, and for which a Prisma schema has no word. '' when there is none.
 */
export function keyCollationSql(models: string): string {
  const reading = readBlocks(models)
  if (reading.kind !== 'read') return ''
  const statements = reading.blocks.map(readModel).map(({ table, fields }) => {
    const columns = fields
      .filter(({ name }) => CHOSEN_BY_OTHERS.has(name))
      .map(({ column }) => `  MODIFY \`${column}\` VARCHAR(255) COLLATE utf8mb4_bin NOT NULL`)
    return columns.length === 0 ? '' : `ALTER TABLE \`${table}\`\n${columns.join(',\n')};`
  })
  return statements.filter((statement) => statement !== '').join('\n')
}
