// The server under load, a process of its own: the same route bare and protected, on one pool.

import { PrismaPg } from '@prisma/adapter-pg'
import Fastify from 'fastify'
import pg from 'pg'
import { PrismaClient } from '../prisma/generated/postgresql/client.js'
import idempotency, { defineFlow, type WebhookEvent } from '../src/index.js'
import { hmac } from '../src/webhooks/index.js'

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 })
const prisma = new PrismaClient({ adapter: new PrismaPg(pool) })

// Every statement of this process passes here, Prisma's and the plugin's.
let roundTrips = 0
const query = pg.Client.prototype.query
pg.Client.prototype.query = function (this: pg.Client, ...args: never[]) {
  roundTrips += 1
  return (query as (...args: never[]) => unknown).apply(this, args)
} as typeof query

const app = Fastify()
await app.register(idempotency, {
  prisma,
  tenant: () => 'bench',
  ...(process.env.STATEMENTS !== 'prisma' && { pool }),
})

const createPayment = async (request: { body: unknown }, reply: { code(status: number): void }) => {
  const { amount, currency } = request.body as { amount: number; currency: string }
  reply.code(201)
  return prisma.payment.create({ data: { tenantId: 'bench', amount, currency } })
}
app.post('/bare', { config: { idempotency: false } }, createPayment)
app.post('/protected', createPayment)

// The same insert in a transaction, by the application itself and as an atomic route.
app.post('/bare-transaction', { config: { idempotency: false } }, (request, reply) => {
  const { amount, currency } = request.body as { amount: number; currency: string }
  reply.code(201)
  return prisma.$transaction((tx) =>
    tx.payment.create({ data: { tenantId: 'bench', amount, currency } }),
  )
})
app.post('/atomic', { config: { idempotency: { atomic: true } } }, (request, reply) => {
  const { amount, currency } = request.body as { amount: number; currency: string }
  reply.code(201)
  return request.idempotency.tx.payment.create({ data: { tenantId: 'bench', amount, currency } })
})

// The same insert with the step's result, in a request and outside HTTP.
app.post('/transaction', (request, reply) => {
  const { amount, currency } = request.body as { amount: number; currency: string }
  reply.code(201)
  return request.idempotency.transaction((tx) =>
    tx.payment.create({ data: { tenantId: 'bench', amount, currency } }),
  )
})
app.post('/run', { config: { idempotency: false } }, async ({ headers, body }, reply) => {
  const { amount, currency } = body as { amount: number; currency: string }
  reply.code(201)
  const ran = await app.idempotency.run(headers['idempotency-key'] as string, (operation) =>
    operation.transaction((tx) =>
      tx.payment.create({ data: { tenantId: 'bench', amount, currency } }),
    ),
  )
  if (ran.kind !== 'ran') throw new Error(`not run, but ${ran.kind}`)
  return ran.value
})

// The same insert, as the effect of a webhook event.
const provider = (name: string) =>
  hmac({
    name,
    secret: 'bench',
    header: 'x-signature',
    eventId: (payload) => payload.id,
  })
const recordPayment = async ({ payload: { amount, currency } }: WebhookEvent) => {
  await prisma.payment.create({ data: { tenantId: 'bench', amount, currency } })
}
const tenant = 'bench'
app.webhook('/inline', { provider: provider('inline'), tenant }, recordPayment)
app.webhook('/inline-final', { provider: provider('inline-final'), tenant }, (event) =>
  event.transaction(
    async (tx) => {
      const { amount, currency } = event.payload
      await tx.payment.create({ data: { tenantId: 'bench', amount, currency } })
    },
    { final: true },
  ),
)
app.webhook(
  '/deferred',
  { provider: provider('deferred'), tenant, mode: 'deferred' },
  recordPayment,
)

// What keeps operations apart, beside the insert and the update that do not ask.
interface Slot {
  slot: string
}
app.post<{ Body: Slot }>('/bare-slot', async ({ body: { slot } }) => {
  const now = new Date()
  const data = { id: slot, tenantId: 'bare', resource: 'venue', slot, holder: 'x', createdAt: now }
  return prisma.slotReservation.create({ data: { ...data, heldUntil: now } })
})
app.post<{ Body: Slot }>('/reserve', ({ body: { slot } }) =>
  app.idempotency.reserve({ resource: 'venue', slots: slot, holder: slot }),
)
app.post<{ Body: Slot }>('/reserve-taken', ({ body: { slot } }) =>
  app.idempotency.reserve({ resource: 'venue', slots: slot, holder: 'somebody else' }),
)

interface Change {
  id: string
  to: 'active' | 'paused'
}
const flow = defineFlow({
  transitions: { pending: ['active'], active: ['paused'], paused: ['active'] },
})
app.post<{ Body: Change }>('/bare-status', ({ body: { id, to } }) =>
  prisma.payment.updateMany({ where: { id }, data: { status: to } }),
)
app.post<{ Body: Change }>('/advance', ({ body: { id, to } }) =>
  app.idempotency.advance(prisma.payment, { where: { id }, flow, to }),
)
app.post<{ Body: Pick<Change, 'id'> }>('/payments', ({ body: { id } }) =>
  prisma.payment.create({ data: { id, tenantId: 'bench', amount: 1, currency: 'EUR' } }),
)

app.get('/round-trips', async () => ({ roundTrips }))
/** How many events still wait to be run. */
app.get('/waiting', async () => ({
  waiting: await prisma.webhookEvent.count({ where: { status: { not: 'processed' } } }),
}))

await app.listen({ port: 0, host: '127.0.0.1' })
process.send?.({ port: (app.server.address() as { port: number }).port })
process.on('disconnect', () => void app.close().then(() => process.exit(0)))
