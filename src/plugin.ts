import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { readPluginOptions } from './check-options.js'
import { Claims } from './claims/claims.js'
import { ModelsMissing, OptionInvalid } from './errors.js'
import { reporter } from './events.js'
import type { Idempotency } from './fastify.js'
import { bindHooks, exchangeOf } from './http/hooks.js'
import { createLimiter } from './http/limiter.js'
import { requestIdempotency } from './http/request.js'
import type { PluginOptions } from './options.js'
import { pruneAll, pruneRegularly } from './retention.js'
import { missingFromClient, providerOf } from './store/client.js'
import { databaseClock } from './store/clock.js'
import { postgresStore } from './store/postgres.js'
import { prismaStore } from './store/prisma.js'
import { onPool, onPrisma } from './store/statements.js'
import type { Store } from './store/store.js'

async function idempotency(app: FastifyInstance, options: PluginOptions): Promise<void> {
  const settings = readPluginOptions(options)
  const store = storeFor(options)
  const claims = new Claims(store, settings)
  const limiter =
    settings.rateLimit &&
    (await createLimiter(app, {
      ...settings.rateLimit,
      redis: options.redis,
      tenantOf: (request) => exchangeOf(request)?.tenantId ?? '',
    }))

  bindHooks(app, options, { settings, claims, limiter })
  app.decorateRequest('idempotency', {
    getter() {
      return requestIdempotency(this)
    },
  })

  const report = reporter(app.log, undefined, undefined)
  const api: Idempotency = { prune: () => pruneAll(store, report) }
  app.decorate('idempotency', api)
  if (settings.pruneEveryMs !== undefined) {
    pruneRegularly(app, store, report, {
      everyMs: settings.pruneEveryMs,
      patienceMs: settings.storeTimeoutMs,
    })
  }
  // Fastify lets requests finish before `onClose`; those that only wait are let go before that.
  app.addHook('preClose', async () => claims.stopWaiting())
  app.addHook('onClose', () => claims.close())
}

/** Picks the store that fits the database. */
function storeFor({ prisma, pool }: PluginOptions): Store {
  const missing = missingFromClient(prisma, ['idempotencyRecord'])
  if (missing.length > 0) throw new ModelsMissing(missing.join(', '))
  const provider = providerOf(prisma)
  if (pool !== undefined) {
    if (provider === undefined || provider === 'postgresql') return postgresStore(onPool(pool))
    throw new OptionInvalid(
      `option "pool" is for PostgreSQL, and the database of option "prisma" is ${provider}; leave it out`,
    )
  }
  if (provider === 'postgresql') return postgresStore(onPrisma(prisma))
  if (provider === undefined) {
    throw new OptionInvalid(
      'the database of option "prisma" is none of PostgreSQL, MySQL, MariaDB and SQLite; give the PrismaClient itself, not a wrapper around it',
    )
  }
  return prismaStore(prisma, databaseClock(prisma, provider))
}

export default fp(idempotency, { name: 'fastify-idempotency', fastify: '5.x' })
