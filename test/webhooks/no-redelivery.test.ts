// Providers that deliver nothing again by themselves: an error would count against the webhook, and
// bring nothing back. What is durable is acknowledged, and the inbox runs it again.
import { createHmac } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import t, { test } from 'tap'
import { inProcess } from '../../src/dispatch/in-process.js'
import type { WebhookHandler, WebhookOptions } from '../../src/index.js'
import { github, stripe } from '../../src/webhooks/providers/index.js'
import { buildApp, latch, newKey } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { until } from '../fixtures/until.js'
import { bank, eventOf, postBank, postStripe, SECRET, stripeEvent } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

function githubApp(
  t: Parameters<typeof buildApp>[0],
  handler: WebhookHandler,
  webhook: Partial<WebhookOptions> = {},
) {
  return buildApp(t, database, {
    plugin: { dispatch: inProcess({ pollEvery: 20 }) },
    routes: (app) => {
      app.webhook('/webhooks/github', { provider: github({ secret: SECRET }), ...webhook }, handler)
    },
  })
}

function deliver(app: FastifyInstance, id: string) {
  const payload = JSON.stringify({ action: 'opened', id })
  const hmac = createHmac('sha256', SECRET).update(payload).digest('hex')
  const headers = {
    'x-hub-signature-256': `sha256=${hmac}`,
    'x-github-delivery': id,
    'x-github-event': 'issues',
  }
  return Promise.resolve(app.inject({ method: 'POST', url: '/webhooks/github', payload, headers }))
}

const stored = (id: string) => eventOf(database, id, '', 'github')

test('a handler that fails is acknowledged, and run again by the inbox', async (t) => {
  let runs = 0
  const app = await githubApp(
    t,
    () => {
      runs += 1
      if (runs === 1) throw new Error('broken')
    },
    { retry: { first: 1, most: 1 } },
  )
  app.idempotency.work()
  const id = newKey()
  const answer = await deliver(app, id)
  t.strictSame([answer.statusCode, answer.json()], [200, { outcome: 'failed' }])
  await until(
    () => stored(id),
    (event) => event?.status === 'processed',
  )
  t.equal(runs, 2)
})

test('so are one that is being processed, one that was put back, and one that is dead', async (t) => {
  const began = latch()
  const go = latch()
  const app = await githubApp(t, async (event) => {
    if (event.eventId?.endsWith('deferred')) return event.defer()
    if (event.eventId?.endsWith('rejected')) return event.reject('no')
    began.open()
    await go.opened
  })
  const id = newKey()
  const first = deliver(app, id)
  await began.opened
  const second = await deliver(app, id)
  t.strictSame([second.statusCode, second.json()], [200, { outcome: 'running' }])
  t.notOk('retry-after' in second.headers)
  go.open()
  t.equal((await first).json().outcome, 'processed')
  const deferred = await deliver(app, `${newKey()}-deferred`)
  t.strictSame([deferred.statusCode, deferred.json()], [200, { outcome: 'postponed' }])
  t.equal((await deliver(app, `${newKey()}-rejected`)).statusCode, 200)
})

test('an answer of the endpoint counts all the same', async (t) => {
  const failing = () => {
    throw new Error('broken')
  }
  const app = await githubApp(t, failing, { answers: { failed: { status: 500 } } })
  t.equal((await deliver(app, newKey())).statusCode, 500)
})

test('a dispatch of one application is refused for another', async (t) => {
  const dispatch = inProcess()
  const first = await buildApp(t, database, {
    plugin: { dispatch },
    routes: (app) => {
      app.webhook('/webhooks/stripe', { provider: stripe({ secret: SECRET }) }, () => {})
    },
  })
  const second = buildApp(t, database, {
    plugin: { dispatch },
    routes: (app) => {
      app.webhook('/webhooks/stripe', { provider: stripe({ secret: SECRET }) }, () => {})
    },
  })
  await t.rejects(second, {
    code: 'IDEMPOTENCY_OPTION_INVALID',
    message: /"dispatch" is that of another application.* once for each application/,
  })
  t.equal((await postStripe(first, stripeEvent())).json().outcome, 'processed')
})

for (const [what, redelivers] of [
  ['nothing', () => undefined],
  ['a promise', async () => false],
  ['a number', () => 1],
] as const) {
  test(`a function "redelivers" that returns ${what}: the event is kept for a person`, async (t) => {
    const provider = { ...bank({ eventId: () => null }), redelivers: redelivers as never }
    const app = await buildApp(t, database, {
      routes: (app) =>
        app.webhook('/webhooks/bank', { name: newKey(), provider }, () => t.fail('it ran')),
    })
    const id = newKey()
    const answer = await postBank(app, { id })
    t.strictSame([answer.statusCode, answer.json()], [200, { outcome: 'dead' }])
    const events = await database.prisma.webhookEvent.findMany({ where: { status: 'dead' } })
    const dead = events.find(({ payload }) => Buffer.from(payload).includes(id))
    t.match(dead?.errors, [{ message: /^TypeError: redelivers returned a/ }])
  })
}
