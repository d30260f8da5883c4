import { createHash } from 'node:crypto'
import type { FastifyBaseLogger } from 'fastify'
import type { EventStatus } from '../core/event.js'
import type { Dispatch, Job, JobName, JobOutcome, Work } from '../dispatch/dispatch.js'
import { type Report, reporter } from '../events.js'
import type { PrismaClientLike } from '../store/client.js'
import type { DatabaseClock } from '../store/clock.js'
import { oneOf } from '../store/combine.js'
import type {
  Arrival,
  Endpoints,
  EventStore,
  Recorded,
  RunEnd,
  RunHold,
  StoredEvent,
} from '../store/event-store.js'
import { within } from '../within.js'
import { arrivalOf, type Endpoint, payloadOf } from './endpoint.js'
import type { DeliveryOutcome, Provider, VerifiedEvent } from './provider.js'
import { newRowId } from './row-id.js'
import { Run, type RunContext, type RunOutcome } from './run.js'

export interface InboxOptions {
  readonly store: EventStore
  readonly prisma: PrismaClientLike
  readonly clock: DatabaseClock
  readonly dispatch: Dispatch
  /** How long the store may take for one answer. */
  readonly storeTimeoutMs: number
  /** How long a closing server waits for the events that it runs. */
  readonly drainMs: number
  /** Whether this process runs events that wait without being told to. */
  readonly hasWorker: boolean
  readonly log: FastifyBaseLogger
}

/** What a delivery did. */
export interface Delivered {
  readonly outcome: DeliveryOutcome
  readonly id: string
  readonly deliveries: number
}

/** What `replay` did. `refused`: it is processed, and nobody said `force`. */
export type Replayed =
  | { readonly kind: 'processed' | 'ignored' | 'postponed' | 'failed' | 'dead' | 'running' }
  /** It waits for a process that serves its endpoint, as `queue` asked. */
  | { readonly kind: 'queued' }
  /** This process does not have its endpoint. Nothing was changed. */
  | { readonly kind: 'unserved' }
  | { readonly kind: 'refused' }
  | { readonly kind: 'missing' }

/** Every event of this process's endpoints: recorded once, run until it ended. */
export class Inbox implements Work {
  readonly report: Report
  readonly #options: InboxOptions
  readonly #endpoints = new Map<string, Endpoint>()
  readonly #open = new Set<Run>()
  /** Claims under way, each of which may become a run. */
  readonly #starting = new Set<Promise<unknown>>()
  readonly #record: (arrival: Arrival) => Promise<Recorded>
  readonly #end: (end: RunEnd) => Promise<boolean>
  readonly #extend: (hold: RunHold & { leaseMs: number }) => Promise<boolean>
  #isWorking = false
  #isStopped = false
  #onEmpty: (() => void) | undefined

  constructor(options: InboxOptions) {
    const { store, storeTimeoutMs, log } = options
    this.#options = options
    this.report = reporter(log, undefined, undefined)
    this.#record = oneOf(store, store.record, storeTimeoutMs, ({ payload }) => payload.byteLength)
    this.#end = oneOf(store, store.end, storeTimeoutMs)
    this.#extend = oneOf(store, store.extend, storeTimeoutMs)
  }

  /** Whether an endpoint has this name already. */
  has(name: string): boolean {
    return this.#endpoints.has(name)
  }

  /** The endpoint, if there is one, whose events would be taken for those of another one. */
  twinOf(provider: Provider, fixedTenant: string | undefined): string | undefined {
    return [...this.#endpoints.values()].find(
      (other) =>
        other.provider.name === provider.name &&
        (fixedTenant === undefined ||
          other.fixedTenant === undefined ||
          other.fixedTenant === fixedTenant),
    )?.name
  }

  add(endpoint: Endpoint): void {
    this.#endpoints.set(endpoint.name, endpoint)
  }

  endpoint(name: string): Endpoint | undefined {
    return this.#endpoints.get(name)
  }

