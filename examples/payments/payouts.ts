import { randomUUID } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import type { PrismaClient } from '../../prisma/generated/postgresql/client.js'
import { paymentFlow } from './payments.js'

interface Payout {
  /** In the smallest unit of the currency, such as cents. */
  amount: number
  currency: string
  iban: string
}

const payout = {
  type: 'object',
  required: ['amount', 'currency', 'iban'],
  additionalProperties: false,
  properties: {
    amount: { type: 'integer', minimum: 1, maximum: 2 ** 31 - 1 },
    currency: { type: 'string', pattern: '^[A-Z]{3}$' },
    iban: { type: 'string', pattern: '^[A-Z]{2}\\d{2}[A-Z0-9]{10,30}$' },
  },
}

/** Somebody who sends money, and knows by `key` whether he has sent it already. */
export interface Bank {
  send(payout: Payout & { key: string }): Promise<{ reference: string }>
}

/** A bank that is far away, and keeps its promises as long as this process lives. */
export function distantBank(): Bank {
  const sent = new Map<string, { reference: string }>()
  return {
    async send({ key }) {
      const known = sent.get(key) ?? { reference: randomUUID() }
      sent.set(key, known)
      return known
    },
  }
}

/**
 * Money that leaves: noted, sent, and noted again. A process may die anywhere in between: the client's
 * retry goes on behind what was done, and so does another process if the client never comes back.
 */
export function payoutRoutes(app: FastifyInstance, prisma: PrismaClient, bank: Bank): void {
  const send = app.idempotency.handler('payout', async (operation, input: Payout) => {
    const { tenantId } = operation
    const { amount, currency } = input
    const { id } = await operation.transaction((tx) =>
      tx.payment.create({ data: { tenantId, amount: -amount, currency } }),
    )
    const { reference } = await operation.step('bank', () =>
      bank.send({ ...input, key: operation.keyFor('bank') }),
    )
    await app.idempotency
      .for(tenantId)
      .advance(prisma.payment, { where: { id }, flow: paymentFlow, to: 'succeeded' })
    return { id, reference }
  })

  app.post<{ Body: Payout }>(
    '/payouts',
    { schema: { body: payout }, config: { idempotency: { required: true, wait: '5s' } } },
    async (request, reply) => {
      const { id, reference } = await request.idempotency.run(send, request.body)
      return reply.code(201).header('location', `/payments/${id}`).send({ id, reference })
    },
  )
}
