import type { Claim } from '../claims/claim.js'
import type { Claims } from '../claims/claims.js'
import { StepNotAwaited } from '../errors.js'
import { failureOf, type Report } from '../events.js'
import type { PrismaClientLike } from '../store/client.js'
import type { DatabaseClock } from '../store/clock.js'
import { complete } from './complete.js'
import { forgetRecovery, type Handlers, inputOf, runningOperation } from './handlers.js'
import type { RecoverOptions } from './options.js'
import { isOfRun } from './stored.js'

/** What became of the operations that `recover()` found. */
export interface Recovered {
  /** Finished. */
  readonly finished: number
  /** Their handlers failed; they are tried again when their leases would have run out. */
  readonly failed: number
  /** Somebody else was faster. */
  readonly skipped: number
}

export interface RecoverContext {
  readonly prisma: PrismaClientLike
  readonly clock: DatabaseClock
  readonly claims: Claims
  readonly handlers: Handlers
  readonly storeTimeoutMs: number
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
 * its place and nothing else. Nothing more is begun once the database has failed one of them.
 *
 * @throws what the database throws when it is looked for them.
 */
export async function beginRecovery(
  context: RecoverContext,
  { limit, concurrency, attempts }: Required<RecoverOptions>,
  running: Set<Promise<void>>,
  onBegun: (finishing: Promise<keyof Recovered>) => void,
): Promise<void> {
  const now = await context.clock.ask()
  let hasFailed = false
  for (const interrupted of await findInterrupted(context, now, limit, attempts)) {
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
  { prisma, claims, handlers, storeTimeoutMs, reportOf }: RecoverContext,
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
  const operation = runningOperation(claim)
  const work = () => handler.work(operation, inputOf(input))
  const finished = (): 'finished' => {
    const tookMs = Math.round(performance.now() - claim.startedAt)
    report({ kind: 'recovered', attempt: claim.attempt, tookMs })
    return 'finished'
  }
  try {
    if (isOfRun({ tenantId, key })) {
      const value = await untilLost(work())
      if (claim.closeSteps() !== undefined) throw new StepNotAwaited()
      const { stored } = await complete(claim, value, { storeTimeoutMs, report })
      return stored === 'stored' ? finished() : stored === 'lost' ? 'skipped' : 'failed'
    }
    // Only the route can make a response of its result: that is a step now, and the key is free for
    // the client's retry.
    await untilLost(claim.steps.part(name, work))
    if (claim.closeSteps() !== undefined) throw new StepNotAwaited()
    await forgetRecovery(prisma, claim)
    await claim.release('it was recovered', storeTimeoutMs)
    return finished()
  } catch (error) {
    report({ kind: 'recovery_failed', attempt: claim.attempt, failure: failureOf(error) })
    // What it left under way keeps the key until it is over. Nobody waits for that here.
    const release = () => claim.release('its handler failed', storeTimeoutMs)
    void (claim.closeSteps() ?? Promise.resolve()).then(release)
    return 'failed'
  }

  /** One that never ends must not keep the others from being looked for. */
  function untilLost<T>(working: Promise<T>): Promise<T> {
    const { signal } = claim as Claim
    const lost = new Promise<never>((_, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason))
      if (signal.aborted) reject(signal.reason)
    })
    return Promise.race([working, lost])
  }
}
