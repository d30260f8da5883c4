import type { FastifyBaseLogger } from 'fastify'
import { inProcess } from '../../src/dispatch/in-process.js'
import type { ApplicationGuards } from '../../src/guards.js'
import type { PrismaClientLike } from '../../src/store/client.js'
import type { DatabaseClock } from '../../src/store/clock.js'
import type { EventStore } from '../../src/store/event-store.js'
import type { PlaceLimits } from '../../src/store/statement-limit.js'
import { readWebhookOptions } from '../../src/webhooks/check-options.js'
import type { Endpoint } from '../../src/webhooks/endpoint.js'
import type { WebhookEvent } from '../../src/webhooks/event.js'
import { Inbox } from '../../src/webhooks/inbox.js'
import type { Provider } from '../../src/webhooks/provider.js'
import type { VerifiedEvent } from '../../src/webhooks/verify.js'
import type { Answers, ServerContext } from './answers.js'
import { workOnEvent } from './handler.js'
import { eventNameOf } from './model-rows.js'
import { type EventPlan, LEASE_MS, NO_MISHAPS } from './plan.js'

/** What an endpoint says to a provider. */
export type Acknowledgement = { kind: 'acknowledged' } | { kind: 'again'; why: string }

export interface EndpointParts {
  readonly store: EventStore
  readonly prisma: PrismaClientLike
  readonly clock: DatabaseClock
  readonly limits: PlaceLimits
  readonly log: FastifyBaseLogger
  readonly answers: Answers
  readonly process: { readonly isDead: boolean }
}

const PROVIDER: Provider = {
  ...{ name: 'provider', secret: [], keptHeaders: [] },
  scheme: { algorithm: { kind: 'equality' }, read: () => 'missing_header' },
  eventId: () => null,
}

/** Nothing here needs locks, reservations and flows. */
const NO_GUARDS = { of: () => ({}) } as unknown as ApplicationGuards

/** The webhooks of one process: an inbox, and two endpoints for each that may be serialized. */
export class EventEndpoints {
  readonly #context: ServerContext
  readonly #parts: EndpointParts
  readonly #inbox: Inbox

  constructor(context: ServerContext, parts: EndpointParts) {
    this.#context = context
    this.#parts = parts
    const { store, prisma, clock, limits, log } = parts
    const { storeTimeoutMs } = context.plan
    this.#inbox = new Inbox({
      ...{ store, prisma, clock, limits, log, storeTimeoutMs, guards: NO_GUARDS },
      ...{ drainMs: LEASE_MS, hasWorker: true },
      dispatch: inProcess({ concurrency: 3, pollEvery: 3 * LEASE_MS }),
    })
    for (const mode of ['inline', 'deferred'] as const) this.#inbox.add(this.#endpoint(mode))
  }

  work(): void {
    this.#inbox.work()
  }

  stop(): Promise<void> {
    return this.#inbox.stop()
  }

  close(): Promise<void> {
    return this.#inbox.close()
  }

  /** What src/webhooks/route.ts does with a delivery that is verified. */
  async deliver(plan: EventPlan, name: string): Promise<Acknowledgement> {
    const { eventId, mode, object, isNamedAnew } = plan
    const { network, events } = this.#context
    const { answers, log, process } = this.#parts
    const endpoint = this.#inbox.endpoint(mode) as Endpoint
    const payload = { eventId }
    const rawBody = Buffer.from(JSON.stringify(payload))
    const event: VerifiedEvent = {
      ...{ eventId: name, namedBy: isNamedAnew ? 'signed_bytes' : 'provider' },
      ...{ type: null, object: object ?? null },
      ...{ payload, rawBody, isItem: false, isRedelivered: true },
    }
    const delivered = events.delivering(name, process)
    try {
      const delivery = { tenantId: '', headers: {}, from: 'request', log } as const
      const { outcome, id, answer } = await this.#inbox.deliver(endpoint, event, delivery)
      const isDone = ['processed', 'duplicate', 'accepted', 'ignored'].includes(outcome)
      if (!isDone && answer === undefined) return { kind: 'again', why: outcome }
      const row = network.database.events.see(eventNameOf({ id }))
      if (!process.isDead) events.acknowledged(name, outcome, row)
      return { kind: 'acknowledged' }
    } catch (error) {
      answers.failed(error)
      return { kind: 'again', why: String(error) }
    } finally {
      delivered()
    }
  }

  /** What an operator asks for whose provider has given up. */
  async replay({ mode: provider }: EventPlan, eventId: string): Promise<void> {
    const { network, events } = this.#context
    const { answers, process } = this.#parts
    events.mayRun(eventId)
    try {
      const name = { tenantId: '', provider, eventId }
      const { kind } = await this.#inbox.replay(name, { force: false, queue: false })
      network.world.tell(() => `an operator replays ${eventId}: ${kind}`)
      const isRun = ['processed', 'failed', 'postponed'].includes(kind)
      if (isRun && !process.isDead) events.replayed(eventId)
    } catch (error) {
      answers.failed(error)
    }
  }

  #endpoint(mode: 'inline' | 'deferred'): Endpoint {
    const { maxRunMs } = this.#context.plan
    const settings = readWebhookOptions(mode, {
      ...{ provider: { ...PROVIDER, object: () => null }, mode, serialize: true },
      ...{ lease: LEASE_MS, maxRun: maxRunMs, deferrals: 1_000 },
      retry: { attempts: 1_000, first: LEASE_MS / 10, most: 2 * LEASE_MS },
    })
    return {
      ...{ name: mode, provider: { ...PROVIDER, name: mode }, settings, isServed: true },
      ...{ tenant: false, fixedTenant: '' },
      handler: (event) => this.#handle(event),
    }
  }

  async #handle(event: WebhookEvent): Promise<void> {
    const { network, events, plan } = this.#context
    const { world, database, counts, stormUntil } = network
    const { answers, process } = this.#parts
    const found = plan.events.find(({ eventId }) => eventId === event.payload.eventId) as EventPlan
    let isRunning = true
    const run = {
      ...{ id: event.id, attempt: event.attempt, operation: event.keyFor('charge') },
      lane: found.object && `${found.mode} ${found.object}`,
      name: event.eventId ?? '',
      isLeftToProvider: found.isNamedAnew && found.mode === 'inline',
      isTold: () => event.signal.aborted,
      isLate: answers.stoodStill,
      isRunning: () => isRunning && !process.isDead && !answers.stoodStill,
    }
    event.signal.addEventListener('abort', () => {
      const isTakenOver = event.signal.reason?.message === 'another attempt took over'
      if (isTakenOver && !process.isDead) events.lost(run, database.events.see(eventNameOf(event)))
    })
    const end = process.isDead
      ? () => {}
      : events.began(run, database.events.see(eventNameOf(event)))
    try {
      const isStormy = world.now < stormUntil
      const { isFinal } = found
      const calm = { handler: NO_MISHAPS, defers: 0, acknowledges: 0, isFinal }
      const mishaps = isStormy ? found : calm
      await workOnEvent(event, { world, counts, events, run, ...mishaps })
    } finally {
      isRunning = false
      end()
    }
  }
}
