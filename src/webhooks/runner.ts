import type { FastifyBaseLogger } from 'fastify'
import { sizeOf } from '../claims/steps.js'
import type { Dispatch, Job, JobName, JobOutcome, Work } from '../dispatch/dispatch.js'
import { Drain } from '../drain.js'
import { type Report, reporter } from '../events.js'
import type { ApplicationGuards } from '../guards.js'
import { RENEWALS_OF_A_GRANT } from '../lease.js'
import { batched } from '../store/batcher.js'
import { boundedClient } from '../store/bounded-client.js'
import type { PrismaClientLike } from '../store/client.js'
import type { DatabaseClock } from '../store/clock.js'
import type {
  Endpoints,
  EventStore,
  KeepEventSteps,
  RunEnd,
  RunHold,
  StoredEvent,
} from '../store/event-store.js'
import type { PlaceLimits } from '../store/statement-limit.js'
import { within } from '../within.js'
import { type Endpoint, payloadOf } from './endpoint.js'
import { unreadableIn } from './names.js'
import { type Ran, Run, type RunContext, type RunFrom } from './run.js'

export interface RunnerOptions {
  readonly store: EventStore
  readonly prisma: PrismaClientLike
  readonly clock: DatabaseClock
  readonly dispatch: Dispatch
  /** How long the store may take for one answer. */
  readonly storeTimeoutMs: number
  readonly limits: PlaceLimits
  /** How long a closing server waits for the events that it runs. */
  readonly drainMs: number
  readonly guards: ApplicationGuards
  readonly log: FastifyBaseLogger
}

/** Every run of this process: claimed, under its lease until it ended, and waited for at the end. */
export class Runner implements Work {
  readonly report: Report
  readonly #options: RunnerOptions
  readonly #ownPrisma: PrismaClientLike
  readonly #endpoints: ReadonlyMap<string, Endpoint>
  readonly #reading: (endpoint: Endpoint) => Endpoint
  readonly #open = new Set<Run>()
  /** Runs whose leases are over and whose handlers are not. Nothing waits for them. */
  readonly #overdue = new Set<Run>()
  /** Claims under way, each of which may become a run. */
  readonly #starting = new Set<Promise<unknown>>()
  readonly #drain: Drain
  readonly #end: (end: RunEnd) => Promise<boolean>
  readonly #extend: (hold: RunHold & { leaseMs: number }) => Promise<boolean>
  readonly #keepSteps: (steps: KeepEventSteps) => Promise<boolean>
  #isWorking = false
  #isStopped = false
  #onEmpty: (() => void) | undefined

  /** `reading`: an endpoint as it handles events that could not be read when they came. */
  constructor(
    options: RunnerOptions,
    endpoints: ReadonlyMap<string, Endpoint>,
    reading: (endpoint: Endpoint) => Endpoint,
  ) {
    const { store, prisma, storeTimeoutMs, limits, log } = options
    this.#options = options
    this.#ownPrisma = boundedClient(prisma, { limit: limits.hold, timeoutMs: storeTimeoutMs })
    this.#endpoints = endpoints
    this.#reading = reading
    this.#drain = new Drain(options.drainMs, () => this.#handBackServed())
    this.report = reporter(log, undefined, undefined)
    const identify = ({ id }: RunHold) => id
    const hold = { timeoutMs: storeTimeoutMs, limit: limits.hold }
    this.#end = batched(store, store.end, { identify }, hold)
    this.#extend = batched(store, store.extend, { identify }, hold)
    this.#keepSteps = batched(store, store.keepSteps, { identify, sizeOf }, hold)
  }

