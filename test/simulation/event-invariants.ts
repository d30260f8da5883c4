import { stringify } from 'devalue'
import { stepPath } from '../../src/core/step-path.js'
import type { Counts } from './counts.js'
import type { Commit } from './model-database.js'
import type { Effect, EventRow } from './model-rows.js'

/** A run of an event as it was begun in a process. */
export interface EventRun {
  /** The inbox's name of the event. */
  readonly id: string
  readonly attempt: number
  /** What the event is known by downstream: the same in each of its runs, and in no other's. */
  readonly operation: string
  readonly lane: string | undefined
  /** The provider's name of it. */
  readonly name: string
  /** Whether no worker is to run it by itself. */
  readonly isLeftToProvider: boolean
  /** Whether its handler was told that another run may start. */
  readonly isTold: () => boolean
  /** Whether its process has just stood still: what it believes is old. */
  readonly isLate: boolean
  /** Whether its process runs, and its handler too. */
  readonly isRunning: () => boolean
}

/** What is known of an event. */
interface Known {
  readonly effects: Effect[]
  readonly runs: Map<number, EventRun>
  /** Each step that was stored: by which run, and its result. */
  readonly stored: Map<string, { readonly attempt: number; readonly result: unknown }>
  operation: string | undefined
}

export interface EventInvariantsContext {
  readonly world: { in(ms: number, owner: undefined, happen: () => void): void }
  readonly databaseNow: () => number
  readonly counts: Counts
  readonly check: (isKept: boolean, what: () => string) => void
}

/** A clock that two sides read, and a timer that fires late. */
const TOLERATED_MS = 5

/** Looks at everything that becomes of webhook events. */
export class EventInvariants {
  readonly #context: EventInvariantsContext
  readonly #known = new Map<string, Known>()
  /** Events whose deliveries were acknowledged, by the provider's names. */
  readonly #acknowledged = new Set<string>()
  /** Processes that are being asked for each event, by the provider's names. */
  readonly #deliveries = new Map<string, Set<{ readonly isDead: boolean }>>()
  /** Events of which a handler or a person has said that workers may run them. */
  readonly #mayRun = new Set<string>()
  readonly #running = new Set<EventRun>()
  readonly #processed = new Set<string>()

  constructor(context: EventInvariantsContext) {
    this.#context = context
  }

  // What the database sees.

  committed({ events, effects }: Commit, rowOf: (id: string) => EventRow | undefined): void {
    for (const { before, after } of events) {
      if (after === undefined) this.#deleted(before as EventRow)
      else if (before === undefined) this.#context.counts['event recorded'] += 1
      else if (after.fence !== before.fence) this.#begun(before, after)
      else this.#changed(before, after)
    }
    for (const effect of effects) if (effect.isOfEvent) this.#took(effect, rowOf(effect.key))
    for (const { before, after } of events) {
      if (after?.status === 'processed' && before?.status !== 'processed') this.#ended(after)
    }
  }

