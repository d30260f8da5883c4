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
  #isUnexplained = false
  #isAboutProcess = false

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
    } else if (line === '  ---' || this.#isAboutProcess) {
      // How the process of the file just named ended: of interest when it says nothing itself.
      this.#isAboutProcess = line !== '  ...'
      if (this.#isUnexplained) this.#print(line)
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
    const reasons = ok ? [] : failures(block)
    for (const reason of reasons) this.#print(reason)
    this.#isUnexplained = !ok && !reasons.some((reason) => /^\s*not ok/.test(reason))
  }
}

/**
 * The failed assertions with their diagnosis, and what the test printed. The tests around a failed
 * assertion fail too: their diagnosis, which only repeats where they stand, is left out.
 */
function failures(block: string[]): string[] {
  const kept: string[] = []
  let depthOfLastFailure = 0
  let inDiagnosis = false
  let isWanted = true
  for (const line of block) {
    if (/^\s*---$/.test(line)) inDiagnosis = true
    if (inDiagnosis) {
      if (isWanted) kept.push(line)
      if (/^\s*\.\.\.$/.test(line)) inDiagnosis = false
    } else if (/^\s*not ok/.test(line)) {
      const depth = line.search(/\S/)
      isWanted = depth >= depthOfLastFailure
      depthOfLastFailure = depth
      kept.push(line)
    } else if (/^\s*ok \d+/.test(line)) {
      isWanted = false
    } else if (!/^\s*(\d+\.\.\d+|# (Subtest|time)|TAP version|$)/.test(line)) {
      kept.push(line)
    }
  }
  return kept
}

function readSummary(line: string): Summary {
  const count = (name: string) => Number(new RegExp(`\\b${name}: (\\d+)`).exec(line)?.[1] ?? 0)
  return { passed: count('pass'), failed: count('fail'), skipped: count('skip') + count('todo') }
}
