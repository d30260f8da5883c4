import { setTimeout as sleep } from 'node:timers/promises'
import createError from '@fastify/error'
import type { FastifyInstance } from 'fastify'
import type { PrismaClient } from '../../prisma/generated/postgresql/client.js'

interface Order {
  /** In the smallest unit of the currency, such as cents. */
  amount: number
  currency: string
}

const order = {
  type: 'object',
  required: ['amount', 'currency'],
  additionalProperties: false,
  properties: {
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

const shown = { id: true, amount: true, currency: true, createdAt: true }

/** The routes: the only thing in them that is about idempotency is `config`. */
export function paymentRoutes(app: FastifyInstance, prisma: PrismaClient): void {
  /** How often a handler ran for a tenant in this process: what the plugin is there to keep low. */
  const handlerRuns = new Map<string, number>()

  async function pay(tenantId: string, { amount, currency }: Order) {
    handlerRuns.set(tenantId, (handlerRuns.get(tenantId) ?? 0) + 1)
    await sleep(NETWORK_MS)
    return prisma.payment.create({ data: { tenantId, amount, currency }, select: shown })
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
      const { amount, currency } = request.body
      const payment = await pay(request.tenant, { amount: -amount, currency })
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

  app.get('/stats', async ({ tenant }) => ({
    handlerRuns: handlerRuns.get(tenant) ?? 0,
    paymentsStored: await prisma.payment.count({ where: { tenantId: tenant } }),
  }))
}
