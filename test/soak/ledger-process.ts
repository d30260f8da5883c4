// A server whose every route moves money in the same ledger, each in its own way. Started by soak.ts,
// and killed by it.
//   POST /transaction, /steps, /recoverable, /atomic   { operation, from, to, amount } with a key
//   POST /job                                          the same without a key: app.idempotency.run
//   POST /webhooks/inline, /webhooks/deferred          the same, signed
import { setTimeout as sleep } from 'node:timers/promises'
import { PrismaPg } from '@prisma/adapter-pg'
import Fastify from 'fastify'
import pg from 'pg'
import { PrismaClient } from '../../prisma/generated/postgresql/client.js'
import idempotency, { inProcess, type WebhookEvent } from '../../src/index.js'
import { hmac } from '../../src/webhooks/providers/index.js'
import { LEASE_MS, type Transfer, WEBHOOK_SECRET } from './transfers.js'

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 12 })
// A server that goes away ends connections badly, also in the moment in which the pool hands one out.
pool.on('error', () => {})
pool.on('connect', (client) => client.on('error', () => {}))
const prisma = new PrismaClient({ adapter: new PrismaPg(pool) })
const app = Fastify()
await app.register(idempotency, {
  prisma,
  pool,
  tenant: false,
  lease: LEASE_MS,
  maxRun: '1m',
  recoverEvery: '1s',
  dispatch: inProcess({ pollEvery: '500ms' }),
})

type Ledger = Pick<PrismaClient, 'payment'>

/** So many transactions take a while: a process that stops then is likely to be within one. */
const SLOW = 0.2
const SLOW_MS = 500

/** Two entries that only make sense together. No constraint keeps them single. */
async function move(ledger: Ledger, { operation, from, to, amount }: Transfer): Promise<string[]> {
  const debit = { tenantId: operation, currency: from, amount: -amount }
  const { id } = await ledger.payment.create({ data: debit })
  if (Math.random() < SLOW) await sleep(SLOW_MS)
  const credit = { tenantId: operation, currency: to, amount }
  return [id, (await ledger.payment.create({ data: credit })).id]
}

const pay = app.idempotency.handler('pay', async (operation, transfer: Transfer) => {
  const entries = await operation.transaction((tx) => move(tx, transfer))
  return { entries, attempt: operation.attempt }
})

const required = { config: { idempotency: { required: true } } }
const atomic = { config: { idempotency: { required: true, atomic: true } } }

app.post<{ Body: Transfer }>('/transaction', required, async (request, reply) => {
  const { transaction, attempt } = request.idempotency
  return reply
    .code(201)
    .send({ entries: await transaction((tx) => move(tx, request.body)), attempt })
})

app.post<{ Body: Transfer }>('/steps', required, async (request, reply) => {
  const { idempotency, body } = request
  const quote = await idempotency.step('quote', () => ({ rate: Math.random() }))
  const entries = await idempotency.transaction((tx) => move(tx, body))
  const receipt = await idempotency.step('receipt', () => ({ number: Math.random() }))
  return reply.code(201).send({ quote, entries, receipt })
})

app.post<{ Body: Transfer }>('/recoverable', required, async (request, reply) =>
  reply.code(201).send(await request.idempotency.run(pay, request.body)),
)

app.post<{ Body: Transfer }>('/atomic', atomic, async (request, reply) =>
  reply.code(201).send({ entries: await move(request.idempotency.tx, request.body) }),
)

app.post<{ Body: Transfer }>('/job', async ({ body }, reply) => {
  const done = await app.idempotency.run(body.operation, pay, { input: body })
  if (done.kind === 'ran' || done.kind === 'replayed') return reply.code(201).send(done.value)
  return reply.code(409).send(done)
})

async function onTransfer(event: WebhookEvent<Transfer>): Promise<void> {
  await event.transaction((tx) => move(tx, event.payload))
}
for (const mode of ['inline', 'deferred'] as const) {
  const provider = hmac({
    name: mode,
    secret: WEBHOOK_SECRET,
    header: 'x-signature',
    eventId: (transfer) => transfer?.operation,
  })
  const terms = { mode, lease: LEASE_MS, maxRun: '1m', retry: { first: '100ms' } } as const
  app.webhook(`/webhooks/${mode}`, { provider, ...terms }, onTransfer)
}

await app.listen({ port: 0, host: '127.0.0.1' })
const address = app.server.address()
process.send?.({ kind: 'listening', port: typeof address === 'object' ? address?.port : undefined })
process.on('disconnect', () => process.exit(0))
