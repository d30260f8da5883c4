// The database goes away, or its answers do, while operations are under way.
import { isDeepStrictEqual } from 'node:util'
import pg from 'pg'
import t from 'tap'
import {
  bodyOf,
  client,
  type FaultsProcess,
  faultsProcess,
  untilAnswered,
} from '../fixtures/faults.js'
import { missingOwnPostgres, ownPostgres } from '../fixtures/own-postgres.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import type { Answer } from '../fixtures/processes.js'
import { proxyTo } from '../fixtures/proxy.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'

t.setTimeout(600_000)

const noPostgres = await missing('postgres')

/** How many payments there are for each operation that has any. */
async function effects(url: string): Promise<Map<string, number>> {
  const connection = new pg.Client({ connectionString: url })
  await connection.connect()
  try {
    const { rows } = await connection.query(
      'SELECT tenant_id AS operation, count(*)::int AS count FROM payment GROUP BY tenant_id',
    )
    return new Map(rows.map(({ operation, count }) => [operation, count]))
  } finally {
    await connection.end()
  }
}

/**
 * A response that the database did not take in time is sent all the same. When its lease runs out before
 * the database is back, a later attempt answers with what the first one has done.
 */
function isSameAnswer(again: Answer, first: Answer): boolean {
  const { attempt, ...done } = bodyOf(again)
  const { attempt: firstAttempt, ...firstDone } = bodyOf(first)
  return attempt >= firstAttempt && isDeepStrictEqual(done, firstDone)
}

const PARALLEL = 20
/** Paths of requests, and events. */
const KINDS = ['/payments', '/atomic-payments', 'event']

t.test(
  'PostgreSQL crashes, and is restarted, under load: each request and each event takes effect once',
  { skip: missingOwnPostgres() },
  async (t) => {
    const operations = size({ full: 4_000, quick: 150 })
    const server = await ownPostgres(t)
    const env = { DATABASE_URL: server.url }
    const processes = await Promise.all([faultsProcess(t, env), faultsProcess(t, env)])
    const { pay, deliver } = client(t, PARALLEL)
    const wrong: string[] = []
    let done = 0
    let failures = 0
    let next = 0
    const reached: { count: number; open: () => void }[] = []
    const after = (count: number) =>
      new Promise<void>((open) => {
        reached.push({ count, open })
      })

    async function work(): Promise<void> {
      while (next < operations) {
        const operation = `operation-${next}`
        const kind = KINDS[next % KINDS.length] as string
        const isEvent = kind === 'event'
        next += 1
        let tries = next
        const other = () => {
          tries += 1
          return processes[tries % 2] ?? processes[0]
        }
        const send = async () => {
          const answer = isEvent
            ? await deliver(other(), 'bank', operation)
            : await pay(other(), operation, undefined, kind)
          if (answer.status >= 500) failures += 1
          return answer
        }
        const answer = await untilAnswered(send)
        const again = await untilAnswered(send)
        if (isEvent && bodyOf(again).outcome !== 'duplicate') wrong.push(`${operation}: ran again`)
        if (!isEvent && !isSameAnswer(again, answer)) wrong.push(`${operation}: another answer`)
        done += 1
        for (const { count, open } of reached) if (done >= count) open()
      }
    }
    const firstThird = after(Math.round(operations / 3))
    const secondThird = after(Math.round((operations * 2) / 3))
    const working = Promise.all(Array.from({ length: PARALLEL }, work))
    await firstThird
    await server.restart('immediate')
    await secondThird
    await server.restart('fast')
    await working

    t.strictSame(wrong, [])
    t.ok(failures > 0, `${failures} were told that it failed`)
    const counts = await effects(server.url)
    t.equal(counts.size, operations)
    t.strictSame(
      [...counts].filter(([, count]) => count !== 1),
      [],
    )
    for (const { child } of processes) t.equal(child.exitCode, null, 'the process lives')
  },
)

t.test('connections are cut', { skip: noPostgres }, async (t) => {
  const { prisma, url } = await postgresDatabase(t)
  const proxy = await proxyTo(t, url)
  const [first, second] = await Promise.all([
    faultsProcess(t, { DATABASE_URL: proxy.url }),
    faultsProcess(t, { DATABASE_URL: url }),
  ])
  const { pay, deliver } = client(t, 10)
  const paymentsOf = (operation: string) =>
    prisma.payment.findMany({ where: { tenantId: operation } })

  t.test('in mid-transaction: nothing of it is there, and the retry does it', async (t) => {
    for (const [operation, status, send] of [
      ['request', 503, () => pay(first, 'request', 'inside')],
      ['event', 500, () => deliver(first, 'bank', 'event', 'inside')],
    ] as const) {
      const holding = first.said('holding')
      const sent = send()
      await holding
      proxy.cut()
      proxy.resume()
      first.go()
      t.equal((await sent).status, status)
      t.strictSame(await paymentsOf(operation), [])
      await untilAnswered(send)
      t.match(await paymentsOf(operation), [{ amount: 2 }], 'of the second attempt')
    }
  })

  for (const moment of ['unheard', 'unanswered'] as const) {
    t.test(
      `when COMMIT is ${moment}: the retry finds out what became of it, one effect`,
      async (t) => {
        type Send = (server: FaultsProcess, operation: string) => Promise<Answer>
        const sends: Record<string, Send> = {
          request: pay,
          atomic: (server, operation) => pay(server, operation, undefined, '/atomic-payments'),
          event: (server, operation) => deliver(server, 'bank', operation),
        }
        for (const [kind, send] of Object.entries(sends)) {
          const operation = `${kind}-${moment}`
          const cut = proxy.cutAt('COMMIT', moment)
          const answer = await send(first, operation)
          await cut
          t.ok(answer.status >= 500, `${kind}: ${answer.status} is no success`)
          const there = await paymentsOf(operation)
          t.equal(there.length, moment === 'unheard' ? 0 : 1)
          const done = await untilAnswered(() => send(second, operation))
          const [payment, ...others] = await paymentsOf(operation)
          t.strictSame(others, [], `${kind}: one effect`)
          if (there[0] !== undefined) t.strictSame(payment, there[0])
          if (kind === 'event') continue
          t.equal(bodyOf(done).payment.id, payment?.id)
          t.ok((await send(first, operation)).body.equals(done.body))
        }
      },
    )
  }
})
