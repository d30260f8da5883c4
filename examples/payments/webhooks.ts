import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import type { PrismaClient } from '../../prisma/generated/postgresql/client.js'
import type { WebhookEvent } from '../../src/index.js'
// In an application of your own: from 'fastify-idempotency/webhooks'.
import { github, hmac, stripe } from '../../src/webhooks/index.js'
import type { Runs } from './count-runs.js'
import { paymentFlow } from './payments.js'

// So that `tx` has this application's models. In an application of your own:
// `declare module 'fastify-idempotency'`.
declare module '../../src/index.js' {
  interface Register {
    prisma: PrismaClient
  }
}

/** What each provider signs with. */
export interface WebhookSecrets {
  stripe: string
  github: string
  bank: string
}

/** What Stripe's events say of a payment. */
const STRIPE_STATUSES = {
  'payment_intent.processing': 'processing',
  'payment_intent.amount_capturable_updated': 'authorized',
  'payment_intent.succeeded': 'succeeded',
  'payment_intent.canceled': 'cancelled',
} as const

/** What a call to somebody else takes, so that deliveries that are sent at once really overlap. */
const NETWORK_MS = 100

/** The endpoints: who signs what arrives there, whose it is, and what it does. */
export function webhooks(
  app: FastifyInstance,
  prisma: PrismaClient,
  secrets: WebhookSecrets,
  runs: Runs,
): void {
  // In the request: Stripe hears 200 when the payment is confirmed.
  app.webhook(
    '/webhooks/stripe',
    {
      provider: stripe({ secret: secrets.stripe }),
      tenant: 'acme',
      types: Object.keys(STRIPE_STATUSES),
    },
    async (event) => {
      runs.count('event', event.tenantId)
      const { data, created } = event.payload
      const status = STRIPE_STATUSES[event.type as keyof typeof STRIPE_STATUSES]
      const isThere = await advance(event, data.object.metadata?.payment, status, created)
      if (isThere && status === 'succeeded') {
        await event.step('receipt', () => sendReceipt(event.keyFor('receipt')))
      }
    },
  )

  // Later, by a worker: GitHub waits for ten seconds, and never delivers an event again by itself.
  app.webhook(
    '/webhooks/github',
    {
      provider: github({ secret: secrets.github }),
      tenant: 'acme',
      types: ['push'],
      mode: 'deferred',
    },
    async (event) => {
      runs.count('event', event.tenantId)
      const { tenantId, payload } = event
      const repository = String(payload.repository?.full_name)
      const data = { tenantId, repository, ref: payload.ref, commit: payload.after }
      await event.transaction((tx) => tx.push.create({ data }), { final: true })
    },
  )

  // Somebody whom no library knows: a bank that sends the transfers of some minutes together.
  app.webhook(
    '/webhooks/bank',
    {
      provider: hmac({
        name: 'bank',
        secret: secrets.bank,
        header: 'bank-signature',
        timestampHeader: 'bank-timestamp',
        items: (payload) => (payload as { transfers: unknown[] }).transfers,
        eventId: (transfer) => transfer.id,
        object: (transfer) => transfer.payment,
      }),
      tenant: 'acme',
      serialize: true, // transfers for one payment, one after the other
    },
    async (event) => {
      runs.count('event', event.tenantId)
      await advance(event, event.payload.payment, 'succeeded')
    },
  )

  /**
   * Takes a payment to the status that the event tells of, and says whether it is there: not when it
   * is past that, or has ended otherwise. Puts the event back while there is no such payment.
   */
  async function advance(
    event: WebhookEvent,
    paymentId: unknown,
    to: 'processing' | 'authorized' | 'succeeded' | 'cancelled',
    /** In seconds. */
    occurredAt?: number,
  ): Promise<boolean> {
    const { tenantId, provider } = event
    if (typeof paymentId !== 'string') {
      event.reject('it names no payment')
      return false
    }
    // Looked up before the transaction: what that returns, a later attempt gets without running it.
    const payment = await prisma.payment.findFirst({ where: { id: paymentId, tenantId } })
    if (payment === null) {
      event.defer({ after: '30s' })
      return false
    }
    return event.transaction(async (tx) => {
      const { kind } = await event.advance(tx.payment, {
        where: { id: paymentId },
        flow: paymentFlow,
        to,
        ...(occurredAt !== undefined && { occurredAt: new Date(occurredAt * 1_000) }),
      })
      // What came too late, or after the end, has no effect.
      if (kind === 'blocked') return false
      if (to === 'succeeded') {
        await tx.confirmation.create({ data: { tenantId, paymentId, provider } })
      }
      return true
    })
  }
}

/** Stands in for a mail service that knows a key that it has seen before. */
async function sendReceipt(_key: string): Promise<void> {
  await sleep(NETWORK_MS)
}
