import { once } from 'node:events'
import t from 'tap'
import { postgresDatabase } from '../fixtures/postgres.js'
import { paymentsProcess, poster } from '../fixtures/processes.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'

const ROUNDS = size({ full: 200, quick: 40 })
const PARALLEL = 100

const skip = await missing('postgres')

for (const STATEMENTS of ['pool', 'prisma'] as const) {
  t.test(
    `${PARALLEL} parallel requests with one key, over two processes, statements on ${STATEMENTS}: one run, one answer`,
    { skip },
    async (t) => {
      const { prisma, url } = await postgresDatabase(t)
      const env = { DATABASE_URL: url, STATEMENTS }
      const servers = await Promise.all([paymentsProcess(t, env), paymentsProcess(t, env)])
      const post = poster(t, PARALLEL / 2)
      // Half of the rounds where this is the slower path: what it shows is the same.
      const rounds = STATEMENTS === 'pool' ? ROUNDS : ROUNDS / 4
      let replays = 0
      let conflicts = 0
      const wrong: string[] = []
      for (let round = 1; round <= rounds; round += 1) {
        const answers = await Promise.all(
          Array.from({ length: PARALLEL }, (_, n) =>
            post(`${servers[n % 2]?.url}/payments`, `round-${round}`, { amount: round }),
          ),
        )
        const bodies = new Set<string>()
        let firsts = 0
        for (const { status, headers, body } of answers) {
          if (status === 409) {
            conflicts += 1
            if (headers['retry-after'] === undefined) wrong.push(`round ${round}: no Retry-After`)
            continue
          }
          bodies.add(
            `${status} ${headers.location} ${headers['content-type']} ${body.toString('hex')}`,
          )
          if (headers['idempotent-replayed'] === 'true') replays += 1
          else firsts += 1
        }
        if (firsts !== 1 || bodies.size !== 1) {
          wrong.push(`round ${round}: ${firsts} first answers, ${bodies.size} different ones`)
        }
        const after = await post(`${servers[0].url}/payments`, `round-${round}`, { amount: round })
        bodies.add(
          `${after.status} ${after.headers.location} ${after.headers['content-type']} ${after.body.toString('hex')}`,
        )
        if (bodies.size !== 1) wrong.push(`round ${round}: the later replay differs`)
      }
      t.strictSame(wrong, [])
      t.equal(await prisma.payment.count(), rounds, 'one payment a round')
      const perRound = await prisma.payment.groupBy({ by: ['amount'] })
      t.equal(perRound.length, rounds)
      t.equal(
        await prisma.idempotencyRecord.count({ where: { status: 'completed', attempt: 1 } }),
        rounds,
      )
      t.ok(conflicts > 0, `${conflicts} were told to come back`)
      t.comment(`${conflicts} conflicts, ${replays} replays`)
    },
  )
}

t.test(
  'a process that is killed while it runs blocks its key for a lease, not longer',
  { skip },
  async (t) => {
    const { prisma, url } = await postgresDatabase(t)
    const env = { DATABASE_URL: url, STATEMENTS: 'pool' as const }
    const [first, second] = await Promise.all([paymentsProcess(t, env), paymentsProcess(t, env)])
    const post = poster(t, 10)
    const body = { amount: 1, hang: true }

    const stored = first.said('stored')
    const interrupted = post(`${first.url}/payments`, 'k', body).catch((error: Error) => error)
    await stored
    t.equal((await post(`${second.url}/payments`, 'k', body)).status, 409)
    const killedAt = performance.now()
    first.child.kill('SIGKILL')
    await once(first.child, 'exit')
    t.type(await interrupted, Error)

    let answer = await post(`${second.url}/payments`, 'k', body)
    while (answer.status === 409) {
      await new Promise((resolve) => setTimeout(resolve, 20))
      answer = await post(`${second.url}/payments`, 'k', body)
    }
    const blockedMs = performance.now() - killedAt
    t.equal(answer.status, 201)
    t.notOk(answer.headers['idempotent-replayed'])
    t.ok(blockedMs < 10_000, `blocked for ${Math.round(blockedMs)} ms with a lease of 1000 ms`)
    t.match(await prisma.idempotencyRecord.findFirst(), { attempt: 2, status: 'completed' })
    const replay = await post(`${second.url}/payments`, 'k', body)
    t.equal(replay.headers['idempotent-replayed'], 'true')
    t.ok(replay.body.equals(answer.body))
  },
)
