// What only happens to atomic operations is told to the log and to diagnostics_channel.
import { createHash } from 'node:crypto'
import t, { test } from 'tap'
import type { AtomicHappening } from '../../src/events.js'
import { buildApp, collectEvents, newKey, send } from '../fixtures/app.js'
import { effectOf } from '../fixtures/atomic.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)
const SECRETS = { key: 'canary-key', body: 'canary-body', error: 'canary-error' }
const LEVELS = { info: 30, error: 50 } as const

const EVENTS: Record<
  AtomicHappening['kind'],
  { level: keyof typeof LEVELS; url: string; event: object }
> = {
  rolled_back: {
    level: 'info',
    url: '/broken',
    event: { attempt: 1, why: 'its handler failed' },
  },
  not_confirmed: {
    level: 'error',
    url: '/read-only',
    event: { attempt: 1, failure: { code: '25006', hint: undefined } },
  },
}

for (const [kind, { level, url, event }] of Object.entries(EVENTS)) {
  test(`"${kind}" is told as ${level}, with its facts and without a secret`, async (t) => {
    const events = collectEvents(t)
    const lines: string[] = []
    const stream = { write: (line: string) => void lines.push(line) }
    const app = await buildApp(t, database, {
      plugin: { tenant: () => 'acme', atomic: true },
      server: { logger: { level: 'trace', stream } },
      routes(app) {
        app.setErrorHandler((_, __, reply) => reply.code(500).send('failed'))
        app.post('/broken', () => {
          throw new Error(SECRETS.error)
        })
        // Then its record cannot be written.
        app.post('/read-only', async ({ idempotency: { tx } }) => {
          await tx.payment.create(effectOf(SECRETS.body))
          await tx.$executeRaw`SET TRANSACTION READ ONLY`
          return SECRETS.body
        })
      },
    })
    const key = `${SECRETS.key}-${newKey()}`
    const answer = await send(app, url, { key, payload: { secret: SECRETS.body } })
    const told = events.all.find((one) => one.kind === kind)
    t.match(told, { kind, ...event, tenantId: 'acme', route: `POST ${url}` })
    const keyId = createHash('sha256').update(`acme\0${key}`).digest('hex').slice(0, 12)
    t.equal(told?.keyId, keyId)
    const line = lines
      .map((text) => JSON.parse(text))
      .find(({ idempotency }) => idempotency?.kind === kind)
    t.equal(line?.level, LEVELS[level])
    t.match(line?.idempotency, JSON.parse(JSON.stringify(told)))
    t.ok(line?.msg)
    const everything = [...lines, answer.body, JSON.stringify(events.all)].join('\n')
    for (const secret of Object.values(SECRETS)) t.notMatch(everything, secret)
  })
}
