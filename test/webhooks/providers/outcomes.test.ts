// What each provider is answered, by what became of its delivery: the table "What a provider hears" of
// docs/webhooks.md, run against all of them.
import t, { type Test } from 'tap'
import type { WebhookEvent } from '../../../src/index.js'
import type { DeliveryOutcome } from '../../../src/webhooks/provider.js'
import { NOW, type ProviderCase, type Sent } from '../../contracts/provider.js'
import { type Answer, buildApp, latch } from '../../fixtures/app.js'
import { anyDatabase } from '../../fixtures/database.js'
import { cases } from './cases.js'

const database = await anyDatabase(t)

type Told = Pick<Answer, 'statusCode' | 'body'>

const told = (status: number, body: string): Told => ({ statusCode: status, body })

/** What is answered where the provider wants nothing else. */
const USUAL: Record<DeliveryOutcome, number> = {
  processed: 200,
  duplicate: 200,
  accepted: 200,
  ignored: 200,
  dead: 200,
  running: 503,
  postponed: 503,
  failed: 500,
}

const ACKNOWLEDGED = ['processed', 'duplicate', 'accepted', 'ignored', 'dead']
/** Those that repeat nothing: what the inbox runs later is acknowledged as well. */
const NEVER_REPEAT = [
  ...['github', 'gitlab', 'zendesk', 'flutterwave', 'twilio', 'woocommerce', 'vercel'],
]

/** What some providers read. */
const PECULIAR: Record<string, (outcome: DeliveryOutcome) => Told | undefined> = {
  slack: (outcome) => (ACKNOWLEDGED.includes(outcome) ? told(200, '') : undefined),
  twilio: () => told(200, '<?xml version="1.0" encoding="UTF-8"?><Response/>'),
  adyen: (outcome) => (ACKNOWLEDGED.includes(outcome) ? told(200, '[accepted]') : undefined),
  discord: (outcome) => (ACKNOWLEDGED.includes(outcome) ? told(204, '') : undefined),
  mailgun: (outcome) => (outcome === 'dead' ? told(406, '{"outcome":"dead"}') : undefined),
}

function expected(name: string, outcome: DeliveryOutcome): Told {
  const peculiar = PECULIAR[name]?.(outcome)
  if (peculiar !== undefined) return peculiar
  const isOurs = NEVER_REPEAT.includes(name) && !ACKNOWLEDGED.includes(outcome)
  return told(isOurs ? 200 : USUAL[outcome], JSON.stringify({ outcome }))
}

/** Room for every body of the cases. */
const LIMIT = 64 * 1024

async function outcomesOf(t: Test, of: ProviderCase): Promise<void> {
  const [party] = of.parties
  const provider = of.make(party.secret)
  const { name, mergesUnnamed = true } = provider
  /** What becomes of an event that was processed, when it is delivered again. */
  const again = mergesUnnamed ? 'duplicate' : 'processed'
  const began = latch()
  const go = latch()
  // What happens to an event is said by the tenant that it is delivered to.
  const handlers: Record<string, (event: WebhookEvent) => unknown> = {
    async held() {
      began.open()
      await go.opened
    },
    failing: () => Promise.reject(new Error('the handler fails')),
    poisoned: (event) => event.reject('never'),
    put_back: (event) => event.defer(),
    ignored: (event) => event.ignore(),
  }
  const tenantOf = (request: { params: unknown }) => (request.params as { tenant: string }).tenant
  const common = { tenant: tenantOf, clock: () => NOW, bodyLimit: LIMIT }
  const app = await buildApp(t, database, {
    plugin: { worker: false, failedSignatures: false },
    routes(app) {
      app.webhook('/hooks/:tenant', { ...common, provider }, async (event) => {
        await handlers[event.tenantId.replace(/^.*:/, '')]?.(event)
      })
      const later = { ...provider, name: `${name}-later` }
      app.webhook('/later/:tenant', { ...common, provider: later, mode: 'deferred' }, () => {})
    },
  })
  const deliver = async (tenant: string, sent: Sent, path = '/hooks') => {
    const { headers, body, url = '', method = 'POST' } = sent
    const query = url.includes('?') ? url.slice(url.indexOf('?')) : ''
    const { statusCode, body: text } = await app.inject({
      // Several cases are of one provider, and send the same event.
      ...{ method: method as 'POST', url: `${path}/${of.name}:${tenant}${query}`, payload: body },
      headers: { 'content-type': 'application/octet-stream', ...headers },
    })
    return { statusCode, body: text }
  }
  const fresh = () => party.sign(of.body, NOW)
  const is = (answer: Told, outcome: DeliveryOutcome, what: string) =>
    t.strictSame(answer, expected(name, outcome), what)

  is(await deliver('fresh', fresh()), 'processed', 'fresh')
  is(await deliver('fresh', fresh()), again, 'a duplicate')
  is(await deliver('fresh', fresh(), '/later'), 'accepted', 'deferred')
  is(await deliver('ignored', fresh()), 'ignored', 'ignored')
  is(await deliver('failing', fresh()), 'failed', 'its handler fails')
  is(await deliver('poisoned', fresh()), 'dead', 'its handler rejects it')
  is(await deliver('poisoned', fresh()), 'dead', 'and it is delivered again')
  is(await deliver('put_back', fresh()), 'postponed', 'its handler puts it back')
  const first = deliver('held', fresh())
  await began.opened
  if (mergesUnnamed) is(await deliver('held', fresh()), 'running', 'while it runs')
  go.open()
  is(await first, 'processed', 'the one that ran')

  const forged = of.parties[1].sign(of.body, NOW)
  t.equal((await deliver('forged', forged)).statusCode, 401, 'signed with another secret')
  if (of.header !== null) {
    const { [of.header]: _, ...others } = fresh().headers
    t.equal(
      (await deliver('unsigned', { ...fresh(), headers: others })).statusCode,
      401,
      'unsigned',
    )
  }
  if (of.windowMs !== null) {
    const stale = party.sign(of.body, NOW - of.windowMs - 1_000)
    t.equal((await deliver('stale', stale)).statusCode, 401, 'stale')
  }
  const { body } = fresh()
  const large = { ...fresh(), body: Buffer.concat([body, Buffer.alloc(LIMIT, ' ')]) }
  t.equal((await deliver('large', large)).statusCode, 413, 'oversized')
  const junk = await deliver('junk', party.sign('{"SIGNED":', NOW))
  if (of.readsBody) t.equal(junk.statusCode, 401, 'a signature that cannot be found')
  else is(junk, 'dead', 'unreadable')
  if (of.batch === undefined) return
  is(await deliver('batch', party.sign(of.batch.body, NOW)), 'processed', 'a batch')
  is(await deliver('batch', party.sign(of.batch.body, NOW)), again, 'the same batch again')
  is(await deliver('failing', party.sign(of.batch.body, NOW)), 'failed', 'a batch that fails')
}

for (const of of cases) t.test(of.name, (t) => outcomesOf(t, of))
