// Reads the TAP that the runner writes, and tells a person what matters in it: one line for each
// test file, what failed with its diagnosis, what was skipped and why.

export interface Summary {
  passed: number
  failed: number
  skipped: number
}

const FILE_RESULT = /^(not )?ok \d+ - (\S+)(?: #.*)?$/
const SUMMARY = /^# \{ total: \d+.* \}$/

export class TapProgress {
  summary: Summary | undefined
  readonly #print: (line: string) => void
  readonly #skips = new Map<string, string[]>()
  #block: string[] = []

  constructor(print: (line: string) => void) {
    this.#print = print
  }

  /** Takes the next line of the output. */
  line(line: string): void {
    const file = FILE_RESULT.exec(line)
    if (file) {
      this.#fileEnded(file[2] ?? '', !file[1])
    } else if (SUMMARY.test(line)) {
      this.summary = readSummary(line)
    } else {
      this.#block.push(line)
    }
  }

  /** Lists the reasons for skipping, each with the tests it kept from running. */
  printSkips(): void {
    for (const [reason, titles] of this.#skips) {
      this.#print(`\nskipped ${titles.length}, because ${reason}:`)
      for (const title of titles) this.#print(`  ${title}`)
    }
  }

  #fileEnded(file: string, ok: boolean): void {
    const block = this.#block
    this.#block = []
    const assertions = block.filter((line) => /^\s+(not )?ok \d+/.test(line))
    for (const line of assertions) {
      const [, title, reason] = /ok \d+ - (.*?) # SKIP ?(.*)$/i.exec(line) ?? []
      if (title === undefined) continue
      const titles = this.#skips.get(reason || 'of no stated reason') ?? []
      this.#skips.set(reason || 'of no stated reason', [...titles, `${file}: ${title}`])
    }
    const time = /# time=([\d.]+)ms/.exec(block.findLast((line) => /^ {4}# time=/.test(line)) ?? '')
    const seconds = time ? ` ${(Number(time[1]) / 1000).toFixed(1)} s` : ''
    this.#print(`${ok ? 'ok    ' : 'FAILED'} ${file}${seconds}`)
    if (!ok) for (const line of failures(block)) this.#print(line)
  }
}

/**
 * The failed assertions with their diagnosis, and what the test printed. The tests around a failed
 * assertion fail too: their diagnosis, which only repeats where they stand, is left out.
 */
function failures(block: string[]): string[] {
  const kept: string[] = []
  let diagnosis: 'keep' | 'drop' | undefined
  let deepest = 0
  for (const line of block) {
    const depth = line.search(/\S/)
    if (diagnosis && /^\s*\.\.\.$/.test(line)) {
      if (diagnosis === 'keep') kept.push(line)
      diagnosis = undefined
    } else if (diagnosis) {
      if (diagnosis === 'keep') kept.push(line)
    } else if (/^\s*not ok/.test(line)) {
      const isParent = depth < deepest
      deepest = isParent ? (depth <= 4 ? 0 : depth) : depth
      kept.push(line)
      diagnosis = isParent ? 'drop' : 'keep'
      continue
    } else if (/^\s*---$/.test(line)) {
      diagnosis = 'drop'
    } else if (depth >= 0 && !/^\s*(ok \d+|\d+\.\.\d+|# (Subtest|time))/.test(line)) {
      kept.push(line)
    }
  }
  return kept
}

function readSummary(line: string): Summary {
  const count = (name: string) => Number(new RegExp(`\\b${name}: (\\d+)`).exec(line)?.[1] ?? 0)
  return { passed: count('pass'), failed: count('fail'), skipped: count('skip') + count('todo') }
}
