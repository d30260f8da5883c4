import { parse, stringify } from 'devalue'
import type { Counts } from './counts.js'
import type { Effect, Row, Watch } from './model-database.js'

/** What a handler answers with, and what therefore stands in a response. */
export interface Work {
  readonly effect: { readonly id: string } | null
  readonly charge?: { readonly id: string }
  /** It answered before it began, and so it never did. */
  readonly isToCome?: true
}

/** An attempt as it was begun in a process. */
export interface Attempt {
  readonly key: string
  readonly fence: number
  readonly resumed: boolean
  /** Whether its handler was told that another one may start. */
  readonly isTold: () => boolean
  /** Whether its process has just stood still: what it believes is old. */
  readonly isLate: boolean
  /** Whether its process runs, and its handler too. */
  readonly isRunning: () => boolean
}

/** What is known of a key since it was new, or was new again. */
interface Operation {
  /** Attempts with a lower fence were at another one. */
  readonly firstFence: number
  readonly effects: Effect[]
  readonly attempts: Map<number, Attempt>
  /** The attempt under which each step was stored. */
  readonly stored: Map<string, number>
  /** Fences that only an operator may have taken. */
  readonly forOperators: Set<number>
}

export interface World {
  readonly now: number
  in(ms: number, owner: undefined, happen: () => void): void
}

/** A clock that two sides read, and a timer that fires late. */
const TOLERATED_MS = 5

/** Looks at everything that becomes visible, and at everything that is given out. */
export class Invariants implements Watch {
  readonly violations: string[] = []
  readonly #world: World
  readonly #databaseNow: () => number
  readonly #counts: Counts
  readonly #operations = new Map<string, Operation>()
  /** Every response that was ever stored, by key, with the fingerprint of what it answers. */
  readonly #completed = new Map<string, Map<string, string>>()
  /** Every result of a step that was ever stored, by key. */
  readonly #stored = new Map<string, Set<string>>()
  /** Attempts of which an operator has said that they may be run again. */
  readonly #mayRerun = new Set<string>()
  /** What was given out for each effect. */
  readonly #answers = new Map<string, string>()
  readonly #effects = new Map<string, Effect>()
  readonly #uncertainKeys: ReadonlySet<string>

  constructor(
    world: World,
    databaseNow: () => number,
    counts: Counts,
    uncertainKeys: ReadonlySet<string>,
  ) {
    this.#world = world
    this.#databaseNow = databaseNow
    this.#counts = counts
    this.#uncertainKeys = uncertainKeys
  }

  check(isKept: boolean, what: () => string): void {
    if (!isKept) this.violations.push(what())
  }

  /** The effect of the operation that a key names now; what an operator finds out. */
  effectOf(key: string): Effect | undefined {
    return this.#operation(key).effects[0]
  }

  // What the database sees.

  wrote(before: Row | undefined, after: Row | undefined): void {
    if (after === undefined) {
      if (before !== undefined) this.#deleted(before)
    } else if (before === undefined) {
      this.check(after.fence === 1, () => `${after.key} begins with fence ${after.fence}`)
      this.#renew(after.key)
    } else if (after.fence !== before.fence) this.#taken(before, after)
    else this.#changed(before, after)
  }

  took(effect: Effect, row: Row | undefined): void {
    this.#counts['effect committed'] += 1
    const { key, fence } = effect
    const { effects } = this.#operation(key)
    this.check(
      row?.fence === fence && row.status === 'in_progress',
      () => `${key}: attempt ${fence} took effect, and attempt ${row?.fence} is ${row?.status}`,
    )
    effects.push(effect)
    this.#effects.set(effect.id, effect)
    this.check(effects.length === 1, () => `${key}: ${effects.length} effects of one operation`)
  }

  #deleted(before: Row): void {
    const { key, fence, status } = before
    if (this.#isExpired(before)) {
      this.#counts['record pruned'] += 1
      this.check(this.#isFree(before), () => `${key}#${fence} was deleted while it was held`)
    } else {
      const { attempts } = this.#operation(key)
      this.#counts['late grant given back'] += 1
      this.check(
        status === 'in_progress' && fence === 1 && attempts.size === 0,
        () => `${key}#${fence}, ${status}, was deleted, and it is needed`,
      )
    }
    this.#renew(key)
  }

