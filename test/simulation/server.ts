import { stringify } from 'devalue'
import type { FastifyBaseLogger } from 'fastify'
import { readPluginOptions } from '../../src/check-options.js'
import type { Claim } from '../../src/claims/claim.js'
import { Claims, type Outcome, type Wish } from '../../src/claims/claims.js'
import { type Operation, operationOf } from '../../src/claims/operation.js'
import { LeaseLost, StoreUnavailable } from '../../src/errors.js'
import type { Report } from '../../src/events.js'
import type { OperationHandler } from '../../src/operations/handlers.js'
import { Operations } from '../../src/operations/operations.js'
import type { PluginOptions, PluginSettings } from '../../src/options.js'
import { databaseErrorOf } from '../../src/sealed.js'
import type { PrismaClientLike } from '../../src/store/client.js'
import { databaseClock } from '../../src/store/clock.js'
import { findRecord, prismaStore } from '../../src/store/prisma.js'
import type { Store } from '../../src/store/store.js'
import type { Owner } from './event-queue.js'
import { work } from './handler.js'
import { type Invariants, isOfRun, type Work } from './invariants.js'
import { Link, type Network } from './link.js'
import { nameOf } from './model-database.js'
import { modelPrisma } from './model-prisma.js'
import { modelStore } from './model-store.js'
import { type KeyPlan, LEASE_MS, NO_MISHAPS, type Plan } from './plan.js'

/** What a server says to a client. */
export type Answer =
  | { kind: 'done'; text: string }
  | { kind: 'again'; why: string }
  | { kind: 'uncertain'; attempt: number }
  | { kind: 'mismatch' }

export interface ServerContext {
  readonly network: Network
  readonly invariants: Invariants
  readonly plan: Plan
}

