// Events that are run in their request, by two server processes, one of which may be killed.
import { once } from 'node:events'
import t, { type Test } from 'tap'
import { type PostgresDatabase, postgresDatabase } from '../fixtures/postgres.js'
import {
  type Answer,
  inlineWebhooksProcess,
  type ServerProcess,
  textPoster,
} from '../fixtures/processes.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'
import { eventOf, signedByBank } from '../fixtures/webhooks.js'

const ROUNDS = size({ full: 100, quick: 8 })
const PARALLEL = 100

t.setTimeout(600_000)

const skip = await missing('postgres')

/** How the handler writes its effect: by itself, or in event.transaction. */
const ENDPOINTS = ['bank', 'atomic'] as const
type Endpoint = (typeof ENDPOINTS)[number]

interface Scenario {
  readonly database: PostgresDatabase
  start(WORKER: 'yes' | 'no', LEASE?: '3s' | '30s'): Promise<ServerProcess>
  deliver(server: ServerProcess, endpoint: Endpoint, event: object): Promise<Answer>
  effects(eventId: string): Promise<number>
}

async function scenario(t: Test): Promise<Scenario> {
  const database = await postgresDatabase(t)
  const post = textPoster(t, PARALLEL / 2)
  return {
    database,
    // Longer than a busy machine makes a process stand still: an effect that is in no transaction is
    // done again by whoever takes over.
    start: (WORKER, LEASE = '3s') =>
      inlineWebhooksProcess(t, { DATABASE_URL: database.url, WORKER, LEASE }),
    deliver(server, endpoint, event) {
      const text = JSON.stringify(event)
      return post(`${server.url}/webhooks/${endpoint}`, text, signedByBank(text))
    },
    effects: (tenantId) => database.prisma.payment.count({ where: { tenantId } }),
  }
}

async function kill({ child }: ServerProcess): Promise<void> {
  child.kill('SIGKILL')
  await once(child, 'exit')
}

function outcomeOf({ status, body }: Answer): string {
  return `${status} ${JSON.parse(body.toString()).outcome}`
}

