import type { FastifyBaseLogger } from 'fastify'
import type { EventStatus } from '../core/event.js'
import { crashPoint } from '../crash-points.js'
import { failureOf, type Report, reporter } from '../events.js'
import { sealed } from '../sealed.js'
import { batched } from '../store/batcher.js'
import type { Arrival, Recorded, StoredEvent } from '../store/event-store.js'
import { isOfItsData } from '../store/failures.js'
import { within } from '../within.js'
import { acknowledgesUndone } from './answer.js'
import { arrivalOf, type Endpoint, laneOf, laneOfStored } from './endpoint.js'
import { nameOfUnreadable, sha256, unreadableIn } from './names.js'
import type { Answer, DeliveryOutcome, Provider } from './provider.js'
import { KEPT, readingAgain } from './reading-again.js'
import { newRowId } from './row-id.js'
import type { Ran, RunFrom } from './run.js'
import { runErrorOf } from './run-error.js'
import { Runner, type RunnerOptions } from './runner.js'
import type { UnreadableEvent, VerifiedEvent } from './verify.js'

export interface InboxOptions extends RunnerOptions {
  /** Whether this process runs events that wait without being told to. */
  readonly hasWorker: boolean
}

/** What a delivery is told of its event. */
interface Told {
  readonly outcome: DeliveryOutcome
  /** What the handler answers itself. */
  readonly answer?: Answer | undefined
}

/** What a delivery did. */
export interface Delivered extends Told {
  readonly id: string
  readonly deliveries: number
}

/** How an event came to the inbox. */
export interface Delivery {
  readonly tenantId: string
  /** Those that are kept. */
  readonly headers: Readonly<Record<string, string>>
  /** A provider, whose requests they are, delivers again what is not acknowledged. */
  readonly from: Exclude<RunFrom, 'worker'>
  readonly log: FastifyBaseLogger
}

/** What `replay` did. `refused`: it is processed, and nobody said `force`. */
export type Replayed =
  | { readonly kind: 'processed' | 'ignored' | 'postponed' | 'failed' | 'dead' | 'running' }
  /**
   * It could not be read when it came, and now can: its events were delivered, under their own names. `outcomes`
   * has one for each of them; those that failed are run again.
   */
  | { readonly kind: 'read'; readonly outcomes: readonly DeliveryOutcome[] }
  /** It waits for a process that serves its endpoint, as `queue` asked. */
  | { readonly kind: 'queued' }
  /** This process does not have its endpoint. Nothing was changed. */
  | { readonly kind: 'unserved' }
  | { readonly kind: 'refused' }
  | { readonly kind: 'missing' }

/** What arrives at this process's endpoints: recorded once, and handed to whoever runs it. */
export class Inbox {
  readonly #options: InboxOptions
  readonly #endpoints = new Map<string, Endpoint>()
  readonly #runner: Runner
  readonly #record: (arrival: Arrival) => Promise<Recorded>
  /** Endpoints of which it was told that events come without an id. */
  readonly #toldOfNoId = new Set<string>()