  /** Begins to run what is due. Once; an inbox without endpoints has nothing to run. */
  work(): void {
    if (this.#isWorking || this.#endpoints.size === 0) return
    this.#isWorking = true
    this.#options.dispatch.start(this)
  }

  /**
   * Records one delivery of a verified event and, inline, runs it.
   *
   * @throws what the store throws, or `StoreTimeout`: then it must not be acknowledged. If it was
   * recorded all the same, a later delivery or a worker goes on with it.
   */
  async deliver(
    endpoint: Endpoint,
    tenantId: string,
    event: VerifiedEvent,
    headers: Readonly<Record<string, string>>,
    log: FastifyBaseLogger,
  ): Promise<Delivered> {
    const { settings } = endpoint
    const isHandled = event.type === null || (settings.types?.has(event.type) ?? true)
    const arrival: Arrival = {
      ...arrivalOf(endpoint, tenantId, event, headers),
      id: newRowId(),
      ...(!isHandled
        ? { status: 'ignored', dueInMs: settings.retentionMs }
        : settings.mode === 'inline'
          ? { status: 'processing', dueInMs: settings.leaseMs }
          : { status: 'received', dueInMs: 0 }),
    }
    const askedAt = performance.now()
    const recorded = await this.#recordInTime(arrival)
    const { id, deliveries } = recorded
    const report = this.#tell(endpoint, arrival, recorded, log)
    if (recorded.isNew && recorded.status === 'processing') {
      const stored = asStored(arrival, recorded)
      const run = await this.#begin(endpoint, stored, askedAt, log, report)
      const outcome = run && (await run.execute(() => event.payload))
      return { outcome: outcomeOf(outcome), id, deliveries }
    }
    return { outcome: await this.#goOn(endpoint, recorded, log, report), id, deliveries }
  }

  /** Records bytes that a provider signed but nobody can read: for a person. */
  async keepUnreadable(
    endpoint: Endpoint,
    tenantId: string,
    rawBody: Buffer,
    headers: Readonly<Record<string, string>>,
    log: FastifyBaseLogger,
  ): Promise<Delivered> {
    // Named after its bytes, so that its other deliveries are duplicates and not more of the same.
    const hash = createHash('sha256').update(rawBody).digest('base64url')
    const type = 'unreadable'
    const named = { eventId: `${type}:${hash}`, type, object: null, payload: null, rawBody }
    const arrival: Arrival = {
      ...arrivalOf(
        { ...endpoint, settings: { ...endpoint.settings, serialize: () => null } },
        tenantId,
        named,
        headers,
      ),
      id: newRowId(),
      status: 'dead',
      dueInMs: null,
    }
    const recorded = await this.#recordInTime(arrival)
    const report = this.#tell(endpoint, arrival, recorded, log)
    if (recorded.isNew) {
      report({
        kind: 'webhook_dead',
        provider: arrival.provider,
        eventId: arrival.eventId,
        event: recorded.id,
        attempt: 0,
        why: 'its body cannot be read',
        failure: undefined,
      })
    }
    return { outcome: 'dead', id: recorded.id, deliveries: recorded.deliveries }
  }

  /** Runs a stored event again, now. */
  async replay(
    name: string | { tenantId: string; provider: string; eventId: string },
    { force, queue }: { force: boolean; queue: boolean },
  ): Promise<Replayed> {
    const { store, storeTimeoutMs, log } = this.#options
    const found = await within(store.find(name), storeTimeoutMs)
    if (found === undefined) return { kind: 'missing' }
    if (found.status === 'processed' && !force) return { kind: 'refused' }
    const endpoint = this.#endpoints.get(found.endpoint)
    if (endpoint === undefined && !queue) return { kind: 'unserved' }
    if (!(await within(store.reopen(found.id, force), storeTimeoutMs))) return { kind: 'running' }
    if (endpoint === undefined) {
      this.#enqueue({ id: found.id, fence: found.fence, inMs: 0 })
      return { kind: 'queued' }
    }
    const outcome = await this.#claimAndRun(endpoint, found.id, log)
    return { kind: outcome === undefined || outcome === 'lost' ? 'running' : outcome }
  }

  async startDue(limit: number): Promise<Promise<void>[]> {
    const { store, log } = this.#options
    const askedAt = performance.now()
    const claimed = await this.#claimInTime(store.claimDue(limit, this.#served()))
    return claimed.map(async (stored) => {
      const endpoint = this.#endpoints.get(stored.endpoint)
      // The store was asked for these endpoints only.
      if (endpoint === undefined) return
      const start = await this.#tracked(this.#beginStored(endpoint, stored, askedAt, log))
      await start?.()
    })
  }

  async run({ id, fence }: JobName): Promise<JobOutcome> {
    const { store, storeTimeoutMs, log } = this.#options
    const found = await within(store.find(id), storeTimeoutMs)
    const endpoint = found && this.#endpoints.get(found.endpoint)
    // A job of an earlier run: the pause that this one waits for is another.
    if (endpoint === undefined || found?.fence !== fence) return 'over'
    if (!['received', 'retrying', 'processing'].includes(found.status)) return 'over'
    if (this.#isStopped) return 'held'
    const outcome = await this.#claimAndRun(endpoint, id, log)
    return outcome === undefined ? 'held' : 'ran'
  }

  listDue(limit: number): Promise<JobName[]> {
    const { store, storeTimeoutMs } = this.#options
    return within(store.listDue(limit, this.#served()), storeTimeoutMs)
  }

  /** Begins nothing more. Requests that run an event go on. */
  async stop(): Promise<void> {
    this.#isStopped = true
    await this.#options.dispatch.stop()
  }

  /** Waits for the events that are running, and hands back those that take too long. */
  async close(): Promise<void> {
    const { drainMs, storeTimeoutMs, dispatch } = this.#options
    await Promise.allSettled(this.#starting)
    const emptied = new Promise<void>((resolve) => {
      this.#onEmpty = resolve
      if (this.#open.size === 0) resolve()
    })
    await within(emptied, drainMs).catch(() => {})
    await Promise.all([...this.#open].map((run) => run.handBack()))
    await within(emptied, storeTimeoutMs).catch(() => {})
    for (const run of this.#open) run.abandon('the server closed before it was recorded')
    await dispatch.close()
  }

  #enqueue(job: Job): void {
    this.#options.dispatch.enqueue(job, this.report)
  }

  #served(): Endpoints {
    const all = [...this.#endpoints.values()]
    return {
      names: all.map(({ name }) => name),
      leasesMs: all.map(({ settings }) => settings.leaseMs),
    }
  }

  async #recordInTime(arrival: Arrival): Promise<Recorded> {
    const recording = this.#record(arrival)
    try {
      return await within(recording, this.#options.storeTimeoutMs)
    } catch (error) {
      recording.then(
        (recorded) => {
          if (!recorded.isNew || recorded.status !== 'processing') return
          this.#giveBack({ ...recorded, deferrals: 0, errors: [] })
        },
        () => {},
      )
      throw error
    }
  }

  async #claimInTime(claiming: Promise<readonly StoredEvent[]>): Promise<readonly StoredEvent[]> {
    try {
      return await within(claiming, this.#options.storeTimeoutMs)
    } catch (error) {
      claiming.then(
        (claimed) => {
          for (const stored of claimed) this.#giveBack(stored)
        },
        () => {},
      )
      throw error
    }
  }

  /** Claimed too late, for somebody who is gone: free for the next one, and no attempt. */
  #giveBack(
    claimed: Pick<StoredEvent, 'id' | 'fence' | 'attempts' | 'deferrals' | 'errors'>,
  ): void {
    const { id, fence, attempts, deferrals, errors } = claimed
    const end = { status: 'retrying', dueInMs: 0, attempts: attempts - 1, wakes: null } as const
    this.#end({ id, fence, deferrals, errors, ...end }).catch(() => {})
  }

  /** Tells of a delivery; returns what tells of the event from now on. */
  #tell(endpoint: Endpoint, arrival: Arrival, recorded: Recorded, log: FastifyBaseLogger): Report {
    const { tenantId, provider, eventId, type } = arrival
    const { id, deliveries, status, sameBodyAs } = recorded
    const report = reporter(log, endpoint.name, { tenantId, key: id })
    const subject = { provider, eventId, event: id }
    if (recorded.isNew) {
      report({ kind: 'webhook_recorded', ...subject, type })
      if (sameBodyAs !== null) report({ kind: 'webhook_same_body', ...subject, sameBodyAs })
      if (status === 'ignored') report({ kind: 'webhook_ignored', ...subject })
    } else report({ kind: 'webhook_duplicate', ...subject, deliveries, status })
    return report
  }

  /** What a delivery means whose event is in the inbox, and not claimed by it. */
  async #goOn(
    endpoint: Endpoint,
    { id, status, fence, dueInMs }: Recorded,
    log: FastifyBaseLogger,
    report: Report,
  ): Promise<DeliveryOutcome> {
    if (status === 'processed') return 'duplicate'
    if (status === 'ignored' || status === 'dead') return status
    if (endpoint.settings.mode === 'deferred') {
      if (this.#options.hasWorker) this.work()
      const isRunning = status === 'processing'
      if (!isRunning) this.#enqueue({ id, fence, inMs: Math.max(0, dueInMs ?? 0) })
      return 'accepted'
    }
    if (status === 'processing' && (dueInMs ?? 0) > 0) return 'running'
    return outcomeOf(await this.#claimAndRun(endpoint, id, log, report))
  }

  async #claimAndRun(
    endpoint: Endpoint,
    id: string,
    log: FastifyBaseLogger,
    report?: Report,
  ): Promise<RunOutcome | undefined> {
    const askedAt = performance.now()
    const claiming = this.#options.store.claim(id, endpoint.settings.leaseMs)
    const claimed = this.#claimInTime(claiming.then((stored) => (stored ? [stored] : [])))
    const starting = claimed.then(
      ([stored]) => stored && this.#beginStored(endpoint, stored, askedAt, log, report),
    )
    const start = await this.#tracked(starting)
    return start?.()
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
    log: FastifyBaseLogger,
    report = reporter(log, endpoint.name, { tenantId: stored.tenantId, key: stored.id }),
  ): Promise<(() => Promise<RunOutcome>) | undefined> {
    const run = await this.#begin(endpoint, stored, askedAt, log, report)
    const { buffer, byteOffset, byteLength } = stored.payload
    const body = Buffer.from(buffer, byteOffset, byteLength)
    return run && (() => run.execute(() => payloadOf(endpoint, body, stored.headers)))
  }

  /**
   * Makes the run of what was claimed. A claim that took long on its way may be over by now: then it
   * is renewed first, and `undefined` means that somebody else was faster.
   */
  async #begin(
    endpoint: Endpoint,
    stored: StoredEvent,
    claimedAt: number,
    log: FastifyBaseLogger,
    report: Report,
  ): Promise<Run | undefined> {
    const { prisma, clock, storeTimeoutMs, dispatch } = this.#options
    const { leaseMs } = endpoint.settings
    let askedAt = claimedAt
    if (performance.now() - askedAt > leaseMs / 2) {
      askedAt = performance.now()
      const renewing = this.#extend({ id: stored.id, fence: stored.fence, leaseMs })
      if (!(await within(renewing, storeTimeoutMs).catch(() => false))) return undefined
    }
    const context: RunContext = {
      prisma,
      clock,
      storeTimeoutMs,
      log,
      report,
      extend: this.#extend,
      end: async (end) => {
        const isEnded = await this.#end(end)
        if (isEnded && end.status === 'retrying' && end.dueInMs !== null) {
          this.#enqueue({ id: end.id, fence: end.fence, inMs: end.dueInMs })
        }
        return isEnded
      },
      onEnd: (ended) => {
        this.#open.delete(ended)
        if (this.#open.size === 0) this.#onEmpty?.()
        // The next one of its lane may run.
        if (stored.lane !== null) dispatch.lookAgain()
      },
    }
    const run = new Run(endpoint, stored, askedAt, context)
    this.#open.add(run)
    return run
  }
}

/** What a run means to the delivery that it was for. */
function outcomeOf(outcome: RunOutcome | undefined): DeliveryOutcome {
  return outcome === undefined || outcome === 'lost' ? 'running' : outcome
}

/** A new event as it stands in the table, without asking for it. */
function asStored(arrival: Arrival, recorded: Recorded): StoredEvent {
  const status: EventStatus = recorded.status
  return {
    ...arrival,
    ...recorded,
    status,
    deferrals: 0,
    deliveredAt: [recorded.receivedAt.toISOString()],
    steps: {},
    errors: [],
  }
}
