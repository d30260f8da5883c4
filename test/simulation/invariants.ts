import { parse, stringify } from 'devalue'
import type { AttemptToken } from '../../src/core/record.js'
import type { Counts } from './counts.js'
import type { Commit, ModelDatabase, Watch } from './model-database.js'
import { type Effect, nameOf, type Row } from './model-rows.js'
import { LEASE_MS } from './plan.js'

/** What a handler answers with, and what therefore stands in a response. */
export interface Work {
  /** The body of the request that it was run for. */
  readonly body: string
  readonly effect: { readonly id: string } | null
  readonly charge?: { readonly id: string }
  /** It answered before it began, and so it never did. */
  readonly isToCome?: true
}

/**
 * What a response is given out as: stored, to be stored later or never, stored without its body, or read
 * from the store.
 */
export type Source = 'stored' | 'failed' | 'omitted' | 'replayed'

/** Which attempt at which operation. */
export interface AttemptName {
  readonly key: string
  /** What the operation is known by downstream: the same in each of its attempts, and in no other's. */
  readonly operation: string
  readonly attempt: number
}

/** An attempt as it was begun in a process. */
export interface Attempt extends AttemptName {
  readonly body: string
  readonly resumed: boolean
  /** Whether its handler was told that another one may start. */
  readonly isTold: () => boolean
  /** Whether its process has just stood still: what it believes is old. */
  readonly isLate: boolean
  /** Whether its process runs, and its handler too. */
  readonly isRunning: () => boolean
}

/** What is known of an operation: what a key names from when it was free until it is free again. */
interface Operation {
  readonly name: string
  /** The body of the request that was told to run. */
  body: string | undefined
  readonly effects: Effect[]
  readonly attempts: Map<number, Attempt>
  /** Each step that was stored: by which attempt, and its result. */
  readonly stored: Map<string, { readonly attempt: number; readonly result: unknown }>
  /** Attempts that only an operator may have begun. */
  readonly forOperators: Set<number>
}

export interface InvariantsContext {
  readonly world: { in(ms: number, owner: undefined, happen: () => void): void }
  readonly databaseNow: () => number
  readonly counts: Counts
  readonly uncertainKeys: ReadonlySet<string>
  /** What the operation of a record is known by downstream. */
  readonly operationOf: (row: Row) => string
}

/** A clock that two sides read, and a timer that fires late. */
const TOLERATED_MS = 5

/** Looks at everything that becomes visible, and at everything that is given out. */
export class Invariants implements Watch {
  readonly violations: string[] = []
  readonly #context: InvariantsContext
  readonly #counts: Counts
  readonly #operations = new Map<string, Operation>()
  /** What each key names now. */
  readonly #current = new Map<string, Operation>()
  /** Every response that was ever stored, by key. */
  readonly #completed = new Map<string, Set<string>>()
  /** Attempts of which an operator has said that they may be run again. */
  readonly #mayRerun = new Set<string>()
  /** Attempts that an operator has said are to be ended although they run. */
  readonly #forced = new Set<string>()
  /** When the first lease of each attempt was to end. */
  readonly #leases = new Map<string, number>()
  /** What was given out for each effect. */
  readonly #answers = new Map<string, string>()
  readonly #effects = new Map<string, Effect>()

  constructor(context: InvariantsContext) {
    this.#context = context
    this.#counts = context.counts
  }

  check(isKept: boolean, what: () => string): void {
    if (!isKept) this.violations.push(what())
  }

  /** The effect of the operation that a key names now; what an operator finds out. */
  effectOf(key: string): Effect | undefined {
    return this.#current.get(key)?.effects[0]
  }

  // What the database sees.

  committed({ records, effects }: Commit, database: ModelDatabase): void {
    for (const { before, after } of records) this.#wrote(before, after)
    for (const effect of effects) {
      if (effect.isOfEvent) continue
      this.#took(effect, database.records.see(nameOf({ tenantId: '', key: effect.key })))
    }
    for (const { before, after } of records) {
      const isNew = !after || before?.status !== 'completed' || !isSameAttempt(before, after)
      if (after?.status === 'completed' && isNew) this.#completedAs(after)
    }
  }

