import { stringify } from 'devalue'
import type { FastifyBaseLogger } from 'fastify'
import { AtomicClaims } from '../../src/atomic/atomic-claims.js'
import { readPluginOptions } from '../../src/check-options.js'
import type { Claim } from '../../src/claims/claim.js'
import { Claims, type Outcome, type Wish } from '../../src/claims/claims.js'
import { type Operation, operationOf } from '../../src/claims/operation.js'
import type { AttemptToken } from '../../src/core/record.js'
import { LeaseLost, NotReplayable, StoreUnavailable } from '../../src/errors.js'
import type { OperationHandler } from '../../src/operations/handlers.js'
import { Operations } from '../../src/operations/operations.js'
import type { PluginOptions, PluginSettings } from '../../src/options.js'
import type { PrismaClientLike } from '../../src/store/client.js'
import { databaseClock } from '../../src/store/clock.js'
import { onPool } from '../../src/store/pool.js'
import { postgresStore } from '../../src/store/postgres.js'
import { postgresEventStore } from '../../src/store/postgres-events.js'
import { findRecord, prismaStore } from '../../src/store/prisma.js'
import { prismaEventStore } from '../../src/store/prisma-events.js'
import { createStatementLimits, defaultMaxConnections } from '../../src/store/statement-limit.js'
import type { Store } from '../../src/store/store.js'
import { type Answer, Answers, type Exchange, type ServerContext } from './answers.js'
import { AtomicRoute } from './atomic-route.js'
import { type Acknowledgement, EventEndpoints } from './event-endpoint.js'
import type { Owner } from './event-queue.js'
import { work } from './handler.js'
import { isOfRun, type Work } from './invariants.js'
import { Link } from './link.js'
import { modelPrisma } from './model-prisma.js'
import { nameOf } from './model-rows.js'
import { handlerOf } from './operation-names.js'
import { type EventPlan, isAtomic, type KeyPlan, LEASE_MS, NO_MISHAPS, type Plan } from './plan.js'

const SILENT = {
  level: 'silent',
  isLevelEnabled: () => false,
  child: () => SILENT,
} as unknown as FastifyBaseLogger

/** As large as the library lets the size of a response be a reason. */
const LARGE_BYTES = 256 * 1024

const read = new WeakMap<Plan, { options: PluginOptions; settings: PluginSettings }>()

/** As the plugin reads what it is registered with; once for all processes. */
function readOptions(plan: Plan, prisma: PrismaClientLike) {
  const known = read.get(plan)
  if (known !== undefined) return known
  const options: PluginOptions = {
    ...{ prisma, tenant: false as const, lease: LEASE_MS },
    ...{ maxRun: plan.maxRunMs, retention: plan.retentionMs },
    ...{ storeTimeout: plan.storeTimeoutMs, drain: LEASE_MS },
  }
  const found = { options, settings: readPluginOptions(options) }
  read.set(plan, found)
  return found
}

/** A process of the application, with the library in it as it is. */
export class Server implements Owner {
  readonly name: string
  isDead = false
  pausedUntil = 0
  /** It ends in an orderly way, and takes no requests any more. */
  isClosing = false
  /** Dies at the crash point that it reaches so many points from now. */
  pointsToLive = Number.POSITIVE_INFINITY
  readonly claims: Claims
  readonly store: Store
  readonly #context: ServerContext
  readonly #answers: Answers
  readonly #link: Link
  readonly #endpoints: EventEndpoints | undefined
  readonly #atomic: AtomicClaims
  readonly #atomicRoute: AtomicRoute
  readonly #operations: Operations
  readonly #handlers = new Map<string, OperationHandler<string, Work>>()

