// What protection costs: one server process, one load process (this one), a real PostgreSQL.
// Rounds are interleaved, so that what slows the machine for a while slows all of them alike.
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile } from 'node:fs/promises'
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
    json: { type: 'boolean', default: false },
  },
})
const connections = Number(values.connections)
const rounds = Number(values.rounds)
const seconds = Number(values.seconds)

const KINDS = ['bare', 'fresh', 'replay'] as const
type Kind = (typeof KINDS)[number]
interface Round {
  perSecond: number
  p50: number
  p99: number
  roundTrips: number
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
  const results: Record<Kind, Round[]> = { bare: [], fresh: [], replay: [] }
  try {
    // Keys that have a response: as many as there are connections would be too kind to caches.
    const known = Array.from({ length: 1_000 }, (_, n) => `known-${n}`)
    for (const key of known) await post(`${url}/protected`, key)
    for (let round = 0; round <= rounds; round += 1) {
      for (const kind of KINDS) {
        progress(round === 0 ? 'warming up' : `round ${round} of ${rounds}: ${kind}`)
        const measured = await load(url, kind, known, round === 0 ? 1 : seconds)
        if (round > 0) results[kind].push(measured)
      }
    }
  } finally {
    server.disconnect()
    await once(server, 'exit')
  }
  progress('')
  print(results)
}

let fresh = 0
const BODY = JSON.stringify({ amount: 4200, currency: 'EUR', note: 'x'.repeat(300) })

async function load(url: string, kind: Kind, known: string[], duration: number): Promise<Round> {
  const before = await roundTrips(url)
  let next = 0
  const result = await autocannon({
    url: `${url}/${kind === 'bare' ? 'bare' : 'protected'}`,
    method: 'POST',
    connections,
    duration,
    headers: { 'content-type': 'application/json' },
    body: BODY,
    requests: [
      {
        method: 'POST',
        setupRequest(request) {
          if (kind === 'bare') return request
          const key = kind === 'fresh' ? `fresh-${fresh++}` : known[next++ % known.length]
          return { ...request, headers: { ...request.headers, 'idempotency-key': key } }
        },
      },
    ],
  })
  if (result.non2xx > 0 || result.errors > 0) {
    throw new Error(`${kind}: ${result.non2xx} answers that are not 2xx, ${result.errors} errors`)
  }
  const done = result.requests.total
  return {
    perSecond: result.requests.average,
    p50: result.latency.p50,
    p99: result.latency.p99,
    roundTrips: ((await roundTrips(url)) - before) / done,
  }
}

function print(results: Record<Kind, Round[]>): void {
  const bare = median(results.bare.map(({ perSecond }) => perSecond))
  const rows = KINDS.map((kind) => {
    const of = (name: keyof Round) => median(results[kind].map((round) => round[name]))
    // Round by round against the bare route beside it, not median against median.
    const ratio = median(
      results[kind].map(({ perSecond }, n) => perSecond / (results.bare[n] as Round).perSecond),
    )
    return {
      kind,
      perSecond: of('perSecond'),
      ratio,
      p50: of('p50'),
      p99: of('p99'),
      roundTrips: of('roundTrips'),
    }
  })
  console.log(
    `${connections} connections, ${rounds} rounds of ${seconds} s, statements on ${values.statements}, Node ${process.version}; medians`,
  )
  console.log('route    requests/s  ratio   p50 ms  p99 ms  round trips')
  for (const row of rows) {
    console.log(
      [
        row.kind.padEnd(8),
        row.perSecond.toFixed(0).padStart(10),
        row.ratio.toFixed(2).padStart(7),
        row.p50.toFixed(0).padStart(8),
        row.p99.toFixed(0).padStart(8),
        row.roundTrips.toFixed(2).padStart(12),
        `  ${'█'.repeat(Math.max(1, Math.round((row.perSecond / bare) * 16)))}`,
      ].join(''),
    )
  }
  if (values.json) console.log(JSON.stringify({ connections, rounds, seconds, results }))
}

function median(numbers: number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2
}

async function post(url: string, key: string): Promise<void> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'idempotency-key': key },
    body: BODY,
  })
  if (!response.ok) throw new Error(`could not prepare: ${response.status}`)
  await response.arrayBuffer()
}

async function roundTrips(url: string): Promise<number> {
  const response = await fetch(`${url}/round-trips`)
  return ((await response.json()) as { roundTrips: number }).roundTrips
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
