// The example's payouts: a process that dies in the middle of one, and others that finish it.
import { randomUUID } from 'node:crypto'
import { type Test, test } from 'tap'
import { buildApp } from '../../examples/payments/app.js'
import { parseEnvironment } from '../../examples/payments/environment.js'
import { type Bank, distantBank } from '../../examples/payments/payouts.js'
import { latch } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const { secrets } = parseEnvironment({})
const payout = { amount: 700, currency: 'EUR', iban: 'DE02120300000000202051' }

async function processes(t: Test) {
  const { prisma } = await anyDatabase(t)
  const distant = distantBank()
  const keys: string[] = []
  const sent = latch()
  const bank: Bank = {
    async send(order) {
      keys.push(order.key)
      const receipt = await distant.send(order)
      // The first process dies with the receipt in its hand.
      if (keys.length > 1) return receipt
      sent.open()
      return new Promise(() => {})
    },
  }
  const [dead, living] = await Promise.all([1, 2].map(() => buildApp({ prisma, bank }, secrets)))
  t.teardown(() => Promise.all([dead?.close(), living?.close()]))
  const key = randomUUID()
  const post = async (app = living) => {
    const headers = { authorization: 'Bearer acme-demo-token', 'idempotency-key': key }
    return app?.inject({ method: 'POST', url: '/payouts', headers, payload: payout })
  }
  post(dead).catch(() => {})
  await sent.opened
  const ranOut = { leaseUntil: new Date(0) }
  await prisma.idempotencyRecord.updateMany({ where: { key }, data: ranOut })
  const holds = async () => {
    t.match(await prisma.payment.findMany(), [
      { tenantId: 'acme', amount: -700, currency: 'EUR', status: 'succeeded' },
    ])
    t.equal(await prisma.payment.count(), 1)
    t.equal(new Set(keys).size, 1, 'the bank saw one key')
    t.equal(keys.length, 2)
  }
  return { living, post, holds }
}

test('a retry finishes a payout that its process has left, once', async (t) => {
  const { post, holds } = await processes(t)
  const answer = await post()
  t.equal(answer?.statusCode, 201)
  await holds()
  t.equal((await post())?.body, answer?.body)
})

test('without a retry, another process finishes it; a late retry is answered', async (t) => {
  const { living, post, holds } = await processes(t)
  t.match(await living?.idempotency.recover(), { finished: 1 })
  await holds()
  t.equal((await post())?.statusCode, 201)
  await holds()
})
