// The crash matrix: every column on every database, some side by side.
import type { Test } from 'tap'
import { CRASH_POINTS, type CrashPoint } from '../../src/crash-points.js'
import { type Cell, crashChain } from './chain.js'
import { COLUMNS, type Column } from './columns.js'
import { DATABASES, type DatabaseName } from './databases.js'

export interface MatrixCell extends Cell {
  readonly database: DatabaseName
}

export interface Chain {
  readonly database: DatabaseName
  readonly column: Column
}

/** All that there is. */
export const CHAINS: readonly Chain[] = (['PostgreSQL', 'PGlite'] as const).flatMap((database) =>
  COLUMNS.map((column) => ({ database, column })),
)

/** Runs these chains, so many at once; calls back with every cell as it is there. */
export async function crashMatrix(
  t: Pick<Test, 'teardown'>,
  chains: readonly Chain[],
  sideBySide: number,
  onCell: (cell: MatrixCell) => void = () => {},
): Promise<readonly MatrixCell[]> {
  const cells: MatrixCell[] = []
  const waiting = [...chains]
  async function work(): Promise<void> {
    for (let chain = waiting.shift(); chain !== undefined; chain = waiting.shift()) {
      const { database, column } = chain
      await crashChain(t, column, await DATABASES[database](t), (cell) => {
        cells.push({ ...cell, database })
        onCell({ ...cell, database })
      })
    }
  }
  await Promise.all(Array.from({ length: sideBySide }, work))
  return cells
}

/** What a cell says, without how long it took. */
export function textOf({ found, wasCalledAgain }: Cell): string {
  if (found === undefined) return '–'
  return wasCalledAgain ? `${found}, calls again` : found
}

/**
 * What was found, as a table in Markdown: one row for each point, one column for each way of coming
 * by. What the databases do not agree in, is told of each.
 */
export function tableOf(cells: readonly MatrixCell[]): string {
  const columns = [...new Set(COLUMNS.map(({ name }) => name))].filter((name) =>
    cells.some(({ column }) => column === name),
  )
  const cellText = (point: CrashPoint, column: string) => {
    const here = cells.filter((cell) => cell.point === point && cell.column === column)
    const texts = new Set(here.map(textOf))
    return texts.size === 1
      ? [...texts].join()
      : here.map((cell) => `${cell.database}: ${textOf(cell)}`).join('; ')
  }
  const row = (texts: readonly string[]) => `| ${texts.join(' | ')} |`
  return [
    row(['killed at', ...columns]),
    row(['---', ...columns.map(() => '---')]),
    ...CRASH_POINTS.map((point) =>
      row([`\`${point}\``, ...columns.map((column) => cellText(point, column))]),
    ),
  ].join('\n')
}

const BEGIN = '<!-- npm run test:crash -->'
const END = '<!-- end -->'

/** The table in docs/crashes.md: what stands between the marks. */
export function tableIn(document: string): string {
  return document.slice(document.indexOf(BEGIN) + BEGIN.length, document.indexOf(END)).trim()
}

export function withTable(document: string, table: string): string {
  return document.replace(tableIn(document), () => table)
}

/** Of a table, the first column and those with these names. */
export function columnsOf(table: string, names: readonly string[]): string {
  const rows = table.split('\n').map((line) => line.slice(2, -2).split(' | '))
  const kept = rows[0]?.map((name, n) => n === 0 || names.includes(name)) ?? []
  return rows.map((cells) => `| ${cells.filter((_, n) => kept[n]).join(' | ')} |`).join('\n')
}