  constructor(name: string, context: ServerContext) {
    this.name = name
    this.#context = context
    this.#answers = new Answers(this, context)
    const { network, plan } = context
    this.#link = new Link(network, this)
    const isPortable = plan.way === 'prisma'
    const prisma = modelPrisma(this.#link, isPortable ? undefined : 'postgresql')
    const { storeTimeoutMs } = plan
    const clock = databaseClock(prisma, 'postgresql')
    const limits = createStatementLimits(defaultMaxConnections(plan.connections), storeTimeoutMs)
    const shared = { prisma, storeTimeoutMs, limits, maxWaiters: 1_000, holder: name }
    const run = onPool(this.#link.pool, storeTimeoutMs)
    this.store = isPortable ? prismaStore(prisma, clock) : postgresStore(run)
    this.claims = new Claims(this.store, { ...shared, drainMs: LEASE_MS })
    this.#atomic = new AtomicClaims(shared)
    this.#atomicRoute = new AtomicRoute(this.#atomic, this.#answers, context)
    if (plan.events.length > 0) {
      const store = isPortable ? prismaEventStore(prisma, clock) : postgresEventStore(run)
      const places = { limits: limits.besideKeys }
      const parts = { store, prisma, clock, ...places, log: SILENT, answers: this.#answers }
      const endpoints = new EventEndpoints(context, { ...parts, process: this })
      network.world.in(0, this, () => endpoints.work())
      this.#endpoints = endpoints
    }
    this.#operations = new Operations({
      ...{ claims: this.claims, prisma, holderPrisma: prisma, clock, log: SILENT },
      ...readOptions(plan, prisma),
      find: (key) => findRecord(prisma, clock, key),
    })
    for (const key of plan.keys) {
      if (!key.kind.startsWith('recoverable')) continue
      const handler = this.#operations.handler<string, Work>(handlerOf(key), (operation, body) =>
        this.#work(operation, key, body),
      )
      this.#handlers.set(key.key, handler)
    }
  }

  crash(why: string): void {
    if (this.isDead) return
    this.isDead = true
    this.#context.network.world.tell(() => `${this.name} dies ${why}`)
    this.#link.hangUp()
  }

