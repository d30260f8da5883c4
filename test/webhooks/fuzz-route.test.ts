// Requests that nobody would send, to the routes of every provider. Run one again with
// FUZZ_SEED=<number>.
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import t from 'tap'
import { CHANNEL, type IdempotencyEvent } from '../../src/index.js'
import type { Provider } from '../../src/webhooks/provider.js'
import { NOW, type ProviderCase, type Sent } from '../contracts/provider.js'
import { buildApp, WatchedPool } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { createOddRequests, ODD_TEXTS } from '../fixtures/odd-requests.js'
import { size } from '../fixtures/size.js'
import { cases } from './providers/cases.js'

const REQUESTS = size({ full: 100_000, quick: 4_000 })
/** So many are under way at once. */
const SIDE_BY_SIDE = 50
const seed = Number(process.env.FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 32))
const { random, oneOf, changedBody, changedHeaders } = createOddRequests(seed)

const CONTENT_TYPES = [
  ...['application/json', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x'],
  ...['text/plain; charset=utf-16', 'application/json; charset="', '/', ';', 'x/y/z', ' '],
  ...['__proto__', 'application/cloudevents+json', `a/${'b'.repeat(5_000)}`],
]
const QUERIES = [
  ...['', '?', '?hub.mode=subscribe&hub.challenge=x&hub.verify_token=guess', '?%', '?a=%ff&a'],
  ...['?bodySHA256=', '?__proto__=1', `?${'a=1&'.repeat(500)}`, '?hub.mode=subscribe'],
]

/** What a provider's requests are made of: none of them is one that it signed for now. */
interface Target {
  readonly of: ProviderCase
  readonly provider: Provider
  /** Signed by somebody who has another secret. */
  readonly forged: readonly Sent[]
  /** To be changed, where every byte of a body counts. */
  readonly genuine: readonly Sent[]
  /** Signed well, but long ago, or by a clock that is fast. */
  readonly untimely: readonly Sent[]
}

function targetOf(of: ProviderCase): Target {
  const [own, another] = of.parties
  const handshakes = (of.handshakes ?? []).map(({ body }) => body)
  const bodies = [of.body, of.batch?.body ?? of.body, ...handshakes, ...ODD_TEXTS.slice(0, 10)]
  const countsBytes = !of.readsBody && !of.leavesBodyUnsigned && of.name !== 'twilio'
  return {
    of,
    provider: of.make(own.secret),
    forged: bodies.map((body) => another.sign(body, NOW)),
    genuine: countsBytes ? bodies.map((body) => own.sign(body, NOW)) : [],
    untimely:
      of.windowMs === null
        ? []
        : [-1, 1].map((sign) => own.sign(of.body, NOW + sign * 2 * (of.windowMs as number))),
  }
}

function requestTo({ of, provider, forged, genuine, untimely }: Target) {
  const chance = random()
  const isUntimely = untimely.length > 0 && chance < 0.1
  const isForged = !isUntimely && (genuine.length === 0 || chance < 0.5)
  const sent = oneOf(isUntimely ? untimely : isForged ? forged : genuine)
  let payload = isUntimely ? sent.body : changedBody(sent.body)
  if (!isUntimely && !isForged && payload.equals(sent.body)) {
    payload = Buffer.concat([payload, Buffer.from(' ')])
  }
  const headers = changedHeaders(sent.headers, provider)
  if (random() < 0.05) headers['content-type'] = oneOf(CONTENT_TYPES)
  for (const [name, value] of Object.entries(headers)) if (value === undefined) delete headers[name]
  const signedQuery = (sent.url ?? '').replace(/^[^?]*/, '')
  const query = random() < 0.8 ? signedQuery : oneOf(QUERIES)
  const method = random() < 0.95 ? ('POST' as const) : ('GET' as const)
  return {
    method,
    url: `/webhooks/${of.name}${query}`,
    headers: headers as Record<string, string>,
    ...(method === 'POST' && { payload }),
  }
}

/** Not believed, no such route (GET), or a content type that is none. */
const EXPECTED = [401, 404, 415]

t.test(
  `${REQUESTS} odd requests: none is believed, none is our failure, none is recorded`,
  { timeout: 240_000 },
  async (t) => {
    const database = await anyDatabase(t)
    const pool = new WatchedPool(database)
    const reasons = new Set<string>()
    const listen = (event: unknown) => {
      const { kind, ...told } = event as IdempotencyEvent
      reasons.add('reason' in told ? String(told.reason) : kind)
    }
    subscribe(CHANNEL, listen)
    t.teardown(() => unsubscribe(CHANNEL, listen))
    const targets = cases.map(targetOf)
    const app = await buildApp(t, database, {
      plugin: { pool, failedSignatures: false },
      routes(app) {
        for (const { of, provider } of targets) {
          // Providers of one name may not share an application.
          const named = { ...provider, name: of.name.replaceAll(/[^\w.-]/g, '-') }
          app.webhook(`/webhooks/${of.name}`, { provider: named, clock: () => NOW }, () => {})
        }
      },
    })
    const statuses: Record<number, number> = {}
    for (let done = 0; done < REQUESTS; done += SIDE_BY_SIDE) {
      const requests = Array.from({ length: SIDE_BY_SIDE }, () => requestTo(oneOf(targets)))
      const answers = await Promise.all(requests.map((request) => app.inject(request)))
      for (const [n, { statusCode, body }] of answers.entries()) {
        statuses[statusCode] = (statuses[statusCode] ?? 0) + 1
        if (EXPECTED.includes(statusCode)) continue
        const request = JSON.stringify(requests[n])
        return t.fail(`${statusCode} ${body}; FUZZ_SEED=${seed}, ${request}`)
      }
    }
    t.comment(`answers: ${JSON.stringify(statuses)}`)
    t.ok((statuses[401] ?? 0) > REQUESTS * 0.5, 'most come as far as the signature')
    t.same([...reasons].toSorted(), [
      ...['from_future', 'malformed', 'missing_header', 'no_match', 'too_old'],
    ])
    t.strictSame(pool.asked, [])
    t.equal(await database.prisma.webhookEvent.count(), 0)
    // Or nobody would have been believed in any case.
    for (const { of } of targets) {
      const { headers, body, url = '' } = of.parties[0].sign(of.body, NOW)
      const answer = await app.inject({
        method: 'POST',
        url: `/webhooks/${of.name}${url.replace(/^[^?]*/, '')}`,
        headers,
        payload: body,
      })
      t.ok(answer.statusCode < 300, `what ${of.name} signed is believed`)
    }
  },
)
