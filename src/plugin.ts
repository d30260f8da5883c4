import type { FastifyInstance, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { AtomicClaims } from './atomic/atomic-claims.js'
import { readPluginOptions } from './check-options.js'
import { Claims } from './claims/claims.js'
import { isStorableText } from './core/text.js'
import type { Dispatch } from './dispatch/dispatch.js'
import { inProcess } from './dispatch/in-process.js'
import { AlreadyRegistered, CollationInvalid, OptionInvalid } from './errors.js'
import { failureOf, reporter } from './events.js'
import type { Idempotency } from './fastify.js'
import { type ApplicationGuards, createGuards } from './guards.js'
import { tenantOfHelpers } from './http/caller.js'
import { bindHooks, exchangeOf } from './http/hooks.js'
import { createLimiter } from './http/limiter.js'
import { requestIdempotency } from './http/request.js'
import { demandModel, demandNames, exactNamesDemand } from './models.js'
import { Operations } from './operations/operations.js'
import type { PluginOptions, PluginSettings } from './options.js'
import { regularly } from './regularly.js'
import { pruneAll } from './retention.js'
import { sealed } from './sealed.js'
import { boundedClient } from './store/bounded-client.js'
import {
  hasModel,
  type PrismaClientLike,
  type Provider,
  primaryOf,
  providerOf,
} from './store/client.js'
import { type DatabaseClock, databaseClock } from './store/clock.js'
import type { EventStore } from './store/event-store.js'
import { onPool } from './store/pool.js'
import { postgresStore } from './store/postgres.js'
import { postgresEventStore } from './store/postgres-events.js'
import { findRecord, prismaStore } from './store/prisma.js'
import { prismaEventStore } from './store/prisma-events.js'
import { isSameDatabase } from './store/same-database.js'
import {
  createStatementLimits,
  defaultMaxConnections,
  type PlaceLimits,
} from './store/statement-limit.js'
import { onPrisma, type RunStatement } from './store/statements.js'
import { Inbox } from './webhooks/inbox.js'
import { bindWebhooks } from './webhooks/webhooks.js'
import { within } from './within.js'

// At the start. Fastify gives up after 10 s by default, and an application starts without its database.
const LONGEST_LOOK_MS = 5_000

const HELPERS = Symbol('fastify-idempotency.helpers')

declare module 'fastify' {
  interface FastifyRequest {
    /** Made when the handler asks for them: most of what they are is never used. */
    [HELPERS]: FastifyRequest['idempotency'] | null
  }
}

async function idempotency(app: FastifyInstance, options: PluginOptions): Promise<void> {
  if (app.hasRequestDecorator(HELPERS)) throw new AlreadyRegistered()
  const settings = readPluginOptions(options)
  const database = databaseOf(options, settings.storeTimeoutMs)
  const { run, clock, provider, primary } = database
  const store = run ? postgresStore(run) : prismaStore(primary, clock)
  const { prisma } = options
  const { storeTimeoutMs, holder, maxWaiters } = settings
  const poolSize = options.pool?.options?.max
  const maxConnections = settings.maxConnections ?? defaultMaxConnections(poolSize)
  const limits = createStatementLimits(maxConnections, storeTimeoutMs)
  const claims = new Claims(store, {
    ...{ prisma, storeTimeoutMs, holder, maxWaiters, limits },
    drainMs: settings.drainMs,
  })
  const limiter =
    settings.rateLimit &&
    (await createLimiter(app, {
      ...settings.rateLimit,
      redis: settings.redis[0],
      prefix: settings.redisPrefix,
      keyOf: (request) => `keys:${exchangeOf(request)?.tenantId ?? ''}`,
    }))
  const atomic =
    provider === 'postgresql'
      ? new AtomicClaims({ prisma, storeTimeoutMs, maxWaiters, limits })
      : undefined
  if (settings.route.atomic && atomic === undefined) {
    throw new OptionInvalid(
      `option "atomic" needs PostgreSQL, and the database of option "prisma" is ${provider}; leave it out`,
    )
  }
  bindHooks(app, options, { settings, claims, atomic, limiter })

  const timeoutMs = storeTimeoutMs
  const asking = boundedClient(primary, { limit: limits.begin, timeoutMs })
  const operations = new Operations({
    claims,
    prisma: asking,
    holderPrisma: boundedClient(primary, { limit: limits.hold, timeoutMs }),
    clock: clock.through(asking),
    find: (key) => findRecord(asking, clock.through(asking), key),
    options,
    settings,
    log: app.log,
  })

  const report = reporter(app.log, undefined, undefined)
  const demandExactNames = exactNamesDemand(primary, provider)
  app.addHook('onReady', async () => {
    const lookMs = Math.min(storeTimeoutMs, LONGEST_LOOK_MS)
    try {
      await within(demandExactNames(), lookMs)
    } catch (error) {
      if (error instanceof CollationInvalid) throw error
      // The application starts without its database, as it goes on without it.
      report({ kind: 'store_unavailable', bypassed: false, failure: failureOf(error) })
    }
    if (run === undefined || options.pool === undefined) return
    if (await isSameDatabase(run, onPrisma(asking), lookMs)) return
    throw new OptionInvalid(
      'option "pool" reaches another database than option "prisma", so that a record and what its handler writes would be in two. Give the client\'s adapter the same pool: new PrismaPg(pool)',
    )
  })
  const guards = createGuards({
    kind: settings.locks,
    redis: settings.redis,
    redisPrefix: settings.redisPrefix,
    prisma: primary,
    application: prisma,
    demandExactNames,
    clock,
    provider,
    patienceMs: settings.storeTimeoutMs,
    limits: limits.besideKeys,
    holder,
    report,
  })

  let opened: { inbox: Inbox; events: EventStore } | undefined
  const inbox = () => {
    opened ??= openInbox(app, options, settings, database, { guards, limits: limits.besideKeys })
    return opened.inbox
  }
  const routeOf = ({ method, routeOptions }: FastifyRequest) =>
    `${method} ${routeOptions.url ?? ''}`
  const tenantOf = (request: FastifyRequest) =>
    tenantOfHelpers(request, settings, reporter(request.log, routeOf(request), undefined))
  const redis = settings.redis[0]
  const { recordEvent, ...webhooks } = bindWebhooks(app, { settings, redis, inbox, tenantOf })
  app.decorateRequest(HELPERS, null)
  app.decorateRequest('idempotency', {
    getter() {
      this[HELPERS] ??= Object.assign(requestIdempotency(this, { prisma, operations, tenantOf }), {
        recordEvent: recordEvent.bind(undefined, this),
        ...guards.of({ tenantId: () => tenantOf(this), log: this.log, route: routeOf(this) }),
      })
      return this[HELPERS]
    },
  })

  const prunes = () => [store.prune, ...(opened ? [opened.events.prune] : []), ...guards.prunes()]
  const helpersOf = (tenantId: string) => {
    // Left out of a `where`, it would mean every tenant.
    if (tenantId !== '' && !isStorableText(tenantId)) {
      throw new OptionInvalid(
        "app.idempotency.for needs the name of a tenant: text of at most 255 characters, without NUL and without lone surrogates; '' names the only tenant of an application with tenant: false",
      )
    }
    return {
      ...guards.of({ tenantId: () => tenantId, log: app.log }),
      ...operations.of(tenantId),
    }
  }
  const api: Idempotency = {
    ...webhooks,
    ...helpersOf(''),
    ...operations.ofApplication(),
    for: helpersOf,
    handler: (name, work, times) => operations.handler(name, work, times),
    recover: (options) => operations.recover(options),
    prune: () => sealed('prune()', () => pruneAll(prunes(), storeTimeoutMs, report)),
  }
  app.decorate('idempotency', api)
  const { pruneEveryMs, recoverEveryMs } = settings
  const patienceMs = storeTimeoutMs
  if (pruneEveryMs !== undefined) {
    const prune = (isWanted: () => boolean) =>
      pruneAll(prunes(), storeTimeoutMs, report, isWanted).catch((error) =>
        report({ kind: 'prune_failed', failure: failureOf(error) }),
      )
    regularly(app, prune, { everyMs: pruneEveryMs, patienceMs })
  }
  if (recoverEveryMs !== undefined) {
    const turn = async () => {
      if (operations.hasHandlers) await operations.recoverInBackground(report)
    }
    regularly(app, turn, { everyMs: recoverEveryMs, patienceMs })
  }
  app.addHook('onListen', async () => {
    if (settings.hasWorker) opened?.inbox.work()
  })
  // Fastify lets requests finish before `onClose`; those that only wait are let go before that.
  app.addHook('preClose', async () => {
    claims.beginDrain()
    operations.stop()
    atomic?.stopWaiting()
    guards.close()
    opened?.inbox.beginDrain()
    await opened?.inbox.stop()
  })
  app.addHook('onClose', async () => {
    await Promise.all([
      operations.close().then(() => claims.close()),
      atomic?.close(),
      opened?.inbox.close(),
    ])
  })
}

/** How the library reaches the database. */
interface Reach {
  /** Statements of its own, on PostgreSQL. */
  readonly run: RunStatement | undefined
  readonly clock: DatabaseClock
  readonly provider: Provider
  /** Reads from the primary; transactions in which the application's code runs are of its own client. */
  readonly primary: PrismaClientLike
}

/** Picks what fits the database. */
function databaseOf({ prisma, pool }: PluginOptions, timeoutMs: number): Reach {
  demandModel(prisma, 'idempotencyRecord')
  const provider = providerOf(prisma) ?? (pool && 'postgresql')
  if (provider === undefined) {
    throw new OptionInvalid(
      'the database of option "prisma" is none of PostgreSQL, MySQL, MariaDB and SQLite; give the PrismaClient itself, not a wrapper around it',
    )
  }
  const primary = primaryOf(prisma)
  demandModel(primary, 'idempotencyRecord')
  const clock = databaseClock(primary, provider)
  if (provider === 'postgresql') {
    // The application may have another model of that name, and go without webhooks.
    const hasInbox = hasModel(prisma, 'webhookEvent')
    demandNames(prisma, ['idempotencyRecord', ...(hasInbox ? (['webhookEvent'] as const) : [])])
    return { run: pool ? onPool(pool, timeoutMs) : onPrisma(primary), clock, provider, primary }
  }
  if (pool === undefined) return { run: undefined, clock, provider, primary }
  throw new OptionInvalid(
    `option "pool" is for PostgreSQL, and the database of option "prisma" is ${provider}; leave it out`,
  )
}

/** Dispatches that belong to an application. */
const taken = new WeakSet<Dispatch>()

function openInbox(
  app: FastifyInstance,
  { prisma, dispatch = inProcess() }: PluginOptions,
  { storeTimeoutMs, drainMs, hasWorker }: PluginSettings,
  { run, clock, primary }: Reach,
  shared: { readonly guards: ApplicationGuards; readonly limits: PlaceLimits },
): { inbox: Inbox; events: EventStore } {
  demandModel(prisma, 'webhookEvent')
  if (taken.has(dispatch)) {
    throw new OptionInvalid(
      'option "dispatch" is that of another application, which it runs events for: call inProcess() or bullmq() once for each application',
    )
  }
  taken.add(dispatch)
  const events = run ? postgresEventStore(run) : prismaEventStore(primary, clock)
  const inbox = new Inbox({
    store: events,
    prisma,
    clock,
    dispatch,
    storeTimeoutMs,
    drainMs,
    hasWorker,
    ...shared,
    log: app.log,
  })
  return { inbox, events }
}

export default fp(idempotency, { name: 'fastify-idempotency', fastify: '5.x' })
