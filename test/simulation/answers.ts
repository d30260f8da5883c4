import type { AttemptToken, StoredResponse } from '../../src/core/record.js'
import { LeaseLost } from '../../src/errors.js'
import type { Report } from '../../src/events.js'
import { databaseErrorOf } from '../../src/sealed.js'
import { isOfItsData } from '../../src/store/failures.js'
import type { EventInvariants } from './event-invariants.js'
import type { AttemptName, Invariants, Source } from './invariants.js'
import { nameOf } from './model-rows.js'
import { type KeyPlan, LEASE_MS, type Plan } from './plan.js'
import type { Network } from './question.js'

/** What a server says to a client. */
export type Answer =
  | { kind: 'done'; text: string }
  | { kind: 'again'; why: string }
  | ({ kind: 'uncertain' } & AttemptToken)
  | { kind: 'mismatch' }
  /** The database refuses it, and always will. */
  | { kind: 'unusable' }
  /** It was run, and what it was answered with is not stored. */
  | { kind: 'not replayable' }

/** One request, and the attempt that was begun for it. */
export interface Exchange {
  readonly key: KeyPlan
  readonly body: string
  name: AttemptName | undefined
  /** Whether its response was stored without its body. */
  isOmitted?: true
}

export interface ServerContext {
  readonly network: Network
  readonly invariants: Invariants
  readonly events: EventInvariants
  readonly plan: Plan
}

/** A process, as far as it matters to what may be expected of its answers. */
interface Process {
  readonly name: string
  readonly isDead: boolean
  readonly pausedUntil: number
}

/** How long a healthy database may take for an answer: some statements, and those in front of them. */
const IN_TIME_MS = LEASE_MS / 4
/** How long a statement with one item waits for a lock: src/store/statements.ts. */
const LOCK_TIMEOUT_MS = 1_000
/** How long a list waits for one, and what is queued behind that list: src/store/batcher.ts. */
const LIST_LOCK_TIMEOUT_MS = 200
const SLOW_MS = 100

/** What a process answers, looked at. */
export class Answers {
  readonly #process: Process
  readonly #context: ServerContext

  constructor(process: Process, context: ServerContext) {
    this.#process = process
    this.#context = context
  }

  /** Whether it has just stood still: what it believes is old. */
  get stoodStill(): boolean {
    return this.#context.network.world.now < this.#process.pausedUntil + LEASE_MS
  }

  done(key: string, text: string, source: Source, asked: string): Answer {
    if (!this.#process.isDead) this.#context.invariants.answered(key, text, source, asked)
    return { kind: 'done', text }
  }

  /** What was stored is given out. */
  replay({ key, body }: Exchange, response: StoredResponse): Answer {
    if (response.body === null) {
      this.#context.network.counts['replay without a response'] += 1
      return { kind: 'not replayable' }
    }
    return this.done(key.key, Buffer.from(response.body).toString(), 'replayed', body)
  }

  undecided(
    outcome: { kind: 'busy' | 'mismatch' | 'refused' } | ({ kind: 'uncertain' } & AttemptToken),
  ): Answer {
    const { network, invariants } = this.#context
    const { kind } = outcome
    network.counts[kind === 'refused' ? 'key refused' : kind] += 1
    if (kind === 'uncertain') {
      invariants.toldUncertain(outcome)
      return outcome
    }
    return kind === 'mismatch' ? { kind } : { kind: 'again', why: kind }
  }

  unavailable(error: unknown, { key, body }: Exchange): Answer {
    this.failed(error)
    const { network, plan, invariants } = this.#context
    if (body.includes('\0')) {
      // Where the route says onStoreError: 'bypass', its handler would run now if it were another one.
      invariants.check(
        !plan.isHealthy || this.stoodStill || isOfItsData(databaseErrorOf(error) ?? error),
        () => `${key.key}: what the database refuses is told as if it were away: ${error}`,
      )
      network.counts['request that the database refuses'] += 1
      return { kind: 'unusable' }
    }
    network.counts['store unavailable'] += 1
    // Where the route says onStoreError: 'bypass', its handler would run now.
    invariants.check(
      !plan.isHealthy || this.stoodStill,
      () => `${key.key}: the database is well, and the store unavailable: ${error}`,
    )
    return { kind: 'again', why: 'store unavailable' }
  }

  /** While the database is well, nobody waits for what becomes of others. */
  inTime({ key, name }: Exchange, outcome: string, startedAt: number): void {
    const { network, plan, invariants } = this.#context
    if (!plan.isHealthy || this.stoodStill || this.#process.isDead) return
    // Time that its process stood still is not the database's.
    const tookMs = network.world.now - Math.max(startedAt, this.#process.pausedUntil)
    // What travels with a key that a transaction has inserted, and what is queued behind it, waits until that
    // is known. What asks for the key itself may have been among them, and waits alone after that.
    const isShared = (one: KeyPlan) => one.kind === 'atomic request' && one.bodies > 1
    const besideMs = plan.keys.some(isShared) ? LIST_LOCK_TIMEOUT_MS + SLOW_MS : 0
    const mostMs = IN_TIME_MS + besideMs + (isShared(key) ? LOCK_TIMEOUT_MS : 0)
    invariants.check(
      tookMs < mostMs && outcome !== 'failed',
      () =>
        `${key.key}#${name?.attempt ?? ''}: ${outcome} after ${tookMs} ms of a healthy database`,
    )
  }

  /** Much may fail here; but nothing may be mistaken. */
  failed(error: unknown): Answer {
    const { invariants, network } = this.#context
    if (error instanceof LeaseLost) network.counts['attempt refused: lease lost'] += 1
    invariants.check(!isMistake(error), () => `${this.#process.name}: ${(error as Error).stack}`)
    return { kind: 'again', why: String(error) }
  }

  reportOf(exchange: Exchange): Report {
    const { network, invariants } = this.#context
    const { key } = exchange.key
    return (event) => {
      network.world.tell(() => `${key}: ${JSON.stringify(event)}`)
      if (event.kind === 'response_omitted') exchange.isOmitted = true
      if (event.kind !== 'lease_lost' || event.why !== 'another attempt took over') return
      const row = network.database.records.see(nameOf({ tenantId: '', key }))
      if (!this.#process.isDead && exchange.name) invariants.lost(exchange.name, row)
    }
  }
}

function isMistake(error: unknown): boolean {
  const inner = databaseErrorOf(error) ?? error
  return (
    inner instanceof TypeError || inner instanceof ReferenceError || inner instanceof RangeError
  )
}
