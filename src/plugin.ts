import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { readPluginOptions } from './check-options.js'
import { Claims } from './claims/claims.js'
import { inProcess } from './dispatch/in-process.js'
import { OptionInvalid } from './errors.js'
import { reporter } from './events.js'
import type { Idempotency } from './fastify.js'
import { type ApplicationGuards, createGuards } from './guards.js'
import { bindHooks, exchangeOf } from './http/hooks.js'
import { createLimiter } from './http/limiter.js'
import { requestIdempotency } from './http/request.js'
import { demandModel } from './models.js'
import type { PluginOptions, PluginSettings } from './options.js'
import { pruneAll, pruneRegularly } from './retention.js'
import { type Provider, providerOf } from './store/client.js'
import { type DatabaseClock, databaseClock } from './store/clock.js'
import type { EventStore } from './store/event-store.js'
import { postgresStore } from './store/postgres.js'
import { postgresEventStore } from './store/postgres-events.js'
import { prismaStore } from './store/prisma.js'
import { prismaEventStore } from './store/prisma-events.js'
import { onPool, onPrisma, type RunStatement } from './store/statements.js'
import { Inbox } from './webhooks/inbox.js'
import { bindWebhooks } from './webhooks/webhooks.js'

async function idempotency(app: FastifyInstance, options: PluginOptions): Promise<void> {
  const settings = readPluginOptions(options)
  const database = databaseOf(options)
  const { run, clock, provider } = database
  const store = run ? postgresStore(run) : prismaStore(options.prisma, clock)
  const claims = new Claims(store, settings)
  const limiter =
    settings.rateLimit &&
    (await createLimiter(app, {
      ...settings.rateLimit,
      redis: settings.redis[0],
      keyOf: (request) => exchangeOf(request)?.tenantId ?? '',
    }))
  bindHooks(app, options, { settings, claims, limiter })

  const report = reporter(app.log, undefined, undefined)
  const guards = createGuards({
    kind: settings.locks,
    redis: settings.redis,
    prisma: options.prisma,
    clock,
    provider,
    patienceMs: settings.storeTimeoutMs,
    report,
  })

  let opened: { inbox: Inbox; events: EventStore } | undefined
  const inbox = () => {
    opened ??= openInbox(app, options, settings, database, guards)
    return opened.inbox
  }
  const { recordEvent, tenantOf, ...webhooks } = bindWebhooks(app, {
    settings,
    redis: settings.redis[0],
    inbox,
  })
  app.decorateRequest('idempotency', {
    getter() {
      const { method, routeOptions, log } = this
      const route = `${method} ${routeOptions.url ?? ''}`
      return Object.assign(requestIdempotency(this), {
        recordEvent: recordEvent.bind(undefined, this),
        ...guards.of({ tenantId: () => tenantOf(this), log, route }),
      })
    },
  })

  const prunes = () => [store.prune, ...(opened ? [opened.events.prune] : []), ...guards.prunes()]
  const guardsOf = (tenantId: string) => {
    // Left out of a `where`, it would mean every tenant.
    if (typeof tenantId !== 'string' || tenantId.length > 255) {
      throw new OptionInvalid(
        'app.idempotency.for needs the name of a tenant: text of at most 255 characters',
      )
    }
    return guards.of({ tenantId: () => tenantId, log: app.log })
  }
  const api: Idempotency = {
    ...webhooks,
    ...guardsOf(''),
    for: guardsOf,
    prune: () => pruneAll(prunes(), report),
  }
  app.decorate('idempotency', api)
  if (settings.pruneEveryMs !== undefined) {
    pruneRegularly(app, prunes, report, {
      everyMs: settings.pruneEveryMs,
      patienceMs: settings.storeTimeoutMs,
    })
  }
  app.addHook('onListen', async () => {
    if (settings.hasWorker) opened?.inbox.work()
  })
  // Fastify lets requests finish before `onClose`; those that only wait are let go before that.
  app.addHook('preClose', async () => {
    claims.stopWaiting()
    guards.close()
    await opened?.inbox.stop()
  })
  app.addHook('onClose', async () => {
    await Promise.all([claims.close(), opened?.inbox.close()])
  })
}

/** How the library reaches the database. */
interface Reach {
  /** Statements of its own, on PostgreSQL. */
  readonly run: RunStatement | undefined
  readonly clock: DatabaseClock
  readonly provider: Provider
}

/** Picks what fits the database. */
function databaseOf({ prisma, pool }: PluginOptions): Reach {
  demandModel(prisma, 'idempotencyRecord')
  const provider = providerOf(prisma) ?? (pool && 'postgresql')
  if (provider === undefined) {
    throw new OptionInvalid(
      'the database of option "prisma" is none of PostgreSQL, MySQL, MariaDB and SQLite; give the PrismaClient itself, not a wrapper around it',
    )
  }
  const clock = databaseClock(prisma, provider)
  if (provider === 'postgresql') {
    return { run: pool ? onPool(pool) : onPrisma(prisma), clock, provider }
  }
  if (pool === undefined) return { run: undefined, clock, provider }
  throw new OptionInvalid(
    `option "pool" is for PostgreSQL, and the database of option "prisma" is ${provider}; leave it out`,
  )
}

function openInbox(
  app: FastifyInstance,
  { prisma, dispatch = inProcess() }: PluginOptions,
  { storeTimeoutMs, drainMs, hasWorker }: PluginSettings,
  { run, clock }: Reach,
  guards: ApplicationGuards,
): { inbox: Inbox; events: EventStore } {
  demandModel(prisma, 'webhookEvent')
  const events = run ? postgresEventStore(run) : prismaEventStore(prisma, clock)
  const inbox = new Inbox({
    store: events,
    prisma,
    clock,
    dispatch,
    storeTimeoutMs,
    drainMs,
    hasWorker,
    guards,
    log: app.log,
  })
  return { inbox, events }
}

export default fp(idempotency, { name: 'fastify-idempotency', fastify: '5.x' })