const SILENT = { level: 'silent', isLevelEnabled: () => false } as unknown as FastifyBaseLogger

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
  readonly #link: Link
  readonly #prisma: PrismaClientLike
  readonly #operations: Operations
  readonly #handlers = new Map<string, OperationHandler<string | null, Work>>()

  constructor(name: string, context: ServerContext) {
    this.name = name
    this.#context = context
    const { network, plan } = context
    this.#link = new Link(network, this)
    this.#prisma = modelPrisma(this.#link)
    const prisma = this.#prisma
    const { storeTimeoutMs } = plan
    const clock = databaseClock(prisma, 'postgresql')
    this.store =
      plan.way === 'statements' ? modelStore(this.#link.send) : prismaStore(prisma, clock)
    this.claims = new Claims(this.store, { prisma, storeTimeoutMs })
    this.#operations = new Operations({
      ...{ claims: this.claims, prisma, clock, log: SILENT },
      ...readOptions(plan, prisma),
      find: (key) => findRecord(prisma, clock, key),
    })
    for (const { key, kind } of plan.keys) {
      if (!kind.startsWith('recoverable')) continue
      const handler = this.#operations.handler<string | null, Work>(
        `handler of ${key}`,
        (operation) => this.#work(operation, key),
      )
      this.#handlers.set(key, handler)
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
    await this.#operations.close()
    await this.claims.close()
    this.crash('in an orderly way')
  }

  async recover(): Promise<void> {
    const { finished } = await this.#operations.recover({ limit: 10, attempts: 1_000 })
    this.#context.network.counts['finished by recover()'] += finished
  }

  /** What an operator found out about an interrupted attempt, said to this server. */
  async resolve(key: string, attempt: number, body: Work | undefined): Promise<void> {
    if (body === undefined) this.#context.invariants.decidedToRerun(key, attempt)
    const decision =
      body === undefined
        ? ({ release: true } as const)
        : { response: { statusCode: 201, body: JSON.stringify(body) } }
    const { kind } = await this.#operations.of('').resolve(key, decision, { attempt })
    this.#context.network.world.tell(() => `an operator decides on ${key}: ${kind}`)
    if (kind === 'resolved') this.#context.network.counts['resolved by an operator'] += 1
  }

  async serve(key: KeyPlan, fingerprint: string, signal?: AbortSignal): Promise<Answer> {
    if (isOfRun(key.key)) return this.#run(key, fingerprint)
    const { plan, network } = this.#context
    const wish: Wish = {
      ...{ tenantId: '', key: key.key, fingerprint, leaseMs: LEASE_MS },
      ...{ maxRunMs: plan.maxRunMs, retentionMs: plan.retentionMs, waitMs: key.waitMs },
      ...(signal && { signal }),
      report: this.#reportOf(key.key),
      onLeaseExpired: key.kind === 'uncertain' ? 'uncertain' : 'rerun',
      mayAdd: async () => !this.#isStormy || !network.world.random.chance(key.refusal),
    }
    let outcome: Outcome
    try {
      outcome = await this.claims.begin(wish)
    } catch (error) {
      return this.#unavailable(error)
    }
    if (outcome.kind === 'run') return this.#handle(key, outcome.claim)
    if (outcome.kind === 'replay') {
      return this.#done(key.key, textOf(outcome.response.body), 'replayed', fingerprint)
    }
    return this.#undecided(outcome)
  }

  /** What src/http/recording.ts does with a handler and its response. */
  async #handle({ key, kind }: KeyPlan, claim: Claim): Promise<Answer> {
    const { plan } = this.#context
    const operation = operationOf(claim)
    let body: Work | undefined
    let why = ''
    try {
      const handler = this.#handlers.get(key)
      const { steps } = claim
      const terms = { claim, steps, tenantId: async () => '' }
      body =
        kind === 'recoverable request' && handler !== undefined
          ? await this.#operations.runIn(terms, handler, null)
          : await this.#work(operation, key)
    } catch (error) {
      why = String(error)
      this.#failed(error)
    }
    const unfinished = claim.closeSteps()
    if (body === undefined || unfinished !== undefined) {
      // It says less than what is still being done, which keeps the key until it is over.
      const release = () => claim.release(why, plan.storeTimeoutMs)
      if (unfinished === undefined) await release()
      else void unfinished.then(release)
      return { kind: 'again', why: body === undefined ? why : 'not awaited' }
    }
    const text = JSON.stringify(body)
    const response = { statusCode: 201, headers: {}, body: Buffer.from(text) }
    const stored = await claim.complete(response, plan.storeTimeoutMs)
    return stored === 'lost' ? this.#failed(new LeaseLost()) : this.#done(key, text, stored)
  }

  async #run({ key, kind, waitMs }: KeyPlan, input: string): Promise<Answer> {
    const runs = this.#operations.of('')
    const name = key.slice('run\t'.length)
    const terms = { input, wait: waitMs }
    const handler = this.#handlers.get(key)
    try {
      const result =
        kind === 'recoverable run' && handler !== undefined
          ? await runs.run(name, handler, terms)
          : await runs.run(name, (operation) => this.#work(operation, key), terms)
      if (result.kind !== 'ran' && result.kind !== 'replayed') return this.#undecided(result)
      const source = result.kind === 'ran' ? 'failed' : 'replayed'
      return this.#done(key, stringify(result.value), source)
    } catch (error) {
      if (error instanceof StoreUnavailable) return this.#unavailable(error)
      return this.#failed(error)
    }
  }

  /** The handler of every key, watched. */
  async #work(operation: Operation, key: string): Promise<Work> {
    const { network, invariants, plan } = this.#context
    const { world, counts } = network
    let isRunning = true
    if (!this.isDead) {
      const attempt = {
        ...{ key, fence: operation.attempt, resumed: operation.resumed },
        isTold: () => operation.signal.aborted,
        isLate: this.#stoodStill,
        // One that stood still could not be told.
        isRunning: () => isRunning && !this.isDead && !this.#stoodStill,
      }
      invariants.began(attempt, network.database.see(nameOf({ tenantId: '', key })))
    }
    const { handler, kind } = plan.keys.find((one) => one.key === key) as KeyPlan
    const charges = kind !== 'uncertain'
    try {
      const mishaps = this.#isStormy ? handler : NO_MISHAPS
      return await work(operation, key, { world, counts, invariants, plan: mishaps, charges })
    } finally {
      isRunning = false
    }
  }

  get #isStormy(): boolean {
    const { world, stormUntil } = this.#context.network
    return world.now < stormUntil
  }

  get #stoodStill(): boolean {
    return this.#context.network.world.now < this.pausedUntil + LEASE_MS
  }

  #done(
    key: string,
    text: string,
    source: 'stored' | 'failed' | 'replayed',
    fingerprint?: string,
  ): Answer {
    if (!this.isDead) this.#context.invariants.answered(key, text, source, fingerprint)
    return { kind: 'done', text }
  }

  #undecided(
    outcome: { kind: 'busy' | 'mismatch' | 'refused' } | { kind: 'uncertain'; attempt: number },
  ): Answer {
    const { counts } = this.#context.network
    const { kind } = outcome
    counts[kind === 'refused' ? 'key refused' : kind] += 1
    if (kind === 'uncertain') return outcome
    return kind === 'mismatch' ? { kind } : { kind: 'again', why: kind }
  }

  #unavailable(error: unknown): Answer {
    this.#failed(error)
    this.#context.network.counts['store unavailable'] += 1
    return { kind: 'again', why: 'store unavailable' }
  }

  /** Much may fail here; but nothing may be mistaken. */
  #failed(error: unknown): Answer {
    const { invariants, network } = this.#context
    if (error instanceof LeaseLost) network.counts['attempt refused: lease lost'] += 1
    invariants.check(!isMistake(error), () => `${this.name}: ${(error as Error).stack}`)
    return { kind: 'again', why: String(error) }
  }

  #reportOf(key: string): Report {
    const { network, invariants } = this.#context
    return (event) => {
      network.world.tell(() => `${key}: ${JSON.stringify(event)}`)
      if (event.kind !== 'lease_lost' || event.why !== 'another attempt took over') return
      const row = network.database.see(nameOf({ tenantId: '', key }))
      if (!this.isDead) invariants.lost(key, event.attempt, row)
    }
  }
}

function isMistake(error: unknown): boolean {
  const inner = databaseErrorOf(error) ?? error
  return (
    inner instanceof TypeError || inner instanceof ReferenceError || inner instanceof RangeError
  )
}

function textOf(body: Uint8Array | null): string {
  return Buffer.from(body ?? []).toString()
}
