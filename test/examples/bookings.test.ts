// The example's bookings, where the demo does not look.
import { type Test, test } from 'tap'
import { buildApp } from '../../examples/payments/app.js'
import { parseEnvironment } from '../../examples/payments/environment.js'
import { anyDatabase } from '../fixtures/database.js'

const { secrets } = parseEnvironment({})

async function venue(t: Test) {
  const { prisma } = await anyDatabase(t)
  const app = await buildApp({ prisma }, secrets)
  t.teardown(() => app.close())
  const as = (tenant: string) => ({ authorization: `Bearer ${tenant}-demo-token` })
  const post = async (what: 'hold' | 'booking', guest: string, tenant = 'acme') => {
    const url = `/venues/hall/2030-12-31/${what}`
    return app.inject({ method: 'POST', url, headers: as(tenant), payload: { guest } })
  }
  const get = (query: string) => app.inject({ url: `/venues/hall${query}`, headers: as('acme') })
  return { prisma, post, get }
}

test('an evening is held for one guest, booked once, and shown without his name', async (t) => {
  const { prisma, post, get } = await venue(t)
  const statusOf = async (...call: Parameters<typeof post>) => (await post(...call)).statusCode
  t.equal(await statusOf('booking', 'Ann'), 409, 'not held')
  t.equal(await statusOf('hold', 'Ann'), 201)
  t.equal(await statusOf('hold', 'Ann'), 200, 'hers already')
  t.equal(await statusOf('hold', 'Bob'), 409)
  t.equal(await statusOf('hold', 'Bob', 'globex'), 201, 'a venue of another tenant')
  t.equal(await statusOf('booking', 'Ann'), 201)
  t.equal(await statusOf('booking', 'Ann'), 200, 'booked already')
  t.match(await prisma.booking.findMany(), [{ tenantId: 'acme', guest: 'Ann', venue: 'hall' }])
  t.strictSame((await get('')).json(), [{ evening: '2030-12-31', kind: 'confirmed' }])
  t.strictSame((await get('?evenings=2030-12-30,2030-12-31')).json(), [
    { evening: '2030-12-30', kind: 'free' },
    { evening: '2030-12-31', kind: 'confirmed' },
  ])
})

test('what cannot be a name or an evening is refused', async (t) => {
  const { post, get } = await venue(t)
  for (const guest of ['', 'a\0b', 'x'.repeat(101)]) {
    t.equal((await post('hold', guest)).statusCode, 400)
  }
  for (const query of ['?evenings=', '?evenings=2030-12-31,,2030-12-30', '?evenings=tomorrow']) {
    t.equal((await get(query)).statusCode, 400, query)
  }
})
