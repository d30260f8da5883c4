// Two servers, clients with duplicates, and somebody who kills and pauses the servers: for as long as
// one likes. Then the ledger is audited.
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import { postgresDatabase } from '../fixtures/postgres.js'
import { type TestProcess, testProcess, textPoster } from '../fixtures/processes.js'
import { type Audit, audit } from './audit.js'
import { type Asked, type Counts, insist } from './clients.js'
import { ACCOUNTS, LEASE_MS, WAYS } from './transfers.js'

export interface SoakOptions {
  readonly seconds: number
  /** What is asked for, of whom, and when somebody is killed, is drawn from this number. */
  readonly seed: number
  /** Called every second. */
  readonly onProgress?: (state: SoakCounts & { secondsLeft: number }) => void
}

export interface SoakCounts extends Counts {
  kills: number
  pauses: number
}

export interface SoakResult {
  readonly counts: SoakCounts
  readonly audit: Audit
  /** How many operations took each way. */
  readonly ways: Readonly<Record<string, number>>
}

/** So many operations are under way at once, each asked for by one to four clients. */
const UNDER_WAY = 16
const MOST_DUPLICATES = 4

export async function soak(t: Test, options: SoakOptions): Promise<SoakResult> {
  const { seconds, seed, onProgress } = options
  const random = generator(seed)
  const database = await postgresDatabase(t)
  const post = textPoster(t, 200)
  const servers = [undefined, undefined] as (Server | undefined)[]
  const restart = async (place: number) => {
    servers[place] = undefined
    servers[place] = await startServer(t, database.url)
  }
  await Promise.all([...servers.keys()].map(restart))

  const counts: SoakCounts = {
    ...{ operations: 0, requests: 0, duplicates: 0, broken: 0, busy: 0, replayed: 0 },
    ...{ kills: 0, pauses: 0 },
  }
  const asked: Asked[] = []
  const endsAt = performance.now() + seconds * 1_000
  const isOver = () => performance.now() > endsAt
  const urls = () => servers.flatMap((server) => server?.url ?? [])

  async function ask(): Promise<void> {
    while (!isOver()) {
      counts.operations += 1
      const one = newOperation(seed, counts.operations, random)
      asked.push(one)
      const clients = 1 + Math.trunc(random() * MOST_DUPLICATES)
      counts.duplicates += clients - 1
      await Promise.all(
        Array.from({ length: clients }, () => insist(one, urls, post, counts, random)),
      )
    }
  }

  async function disturb(): Promise<void> {
    while (!isOver()) {
      await sleep(300 + random() * 2_500)
      const place = Math.trunc(random() * servers.length)
      const child = servers[place]?.child
      if (child === undefined || isOver()) continue
      if ((counts.kills + counts.pauses) % 3 === 2) {
        // Longer than its leases: it comes back as somebody who has lost everything.
        counts.pauses += 1
        child.kill('SIGSTOP')
        await sleep(LEASE_MS * (0.5 + random() * 1.5))
        child.kill('SIGCONT')
      } else {
        counts.kills += 1
        const ended = once(child, 'exit')
        child.kill('SIGKILL')
        await ended
        await restart(place)
      }
    }
  }

  const progress = setInterval(() => {
    const secondsLeft = Math.max(0, Math.round((endsAt - performance.now()) / 1_000))
    onProgress?.({ ...counts, secondsLeft })
  }, 1_000)
  try {
    await Promise.all([disturb(), ...Array.from({ length: UNDER_WAY }, ask)])
    await allSettled(database.prisma)
  } finally {
    clearInterval(progress)
  }
  const ways = Object.fromEntries(
    WAYS.map((way) => [way.path, asked.filter((one) => one.way === way).length]),
  )
  return { counts, audit: await audit(database.prisma, asked), ways }
}

interface Server {
  readonly child: TestProcess['child']
  readonly url: string
}

async function startServer(t: Test, url: string): Promise<Server> {
  const started = testProcess(t, '../soak/ledger-process.ts', { DATABASE_URL: url })
  const { port } = await started.said('listening')
  return { child: started.child, url: `http://127.0.0.1:${port}` }
}

function newOperation(seed: number, number: number, random: () => number): Asked {
  const pick = <T>(list: readonly T[]) => list[Math.trunc(random() * list.length)] as T
  const transfer = {
    operation: `soak-${seed}-${number}`,
    from: pick(ACCOUNTS),
    to: pick(ACCOUNTS),
    amount: 1 + Math.trunc(random() * 1_000),
  }
  return { way: pick(WAYS), transfer, answers: [] }
}

/** Everybody is answered; what was acknowledged to be run later is still to be waited for. */
async function allSettled(prisma: Parameters<typeof audit>[0]): Promise<void> {
  const deadline = performance.now() + 60_000
  while (performance.now() < deadline) {
    const waiting = await prisma.webhookEvent.count({
      where: { status: { in: ['received', 'processing', 'retrying'] } },
    })
    if (waiting === 0) return
    await sleep(100)
  }
}

/** Numbers from 0 to 1 that depend on the seed alone (mulberry32). */
function generator(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
