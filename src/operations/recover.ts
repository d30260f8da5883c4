import type { Claim } from '../claims/claim.js'
import type { Claims } from '../claims/claims.js'
import { StepNotAwaited } from '../errors.js'
import { failureOf, type Report } from '../events.js'
import type { PrismaClientLike } from '../store/client.js'
import type { DatabaseClock } from '../store/clock.js'
import { within } from '../within.js'
import { complete } from './complete.js'
import { forgetRecovery, type Handlers, inputOf, runningOperation } from './handlers.js'
import type { RecoverOptions } from './options.js'
import { isOfRun } from './stored.js'

/** What became of the operations that `recover()` found. */
export interface Recovered {
  /** Finished. */
  readonly finished: number
  /**
   * Their handlers failed, or had not ended when their leases were over; they are tried again when their
   * leases would have run out.
   */
  readonly failed: number
  /** Another attempt was faster, or the server closes. */
  readonly skipped: number
}

export interface RecoverContext {
  readonly prisma: PrismaClientLike
  readonly holderPrisma: PrismaClientLike
  readonly clock: DatabaseClock
  readonly claims: Claims
  readonly handlers: Handlers
  readonly storeTimeoutMs: number
  /** Handlers that have not ended although their leases are over. Nothing waits for them. */
  readonly overdue: Set<Promise<unknown>>
  /** The claims of those that run. */
  readonly held: Set<Claim>
  /** Aborted when nothing more is to be begun. */
  readonly stopped: AbortSignal
  readonly reportOf: (record: { tenantId: string; key: string }) => Report
}

/** An operation that lost its process. */
interface Interrupted {
  readonly tenantId: string
  readonly key: string
  readonly fingerprint: string
  readonly operationId: string
  readonly attempt: number
  readonly handler: string
  readonly input: unknown
  readonly expiresAt: Date
}

/** One batch, several at a time. Rejects when the database does; what is running then goes on. */
export async function recover(
  context: RecoverContext,
  options: Required<RecoverOptions>,
): Promise<Recovered> {
  const begun: Promise<keyof Recovered>[] = []
  await beginRecovery(context, options, new Set(), (finishing) => begun.push(finishing))
  const counts = { finished: 0, failed: 0, skipped: 0 }
  for (const kind of await Promise.all(begun)) counts[kind] += 1
  return counts
}

/**
 * Looks for interrupted operations and begins each of them as soon as fewer than `concurrency` are
 * `running`. Fulfilled once the last has begun, not when it has ended: a handler that never ends keeps
 * its place until its lease is over, and nothing else. Nothing more is begun once the database has failed
 * one of them.
 *
 * @throws what the database throws when it is looked for them.
 */
export async function beginRecovery(
  context: RecoverContext,
  { limit, concurrency, attempts }: Required<RecoverOptions>,
  running: Set<Promise<void>>,
  onBegun: (finishing: Promise<keyof Recovered>) => void,
): Promise<void> {
  const { storeTimeoutMs } = context
  const now = await within(context.clock.ask(), storeTimeoutMs)
  const finding = findInterrupted(context, now, limit, attempts)
  let hasFailed = false
  for (const interrupted of await within(finding, storeTimeoutMs)) {
    while (running.size >= concurrency) await Promise.race(running)
    if (hasFailed || context.stopped.aborted) return
    const finishing = finish(context, interrupted, now)
    onBegun(finishing)
    const ended = finishing.then(
      () => void running.delete(ended),
      () => {
        running.delete(ended)
        hasFailed = true
      },
    )
    running.add(ended)
  }
}

async function findInterrupted(
  { prisma, handlers }: RecoverContext,
  now: Date,
  limit: number,
  attempts: number,
): Promise<readonly Interrupted[]> {
  return prisma.idempotencyRecord.findMany({
    where: {
      handler: { in: handlers.names },
      // Of one that failed and was released, the lease is the pause before it is tried again.
      leaseUntil: { lte: now },
      status: { in: ['in_progress', 'released'] },
      expiresAt: { gt: now },
      attempt: { lt: attempts },
    },
    select: {
      tenantId: true,
      key: true,
      fingerprint: true,
      operationId: true,
      attempt: true,
      handler: true,
      input: true,
      expiresAt: true,
    },
    orderBy: { leaseUntil: 'asc' },
    take: limit,
  })
}

async function finish(
  {
    holderPrisma,
    claims,
    handlers,
    storeTimeoutMs,
    overdue,
    held,
    stopped,
    reportOf,
  }: RecoverContext,
  {
    tenantId,
    key,
    fingerprint,
    operationId,
    attempt,
    handler: name,
    input,
    expiresAt,
  }: Interrupted,
  now: Date,
): Promise<keyof Recovered> {
  const report = reportOf({ tenantId, key })
  const handler = handlers.named(name)
  // The database was asked for those of this process, and may compare without regard to case.
  if (handler === undefined) return 'skipped'
  const { leaseMs, maxRunMs } = handler.settings
  // A route may remember its keys for longer than the handler does.
  const leftMs = expiresAt.getTime() - now.getTime()
  const retentionMs = Math.max(handler.settings.retentionMs, leftMs)
  const wish = { tenantId, key, fingerprint, leaseMs, maxRunMs, retentionMs, report }
  const terms = { onLeaseExpired: 'rerun', waitMs: 0 } as const
  const seen = { operationId, attempt }
  const claim = await claims.takeOver({ ...wish, ...terms }, { seen, resumed: true })
  if (claim === undefined) return 'skipped'
  if (stopped.aborted) {
    await claim.release('the server closes', storeTimeoutMs)
    return 'skipped'
  }
  held.add(claim)
  const operation = runningOperation(claim)
  const work = () => handler.work(operation, inputOf(input))
  /** One that never ends must not keep its place: others wait for it. */
  const untilOver = <T>(working: Promise<T>): Promise<T> => {
    const over = claim.over.then((): never => {
      overdue.add(working)
      const ended = () => void overdue.delete(working)
      working.then(ended, ended)
      throw new Overdue()
    })
    return Promise.race([working, over])
  }
  const finished = (): 'finished' => {
    const tookMs = Math.round(performance.now() - claim.startedAt)
    report({ kind: 'recovered', attempt: claim.attempt, tookMs })
    return 'finished'
  }
  try {
    if (isOfRun({ tenantId, key })) {
      const value = await untilOver(work())
      if (!claim.closeSteps().isAwaited) throw new StepNotAwaited()
      const { stored } = await complete(claim, value, { storeTimeoutMs, report })
      return stored === 'stored' ? finished() : stored === 'lost' ? 'skipped' : 'failed'
    }
    // Only the route can make a response of its result: that is a step now, and the key is free for
    // the client's retry.
    await untilOver(claim.steps.part(name, work))
    if (!claim.closeSteps().isAwaited) throw new StepNotAwaited()
    await within(forgetRecovery(holderPrisma, claim), storeTimeoutMs)
    await claim.release('it was recovered', storeTimeoutMs)
    return finished()
  } catch (error) {
    const { attempt } = claim
    if (error instanceof Overdue)
      report({ kind: 'recovery_overdue', attempt, overdue: overdue.size })
    else report({ kind: 'recovery_failed', attempt, failure: failureOf(error) })
    // What it left under way keeps the key until it is over. Nobody waits for that here.
    const release = () => claim.release('its handler failed', storeTimeoutMs)
    void (claim.closeSteps().over ?? Promise.resolve()).then(release)
    return 'failed'
  } finally {
    held.delete(claim)
  }
}

/** The lease of a handler is over, and the handler has not ended. */
class Overdue extends Error {}