/** Delivers again, as a provider does, until it is acknowledged. */
async function deliverUntilAcknowledged(
  { deliver }: Scenario,
  ...call: Parameters<Scenario['deliver']>
): Promise<{ answer: Answer; tookMs: number }> {
  const startedAt = performance.now()
  for (;;) {
    const answer = await deliver(...call)
    const tookMs = performance.now() - startedAt
    if (answer.status === 200 || tookMs > 20_000) return { answer, tookMs }
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

for (const endpoint of ENDPOINTS) {
  t.test(
    `${endpoint}: ${PARALLEL} parallel deliveries of one event, to two processes, ${ROUNDS} times: one effect each`,
    { skip },
    async (t) => {
      const { database, start, deliver } = await scenario(t)
      // A process that stands still for longer than its lease, as a busy machine makes it while it
      // compiles its first query, would be taken over, and this effect is outside of a transaction.
      const servers = await Promise.all([start('yes', '30s'), start('yes', '30s')])
      const outcomes: Record<string, number> = {}
      const wrong: string[] = []
      for (let round = 1; round <= ROUNDS; round += 1) {
        const event = { id: `round-${round}` }
        const answers = await Promise.all(
          Array.from({ length: PARALLEL }, (_, n) =>
            deliver(servers[n % 2] as ServerProcess, endpoint, event),
          ),
        )
        const said = answers.map(outcomeOf)
        for (const outcome of said) outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
        const firsts = said.filter((outcome) => outcome === '200 processed').length
        if (firsts !== 1) wrong.push(`round ${round}: processed by ${firsts} deliveries`)
        const later = outcomeOf(await deliver(servers[0], endpoint, event))
        if (later !== '200 duplicate') wrong.push(`round ${round}: a later one is ${later}`)
      }
      t.strictSame(wrong, [])
      const expected = ['200 duplicate', '200 processed', '503 running']
      t.ok(Object.keys(outcomes).every((outcome) => expected.includes(outcome)))
      const perEvent = await database.prisma.payment.groupBy({ by: ['tenantId'], _count: true })
      t.equal(perEvent.length, ROUNDS)
      t.ok(perEvent.every(({ _count }) => _count === 1))
      t.equal(
        await database.prisma.webhookEvent.count({
          where: { status: 'processed', fence: 1, deliveries: PARALLEL + 1 },
        }),
        ROUNDS,
      )
      t.comment(JSON.stringify(outcomes))
    },
  )
}

t.test(
  'killed after the effect and before the answer: the redelivery finds it done',
  { skip },
  async (t) => {
    const all = await scenario(t)
    const { database, start, deliver, effects } = all
    const [first, second] = await Promise.all([start('no'), start('no')])
    const event = { id: 'killed-after', crash: 'after' }
    const reached = first.said('after')
    const interrupted = deliver(first, 'atomic', event).catch((error: Error) => error)
    await reached
    t.equal(outcomeOf(await deliver(second, 'atomic', event)), '503 running')
    await kill(first)
    t.type(await interrupted, Error)
    const { answer, tookMs } = await deliverUntilAcknowledged(all, second, 'atomic', event)
    t.equal(outcomeOf(answer), '200 processed')
    t.ok(tookMs < 12_000, `after ${Math.round(tookMs)} ms, with a lease of 3000 ms`)
    t.equal(await effects(event.id), 1)
    t.match(await eventOf(database, event.id, '', 'atomic'), { status: 'processed', fence: 2 })
  },
)

t.test(
  'killed after the record and before the effect: the redelivery runs it',
  { skip },
  async (t) => {
    const all = await scenario(t)
    const { start, deliver, effects } = all
    const [first, second] = await Promise.all([start('no'), start('no')])
    for (const endpoint of ENDPOINTS) {
      const event = { id: `killed-before-${endpoint}`, crash: 'before' }
      const server = endpoint === 'bank' ? first : await start('no')
      const reached = server.said('before')
      const interrupted = deliver(server, endpoint, event).catch((error: Error) => error)
      await reached
      await kill(server)
      t.type(await interrupted, Error)
      t.equal(await effects(event.id), 0)
      const { answer } = await deliverUntilAcknowledged(all, second, endpoint, event)
      t.equal(outcomeOf(answer), '200 processed')
      t.equal(await effects(event.id), 1)
    }
  },
)

t.test(
  'killed after the record, and never delivered again: the other process runs it',
  { skip },
  async (t) => {
    const { database, start, deliver, effects } = await scenario(t)
    const [first] = await Promise.all([start('no'), start('yes')])
    const event = { id: 'never-again', crash: 'before' }
    const reached = first.said('before')
    const interrupted = deliver(first, 'bank', event).catch((error: Error) => error)
    await reached
    const killedAt = performance.now()
    await kill(first)
    await interrupted
    let stored = await eventOf(database, event.id, '', 'bank')
    while (stored?.status !== 'processed' && performance.now() - killedAt < 20_000) {
      await new Promise((resolve) => setTimeout(resolve, 50))
      stored = await eventOf(database, event.id, '', 'bank')
    }
    t.match(stored, { status: 'processed', fence: 2, deliveries: 1 })
    t.equal(await effects(event.id), 1)
  },
)

t.test('all processes are restarted between two attempts: nothing is lost', { skip }, async (t) => {
  const all = await scenario(t)
  const { start, deliver, effects } = all
  const events = Array.from({ length: 10 }, (_, n) => ({
    id: `restart-${n}`,
    crash: n % 2 === 0 ? 'before' : 'after',
  }))
  const [first, second] = await Promise.all([start('no'), start('no')])
  const interrupted = events.map(async (event, n) => {
    const server = n < 5 ? first : second
    return deliver(server, 'atomic', event).catch((error: Error) => error)
  })
  let stored = 0
  while (stored < events.length) {
    stored = await all.database.prisma.webhookEvent.count({ where: { status: 'processing' } })
  }
  await Promise.all([kill(first), kill(second)])
  await Promise.all(interrupted)
  const [third, fourth] = await Promise.all([start('no'), start('no')])
  const answers = await Promise.all(
    events.map((event, n) =>
      deliverUntilAcknowledged(all, n % 3 === 0 ? third : fourth, 'atomic', event),
    ),
  )
  t.same(new Set(answers.map(({ answer }) => outcomeOf(answer))), new Set(['200 processed']))
  for (const { id } of events) t.equal(await effects(id), 1)
})
