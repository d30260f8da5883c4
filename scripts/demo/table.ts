import { styleText } from 'node:util'

/** How often something happened, by what it was: `{ 422: 1 }`. */
export type Counts = Record<string, number>

/** What came of a step, under the names of its columns. Texts have no sum. */
export type Tally = Record<string, number | Counts | string>

export interface Row {
  name: string
  tally: Tally
  isExpected: boolean
}

/** The rows with a sum below them, for a terminal. */
export function table(rows: readonly Row[]): string {
  const columns = Object.keys(rows[0]?.tally ?? {})
  const head = ['step', ...columns]
  const cellsOf = (name: string, tally: Tally) => [
    name,
    ...columns.map((column) => shown(tally[column])),
  ]
  const cells = rows.map(({ name, tally }) => cellsOf(name, tally))
  const total = cellsOf('total', sumOf(rows.map(({ tally }) => tally)))
  const widths = head.map((_, column) =>
    Math.max(...[head, ...cells, total].map((row) => row[column]?.length ?? 0)),
  )
  const line = (row: string[]) =>
    row
      .map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)))
      .join('  ')
      .trimEnd()
  const rule = widths.map((width) => '─'.repeat(width)).join('──')
  const body = rows.map(({ isExpected }, i) => `${line(cells[i] ?? [])}  ${mark(isExpected)}`)
  return [styled('bold', line(head)), rule, ...body, rule, line(total)].join('\n')
}

export function mark(isExpected: boolean): string {
  return isExpected ? styled('green', '✓') : styled('red', '✗')
}

export function styled(style: 'bold' | 'green' | 'red', text: string): string {
  return process.stdout.isTTY && !process.env.NO_COLOR ? styleText(style, text) : text
}

export function count(counts: Counts, what: string | number, by = 1): void {
  counts[what] = (counts[what] ?? 0) + by
}

function sumOf(tallies: readonly Tally[]): Tally {
  const sum: Tally = {}
  for (const tally of tallies) {
    for (const [column, value] of Object.entries(tally)) {
      const sofar = sum[column]
      if (typeof value === 'string') sum[column] = ''
      else if (typeof value === 'number') sum[column] = value + Number(sofar ?? 0)
      else sum[column] = merged(sofar as Counts | undefined, value)
    }
  }
  return sum
}

function merged(counts: Counts = {}, more: Counts): Counts {
  const all = { ...counts }
  for (const [what, by] of Object.entries(more)) count(all, what, by)
  return all
}

/** `{ 422: 1 }` as `1 × 422`; in the order of the names, whichever came first. */
function shown(value: Tally[string] = ''): string {
  if (typeof value !== 'object') return String(value)
  const counts = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
  const parts = counts.map(([what, count]) => `${count} × ${what}`)
  return parts.join(', ') || '0'
}
