// Fires at the example payments API what its clients may do, and counts what came of it:
//   npm run demo                           starts the API in this process, on a free port
//   DEMO_URL=http://… npm run demo         uses the one that runs there
import { randomUUID } from 'node:crypto'
import { isDeepStrictEqual, styleText } from 'node:util'
import { CannotStart } from '../examples/payments/cannot-start.js'
import { readEnvironment } from '../examples/payments/environment.js'
import { type RunningApi, start } from '../examples/payments/start.js'

const DUPLICATES = 50
const TENANTS = { acme: 'acme-demo-token', globex: 'globex-demo-token' }

interface Sent {
  path?: string
  token?: string
  key?: string | undefined
  amount?: number
}

interface Answer {
  status: number
  isReplay: boolean
  /** Everything of it that a replay repeats. */
  content: { status: number; type: string | null; location: string | null; body: string }
}

/** What came of a step. Refusals are counted by their status: `{ 422: 1 }`. */
interface Tally {
  requests: number
  handlerRuns: number
  paymentsStored: number
  replays: number
  conflicts: Record<string, number>
  other: Record<string, number>
}

interface Step {
  name: string
  requests: Sent[]
  expected: Omit<Tally, 'requests'>
}

interface Row {
  name: string
  tally: Tally
  isExpected: boolean
}

const nothing = { handlerRuns: 0, paymentsStored: 0, replays: 0, conflicts: {}, other: {} }

/** The scenario. The key is new in each run: a database that stays would remember the last one. */
function scenario(): Step[] {
  const first: Sent = {
    path: '/payments',
    token: TENANTS.acme,
    key: `demo-${randomUUID()}`,
    amount: 4900,
  }
  return [
    {
      name: `${DUPLICATES} identical payments at once`,
      requests: new Array<Sent>(DUPLICATES).fill(first),
      expected: { ...nothing, handlerRuns: 1, paymentsStored: 1, replays: DUPLICATES - 1 },
    },
    {
      name: 'the same key, another amount',
      requests: [{ ...first, amount: 9900 }],
      expected: { ...nothing, conflicts: { 422: 1 } },
    },
    {
      name: 'the same key, another route',
      requests: [{ ...first, path: '/refunds' }],
      expected: { ...nothing, conflicts: { 422: 1 } },
    },
    {
      name: 'the same key, another tenant',
      requests: [{ ...first, token: TENANTS.globex }],
      expected: { ...nothing, handlerRuns: 1, paymentsStored: 1 },
    },
    {
      name: 'the same key, an unknown tenant',
      requests: [{ ...first, token: 'no-such-token' }],
      expected: { ...nothing, other: { 401: 1 } },
    },
    {
      name: 'no key',
      requests: [{ ...first, key: undefined }],
      expected: { ...nothing, other: { 400: 1 } },
    },
    {
      name: 'the first payment once more',
      requests: [first],
      expected: { ...nothing, replays: 1 },
    },
  ]
}

/** Runs the scenario at an API; returns whether everything was as it should be. */
async function demonstrate(url: string): Promise<boolean> {
  const steps = scenario()
  const rows: Row[] = []
  let original: Answer | undefined
  for (const [index, { name, requests, expected }] of steps.entries()) {
    const title = `${index + 1}/${steps.length} ${name}`
    const before = await stats(url)
    let answered = 0
    progress(title, `0/${requests.length}`)
    const answers = await Promise.all(
      requests.map(async (request) => {
        const answer = await send(url, request)
        answered += 1
        progress(title, `${answered}/${requests.length}`)
        return answer
      }),
    )
    const after = await stats(url)
    original ??= answers.find(({ isReplay }) => !isReplay)
    const tally: Tally = {
      requests: answers.length,
      handlerRuns: after.handlerRuns - before.handlerRuns,
      paymentsStored: after.paymentsStored - before.paymentsStored,
      ...sort(answers, original),
    }
    const isExpected = isDeepStrictEqual(tally, { requests: requests.length, ...expected })
    rows.push({ name, tally, isExpected })
    progress(title, outcome(isExpected))
    endProgress()
  }
  console.log(`\n${table(rows)}\n`)
  const failed = rows.filter(({ isExpected }) => !isExpected)
  if (failed.length === 0) {
    console.log(
      styled('green', 'Every expectation held, and every replay was the same to the byte.'),
    )
  } else {
    const names = failed.map(({ name }) => `"${name}"`).join(', ')
    console.log(styled('red', `Not as expected: ${names}`))
  }
  return failed.length === 0
}