  /** Begins to run what is due. Once. */
  work(): void {
    if (this.#isWorking || this.#isStopped) return
    this.#isWorking = true
    this.#options.dispatch.start(this)
  }

  /**
   * Makes the run of what was claimed. A claim that took long on its way may be over by now: then it
   * is renewed first, as its renewal is if that takes as long. `undefined` means that another run was
   * faster, that the store is too slow to hold a lease, or that a closing server has handed it back.
   */
  async begin(
    endpoint: Endpoint,
    stored: StoredEvent,
    claimedAt: number,
    log: FastifyBaseLogger,
    report: Report,
  ): Promise<Run | undefined> {
    const { prisma, clock, guards, storeTimeoutMs, dispatch } = this.#options
    const { leaseMs } = endpoint.settings
    let askedAt = claimedAt
    for (let renewals = 0; performance.now() - askedAt > leaseMs / 2; renewals += 1) {
      if (renewals === RENEWALS_OF_A_GRANT) return undefined
      askedAt = performance.now()
      const renewing = this.#extend({ id: stored.id, fence: stored.fence, leaseMs })
      if (!(await within(renewing, storeTimeoutMs).catch(() => false))) return undefined
    }
    const context: RunContext = {
      prisma,
      ownPrisma: this.#ownPrisma,
      clock,
      guards,
      storeTimeoutMs,
      log,
      report,
      extend: this.#extend,
      keepSteps: (steps) => within(this.#keepSteps(steps), storeTimeoutMs),
      end: async (end) => {
        const isEnded = await this.#end(end)
        const awaitsDelivery = stored.awaitsDelivery && !end.isAcknowledged
        if (isEnded && end.status === 'retrying' && end.dueInMs !== null && !awaitsDelivery) {
          this.enqueue({ id: end.id, fence: end.fence, inMs: end.dueInMs })
        }
        return isEnded
      },
      onOverdue: (late) => {
        this.#overdue.add(late)
        this.#noLongerOpen(late)
        return this.#overdue.size
      },
      onEnd: (ended) => {
        this.#overdue.delete(ended)
        this.#noLongerOpen(ended)
        // The next one of its lane may run.
        if (stored.lane !== null) dispatch.lookAgain()
      },
    }
    const run = new Run(endpoint, stored, askedAt, context)
    this.#open.add(run)
    if (!this.#drain.isOver || !endpoint.isServed) return run
    await run.handBack()
    return undefined
  }

  /** `undefined`: it may not run now, because somebody else runs it or its lane. */
  async claimAndRun(
    endpoint: Endpoint,
    id: string,
    from: RunFrom,
    log: FastifyBaseLogger,
    report?: Report,
  ): Promise<Ran | undefined> {
    const askedAt = performance.now()
    const { store, limits } = this.#options
    const claiming = limits.begin(() => store.claim(id, endpoint.settings.leaseMs))
    const claimed = this.#claimInTime(claiming.then((stored) => (stored ? [stored] : [])))
    const starting = claimed.then(
      ([stored]) => stored && this.#beginStored(endpoint, stored, askedAt, from, log, report),
    )
    const start = await this.#tracked(starting)
    return start?.()
  }

  /** Claimed too late, for somebody who is gone: free for the next one, and no attempt. */
  giveBack(claimed: Pick<StoredEvent, 'id' | 'fence' | 'attempts' | 'deferrals' | 'errors'>): void {
    const { id, fence, attempts, deferrals, errors } = claimed
    const end = { status: 'retrying', isAcknowledged: false, dueInMs: 0, wakes: null } as const
    this.#end({ id, fence, attempts: attempts - 1, deferrals, errors, ...end }).catch(() => {})
  }

  /** Says that an event wants to be run. */
  enqueue(job: Job): void {
    this.#options.dispatch.enqueue(job, this.report)
  }

  async startDue(limit: number): Promise<Promise<void>[]> {
    const { store, limits, log } = this.#options
    const askedAt = performance.now()
    const claimed = await this.#claimInTime(
      limits.begin(() => store.claimDue(limit, this.#served())),
    )
    return claimed.map(async (stored) => {
      const endpoint = this.#endpointOf(stored)
      // The store was asked for these endpoints only.
      if (endpoint === undefined) return
      const start = await this.#tracked(this.#beginStored(endpoint, stored, askedAt, 'worker', log))
      await start?.()
    })
  }

  async run({ id, fence }: JobName): Promise<JobOutcome> {
    const { store, storeTimeoutMs, limits, log } = this.#options
    const finding = limits.begin(() => store.find(id))
    const found = await within(finding, storeTimeoutMs)
    const endpoint = found && this.#endpointOf(found)
    // A job of an earlier run: the pause that this one waits for is another.
    if (endpoint === undefined || found?.fence !== fence) return 'over'
    if (!['received', 'retrying', 'processing'].includes(found.status)) return 'over'
    if (this.#isStopped) return 'held'
    const ran = await this.claimAndRun(endpoint, id, 'worker', log)
    return ran === undefined ? 'held' : 'ran'
  }

  listDue(limit: number): Promise<JobName[]> {
    const { store, storeTimeoutMs, limits } = this.#options
    const listing = limits.begin(() => store.listDue(limit, this.#served()))
    return within(listing, storeTimeoutMs)
  }

  /** Begins nothing more. Requests that run an event go on. */
  async stop(): Promise<void> {
    this.#isStopped = true
    await this.#options.dispatch.stop()
  }

  /** From here on, events that run have the time of `drain` to end, whatever requests there are. */
  beginDrain(): void {
    this.#drain.begin()
  }

  /**
   * Waits for the events that are running, and hands back those that take too long. Those whose leases
   * are over are anybody's already.
   */
  async close(): Promise<void> {
    const { storeTimeoutMs, dispatch } = this.#options
    await Promise.allSettled(this.#starting)
    const emptied = new Promise<void>((resolve) => {
      this.#onEmpty = resolve
      if (this.#open.size === 0) resolve()
    })
    await this.#drain.untilEnded(emptied)
    await Promise.all([...this.#open].map((run) => run.handBack()))
    await within(emptied, storeTimeoutMs).catch(() => {})
    for (const run of this.#open) run.abandon('the server closed before it was recorded')
    for (const run of this.#overdue) run.abandon('the server closed and its handler had not ended')
    await dispatch.close()
  }

  /** Those of `recordEvent` are requests, which a closing server lets finish. */
  #handBackServed(): void {
    for (const run of this.#open) if (run.isServed) void run.handBack()
  }

  #noLongerOpen(run: Run): void {
    this.#open.delete(run)
    if (this.#open.size === 0) this.#onEmpty?.()
  }

  #served(): Endpoints {
    const all = [...this.#endpoints.values()]
    return {
      names: all.map(({ name }) => name),
      leasesMs: all.map(({ settings }) => settings.leaseMs),
    }
  }

  async #claimInTime(claiming: Promise<readonly StoredEvent[]>): Promise<readonly StoredEvent[]> {
    try {
      return await within(claiming, this.#options.storeTimeoutMs)
    } catch (error) {
      claiming.then(
        (claimed) => {
          for (const stored of claimed) this.giveBack(stored)
        },
        () => {},
      )
      throw error
    }
  }

  /** A server that closes waits for what is about to run, as it does for what runs. */
  #tracked<T>(starting: Promise<T>): Promise<T> {
    this.#starting.add(starting)
    return starting.finally(() => this.#starting.delete(starting))
  }

  /** Makes the run of an event as it stands in the table; returns what runs it. */
  async #beginStored(
    endpoint: Endpoint,
    stored: StoredEvent,
    askedAt: number,
    from: RunFrom,
    log: FastifyBaseLogger,
    report = reporter(log, endpoint.name, { tenantId: stored.tenantId, key: stored.id }),
  ): Promise<(() => Promise<Ran>) | undefined> {
    const run = await this.begin(endpoint, stored, askedAt, log, report)
    const read = () => payloadOf(endpoint, stored)
    return run && (() => run.execute(read, from))
  }

  /** Of this process, and as it handles this event. */
  #endpointOf({ endpoint: name, eventId }: StoredEvent): Endpoint | undefined {
    const endpoint = this.#endpoints.get(name)
    return endpoint && unreadableIn(eventId) !== undefined ? this.#reading(endpoint) : endpoint
  }
}
