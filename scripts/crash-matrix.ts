// What `npm run test:crash` runs: kills a process at every crash point of every column on every
// database, prints what the next one found and how long that took, and compares it with
// docs/crashes.md.
//   npm run test:crash -- --write   writes the table there
import { readFile, writeFile } from 'node:fs/promises'
import type { Test } from 'tap'
import { CRASH_POINTS } from '../src/crash-points.js'
import { COLUMNS } from '../test/crash/columns.js'
import {
  CHAINS,
  crashMatrix,
  type MatrixCell,
  tableIn,
  tableOf,
  textOf,
  withTable,
} from '../test/crash/matrix.js'
import { removeLeftovers } from '../test/fixtures/leftovers.js'
import { findService } from '../test/fixtures/services.js'

const document = new URL('../docs/crashes.md', import.meta.url)

const ends: (() => unknown)[] = []
const run: Pick<Test, 'teardown'> = {
  teardown: (end) => void ends.unshift(end as () => unknown),
}
process.once('SIGINT', () => process.exit(130))

const postgres = await findService('postgres')
if (postgres instanceof Error) throw postgres
console.log(`PostgreSQL: ${postgres.source}`)

const startedAt = performance.now()
const cells = await crashMatrix(run, CHAINS, 3, printCell)
for (const end of ends) await end()
await removeLeftovers()
await postgres.stop()

const table = tableOf(cells)
console.log(`\n${aligned(table)}\n`)
for (const database of new Set(cells.map((cell) => cell.database))) {
  console.log(
    `seconds until it was over, ${database} (1.0 is the lease; a start of a process is in it)`,
  )
  console.log(`${aligned(timesOf(cells.filter((cell) => cell.database === database)))}\n`)
}

const killed = cells.filter(({ found }) => found !== undefined)
const problems = cells.flatMap(({ database, column, point, problems }) =>
  problems.map((problem) => `${database}, ${column}, ${point}: ${problem}`),
)
const seconds = Math.round((performance.now() - startedAt) / 1_000)
console.log(`${killed.length} processes killed in ${seconds} s, ${problems.length} problems`)
for (const problem of problems) console.log(`  ${problem}`)

const text = await readFile(document, 'utf8')
const isWritten = process.argv.includes('--write') && problems.length === 0
if (isWritten) await writeFile(document, withTable(text, table))
const isAsDocumented = isWritten || tableIn(text) === table
if (!isAsDocumented) console.log('docs/crashes.md says something else; --write mends that')
process.exit(problems.length === 0 && isAsDocumented ? 0 : 1)

function printCell(cell: MatrixCell): void {
  const { database, column, point, found, tookMs, problems } = cell
  if (found === undefined) return
  const time = (tookMs / 1_000).toFixed(1)
  const names = `${database.padEnd(10)} ${column.padEnd(28)} ${point.padEnd(22)}`
  console.log(`${names} ${time} s  ${textOf(cell)}`)
  for (const problem of problems) console.log(`  ${problem}`)
}

function timesOf(cells: readonly MatrixCell[]): string {
  const columns = COLUMNS.map(({ name }) => name)
  const timeOf = (point: string, column: string) => {
    const cell = cells.find((cell) => cell.point === point && cell.column === column)
    return cell?.found === undefined ? '–' : (cell.tookMs / 1_000).toFixed(1)
  }
  const rows = CRASH_POINTS.map((point) => [point, ...columns.map((name) => timeOf(point, name))])
  return [['killed at', ...columns], ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n')
}

/** A Markdown table as a person reads it in a terminal. */
function aligned(table: string): string {
  const rows = table
    .split('\n')
    .filter((line) => !line.startsWith('| ---'))
    .map((line) => line.slice(2, -2).replaceAll('`', '').split(' | '))
  const widths = rows[0]?.map((_, n) => Math.max(...rows.map((row) => row[n]?.length ?? 0))) ?? []
  return rows
    .map((row) =>
      row
        .map((text, n) => text.padEnd(widths[n] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}