  /** As SIGTERM ends a server. */
  async stop(): Promise<void> {
    this.isClosing = true
    this.claims.stopWaiting()
    await this.#endpoints?.stop()
    await this.#endpoints?.close()
    await this.#operations.close()
    await Promise.all([this.claims.close(), this.#atomic.close()])
    this.crash('in an orderly way')
  }

  /** Looks for no more events: what it runs then goes on. */
  stopWorking(): void {
    void this.#endpoints?.stop()
  }

  async deliver(event: EventPlan, name: string): Promise<Acknowledgement> {
    if (this.#endpoints === undefined) throw new TypeError('no events are delivered here')
    return this.#endpoints.deliver(event, name)
  }

  /** A person lets an event run again. */
  async replay(event: EventPlan, name: string): Promise<void> {
    await this.#endpoints?.replay(event, name)
  }

  async recover(): Promise<void> {
    const { finished } = await this.#operations.recover({ limit: 10, attempts: 1_000 })
    this.#context.network.counts['finished by recover()'] += finished
  }

  /** What an operator found out about an interrupted attempt, said to this server. */
  async resolve(key: string, token: AttemptToken, body: Work | undefined): Promise<void> {
    if (body === undefined) this.#context.invariants.decidedToRerun(token)
    const decision =
      body === undefined
        ? ({ release: true } as const)
        : { response: { statusCode: 201, body: JSON.stringify(body) } }
    const { kind } = await this.#operations.of('').resolve(key, decision, token)
    this.#context.network.world.tell(() => `an operator decides on ${key}: ${kind}`)
    if (kind === 'resolved') this.#context.network.counts['resolved by an operator'] += 1
  }

  /** Ends an attempt that runs, said by an operator to this server. */
  async forceRelease(key: string, token: AttemptToken): Promise<void> {
    const { invariants, network } = this.#context
    invariants.decidedToForce(token)
    const name = isOfRun(key) ? { run: key.slice('run\t'.length) } : key
    const options = { ...token, force: true }
    const { kind } = await this.#operations.of('').resolve(name, { release: true }, options)
    network.world.tell(() => `an operator forces ${key}: ${kind}`)
    if (kind === 'resolved') network.counts['released by force'] += 1
  }

  async serve(key: KeyPlan, body: string, signal?: AbortSignal): Promise<Answer> {
    const exchange: Exchange = { key, body, name: undefined }
    if (isOfRun(key.key)) return this.#run(exchange)
    const { plan, network } = this.#context
    const wish: Wish = {
      ...{ tenantId: '', key: key.key, fingerprint: body, leaseMs: LEASE_MS },
      ...{ maxRunMs: plan.maxRunMs, retentionMs: plan.retentionMs, waitMs: key.waitMs },
      ...(signal && { signal }),
      report: this.#answers.reportOf(exchange),
      onLeaseExpired: key.kind === 'uncertain' ? 'uncertain' : 'rerun',
      mayAdd: async () => !this.#isStormy || !network.world.random.chance(key.refusal),
    }
    if (isAtomic(key, body)) return this.#atomicRoute.serve(exchange, wish)
    const startedAt = network.world.now
    let outcome: Outcome
    try {
      outcome = await this.claims.begin(wish)
    } catch (error) {
      return this.#answers.unavailable(error, exchange)
    }
    this.#answers.inTime(exchange, outcome.kind, startedAt)
    if (outcome.kind === 'run') return this.#handle(exchange, outcome.claim)
    if (outcome.kind === 'replay') return this.#answers.replay(exchange, outcome.response)
    return this.#answers.undecided(outcome)
  }

  /** What src/http/recording.ts does with a handler and its response. */
  async #handle(exchange: Exchange, claim: Claim): Promise<Answer> {
    const { plan, network } = this.#context
    const { key, body: asked } = exchange
    const operation = operationOf(claim)
    let body: Work | undefined
    let why = ''
    try {
      const handler = this.#handlers.get(key.key)
      const { steps } = claim
      const terms = { claim, steps, tenantId: async () => '' }
      body =
        key.kind === 'recoverable request' && handler !== undefined
          ? await this.#operations.runIn(terms, handler, asked)
          : await this.#work(operation, key, asked, exchange)
    } catch (error) {
      why = String(error)
      this.#answers.failed(error)
    }
    const { isAwaited, over } = claim.closeSteps()
    if (body === undefined || !isAwaited) {
      // It says less than what is still being done, which keeps the key until it is over.
      const release = () => claim.release(why, plan.storeTimeoutMs)
      if (over === undefined) await release()
      else void over.then(release)
      return { kind: 'again', why: body === undefined ? why : 'not awaited' }
    }
    const work = JSON.stringify(body)
    const text = key.isLarge ? work.padEnd(LARGE_BYTES) : work
    const headers: Record<string, string> = {}
    if (key.poisoned === 'responses' && this.#isStormy && network.world.random.chance(0.5)) {
      network.counts['response that the database refuses'] += 1
      headers.note = '\0'
    }
    const response = { statusCode: 201, headers, body: Buffer.from(text) }
    const startedAt = network.world.now
    const stored = await claim.complete(response, plan.storeTimeoutMs)
    if (stored === 'lost') return this.#answers.failed(new LeaseLost())
    this.#answers.inTime(exchange, stored, startedAt)
    return this.#answers.done(key.key, text, exchange.isOmitted ? 'omitted' : stored, asked)
  }

  async #run(exchange: Exchange): Promise<Answer> {
    const { key, body: input } = exchange
    const runs = this.#operations.of('')
    const name = key.key.slice('run\t'.length)
    const terms = { input, wait: key.waitMs }
    const handler = this.#handlers.get(key.key)
    try {
      const result =
        key.kind === 'recoverable run' && handler !== undefined
          ? await runs.run(name, handler, terms)
          : await runs.run(name, (operation) => this.#work(operation, key, input), terms)
      if (result.kind !== 'ran' && result.kind !== 'replayed') {
        return this.#answers.undecided(result)
      }
      const source = result.kind === 'ran' ? 'failed' : 'replayed'
      return this.#answers.done(key.key, stringify(result.value), source, input)
    } catch (error) {
      if (error instanceof StoreUnavailable) return this.#answers.unavailable(error, exchange)
      if (error instanceof NotReplayable) return { kind: 'not replayable' }
      return this.#answers.failed(error)
    }
  }

  /** The handler of every key, watched. */
  async #work(
    operation: Operation,
    { key, kind, handler }: KeyPlan,
    body: string,
    exchange?: Exchange,
  ): Promise<Work> {
    const { network, invariants } = this.#context
    const { world, counts } = network
    const name = { key, operation: operation.keyFor('charge'), attempt: operation.attempt }
    if (exchange) exchange.name = name
    let isRunning = true
    if (!this.isDead) {
      const attempt = {
        ...{ ...name, body, resumed: operation.resumed },
        isTold: () => operation.signal.aborted,
        isLate: this.#answers.stoodStill,
        // One that stood still could not be told.
        isRunning: () => isRunning && !this.isDead && !this.#answers.stoodStill,
      }
      invariants.began(attempt, network.database.records.see(nameOf({ tenantId: '', key })))
    }
    const charges = kind !== 'uncertain'
    try {
      const plan = this.#isStormy ? handler : NO_MISHAPS
      return await work(operation, { world, counts, invariants, plan, name, body, charges })
    } finally {
      isRunning = false
    }
  }

  get #isStormy(): boolean {
    const { world, stormUntil } = this.#context.network
    return world.now < stormUntil
  }
}
