import { setTimeout as sleep } from 'node:timers/promises'
import createError from '@fastify/error'
import type { FastifyInstance } from 'fastify'
import type { PrismaClient } from '../../prisma/generated/postgresql/client.js'
// In an application of your own: from 'fastify-idempotency'.
import { defineFlow } from '../../src/index.js'
import type { Runs } from './count-runs.js'

interface Order {
  /** A UUID, where the client wants to name the payment before it is there. */
  id?: string
  /** In the smallest unit of the currency, such as cents. */
  amount: number
  currency: string
}

const order = {
  type: 'object',
  required: ['amount', 'currency'],
  additionalProperties: false,
  properties: {
    id: { type: 'string', format: 'uuid' },
    // The most that the column holds.
    amount: { type: 'integer', minimum: 1, maximum: 2 ** 31 - 1 },
    currency: { type: 'string', pattern: '^[A-Z]{3}$' },
  },
}

// Needs a key, and lets a duplicate wait for the first answer instead of telling it to come back.
const idempotency = { required: true, wait: '5s' } as const

/** What a card network takes, so that duplicates sent at once really overlap. */
const NETWORK_MS = 100

const PaymentNotFound = createError('PAYMENT_NOT_FOUND', 'There is no payment %s', 404)

const PaymentExists = createError('PAYMENT_EXISTS', 'There is a payment %s already', 409)

const shown = { id: true, amount: true, currency: true, status: true, createdAt: true }

/** What becomes of a payment, in whatever order its provider tells of it. */
export const paymentFlow = defineFlow({
  name: 'payment',
  levels: { pending: 0, processing: 1, authorized: 2, succeeded: 3, cancelled: 3 },
  terminal: ['succeeded', 'cancelled'],
})

/** The routes: the only thing in them that is about idempotency is `config`. */
export function paymentRoutes(app: FastifyInstance, prisma: PrismaClient, runs: Runs): void {
  async function pay(tenantId: string, order: Order) {
    runs.count('payment', tenantId)
    await sleep(NETWORK_MS)
    const data = { ...order, tenantId }
    return prisma.payment.create({ data, select: shown }).catch((error) => {
      throw error.code === 'P2002' ? new PaymentExists(order.id) : error
    })
  }

  app.post<{ Body: Order }>(
    '/payments',
    { schema: { body: order }, config: { idempotency } },
    async (request, reply) => {
      const payment = await pay(request.tenant, request.body)
      return reply.code(201).header('location', `/payments/${payment.id}`).send(payment)
    },
  )

  // Money the other way: a payment with a negative amount.
  app.post<{ Body: Order }>(
    '/refunds',
    { schema: { body: order }, config: { idempotency } },
    async (request, reply) => {
      const { amount, ...others } = request.body
      const payment = await pay(request.tenant, { ...others, amount: -amount })
      return reply.code(201).header('location', `/payments/${payment.id}`).send(payment)
    },
  )

  app.get<{ Params: { id: string } }>('/payments/:id', async ({ tenant, params: { id } }) => {
    const payment = await prisma.payment.findFirst({
      where: { id, tenantId: tenant },
      select: shown,
    })
    if (payment === null) throw new PaymentNotFound(id)
    return payment
  })

  app.get('/payments', ({ tenant }) =>
    prisma.payment.findMany({
      where: { tenantId: tenant },
      select: shown,
      orderBy: { createdAt: 'desc' },
      take: 100,
    }),
  )
}
