import type { FastifyInstance } from 'fastify'
import type { PrismaClient } from '../../prisma/generated/postgresql/client.js'
import type { Runs } from './count-runs.js'

/** What handlers did for a tenant in this process, and what is stored of it. */
export function statsRoute(app: FastifyInstance, prisma: PrismaClient, runs: Runs): void {
  app.get('/stats', async ({ tenant }) => {
    const mine = { where: { tenantId: tenant } }
    return {
      handlerRuns: runs.of('payment', tenant),
      paymentsStored: await prisma.payment.count(mine),
      eventRuns: runs.of('event', tenant),
      confirmationsStored: await prisma.confirmation.count(mine),
      pushesStored: await prisma.push.count(mine),
      statusChanges: await prisma.statusChange.count(mine),
      bookingsStored: await prisma.booking.count(mine),
    }
  })
}