async function send(url: string, { path, token, key, amount }: Sent): Promise<Answer> {
  const response = await fetch(`${url}${path}`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${token}`,
      'content-type': 'application/json',
      ...(key !== undefined && { 'idempotency-key': key }),
    },
    body: JSON.stringify({ amount, currency: 'EUR' }),
  })
  const { status, headers } = response
  return {
    status,
    isReplay: headers.get('idempotent-replayed') === 'true',
    content: {
      status,
      type: headers.get('content-type'),
      location: headers.get('location'),
      // As hex, because text would hide a byte that is no UTF-8.
      body: Buffer.from(await response.arrayBuffer()).toString('hex'),
    },
  }
}

/** Puts every answer that did not come from the handler where it belongs. */
function sort(answers: Answer[], original: Answer | undefined) {
  const sorted = { replays: 0, conflicts: {}, other: {} }
  for (const { status, isReplay, content } of answers) {
    if (isReplay) {
      if (isDeepStrictEqual(content, original?.content)) sorted.replays += 1
      else count(sorted.other, 'different replay')
    } else if (status === 409 || status === 422) count(sorted.conflicts, status)
    else if (status !== 201) count(sorted.other, status)
  }
  return sorted
}

interface Stats {
  handlerRuns: number
  paymentsStored: number
}

/** What the API says of itself, for both tenants together. */
async function stats(url: string): Promise<Stats> {
  const sum = { handlerRuns: 0, paymentsStored: 0 }
  for (const token of Object.values(TENANTS)) {
    const headers = { authorization: `Bearer ${token}` }
    const response = await fetch(`${url}/stats`, { headers })
    if (!response.ok) throw new CannotStart(`${url} is not the example API: no /stats there`)
    const { handlerRuns, paymentsStored } = (await response.json()) as Stats
    sum.handlerRuns += handlerRuns
    sum.paymentsStored += paymentsStored
  }
  return sum
}

function table(rows: Row[]): string {
  const head = [
    'step',
    'requests',
    'handler runs',
    'payments stored',
    'replays',
    'conflicts',
    'other',
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
  const rule = widths.map((width) => '─'.repeat(width)).join('──')
  const body = rows.map(({ isExpected }, i) => `${line(cells[i] ?? [])}  ${outcome(isExpected)}`)
  return [styled('bold', line(head)), rule, ...body, rule, line(total)].join('\n')
}

function cellsOf(name: string, tally: Tally): string[] {
  const { requests, handlerRuns, paymentsStored, replays, conflicts, other } = tally
  const numbers = [requests, handlerRuns, paymentsStored, replays]
  return [name, ...numbers.map(String), counted(conflicts), counted(other)]
}

function sumOf(tallies: Tally[]): Tally {
  const sum: Tally = { requests: 0, ...nothing, conflicts: {}, other: {} }
  for (const { conflicts, other, ...numbers } of tallies) {
    for (const name of Object.keys(numbers) as (keyof typeof numbers)[]) sum[name] += numbers[name]
    for (const [what, n] of Object.entries(conflicts)) count(sum.conflicts, what, n)
    for (const [what, n] of Object.entries(other)) count(sum.other, what, n)
  }
  return sum
}

function count(counts: Record<string, number>, what: string | number, by = 1): void {
  counts[what] = (counts[what] ?? 0) + by
}

/** `{ 422: 1 }` as `1 × 422`. */
function counted(counts: Record<string, number>): string {
  const parts = Object.entries(counts).map(([what, count]) => `${count} × ${what}`)
  return parts.join(', ') || '0'
}

function outcome(isExpected: boolean): string {
  return isExpected ? styled('green', '✓') : styled('red', '✗')
}

/** Rewrites the line on a terminal; elsewhere only the last state of a line is written. */
let pending = ''
function progress(title: string, state: string): void {
  pending = `${title}  ${state}`
  if (process.stdout.isTTY) process.stdout.write(`\r\x1b[K${pending}`)
}

function endProgress(): void {
  process.stdout.write(process.stdout.isTTY ? '\n' : `${pending}\n`)
}

function styled(style: 'bold' | 'green' | 'red', text: string): string {
  return process.stdout.isTTY && !process.env.NO_COLOR ? styleText(style, text) : text
}

/** The API that DEMO_URL names, or one of our own. */
async function findApi(): Promise<RunningApi> {
  const url = process.env.DEMO_URL?.replace(/\/+$/, '')
  if (!url) {
    console.log('Starting the payments API …')
    return start({ ...readEnvironment(), host: '127.0.0.1', port: 0, logLevel: 'error' })
  }
  await fetch(url).catch((cause) => {
    throw new CannotStart(`Nothing answers at DEMO_URL (${url}): start it with npm start`, {
      cause,
    })
  })
  return { url, description: 'DEMO_URL', close: async () => {} }
}

try {
  const api = await findApi()
  console.log(`Payments API on ${api.url} (${api.description})\n`)
  try {
    if (!(await demonstrate(api.url))) process.exitCode = 1
  } finally {
    await api.close()
  }
} catch (error) {
  if (!(error instanceof CannotStart)) throw error
  console.error(error.message)
  process.exitCode = 1
}
