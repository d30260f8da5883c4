// How MySQL and MariaDB compare the names by which rows are found.
import { hasModel, type ModelName, namesInDatabase, type PrismaClientLike } from './client.js'

/** Names that others chose, and by which a row is found, or guarded: two of them must never be one. */
export const NAMING_FIELDS = {
  idempotencyRecord: ['tenantId', 'key'],
  webhookEvent: ['tenantId', 'eventId'],
  namedLock: ['tenantId', 'name'],
  slotReservation: ['tenantId', 'resource', 'slot', 'holder'],
} as const satisfies Partial<Record<ModelName, readonly string[]>>

type NamingModel = keyof typeof NAMING_FIELDS

// utf8mb4_bin tells case apart, and takes 'abc ' for 'abc'.
const IS_EXACT = /_nopad_bin$|_0900_bin$|^binary$/

interface Column {
  readonly table: string
  readonly column: string
  /** None of a column of bytes, which are compared as they are. */
  readonly collation: string | null
  readonly nullable: string
  readonly version: string
}

const columnsIn = (count: number) => `
SELECT table_name AS \`table\`, column_name AS \`column\`, collation_name AS \`collation\`,
  is_nullable AS nullable, version() AS version
FROM information_schema.columns
WHERE table_schema = database() AND table_name IN (${Array(count).fill('?').join(', ')})`

/**
 * The statements that make MySQL and MariaDB tell all names apart, one for each table of the client's
 * models that needs one. A table that is not there needs none.
 */
export async function findInexactColumns(client: PrismaClientLike): Promise<string[]> {
  const models = (Object.keys(NAMING_FIELDS) as NamingModel[]).filter((model) =>
    hasModel(client, model),
  )
  const tables = models.map((model) => namesInDatabase(client, model))
  const names = tables.map(({ table }) => table)
  const found = await client.$queryRawUnsafe<Column[]>(columnsIn(names.length), ...names)
  return models.flatMap((model, n) => {
    const { table, columnOf } = tables[n] as (typeof tables)[number]
    const naming = new Set(NAMING_FIELDS[model].map(columnOf))
    const inexact = found.filter(
      (one) =>
        one.table === table &&
        naming.has(one.column) &&
        one.collation !== null &&
        !IS_EXACT.test(one.collation),
    )
    return inexact.length === 0
      ? []
      : [`ALTER TABLE \`${table}\` ${inexact.map(modified).join(', ')};`]
  })
}

function modified({ column, nullable, version }: Column): string {
  const collation = /mariadb/i.test(version) ? 'utf8mb4_nopad_bin' : 'utf8mb4_0900_bin'
  const nullability = nullable === 'YES' ? 'NULL' : 'NOT NULL'
  return `MODIFY \`${column}\` VARCHAR(255) COLLATE ${collation} ${nullability}`
}