  #took(effect: Effect, row: EventRow | undefined): void {
    const { key: id, attempt } = effect
    this.#context.counts['effect of an event committed'] += 1
    const { effects } = this.#of(id)
    effects.push(effect)
    this.#check(
      row?.fence === attempt && ['processing', 'processed'].includes(row.status),
      () => `${id}: run ${attempt} took effect; the event is ${brief(row)}`,
    )
    this.#check(effects.length === 1, () => `${id}: ${effects.length} effects of one event`)
  }

  #deleted(row: EventRow): void {
    const isOver = ['processed', 'ignored'].includes(row.status)
    this.#check(isOver && hasCome(row, this.#now), () => `${row.id} was deleted, ${brief(row)}`)
  }

  #begun(before: EventRow, after: EventRow): void {
    const { id, fence } = before
    const isFree =
      ['received', 'retrying'].includes(before.status) ||
      (before.status === 'processing' && hasCome(before, this.#now))
    this.#check(isFree, () => `${id} was run while it was ${brief(before)}`)
    this.#check(after.fence === fence + 1, () => `${id}: run ${fence} became ${after.fence}`)
    this.#check(after.status === 'processing', () => `${id} began ${brief(after)}`)
    this.#checkSteps(before, after)
    if (before.status !== 'processing') return
    this.#context.counts['run of an event taken over'] += 1
    const run = this.#of(id).runs.get(fence)
    if (run === undefined) return
    this.#context.world.in(TOLERATED_MS, undefined, () =>
      this.#check(
        run.isTold() || !run.isRunning(),
        () => `${id}: run ${fence} was taken over, and its handler was not told`,
      ),
    )
  }

  #changed(before: EventRow, after: EventRow): void {
    const { id } = before
    this.#check(
      after.deliveries >= before.deliveries,
      () => `${id}: ${before.deliveries} deliveries became ${after.deliveries}`,
    )
    const isOver = ['processed', 'ignored', 'dead'].includes(before.status)
    this.#check(
      !isOver || after.status === before.status,
      () => `${id} was ${before.status} and is ${after.status}`,
    )
    const { awaitsDelivery, dueAt } = after
    const isParked = after.status === 'retrying' && dueAt === null
    if (isParked && !isOver) this.#context.counts['event left to its provider'] += 1
    this.#check(
      after.status !== 'retrying' || isParked === awaitsDelivery,
      () => `${id} is ${brief(after)}, and ${awaitsDelivery ? 'awaits' : 'awaits no'} delivery`,
    )
    this.#check(
      before.awaitsDelivery || !awaitsDelivery,
      () => `${id} awaits a delivery although it was acknowledged`,
    )
    this.#checkSteps(before, after)
  }

  #ended({ id, fence }: EventRow): void {
    this.#processed.add(id)
    this.#context.counts['event processed'] += 1
    const { effects } = this.#of(id)
    this.#check(
      effects.length === 1,
      () => `${id} is processed by run ${fence} with ${effects.length} effects`,
    )
  }

  /** What was stored once stays as it is. */
  #checkSteps(before: EventRow, after: EventRow): void {
    const { stored } = this.#of(after.id)
    for (const [name, result] of Object.entries(before.steps)) {
      this.#check(
        after.steps[name] === result,
        () => `${after.id}: step ${name} was ${result} and is ${after.steps[name]}`,
      )
    }
    for (const [name, result] of Object.entries(after.steps)) {
      if (!stored.has(name)) stored.set(name, { attempt: after.fence, result })
    }
  }

  // What processes see.

  /** A handler begins; `row` is what stands in the database now. Returns what ends it. */
  began(run: EventRun, row: EventRow | undefined): () => void {
    this.#context.counts['handler of an event run'] += 1
    const { id, attempt, operation, lane } = run
    const isExcused = run.isTold() || run.isLate
    this.#check(
      isExcused || (row?.fence === attempt && row.status === 'processing'),
      () => `${id}: run ${attempt} begins, and the event is ${brief(row)}`,
    )
    this.#check(
      !run.isLeftToProvider || this.#mayRun.has(run.name) || this.#isDelivered(run.name),
      () => `${id}: run ${attempt} begins, and its provider will deliver it under another name`,
    )
    const known = this.#of(id)
    this.#check(!known.runs.has(attempt), () => `${id}: two are run ${attempt}`)
    known.operation ??= operation
    this.#check(known.operation === operation, () => `${id} is known by two names downstream`)
    known.runs.set(attempt, run)
    for (const other of lane === undefined ? [] : this.#running) {
      this.#check(
        other.lane !== lane ||
          // Its transaction has made it processed: nothing of it is left that counts.
          this.#processed.has(other.id) ||
          isExcused ||
          other.isTold() ||
          !other.isRunning(),
        () => `${id} and ${other.id} are run at once, and are of one lane`,
      )
    }
    this.#running.add(run)
    return () => this.#running.delete(run)
  }

  /** Another run is said to have taken over. */
  lost({ id, attempt }: EventRun, row: EventRow | undefined): void {
    this.#check(
      row?.fence !== attempt || row.status !== 'processing',
      () => `${id}: run ${attempt} was told that it lost its lease, and it has it`,
    )
  }

  /** What a step does is done. */
  ran({ id, attempt }: Pick<EventRun, 'id' | 'attempt'>, step: string): void {
    const stored = this.#storedOf(id, step)
    this.#check(
      stored === undefined || stored.attempt >= attempt,
      () => `${id}: run ${attempt} runs step ${step} again, which ${stored?.attempt} has stored`,
    )
  }

  /** A handler got the result of a step, from now or from an earlier run. */
  got({ id, attempt }: Pick<EventRun, 'id' | 'attempt'>, step: string, result: unknown): void {
    this.#check(
      this.#storedOf(id, step)?.result === stringify(result),
      () => `${id}: run ${attempt} got ${JSON.stringify(result)} of ${step}, and it is not stored`,
    )
  }

  /** A process is asked for an event; returns what says that it has answered. */
  delivering(name: string, process: { readonly isDead: boolean }): () => void {
    const asked = this.#deliveries.get(name) ?? new Set()
    this.#deliveries.set(name, asked)
    const delivery = {
      get isDead() {
        return process.isDead
      },
    }
    asked.add(delivery)
    return () => asked.delete(delivery)
  }

  /** The names under which events were delivered. */
  get delivered(): readonly string[] {
    return [...this.#deliveries.keys()]
  }

  #isDelivered(name: string): boolean {
    return [...(this.#deliveries.get(name) ?? [])].some(({ isDead }) => !isDead)
  }

  /** A handler acknowledges an event, or a person replays it: workers may run it as soon as that is stored. */
  mayRun(name: string | null): void {
    if (name !== null) this.#mayRun.add(name)
  }

  /** A person was told that it was run, or will be. */
  replayed(name: string): void {
    this.#context.counts['event replayed'] += 1
    this.#acknowledged.add(name)
  }

  /** A delivery was answered with success; `row` is the event in the inbox, if it is there. */
  acknowledged(eventId: string, outcome: string, row: EventRow | undefined): void {
    this.#context.counts['delivery acknowledged'] += 1
    if (outcome === 'duplicate') this.#context.counts['delivery of a processed event'] += 1
    this.#acknowledged.add(eventId)
    this.#check(row !== undefined, () => `${eventId} was acknowledged, and is not in the inbox`)
    const isDone = outcome === 'processed' || outcome === 'duplicate'
    this.#check(
      !isDone || row === undefined || this.#of(row.id).effects.length === 1,
      () => `${eventId} was acknowledged as ${outcome}, and had no effect`,
    )
  }

  /** At rest: every worker has had the time that it needs. */
  ended(eventId: string, row: EventRow | undefined): void {
    this.#check(
      row !== undefined || !this.#acknowledged.has(eventId),
      () => `${eventId} was acknowledged, and is lost`,
    )
    if (row === undefined) return
    const isLeft = row.awaitsDelivery && row.dueAt === null && !this.#acknowledged.has(eventId)
    this.#check(
      row.status === 'processed' || isLeft,
      () => `${eventId} is ${brief(row)} in the end`,
    )
  }

  #storedOf(id: string, step: string) {
    return this.#of(id).stored.get(stepPath([], step))
  }

  #of(id: string): Known {
    let known = this.#known.get(id)
    if (known === undefined) {
      known = { effects: [], runs: new Map(), stored: new Map(), operation: undefined }
      this.#known.set(id, known)
    }
    return known
  }

  #check(isKept: boolean, what: () => string): void {
    this.#context.check(isKept, what)
  }

  get #now(): number {
    return this.#context.databaseNow()
  }
}

function hasCome({ dueAt }: EventRow, now: number): boolean {
  return dueAt !== null && Number(dueAt) <= now
}

function brief(row: EventRow | undefined): string {
  return row === undefined ? 'gone' : `#${row.fence}, ${row.status}, due ${row.dueAt?.getTime()}`
}
