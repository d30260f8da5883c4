import { isDeepStrictEqual } from 'node:util'
import { mark, type Row, type Tally } from './table.js'

/** A part of a scenario: what is sent, and what has to come of it. */
export interface Step<Sent> {
  name: string
  /** What happens meanwhile on the other side. */
  before?: () => Promise<unknown>
  sent: Sent[]
  expected: Tally
}

/** Plays one step: sends all of it at once, and counts what came of it. */
export type Play<Sent> = (step: Step<Sent>, answered: () => void) => Promise<Tally>

/** Plays the steps one after the other, and compares what came of each with what should. */
export async function playAll<Sent>(
  steps: readonly Step<Sent>[],
  play: Play<Sent>,
): Promise<Row[]> {
  const rows: Row[] = []
  for (const [index, step] of steps.entries()) {
    const { name, before, sent, expected } = step
    const title = `${index + 1}/${steps.length} ${name}`
    let answered = 0
    progress(title, `0/${sent.length}`)
    await before?.()
    const tally = await play(step, () => {
      answered += 1
      progress(title, `${answered}/${sent.length}`)
    })
    const isExpected = isDeepStrictEqual(tally, expected)
    rows.push({ name, tally, isExpected })
    progress(title, mark(isExpected))
    process.stdout.write(process.stdout.isTTY ? '\n' : `${pending}\n`)
  }
  return rows
}

/** Rewrites the line on a terminal; elsewhere only the last state of a line is written. */
let pending = ''
function progress(title: string, state: string): void {
  pending = `${title}  ${state}`
  if (process.stdout.isTTY) process.stdout.write(`\r\x1b[K${pending}`)
}
