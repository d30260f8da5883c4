import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type { Redis } from 'ioredis'
import type pg from 'pg'
import type { PrismaClient } from '../../prisma/generated/postgresql/client.js'
// In an application of your own: from 'fastify-idempotency'.
import idempotency from '../../src/index.js'
import { authenticate } from './authenticate.js'
import { bookingRoutes } from './bookings.js'
import { countRuns } from './count-runs.js'
import { paymentRoutes } from './payments.js'
import { type Bank, distantBank, payoutRoutes } from './payouts.js'
import { statsRoute } from './stats.js'
import { type WebhookSecrets, webhooks } from './webhooks.js'

export interface Services {
  prisma: PrismaClient
  /** The pool under `prisma`, on a PostgreSQL server. */
  pool?: pg.Pool
  redis?: Redis
  /** Who sends payouts; by default one that only says so. */
  bank?: Bank
}

/** The payments API, ready to listen. Closing it leaves the services open: they are the caller's. */
export async function buildApp(
  { prisma, pool, redis, bank = distantBank() }: Services,
  secrets: WebhookSecrets,
  logger: FastifyServerOptions['logger'] = false,
): Promise<FastifyInstance> {
  const app = Fastify({ logger })
  // Awaited, and before the routes: the plugin protects what is added after it.
  await app.register(idempotency, {
    prisma,
    ...(pool && { pool }),
    ...(redis && { redis }),
    tenant: (request) => request.tenant,
    rateLimit: { max: 1000, timeWindow: '1m' },
    // Finishes payouts whose process has died, where the client does not come back.
    recoverEvery: '10s',
  })
  const runs = countRuns()
  // Clients log in. Providers do not, they sign: their routes are outside of this.
  app.register(async (api) => {
    authenticate(api)
    paymentRoutes(api, prisma, runs)
    payoutRoutes(api, prisma, bank)
    bookingRoutes(api, prisma)
    statsRoute(api, prisma, runs)
  })
  webhooks(app, prisma, secrets, runs)
  return app
}
