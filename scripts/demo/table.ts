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

/** A terminal breaks longer lines, within words. */
const COLUMNS = 80

/** The rows with a sum below them, each with what is not zero in it. */
export function table(rows: readonly Row[]): string {
  const total = sumOf(rows.map(({ tally }) => tally))
  const parts = rows.map(({ name, tally, isExpected }) => [
    `${mark(isExpected)} ${styled('bold', name)}`,
    ...cells(tally),
  ])
  return [...parts, [`  ${styled('bold', 'total')}`, ...cells(total)]].flat().join('\n')
}

/** Indented, and as many beside each other as a line has room for. */
function cells(tally: Tally): string[] {
  const lines: string[] = []
  for (const [column, value] of Object.entries(tally)) {
    const text = shown(value)
    if (text === '') continue
    const cell = `${column}: ${text}`
    const last = lines.at(-1)
    if (last === undefined) lines.push(`    ${cell}`)
    else if (last.length + 3 + cell.length <= COLUMNS) lines[lines.length - 1] = `${last} · ${cell}`
    else lines.push(`    ${cell}`)
  }
  return lines
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

/** `{ 422: 1 }` as `1 × 422`, in the order of the names; nothing for what did not happen. */
function shown(value: Tally[string]): string {
  if (typeof value === 'number') return value === 0 ? '' : String(value)
  if (typeof value === 'string') return value
  const counts = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
  return counts.map(([what, count]) => `${count} × ${what}`).join(', ')
}