  constructor(options: InboxOptions) {
    const { store, storeTimeoutMs, limits } = options
    this.#options = options
    this.#runner = new Runner(options, this.#endpoints, (endpoint) =>
      readingAgain(this, endpoint, []),
    )
    this.#record = batched(
      store,
      store.record,
      { identify: eventOf, mayRepeatRows: true, sizeOf: ({ payload }) => payload.byteLength },
      { timeoutMs: storeTimeoutMs, limit: limits.begin },
    )
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

  get endpointNames(): readonly string[] {
    return [...this.#endpoints.keys()]
  }

  endpoint(name: string): Endpoint | undefined {
    return this.#endpoints.get(name)
  }

  /** Begins to run what is due. Once; an inbox without endpoints has nothing to run. */
  work(): void {
    if (this.#endpoints.size > 0) this.#runner.work()
  }

  /** Begins nothing more. Requests that run an event go on. */
  stop(): Promise<void> {
    return this.#runner.stop()
  }

  /** From here on, events that run have the time of `drain` to end, whatever requests there are. */
  beginDrain(): void {
    this.#runner.beginDrain()
  }

  /** Waits for the events that are running, and hands back those that take too long. */
  close(): Promise<void> {
    return this.#runner.close()
  }

  /**
   * Records one delivery of a verified event and, inline, runs it.
   *
   * @throws DatabaseFailed: then it must not be acknowledged. If it was
   * recorded all the same, a later delivery or a worker goes on with it.
   */
  async deliver(
    endpoint: Endpoint,
    event: VerifiedEvent,
    { tenantId, headers, from, log }: Delivery,
  ): Promise<Delivered> {
    const { settings } = endpoint
    const awaitsDelivery =
      !endpoint.isServed || (from !== 'elsewhere' && isNamedAnew(endpoint, event))
    const named = arrivalOf(endpoint, tenantId, event, headers)
    const arrived = { ...named, id: newRowId(), awaitsDelivery }
    const isHandled = event.type === null || (settings.types?.has(event.type) ?? true)
    let arrival: Arrival
    let unserialized: { error: unknown } | undefined
    try {
      const start = !isHandled
        ? ({ status: 'ignored', dueInMs: settings.retentionMs } as const)
        : settings.mode === 'inline'
          ? ({ status: 'processing', dueInMs: settings.leaseMs } as const)
          : ({ status: 'received', dueInMs: 0 } as const)
      arrival = { ...arrived, ...start, lane: laneOf(endpoint, tenantId, event), errors: [] }
    } catch (error) {
      // Its order is not known, so that it must not be run; and it must not be lost.
      unserialized = { error }
      arrival = { ...arrived, ...deadOf(error) }
    }
    crashPoint('event:recording')
    const askedAt = performance.now()
    const recorded = await sealed('this event', () => this.#recordInTime(arrival))
    crashPoint('event:recorded')
    const { deliveries } = recorded
    const report = this.#tell(endpoint, arrival, recorded, log)
    if (event.namedBy === 'bytes' || event.namedBy === 'signed_bytes') {
      this.#tellOfNoId(endpoint, arrival, report)
    }
    if (recorded.isNew && unserialized !== undefined) {
      tellDead(report, arrival, 'its option "serialize" failed', unserialized.error)
    }
    if (recorded.isNew && recorded.status === 'processing') {
      const stored = asStored(arrival, recorded)
      const run = await this.#runner.begin(endpoint, stored, askedAt, log, report)
      const ran = run && (await run.execute(() => event.payload, from))
      return { ...toldOf(ran), id: recorded.id, deliveries }
    }
    const goOn = () => this.#goOn(endpoint, recorded, from, log, report)
    return { ...(await sealed('this event', goOn)), id: recorded.id, deliveries }
  }

  /** Records bytes that a provider signed and that cannot be read: for a person. */
  async keepUnreadable(
    endpoint: Endpoint,
    unreadable: UnreadableEvent,
    { tenantId, headers, log }: Delivery,
  ): Promise<Delivered> {
    const id = newRowId()
    const { rawBody, error } = unreadable
    // A header may name the event.
    const hash = sha256(JSON.stringify([sha256(rawBody), headers]))
    const what = endpoint.provider.mergesUnnamed === false ? id : hash
    const eventId = nameOfUnreadable(what, unreadable)
    const named = { eventId, type: 'unreadable', rawBody }
    const kept = { ...headers, [KEPT]: endpoint.settings.keptHeaders.join() }
    const arrival: Arrival = {
      ...arrivalOf(endpoint, tenantId, named, kept),
      ...{ id, awaitsDelivery: false },
      ...deadOf(error),
    }
    const recorded = await this.#recordInTime(arrival)
    const report = this.#tell(endpoint, arrival, recorded, log)
    if (recorded.isNew) tellDead(report, arrival, 'it cannot be read; its errors say why', error)
    // What a person has replayed meanwhile has been delivered.
    const outcome = recorded.status === 'processed' ? 'duplicate' : 'dead'
    return { outcome, id: recorded.id, deliveries: recorded.deliveries }
  }

  /** Runs a stored event again, now. */
  async replay(
    name: string | { tenantId: string; provider: string; eventId: string },
    { force, queue }: { force: boolean; queue: boolean },
  ): Promise<Replayed> {
    const { store, storeTimeoutMs, limits, log } = this.#options
    const inTime = <T>(ask: () => Promise<T>) => within(limits.begin(ask), storeTimeoutMs)
    const found = await inTime(() => store.find(name))
    if (found === undefined) return { kind: 'missing' }
    if (found.status === 'processed' && !force) return { kind: 'refused' }
    const { id, eventId, fence, status } = found
    const isUnreadable = unreadableIn(eventId) !== undefined
    // Its `serialize` failed when it came: what it must not run beside is asked again, of its endpoint.
    const isWithoutLane = status === 'dead' && fence === 0 && !isUnreadable
    const endpoint = this.#endpoints.get(found.endpoint)
    if (endpoint === undefined && (!queue || isWithoutLane)) return { kind: 'unserved' }
    let lane: string | null = null
    try {
      if (endpoint !== undefined && isWithoutLane) lane = laneOfStored(endpoint, found)
    } catch (error) {
      const subject = { provider: found.provider, eventId, id }
      const report = reporter(log, endpoint?.name, { tenantId: found.tenantId, key: id })
      tellDead(report, subject, 'its option "serialize" failed', error)
      return { kind: 'dead' }
    }
    if (!(await inTime(() => store.reopen(id, force, lane)))) return { kind: 'running' }
    if (endpoint === undefined) {
      this.#runner.enqueue({ id, fence, inMs: 0 })
      return { kind: 'queued' }
    }
    const outcomes: DeliveryOutcome[] = []
    const reading = isUnreadable ? readingAgain(this, endpoint, outcomes) : endpoint
    const ran = await this.#runner.claimAndRun(reading, id, 'elsewhere', log)
    if (ran === undefined || ran.outcome === 'lost') return { kind: 'running' }
    return isUnreadable && ran.outcome === 'processed'
      ? { kind: 'read', outcomes }
      : { kind: ran.outcome }
  }

  async #recordInTime(arrival: Arrival): Promise<Recorded> {
    const recording = this.#record(arrival)
    try {
      return await within(recording, this.#options.storeTimeoutMs)
    } catch (error) {
      recording.then(
        (recorded) => {
          if (!recorded.isNew || recorded.status !== 'processing') return
          this.#runner.giveBack({ ...recorded, deferrals: 0, errors: [] })
        },
        (failure) => {
          // It may be there all the same, under an id that no other delivery has.
          if (arrival.status !== 'processing' || isOfItsData(failure)) return
          const { id } = arrival
          this.#runner.giveBack({ id, fence: 1, attempts: 1, deferrals: 0, errors: [] })
        },
      )
      throw error
    }
  }

  /** Tells of a delivery; returns what tells of the event from now on. */
  #tell(endpoint: Endpoint, arrival: Arrival, recorded: Recorded, log: FastifyBaseLogger): Report {
    const { tenantId, provider, eventId, type } = arrival
    const { id, deliveries, status, sameBodyAs } = recorded
    const report = reporter(log, endpoint.name, { tenantId, key: id })
    const subject = { provider, eventId, event: id }
    if (recorded.isNew) {
      report({ kind: 'webhook_recorded', ...subject, type })
      // Usual where two changes say the same.
      const isTold = sameBodyAs !== null && endpoint.provider.mergesUnnamed !== false
      if (isTold) report({ kind: 'webhook_same_body', ...subject, sameBodyAs })
      if (status === 'ignored') report({ kind: 'webhook_ignored', ...subject })
    } else {
      report({ kind: 'webhook_duplicate', ...subject, deliveries, status })
      if (recorded.bodyHash !== arrival.bodyHash) report({ kind: 'webhook_other_body', ...subject })
    }
    return report
  }

  /** Once for each endpoint: it may be meant, and it may be a mistake in `eventId`. */
  #tellOfNoId({ name }: Endpoint, { provider, eventId, id }: Arrival, report: Report): void {
    if (this.#toldOfNoId.has(name)) return
    this.#toldOfNoId.add(name)
    report({ kind: 'webhook_without_id', provider, eventId, event: id })
  }

  /** What a delivery means whose event is in the inbox, and not claimed by it. */
  async #goOn(
    endpoint: Endpoint,
    { id, status, fence, dueInMs }: Recorded,
    from: RunFrom,
    log: FastifyBaseLogger,
    report: Report,
  ): Promise<Told> {
    if (status === 'processed') return { outcome: 'duplicate' }
    if (status === 'ignored' || status === 'dead') return { outcome: status }
    if (endpoint.settings.mode === 'deferred') {
      if (this.#options.hasWorker) this.work()
      const isRunning = status === 'processing'
      if (!isRunning) this.#runner.enqueue({ id, fence, inMs: Math.max(0, dueInMs ?? 0) })
      return { outcome: 'accepted' }
    }
    if (status === 'processing' && (dueInMs ?? 0) > 0) return { outcome: 'running' }
    return toldOf(await this.#runner.claimAndRun(endpoint, id, from, log, report))
  }
}

/** Whether its provider delivers it again until an inline run has succeeded, and perhaps under another name. */
function isNamedAnew(endpoint: Endpoint, { namedBy, isRedelivered }: VerifiedEvent): boolean {
  const mayDiffer = namedBy === 'signed_bytes' || namedBy === 'nothing'
  const isInline = endpoint.settings.mode === 'inline'
  return mayDiffer && isInline && isRedelivered && !acknowledgesUndone(endpoint)
}

/** How an event starts that cannot be run. */
function deadOf(error: unknown) {
  return { lane: null, status: 'dead', dueInMs: null, errors: [runErrorOf(0, error)] } as const
}

function tellDead(
  report: Report,
  { provider, eventId, id }: Pick<Arrival, 'provider' | 'eventId' | 'id'>,
  why: string,
  error: unknown,
): void {
  const failure = failureOf(error)
  report({ kind: 'webhook_dead', provider, eventId, event: id, attempt: 0, why, failure })
}

/** What a run means to the delivery that it was for. */
function toldOf(ran: Ran | undefined): Told {
  if (ran === undefined || ran.outcome === 'lost') return { outcome: 'running' }
  return { outcome: ran.outcome, answer: ran.answer }
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
    otherBodies: 0,
    steps: {},
    errors: [],
  }
}

/** Deliveries of one event write to one row. */
const eventOf = ({ tenantId, provider, eventId, id }: Arrival) =>
  eventId === null ? id : JSON.stringify([tenantId, provider, eventId])
