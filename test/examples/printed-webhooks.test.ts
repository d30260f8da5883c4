// The webhooks that the documents print run as they are printed, with the events that they are for and
// with all others that a provider sends to the same address.
import { readFile } from 'node:fs/promises'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import { defineFlow } from '../../src/index.js'
import { stripe } from '../../src/webhooks/providers/index.js'
import { buildApp, newKey } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { eventOf, postStripe, SECRET, stripeEvent } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

const root = new URL('../../', import.meta.url)

/** The snippets of a document with a webhook of Stripe's in them. */
async function snippetsOf(file: string): Promise<string[]> {
  const text = await readFile(new URL(file, root), 'utf8')
  return [...text.matchAll(/^```ts\n(.*?)^```$/gms)]
    .map(([, code = '']) => code)
    .filter((code) => code.includes("app.webhook(\n  '/webhooks/stripe',\n"))
}

/** Runs a snippet for its effect on the application. What it imports is given. */
function run(snippet: string, app: FastifyInstance): void {
  const given = {
    ...{ app, stripe, defineFlow },
    process: { env: { STRIPE_WEBHOOK_SECRET: SECRET } },
  }
  const code = snippet.replace(/^import .*$/gm, '')
  new Function(...Object.keys(given), code)(...Object.values(given))
}

async function payment() {
  const id = newKey()
  await prisma.payment.create({
    data: { id, tenantId: 'acme', amount: 100, currency: 'EUR', status: 'pending' },
  })
  return id
}

const statusOf = async (id: string) => (await prisma.payment.findUnique({ where: { id } }))?.status

/** Events about something with this id, as Stripe shapes them: snapshots, and thin ones. */
const OTHERS: Record<string, (id: string) => object> = {
  'a payment that failed': (id) =>
    stripeEvent({ type: 'payment_intent.payment_failed', data: { object: { id } } }),
  'a payment that was made': (id) =>
    stripeEvent({ type: 'payment_intent.created', data: { object: { id } } }),
  'a thin event': (id) => ({
    id: `evt_${newKey()}`,
    object: 'v2.core.event',
    type: 'v1.billing.meter.error_report_triggered',
    livemode: false,
    created: new Date(0).toISOString(),
    related_object: { id, type: 'billing.meter', url: `/v1/billing/meters/${id}` },
  }),
  'a thin event about nothing': () => ({
    id: `evt_${newKey()}`,
    object: 'v2.core.event',
    type: 'v2.core.event_destination.ping',
    livemode: false,
    created: new Date(0).toISOString(),
    related_object: null,
  }),
}

for (const file of ['README.md', 'docs/webhooks.md', 'docs/flows.md']) {
  const snippets = await snippetsOf(file)
  t.ok(snippets.length > 0, `${file} prints one`)
  for (const [n, snippet] of snippets.entries()) {
    t.test(
      `${file}, number ${n + 1}: a payment that succeeded is marked as such, once`,
      async (t) => {
        const app = await buildApp(t, database, { routes: (app) => run(snippet, app) })
        const id = await payment()
        const created = Math.trunc(Date.now() / 1_000)
        const object = { id, amount: 100 }
        const event = { ...stripeEvent({ data: { object } }), created }
        t.strictSame((await postStripe(app, event)).json(), { outcome: 'processed' })
        t.equal(await statusOf(id), 'succeeded')
        t.strictSame((await postStripe(app, event)).json(), { outcome: 'duplicate' })
      },
    )

    for (const [what, eventAbout] of Object.entries(OTHERS)) {
      t.test(
        `${file}, number ${n + 1}: ${what} changes nothing, and is acknowledged`,
        async (t) => {
          const app = await buildApp(t, database, { routes: (app) => run(snippet, app) })
          const id = await payment()
          const event = eventAbout(id) as { id: string }
          const answer = await postStripe(app, event)
          t.strictSame([answer.statusCode, answer.json()], [200, { outcome: 'ignored' }])
          t.equal(await statusOf(id), 'pending')
          t.match(await eventOf(database, event.id, 'acme'), { status: 'ignored' })
        },
      )
    }
  }
}