  #taken(before: Row, after: Row): void {
    const { key, fence } = before
    this.check(after.fence === fence + 1, () => `${key}: fence ${fence} became ${after.fence}`)
    this.check(
      this.#isFree(before),
      () => `${key}#${fence} was taken over while it was ${before.status} and held`,
    )
    this.check(after.status === 'in_progress', () => `${key}#${after.fence} began ${after.status}`)
    this.check(after.body === null, () => `${key}#${after.fence} began with a response`)
    const isExpired = this.#isExpired(before)
    const had = Object.keys(before.steps ?? {}).length > 0
    const has = Object.keys(after.steps ?? {}).length > 0
    if (isExpired && !has) {
      this.#counts['takeover of an expired key'] += 1
      this.#renew(key, after.fence)
      return
    }
    this.check(before.fingerprint === after.fingerprint, () => `${key}: another fingerprint`)
    this.check(had === has, () => `${key}#${after.fence} began without what was done before`)
    this.#checkSteps(before, after)
    if (before.status === 'released') {
      this.#counts['takeover after a release'] += 1
      return
    }
    this.#counts['takeover of a lost lease'] += 1
    const { attempts, forOperators } = this.#operation(key)
    if (this.#uncertainKeys.has(key)) forOperators.add(after.fence)
    const attempt = attempts.get(fence)
    if (attempt === undefined) return
    this.#world.in(TOLERATED_MS, undefined, () =>
      this.check(
        attempt.isTold() || !attempt.isRunning(),
        () => `${key}#${fence} was taken over, and its handler was not told`,
      ),
    )
  }

  #changed(before: Row, after: Row): void {
    const { key, fence } = before
    const name = `${key}#${fence}`
    this.check(before.fingerprint === after.fingerprint, () => `${name}: another fingerprint`)
    if (before.status === 'completed') {
      this.check(
        isSame(before, after) && textOf(before) === textOf(after),
        () => `${name} was completed and changed: ${textOf(before)} → ${textOf(after)}`,
      )
      return
    }
    this.check(
      before.status === 'in_progress' || isSame(before, after),
      () => `${name} was ${before.status} and was changed; it is ${after.status}`,
    )
    if (after.status === 'released') {
      const { forOperators } = this.#operation(key)
      this.check(
        // It is released by who took it over from the attempt that he decided about.
        this.#mayRerun.has(`${key}#${fence - 1}`) || !forOperators.has(fence),
        () => `${name} was released, and nobody had decided that`,
      )
    }
    if (after.status === 'completed') this.#completedAs(after)
    else this.#checkSteps(before, after)
  }

  #completedAs(row: Row): void {
    this.#counts['response stored'] += 1
    const { key, fence } = row
    const text = textOf(row)
    const { effect, isToCome } = workOf(key, text)
    const { effects } = this.#operation(key)
    // A handler that waits for nothing may say nothing; but what it has begun is done.
    this.check(
      isToCome === true ||
        (effects.length === 1 && (effect === null || effects[0]?.id === effect.id)),
      () =>
        `${key}#${fence} is completed with effect ${effect?.id}; committed: ${effects.map(({ id }) => id)}`,
    )
    const texts = this.#completed.get(key) ?? new Map()
    this.#completed.set(key, texts.set(text, row.fingerprint))
  }

  /** What was stored once stays as it is. */
  #checkSteps(before: Row, after: Row): void {
    const { key, fence } = after
    const { stored } = this.#operation(key)
    for (const [name, result] of Object.entries(before.steps ?? {})) {
      this.check(
        after.steps?.[name] === result,
        () => `${key}#${fence}: step ${name} was ${result} and is ${after.steps?.[name]}`,
      )
    }
    for (const [path, result] of Object.entries(after.steps ?? {})) {
      // A step within a step is named after both.
      const name = JSON.parse(path).at(-1) as string
      if (stored.has(name)) continue
      this.#counts['step stored'] += 1
      stored.set(name, fence)
      const results = this.#stored.get(key) ?? new Set()
      this.#stored.set(key, results.add(`${name} ${result}`))
    }
  }

  // What processes see.

  /** A handler begins; `row` is what stands in the database now. */
  began(attempt: Attempt, row: Row | undefined): void {
    this.#counts['handler run'] += 1
    const { key, fence, resumed } = attempt
    this.check(
      row?.fence === fence || attempt.isTold() || attempt.isLate,
      () => `${key}#${fence} begins, and attempt ${row?.fence} has begun`,
    )
    const { attempts, firstFence, forOperators } = this.#operation(key)
    // Its process stood still, and the key has been used for something new.
    if (fence < firstFence) return
    this.check(!attempts.has(fence), () => `${key}: two hold fence ${fence}`)
    this.check(
      !forOperators.has(fence),
      () => `${key}#${fence} was rerun, and nobody had decided that`,
    )
    const hasEarlier = [...attempts.keys()].some((earlier) => earlier < fence)
    this.check(resumed || !hasEarlier, () => `${key}#${fence} does not know of earlier attempts`)
    attempts.set(fence, attempt)
  }

  /** An operator says that it may be run again. */
  decidedToRerun(key: string, attempt: number): void {
    this.#mayRerun.add(`${key}#${attempt}`)
  }

  /** What a step does is done. */
  ran(key: string, fence: number, step: string): void {
    const since = this.#operation(key).stored.get(step)
    this.check(
      since === undefined || since >= fence,
      () => `${key}#${fence} runs step ${step} again, which attempt ${since} has stored`,
    )
  }

  /** A handler got the result of a step, from now or from an earlier attempt. */
  got(key: string, fence: number, step: string, result: unknown): void {
    this.check(
      this.#stored.get(key)?.has(`${step} ${stringify(result)}`) === true,
      () => `${key}#${fence} got ${JSON.stringify(result)} of step ${step}, and it is not stored`,
    )
  }

  /** A response is given out that says what was done. */
  answered(
    key: string,
    text: string,
    source: 'stored' | 'failed' | 'replayed',
    fingerprint: string | undefined,
  ): void {
    if (source === 'failed') this.#counts['response given out, stored later or never'] += 1
    if (source === 'replayed') this.#counts.replay += 1
    if (source !== 'failed') {
      this.check(
        this.#completed.get(key)?.has(text) === true,
        () => `${key}: ${text} was given out as ${source}, and is not what is stored`,
      )
    }
    const stored = this.#completed.get(key)?.get(text)
    this.check(
      source !== 'replayed' || fingerprint === undefined || fingerprint === stored,
      () => `${key}: the answer to ${stored} was given to ${fingerprint}`,
    )
    const { effect } = workOf(key, text)
    if (effect === null) return
    const { id } = effect
    this.check(this.#effects.get(id)?.key === key, () => `${key}: ${text} was not committed`)
    const first = this.#answers.get(id) ?? text
    this.#answers.set(id, first)
    this.check(first === text, () => `${key}: one got ${first}, another one ${text}`)
  }

  /** Another attempt is said to have taken over. */
  lost(key: string, fence: number, row: Row | undefined): void {
    this.check(
      row?.fence !== fence || row.status !== 'completed',
      () => `${key}#${fence} was told that it lost its lease, and it is completed`,
    )
  }

  /** At rest: nobody asks for anything any more. */
  ended(row: Row): void {
    this.check(
      row.status === 'completed' || this.#isFree(row),
      () => `${row.key}#${row.fence} is ${row.status} in the end, and nobody can have it`,
    )
  }

  #operation(key: string): Operation {
    return this.#operations.get(key) ?? this.#renew(key)
  }

  #renew(key: string, firstFence = 1): Operation {
    const operation = {
      ...{ firstFence, effects: [], attempts: new Map() },
      ...{ stored: new Map(), forOperators: new Set<number>() },
    }
    this.#operations.set(key, operation)
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
    return this.#databaseNow()
  }
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

function workOf(key: string, text: string): Work {
  return isOfRun(key) ? parse(text) : JSON.parse(text)
}