  #wrote(before: Row | undefined, after: Row | undefined): void {
    if (after !== undefined && (before === undefined || !isSameAttempt(before, after))) {
      this.#leases.set(tokenOf(after), Number(after.leaseUntil))
    }
    if (after === undefined) {
      if (before !== undefined) this.#deleted(before)
    } else if (before === undefined) {
      this.#renew(after)
    } else if (!isSameAttempt(before, after)) this.#taken(before, after)
    else this.#changed(before, after)
  }

  #took(effect: Effect, row: Row | undefined): void {
    this.#counts['effect committed'] += 1
    const { key, attempt, operation, isAtomic } = effect
    this.check(
      // Where all of it is one transaction, its response is committed with it.
      this.#isHeldBy(effect, row) && row?.status === (isAtomic ? 'completed' : 'in_progress'),
      () => `${key}: attempt ${attempt} at ${operation} took effect; the record is ${brief(row)}`,
    )
    this.#effects.set(effect.id, effect)
    const effects = this.#operations.get(operation)?.effects ?? []
    effects.push(effect)
    this.check(effects.length === 1, () => `${key}: ${effects.length} effects of one operation`)
  }

  listed(rows: readonly string[]): void {
    const [twice] = rows.filter((row, n) => rows.indexOf(row) < n)
    this.check(twice === undefined, () => `a list names ${twice} twice`)
  }

  unlocked(afterMs: number): void {
    if (afterMs > LEASE_MS) this.#counts['row locked for longer than a lease'] += 1
  }

  #deleted(before: Row): void {
    const { key, attempt, status } = before
    if (this.#isExpired(before)) {
      this.#counts['record pruned'] += 1
      this.check(this.#isFree(before), () => `${key}#${attempt} was deleted while it was held`)
    } else {
      this.#counts['late grant given back'] += 1
      const begun = this.#current.get(key)?.attempts.size
      this.check(
        status === 'in_progress' && attempt === 1 && begun === 0,
        () => `${key}#${attempt}, ${status}, was deleted, and it is needed`,
      )
    }
    this.#current.delete(key)
  }

  #taken(before: Row, after: Row): void {
    const { key, attempt: number } = before
    const isForced = this.#forced.has(tokenOf(before))
    this.check(
      isForced || this.#isFree(before),
      () => `${key}#${number} was taken over while it was ${before.status} and held`,
    )
    // What is one transaction is seen when it is over.
    const isAtomic = after.status === 'completed'
    this.check(
      isAtomic || (after.status === 'in_progress' && after.body === null),
      () => `${key}#${after.attempt} began ${after.status}, with ${textOf(after)}`,
    )
    const had = Object.keys(before.steps ?? {}).length > 0
    const has = Object.keys(after.steps ?? {}).length > 0
    if (before.operationId !== after.operationId) {
      this.#counts['takeover of an expired key'] += 1
      this.check(
        this.#isExpired(before),
        () => `${key}#${number} became another operation, and has not expired`,
      )
      this.check(!has, () => `${key} begins with what was done for another operation`)
      this.#renew(after)
      return
    }
    this.check(
      after.attempt === number + 1,
      () => `${key}: attempt ${number} became ${after.attempt}`,
    )
    this.check(before.fingerprint === after.fingerprint, () => `${key}: another fingerprint`)
    this.check(had === has, () => `${key}#${after.attempt} began without what was done before`)
    this.#checkSteps(before, after)
    if (before.status === 'released') {
      this.#counts['takeover after a release'] += 1
      return
    }
    this.#counts['takeover of a lost lease'] += 1
    const { attempts, forOperators } = this.#of(before)
    if (this.#context.uncertainKeys.has(key)) forOperators.add(after.attempt)
    const attempt = attempts.get(number)
    // One that was forced is told when it renews its lease.
    if (attempt === undefined || isForced) return
    this.#context.world.in(TOLERATED_MS, undefined, () =>
      this.check(
        attempt.isTold() || !attempt.isRunning(),
        () => `${key}#${number} was taken over, and its handler was not told`,
      ),
    )
  }

  #changed(before: Row, after: Row): void {
    const { key, attempt } = before
    const name = `${key}#${attempt}`
    this.check(before.fingerprint === after.fingerprint, () => `${name}: another fingerprint`)
    if (before.status === 'completed') {
      this.check(
        isSame(before, after) && textOf(before) === textOf(after),
        () =>
          `${name} was completed with ${textOf(before).trim()}, and is with ${textOf(after).trim()}`,
      )
      return
    }
    this.check(
      before.status === 'in_progress' || isSame(before, after),
      () => `${name} was ${before.status} and was changed; it is ${after.status}`,
    )
    if (after.status === 'released') {
      const { forOperators } = this.#of(before)
      this.check(
        // It is released by who took it over from the attempt that he decided about.
        this.#mayRerun.has(tokenOf(before, -1)) || !forOperators.has(attempt),
        () => `${name} was released, and nobody had decided that`,
      )
    }
    if (after.status !== 'completed') this.#checkSteps(before, after)
  }

  #completedAs(row: Row): void {
    this.#counts['response stored'] += 1
    const { key, attempt } = row
    const text = textOf(row)
    const operation = this.#of(row)
    if (row.body === null) {
      this.#counts['response stored without its body'] += 1
      this.check(operation.effects.length <= 1, () => `${key} took effect more than once`)
      return
    }
    const { effect, isToCome, body } = workOf(key, text)
    const { effects } = operation
    // A handler that waits for nothing may say nothing; but what it has begun is done.
    this.check(
      isToCome === true ||
        (effects.length === 1 && (effect === null || effects[0]?.id === effect.id)),
      () =>
        `${key}#${attempt} is completed with effect ${effect?.id}; committed: ${effects.map(({ id }) => id)}`,
    )
    this.check(
      operation.body === undefined || operation.body === body,
      () => `${key}#${attempt} is completed with the answer to ${body}, and ran ${operation.body}`,
    )
    const texts = this.#completed.get(key) ?? new Set()
    this.#completed.set(key, texts.add(text))
  }

  /** What was stored once stays as it is. */
  #checkSteps(before: Row, after: Row): void {
    const { key, attempt } = after
    const { stored } = this.#of(after)
    for (const [name, result] of Object.entries(before.steps ?? {})) {
      this.check(
        after.steps?.[name] === result,
        () => `${key}#${attempt}: step ${name} was ${result} and is ${after.steps?.[name]}`,
      )
    }
    for (const [path, result] of Object.entries(after.steps ?? {})) {
      // A step within a step is named after both.
      const name = JSON.parse(path).at(-1) as string
      if (stored.has(name)) continue
      this.#counts['step stored'] += 1
      stored.set(name, { attempt, result })
    }
  }

  // What processes see.

  /** A handler begins; `row` is what stands in the database now. */
  began(attempt: Attempt, row: Row | undefined): void {
    this.#counts['handler run'] += 1
    const { key, attempt: number, resumed, body } = attempt
    const name = `${key}#${number}`
    const isHeld = this.#isHeldBy(attempt, row)
    // One that was forced is told when it renews its lease.
    const { operationId } = row ?? {}
    const isForced =
      operationId !== undefined && this.#forced.has(tokenOf({ operationId, attempt: number }))
    this.check(
      isHeld || attempt.isTold() || attempt.isLate || isForced,
      () => `${name} at ${attempt.operation} begins, and the record is ${brief(row)}`,
    )
    const operation = this.#operations.get(attempt.operation)
    this.check(operation !== undefined, () => `${name} begins an operation that nobody knows`)
    if (operation === undefined) return
    const { attempts, forOperators } = operation
    operation.body ??= body
    this.check(operation.body === body, () => `${name} runs ${body}, which was ${operation.body}`)
    this.check(!attempts.has(number), () => `${key}: two are attempt ${number}`)
    this.check(!forOperators.has(number), () => `${name} was rerun, and nobody had decided that`)
    const hasEarlier = [...attempts.keys()].some((earlier) => earlier < number)
    this.check(resumed || !hasEarlier, () => `${name} does not know of earlier attempts`)
    attempts.set(number, attempt)
  }

  /** A client is told that an attempt was interrupted. */
  toldUncertain(token: AttemptToken): void {
    const until = this.#leases.get(tokenOf(token))
    this.check(
      until !== undefined && until <= this.#now,
      () => `${tokenOf(token)} is told to be uncertain, and its lease runs`,
    )
  }

  /** An operator says that it may be run again. */
  decidedToRerun(token: AttemptToken): void {
    this.#mayRerun.add(tokenOf(token))
  }

  /** An operator says that it may be run again although it runs. */
  decidedToForce(token: AttemptToken): void {
    this.#forced.add(tokenOf(token))
    this.decidedToRerun(token)
  }

  /** What a step does is done. */
  ran({ key, operation, attempt }: AttemptName, step: string): void {
    const stored = this.#operations.get(operation)?.stored.get(step)
    this.check(
      stored === undefined || stored.attempt >= attempt,
      () =>
        `${key}#${attempt} runs step ${step} again, which attempt ${stored?.attempt} has stored`,
    )
  }

  /** A handler got the result of a step, from now or from an earlier attempt. */
  got({ key, operation, attempt }: AttemptName, step: string, result: unknown): void {
    this.check(
      this.#operations.get(operation)?.stored.get(step)?.result === stringify(result),
      () => `${key}#${attempt} got ${JSON.stringify(result)} of step ${step}, and it is not stored`,
    )
  }

  /** A response is given out that says what was done, to a request with this body. */
  answered(key: string, text: string, source: Source, asked: string): void {
    if (source === 'failed') this.#counts['response given out, stored later or never'] += 1
    if (source === 'replayed') this.#counts.replay += 1
    if (source === 'stored' || source === 'replayed') {
      this.check(
        this.#completed.get(key)?.has(text) === true,
        () => `${key}: ${text} was given out as ${source}, and is not what is stored`,
      )
    }
    const { effect, body } = workOf(key, text)
    this.check(body === asked, () => `${key}: the answer to ${body} was given to ${asked}`)
    if (effect === null) return
    const { id } = effect
    this.check(this.#effects.get(id)?.key === key, () => `${key}: ${text} was not committed`)
    const first = this.#answers.get(id) ?? text
    this.#answers.set(id, first)
    this.check(first === text, () => `${key}: one got ${first}, another one ${text}`)
  }

  /** Another attempt is said to have taken over. */
  lost(name: AttemptName, row: Row | undefined): void {
    this.check(
      !this.#isHeldBy(name, row) || row?.status === 'released',
      () => `${name.key}#${name.attempt} was told that it lost its lease, and it is ${row?.status}`,
    )
  }

  /** At rest: nobody asks for anything any more. */
  ended(row: Row): void {
    this.check(
      row.status === 'completed' || this.#isFree(row),
      () => `${row.key}#${row.attempt} is ${row.status} in the end, and nobody can have it`,
    )
  }

  /** Whether a record is held by this attempt, or has ended as it said. */
  #isHeldBy({ operation, attempt }: AttemptName, row: Row | undefined): boolean {
    return row?.attempt === attempt && this.#context.operationOf(row) === operation
  }

  #of(row: Row): Operation {
    return this.#current.get(row.key) ?? this.#renew(row)
  }

  #renew(row: Row): Operation {
    const name = this.#context.operationOf(row)
    this.check(row.attempt === 1, () => `${row.key} begins with attempt ${row.attempt}`)
    this.check(!this.#operations.has(name), () => `${row.key}: ${name} names two operations`)
    const operation: Operation = {
      ...{ name, body: undefined, effects: [], attempts: new Map() },
      ...{ stored: new Map(), forOperators: new Set() },
    }
    this.#operations.set(name, operation)
    this.#current.set(row.key, operation)
    return operation
  }

  #isFree(row: Row): boolean {
    if (row.status === 'released') return true
    return Number(row.status === 'in_progress' ? row.leaseUntil : row.expiresAt) <= this.#now
  }

  #isExpired({ expiresAt }: Row): boolean {
    return Number(expiresAt) <= this.#now
  }

  get #now(): number {
    return this.#context.databaseNow()
  }
}

function tokenOf({ operationId, attempt }: AttemptToken, later = 0): string {
  return `${operationId}#${attempt + later}`
}

function isSameAttempt(a: Row, b: Row): boolean {
  return a.operationId === b.operationId && a.attempt === b.attempt
}

/** Nothing of what an attempt may write. */
function isSame(before: Row, after: Row): boolean {
  return (
    before.status === after.status &&
    Number(before.leaseUntil) === Number(after.leaseUntil) &&
    JSON.stringify(before.steps ?? {}) === JSON.stringify(after.steps ?? {})
  )
}

export const isOfRun = (key: string) => key.startsWith('run\t')

function textOf({ body }: Row): string {
  return Buffer.from(body ?? []).toString()
}

function brief(row: Row | undefined): string {
  return row === undefined ? 'gone' : `#${row.attempt}, ${row.status}, of ${row.fingerprint}`
}

function workOf(key: string, text: string): Work {
  return isOfRun(key) ? parse(text) : JSON.parse(text)
}
