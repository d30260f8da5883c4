// What protection costs: one server process, one load process (this one), a real PostgreSQL.
// Rounds are interleaved, so that what slows the machine for a while slows all of them alike.
import { fork } from 'node:child_process'
import { createHmac } from 'node:crypto'
import { once } from 'node:events'
import { readdir, readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import autocannon from 'autocannon'
import pg from 'pg'

const { values } = parseArgs({
  options: {
    connections: { type: 'string', default: '32' },
    rounds: { type: 'string', default: '7' },
    seconds: { type: 'string', default: '3' },
    statements: { type: 'string', default: 'pool' },
    what: { type: 'string', default: 'keys,effects,webhooks,reservations,statuses' },
    json: { type: 'boolean', default: false },
  },
})
const connections = Number(values.connections)
const rounds = Number(values.rounds)
const seconds = Number(values.seconds)

/** One kind of request: what is measured side by side. The first of a group is what it costs bare. */
interface Kind {
  readonly name: string
  readonly path: string
  /** The request's own headers and body; `n` counts up over all requests of this kind. */
  readonly request: (n: number) => { headers?: Record<string, string>; body: string }
  /** Whether it asks for what is there before. */
  readonly isKnown?: boolean
  /** Waits, between rounds, until what was left to do in the background is done. */
  readonly isDrained?: boolean
}

/** So many are known before: as many as there are connections would be too kind to caches. */
const KNOWN = 1_000

const NOTE = 'x'.repeat(300)
const BODY = JSON.stringify({ amount: 4200, currency: 'EUR', note: NOTE })

const keyed = (key: string) => ({ headers: { 'idempotency-key': key }, body: BODY })
const signed = (id: string) => {
  const body = JSON.stringify({ id, type: 'paid', amount: 4200, currency: 'EUR', note: NOTE })
  const signature = createHmac('sha256', 'bench').update(body).digest('hex')
  return { headers: { 'x-signature': signature }, body }
}

const slot = (name: string) => ({ body: JSON.stringify({ slot: name }) })
/** Each payment in its turn, there and back: every request is a change. */
const change = (name: string) => (n: number) => ({
  body: JSON.stringify({
    id: `${name}-${n % KNOWN}`,
    to: Math.trunc(n / KNOWN) % 2 === 0 ? 'active' : 'paused',
  }),
})

const GROUPS: Record<string, readonly Kind[]> = {
  keys: [
    { name: 'bare route', path: '/bare', request: () => ({ body: BODY }) },
    { name: 'fresh key', path: '/protected', request: (n) => keyed(`fresh-${n}`) },
    {
      name: 'replay',
      path: '/protected',
      request: (n) => keyed(`known-${n % KNOWN}`),
      isKnown: true,
    },
  ],
  effects: [
    { name: 'bare route', path: '/bare', request: () => ({ body: BODY }) },
    { name: 'bare transaction', path: '/bare-transaction', request: () => ({ body: BODY }) },
    { name: 'fresh key, leases', path: '/protected', request: (n) => keyed(`leased-${n}`) },
    {
      name: 'fresh key, transaction',
      path: '/transaction',
      request: (n) => keyed(`transaction-${n}`),
    },
    { name: 'run(), transaction', path: '/run', request: (n) => keyed(`run-${n}`) },
    { name: 'fresh key, atomic', path: '/atomic', request: (n) => keyed(`atomic-${n}`) },
    { name: 'atomic, no key', path: '/atomic', request: () => ({ body: BODY }) },
    {
      name: 'replay, atomic',
      path: '/atomic',
      request: (n) => keyed(`atomic-known-${n % KNOWN}`),
      isKnown: true,
    },
  ],
  webhooks: [
    { name: 'bare route', path: '/bare', request: () => ({ body: BODY }) },
    { name: 'inline, fresh', path: '/inline', request: (n) => signed(`fresh-${n}`) },
    { name: 'inline, one commit', path: '/inline-final', request: (n) => signed(`fresh-${n}`) },
    {
      name: 'inline, duplicate',
      path: '/inline',
      request: (n) => signed(`known-${n % KNOWN}`),
      isKnown: true,
    },
    {
      name: 'deferred, fresh',
      path: '/deferred',
      request: (n) => signed(`fresh-${n}`),
      isDrained: true,
    },
    {
      name: 'deferred, duplicate',
      path: '/deferred',
      request: (n) => signed(`known-${n % KNOWN}`),
      isKnown: true,
    },
  ],
  reservations: [
    { name: 'bare insert', path: '/bare-slot', request: (n) => slot(`bare-${n}`) },
    { name: 'reserve, free', path: '/reserve', request: (n) => slot(`fresh-${n}`) },
    {
      name: 'reserve, his already',
      path: '/reserve',
      request: (n) => slot(`known-${n % KNOWN}`),
      isKnown: true,
    },
    {
      name: 'reserve, taken',
      path: '/reserve-taken',
      request: (n) => slot(`known-${n % KNOWN}`),
      isKnown: true,
    },
  ],
  statuses: [
    { name: 'bare update', path: '/bare-status', request: change('bare') },
    { name: 'advance', path: '/advance', request: change('guarded') },
  ],
}

interface Round {
  perSecond: number
  p50: number
  p99: number
  roundTrips: number
  /** How much longer the background had to work, in seconds, for each second of load. */
  behind: number
}

const admin = process.env.DATABASE_URL ?? 'postgres://postgres@127.0.0.1:5432/postgres'
const database = `fi_bench_${process.pid}`
const databaseUrl = Object.assign(new URL(admin), { pathname: `/${database}` }).href

async function run(): Promise<void> {
  const server = fork(fileURLToPath(new URL('./server.ts', import.meta.url)), {
    env: {
      ...process.env,
      DATABASE_URL: databaseUrl,
      STATEMENTS: values.statements,
      NODE_ENV: 'production',
    },
  })
  const [{ port }] = (await once(server, 'message')) as [{ port: number }]
  const url = `http://127.0.0.1:${port}`
  const report: Record<string, Record<string, Round[]>> = {}
  try {
    for (const name of values.what.split(',')) {
      const kinds = GROUPS[name]
      if (kinds === undefined) {
        throw new Error(`--what must be of ${Object.keys(GROUPS).join(', ')}, and not "${name}"`)
      }
      report[name] = await measure(url, name, kinds)
      progress('')
      print(kinds, report[name])
    }
  } finally {
    server.disconnect()
    await once(server, 'exit')
  }
  if (values.json) {
    const { statements } = values
    const setting = { connections, rounds, seconds, statements, node: process.version }
    console.log(JSON.stringify({ ...setting, report }, undefined, 1))
  }
}

async function measure(
  url: string,
  group: string,
  kinds: readonly Kind[],
): Promise<Record<string, Round[]>> {
  const results = Object.fromEntries(kinds.map(({ name }) => [name, [] as Round[]]))
  progress(`${group}: preparing`)
  if (group === 'statuses') {
    for (let n = 0; n < 2 * KNOWN; n += 1) {
      const id = `${n % 2 === 0 ? 'bare' : 'guarded'}-${Math.trunc(n / 2)}`
      await post(`${url}/payments`, { body: JSON.stringify({ id }) })
    }
  }
  for (const { path, request, isKnown } of kinds) {
    // Those that ask for what is known need it to be there.
    if (!isKnown) continue
    for (let n = 0; n < KNOWN; n += 1) await post(`${url}${path}`, request(n))
  }
  const counts = new Map(kinds.map((kind) => [kind, 0]))
  for (let round = 0; round <= rounds; round += 1) {
    for (const kind of kinds) {
      progress(
        `${group}: ${round === 0 ? 'warming up' : `round ${round} of ${rounds}`}: ${kind.name}`,
      )
      const measured = await load(url, kind, counts, round === 0 ? 1 : seconds)
      if (round > 0) results[kind.name]?.push(measured)
    }
  }
  return results
}

async function load(
  url: string,
  kind: Kind,
  counts: Map<Kind, number>,
  duration: number,
): Promise<Round> {
  const before = await ask(url, 'round-trips')
  const result = await autocannon({
    url: `${url}${kind.path}`,
    method: 'POST',
    connections,
    duration,
    requests: [
      {
        method: 'POST',
        setupRequest(request) {
          const n = counts.get(kind) ?? 0
          counts.set(kind, n + 1)
          const { headers, body } = kind.request(n)
          return { ...request, headers: { 'content-type': 'application/json', ...headers }, body }
        },
      },
    ],
  })
  if (result.non2xx > 0 || result.errors > 0) {
    throw new Error(`${kind.name}: ${result.non2xx} answers not 2xx, ${result.errors} errors`)
  }
  const endedAt = performance.now()
  while (kind.isDrained && (await ask(url, 'waiting')) > 0) await sleep(20)
  const behindS = kind.isDrained ? (performance.now() - endedAt) / 1_000 : 0
  return {
    perSecond: result.requests.average,
    p50: result.latency.p50,
    p99: result.latency.p99,
    roundTrips: ((await ask(url, 'round-trips')) - before) / result.requests.total,
    behind: behindS / duration,
  }
}

function print(kinds: readonly Kind[], results: Record<string, Round[]>): void {
  const [base] = kinds as readonly [Kind]
  const roundsOf = (name: string) => results[name] as Round[]
  const bare = median(roundsOf(base.name).map(({ perSecond }) => perSecond))
  const width = Math.max(...kinds.map(({ name }) => name.length))
  console.log(
    `\n${connections} connections, ${rounds} rounds of ${seconds} s, statements on ${values.statements}, Node ${process.version}; medians`,
  )
  console.log(`${''.padEnd(width)}  requests/s  ratio   p50 ms  p99 ms  round trips`)
  for (const { name } of kinds) {
    const of = (field: keyof Round) => median(roundsOf(name).map((round) => round[field]))
    // Round by round against the bare route beside it, not median against median.
    const ratio = median(
      roundsOf(name).map(({ perSecond }, n) => {
        return perSecond / (roundsOf(base.name)[n] as Round).perSecond
      }),
    )
    const behind = of('behind')
    console.log(
      [
        name.padEnd(width),
        of('perSecond').toFixed(0).padStart(12),
        ratio.toFixed(2).padStart(7),
        of('p50').toFixed(0).padStart(9),
        of('p99').toFixed(0).padStart(8),
        of('roundTrips').toFixed(2).padStart(13),
        `  ${'█'.repeat(Math.max(1, Math.round((of('perSecond') / bare) * 16)))}`,
        behind > 0 ? `  (run at ${(of('perSecond') / (1 + behind)).toFixed(0)} a second)` : '',
      ].join(''),
    )
  }
}

function median(numbers: number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2
}

async function post(url: string, { headers, body }: ReturnType<Kind['request']>): Promise<void> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body,
  })
  if (!response.ok) throw new Error(`could not prepare: ${response.status}`)
  await response.arrayBuffer()
}

/** A number that the server knows of itself. */
async function ask(url: string, what: 'round-trips' | 'waiting'): Promise<number> {
  const [value] = Object.values((await (await fetch(`${url}/${what}`)).json()) as object)
  return value
}

function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`)
  else if (text !== '') console.error(text)
}

async function withClient<T>(url: string, use: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client(url)
  await client.connect()
  try {
    return await use(client)
  } finally {
    await client.end()
  }
}

await withClient(admin, (client) => client.query(`CREATE DATABASE ${database}`))
try {
  await withClient(databaseUrl, async (client) => {
    const folder = new URL('../prisma/migrations/', import.meta.url)
    for (const name of (await readdir(folder)).sort()) {
      if (name.endsWith('.toml')) continue
      await client.query(await readFile(new URL(`${name}/migration.sql`, folder), 'utf8'))
    }
  })
  await run()
} finally {
  await withClient(admin, (client) => client.query(`DROP DATABASE ${database} WITH (FORCE)`))
}
