// What happens to webhooks is told to the log and to diagnostics_channel, and no secret with it.
import { createHash } from 'node:crypto'
import t, { type Test, test } from 'tap'
import type { InboxHappening } from '../../src/events.js'
import type { PluginOptions, WebhookEvent, WebhookOptions } from '../../src/index.js'
import { inProcess } from '../../src/index.js'
import {
  type Answer,
  buildApp,
  collectEvents,
  type EventLog,
  latch,
  listen,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { bank, eventOf, postBank, signedByBank } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

type Teardown = Test

/** What must turn up nowhere. */
const CANARY = {
  secret: 'canary-secret',
  guess: 'canary-guess',
  payload: 'canary-payload',
  token: 'canary-token',
  handler: 'canary-handler',
  frame: 'canary-frame',
  database: 'canary-database',
  query: 'canary-query',
}

interface LogLine {
  level: number
  msg: string
  idempotency?: { kind: string }
}

const LEVELS = { debug: 20, info: 30, warn: 40, error: 50 } as const

function down(): never {
  throw Object.assign(new Error(`duplicate key (${CANARY.database})`), {
    code: 'ECONNREFUSED',
    detail: CANARY.database,
  })
}

/** As a library may throw it that quotes what it was given. */
function broken(): never {
  throw new TypeError(`bad input ${CANARY.handler}\n    at ${CANARY.frame} (nowhere.js:1:1)`)
}

const provider = bank({ secret: CANARY.secret })

/** An endpoint with a log that is kept, and a handler that does what each test needs. */
async function loggedApp(
  t: Teardown,
  handler: (event: WebhookEvent) => unknown,
  { plugin, webhook }: Pick<Provoked, 'plugin' | 'webhook'>,
) {
  const lines: string[] = []
  const pool = new WatchedPool(database)
  const app = await buildApp(t, database, {
    plugin: { pool, ...plugin },
    server: { logger: { level: 'trace', stream: { write: (line) => void lines.push(line) } } },
    routes: (app) =>
      app.webhook('/webhooks/bank', { provider, tenant: 'acme', ...webhook }, handler),
  })
  return { app, pool, lines }
}

interface Context extends Awaited<ReturnType<typeof loggedApp>> {
  /** Delivers the test's event. */
  post: (more?: object, secret?: string) => Promise<Answer>
  began: Promise<void>
  go: () => void
  events: EventLog
  t: Teardown
}

interface Provoked {
  level: keyof typeof LEVELS
  text: string
  plugin?: Partial<PluginOptions>
  webhook?: Partial<WebhookOptions>
  handler?: (event: WebhookEvent, held: { began: () => void; go: Promise<void> }) => unknown
  /** Brings it about; resolves once it has happened. Default: one delivery. */
  run?: (context: Context) => Promise<unknown>
  /** What the event tells besides. */
  event: object
  /** Whether it is about one event. Default true. */
  hasSubject?: boolean
  hasRoute?: boolean
}

const failure = { name: 'Error', code: 'ECONNREFUSED', hint: 'the database cannot be reached' }

const twice = async ({ post }: Context) => {
  await post()
  await post()
}

const EVENTS: Record<InboxHappening['kind'], Provoked> = {
  webhook_recorded: {
    level: 'debug',
    text: 'Webhook event recorded',
    event: { type: 'made' },
  },
  webhook_duplicate: {
    level: 'info',
    text: 'Duplicate webhook event detected',
    run: twice,
    event: { deliveries: 2, status: 'processed' },
  },
  webhook_same_body: {
    level: 'warn',
    text: 'Webhook event has the body of another one',
    webhook: { provider: { ...provider, eventId: (_payload, header) => header('x-id') } },
    async run({ app }) {
      const body = { note: CANARY.payload }
      await postBank(app, body, { secret: CANARY.secret, headers: { 'x-id': 'an earlier one' } })
      await postBank(app, body, { secret: CANARY.secret, headers: { 'x-id': 'same-body' } })
    },
    event: { eventId: 'same-body', sameBodyAs: String },
    hasSubject: false,
  },
  webhook_other_body: {
    level: 'warn',
    text: 'Duplicate webhook event has another body than its first delivery',
    async run({ post }) {
      await post()
      await post({ note: 'another' })
    },
    event: {},
  },
  webhook_without_id: {
    level: 'info',
    text: 'A webhook event has no id of its provider; its bytes name it (told once for each endpoint)',
    webhook: { provider: { ...provider, eventId: () => undefined } },
    async run({ post, events, t }) {
      await post()
      await post({ note: 'another' })
      const told = events.kinds().filter((kind) => kind === 'webhook_without_id')
      t.equal(told.length, 1)
    },
    event: { provider: 'bank', eventId: /^bytes:/ },
    hasSubject: false,
  },
  webhook_left_to_provider: {
    level: 'info',
    text: 'Webhook event not run by a worker: its provider delivers it again as another event',
    plugin: { dispatch: inProcess({ pollEvery: 10 }) },
    webhook: {
      provider: { ...provider, eventId: () => null, mergesUnnamed: false },
      serialize: () => 'a lane',
    },
    handler: hold,
    async run({ app, post, began, go, events }) {
      const first = post()
      await began
      // Its lane is taken: the provider delivers it again.
      await post({ note: 'the second' })
      go()
      await first
      await listen(app)
      await events.first('webhook_left_to_provider')
    },
    event: { provider: 'bank', eventId: null, attempt: 1 },
    hasSubject: false,
  },
  webhook_processed: {
    level: 'debug',
    text: 'Webhook event processed',
    event: { attempt: 1, tookMs: Number },
  },
  webhook_ignored: {
    level: 'debug',
    text: 'Webhook event ignored',
    handler: (event) => event.ignore(),
    event: {},
  },
  webhook_postponed: {
    level: 'info',
    text: 'Webhook event put back until later',
    handler: (event) => event.defer({ after: '1m' }),
    event: { attempt: 1, deferrals: 1, retryInMs: 60_000 },
  },
  webhook_failed: {
    level: 'warn',
    text: 'Webhook event failed',
    handler: broken,
    event: { attempt: 1, retryInMs: Number, failure: { name: 'TypeError', at: /broken / } },
  },
  webhook_dead: {
    level: 'error',
    text: 'Webhook event is dead; it needs a person',
    handler: (event) => event.reject(`no such ${CANARY.handler}`),
    event: { attempt: 1, why: 'its handler rejected it', failure: { name: 'Rejected' } },
  },
  webhook_handed_back: {
    level: 'info',
    text: 'Webhook event handed back: the server closes',
    plugin: { drain: 0, storeTimeout: 500 },
    webhook: { mode: 'deferred' },
    handler: hold,
    async run({ post, began, app, go }) {
      await post()
      await began
      await app.close()
      go()
    },
    event: { attempt: 1 },
  },
  webhook_overdue: {
    level: 'warn',
    text: 'Handler of a webhook event still runs although its lease is over; its place was given up',
    webhook: { lease: '1s', maxRun: '1s' },
    handler: hold,
    async run({ post, go, events }) {
      await post()
      go()
      await events.first('webhook_processed')
    },
    event: { attempt: 1, overdue: 1 },
  },
  webhook_end_not_stored: {
    level: 'error',
    text: 'How a webhook event ended could not be stored; storing it goes on',
    async run({ post, pool }) {
      pool.before = (name) => (name === 'fi_event_end' ? down() : undefined)
      await post()
      pool.before = () => {}
      await pool.untilAnswered('fi_event_end', 1)
    },
    event: { attempt: 1, failure },
  },
  webhook_refused: {
    level: 'warn',
    text: 'Webhook refused: its signature was not accepted',
    run: ({ post }) => post({}, CANARY.guess),
    event: { provider: 'bank', reason: 'no_match' },
    hasSubject: false,
  },
  webhook_handshake: {
    level: 'info',
    text: 'Webhook handshake answered',
    webhook: { provider: { ...provider, handshake: () => ({ status: 200 }) } },
    event: { provider: 'bank' },
    hasSubject: false,
  },
  webhook_without_events: {
    level: 'info',
    text: 'Webhook carried no event; nothing was recorded',
    webhook: { provider: { ...provider, items: () => [] } },
    event: { provider: 'bank' },
    hasSubject: false,
  },
  webhook_too_large: {
    level: 'error',
    text: 'Webhook refused: its body is larger than option "bodyLimit" allows',
    webhook: { bodyLimit: 2 },
    event: { provider: 'bank', bodyLimit: 2 },
    hasSubject: false,
  },
  webhook_not_verified: {
    level: 'error',
    text: 'Webhook could not be verified; it was not acknowledged',
    webhook: { provider: bank({ secret: down }) },
    event: { provider: 'bank', failure },
    hasSubject: false,
  },
  inbox_unavailable: {
    level: 'error',
    text: 'Inbox failed or did not answer; the webhook was not acknowledged',
    async run({ post, pool }) {
      pool.before = down
      await post()
    },
    event: { failure },
    hasSubject: false,
  },
  dispatch_failed: {
    level: 'warn',
    text: 'Webhook events that are due could not be handed on; trying again later',
    plugin: { dispatch: inProcess({ pollEvery: 10 }) },
    async run({ app, pool, events }) {
      pool.before = down
      await listen(app)
      await events.first('dispatch_failed')
    },
    event: { failure },
    hasSubject: false,
    hasRoute: false,
  },
}

async function hold(_event: WebhookEvent, { began, go }: { began: () => void; go: Promise<void> }) {
  began()
  await go
}

for (const [kind, provoked] of Object.entries(EVENTS)) {
  const { level, text, run, event, hasSubject = true, hasRoute = true } = provoked
  test(`"${kind}" is told as ${level}, with its facts and without a secret`, async (t) => {
    const events = collectEvents(t)
    const began = latch()
    const go = latch()
    const handler = (event: WebhookEvent) =>
      provoked.handler?.(event, { began: () => began.open(), go: go.opened })
    const logged = await loggedApp(t, handler, provoked)
    const eventId = `event-of-${kind}`
    const told: string[] = []
    const post = async (more: object = {}, secret = CANARY.secret) => {
      const body = JSON.stringify({ id: eventId, type: 'made', note: CANARY.payload, ...more })
      const headers = signedByBank(body, secret)
      told.push(headers['x-bank-signature'] as string)
      const answer = await logged.app.inject({
        method: 'POST',
        url: `/webhooks/bank`,
        query: { q: '1' },
        headers: { ...headers, authorization: `Bearer ${CANARY.token}`, cookie: CANARY.token },
        payload: body,
      })
      answers.push(answer.body, JSON.stringify(answer.headers))
      return answer
    }
    const answers: string[] = []
    const context = { ...logged, post, began: began.opened, go: () => go.open(), events, t }
    await (run ?? (({ post }: Context) => post()))(context)

    const happening = events.all.find((one) => one.kind === kind)
    t.match(happening, { kind, ...event })
    if (hasSubject) {
      const stored = await eventOf(database, eventId, 'acme', 'bank')
      t.match(happening, { provider: 'bank', eventId, event: stored?.id, tenantId: 'acme' })
      const keyId = createHash('sha256').update(`acme\0${stored?.id}`).digest('hex').slice(0, 12)
      t.equal(happening?.keyId, keyId)
    }
    t.equal(happening?.route, hasRoute ? '/webhooks/bank' : undefined)

    const lines = logged.lines.map((line) => JSON.parse(line) as LogLine)
    const line = lines.find(({ idempotency }) => idempotency?.kind === kind)
    t.equal(line?.level, LEVELS[level])
    t.equal(line?.msg, text)
    t.match(line?.idempotency, JSON.parse(JSON.stringify(happening)), 'the log has the same facts')

    const everything = [...logged.lines, ...answers, JSON.stringify(events.all)].join('\n')
    for (const secret of [...Object.values(CANARY), ...told]) t.notMatch(everything, secret)
  })
}

test("the handler's message is kept in the table, for people", async (t) => {
  const { app } = await loggedApp(t, broken, {})
  await postBank(app, { id: 'kept-message' }, { secret: CANARY.secret })
  const stored = await eventOf(database, 'kept-message', 'acme', 'bank')
  t.match(stored?.errors, [{ attempt: 1, message: new RegExp(`TypeError: .*${CANARY.handler}`) }])
})

test("the handler's log names the event in each line", async (t) => {
  const { app, lines } = await loggedApp(t, ({ log }) => log.info('of the handler'), {})
  await postBank(app, { id: 'logged-id' }, { secret: CANARY.secret })
  const line = lines
    .map((text) => JSON.parse(text))
    .find(({ msg }: LogLine) => msg === 'of the handler')
  const stored = await eventOf(database, 'logged-id', 'acme', 'bank')
  t.match(line, {
    reqId: String,
    webhook: { provider: 'bank', eventId: 'logged-id', event: stored?.id, attempt: 1 },
  })
})

test('a duplicate is told at info with provider, event id and deliveries', async (t) => {
  const { app, lines } = await loggedApp(t, () => {}, {})
  for (let n = 1; n <= 3; n += 1) {
    await postBank(app, { id: 'told-twice' }, { secret: CANARY.secret })
  }
  const told = lines
    .map((text) => JSON.parse(text))
    .filter(({ msg }: LogLine) => msg === 'Duplicate webhook event detected')
  t.match(told, [
    { level: 30, idempotency: { provider: 'bank', eventId: 'told-twice', deliveries: 2 } },
    { level: 30, idempotency: { provider: 'bank', eventId: 'told-twice', deliveries: 3 } },
  ])
  t.equal(told.length, 2)
})

test('nothing of an event is logged below the level of the log', async (t) => {
  const events = collectEvents(t)
  const lines: string[] = []
  const app = await buildApp(t, database, {
    server: { logger: { level: 'warn', stream: { write: (line) => void lines.push(line) } } },
    routes: (app) => app.webhook('/webhooks/bank', { provider }, () => {}),
  })
  await postBank(app, { id: 'quiet' }, { secret: CANARY.secret })
  await postBank(app, { id: 'quiet' }, { secret: CANARY.secret })
  t.strictSame(lines, [])
  t.strictSame(events.kinds(), ['webhook_recorded', 'webhook_processed', 'webhook_duplicate'])
})
