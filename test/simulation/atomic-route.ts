import type { AtomicClaim, AtomicKey } from '../../src/atomic/atomic-claim.js'
import type { AtomicClaims, AtomicOutcome } from '../../src/atomic/atomic-claims.js'
import type { Wish } from '../../src/claims/claims.js'
import { AtomicTimedOut, LeaseLost, StepNotAwaited, StepTooLate } from '../../src/errors.js'
import { sayAgain } from '../../src/store/say-again.js'
import type { Answer, Answers, Exchange, ServerContext } from './answers.js'
import { workAtomically } from './handler.js'
import type { Work } from './invariants.js'
import { operationNameOf } from './operation-names.js'
import { LEASE_MS, NO_MISHAPS } from './plan.js'

const SETTINGS = { maxWaitMs: 2 * LEASE_MS, isolationLevel: undefined }

/** A route whose handler, effects and stored response are one transaction. */
export class AtomicRoute {
  readonly #claims: AtomicClaims
  readonly #answers: Answers
  readonly #context: ServerContext

  constructor(claims: AtomicClaims, answers: Answers, context: ServerContext) {
    this.#claims = claims
    this.#answers = answers
    this.#context = context
  }

  /** What src/http/exchange.ts does: what a conflict undid is begun anew. */
  async serve(exchange: Exchange, wish: Wish): Promise<Answer> {
    try {
      return await sayAgain(() => this.#begin(exchange, wish))
    } catch (error) {
      return this.#answers.failed(error)
    }
  }

  async #begin(exchange: Exchange, wish: Wish): Promise<Answer> {
    const { network, plan } = this.#context
    const startedAt = network.world.now
    let outcome: AtomicOutcome
    try {
      const atomic = { ...SETTINGS, timeoutMs: plan.maxRunMs }
      outcome = await this.#claims.begin({ ...wish, atomic })
    } catch (error) {
      return this.#answers.unavailable(error, exchange)
    }
    this.#answers.inTime(exchange, outcome.kind, startedAt)
    if (outcome.kind === 'run atomic') return this.#handle(exchange, outcome.claim)
    if (outcome.kind === 'replay') return this.#answers.replay(exchange, outcome.response)
    return this.#answers.undecided(outcome)
  }

  /** What src/http/atomic-recording.ts does with a handler and its response. */
  async #handle({ key, body }: Exchange, claim: AtomicClaim): Promise<Answer> {
    const { world, counts, stormUntil } = this.#context.network
    counts['handler run in a transaction'] += 1
    const plan = world.now < stormUntil ? key.handler : NO_MISHAPS
    const { operationId, attempt } = claim.key as AtomicKey
    const name = { key: key.key, operation: operationNameOf(operationId, key), attempt }
    const timedOut = new Promise<never>((_, reject) => {
      const over = () => {
        void claim.undo('it took longer than its timeout', new AtomicTimedOut())
        reject(new AtomicTimedOut())
      }
      claim.signal.addEventListener('abort', over)
      if (claim.signal.aborted) over()
    })
    timedOut.catch(() => {})
    let work: Work | undefined
    try {
      work = await Promise.race([
        workAtomically(claim.tx, { world, counts, plan, name, body }),
        timedOut,
      ])
      if (!claim.isIdle) throw new StepNotAwaited()
    } catch (error) {
      counts['atomic route undone'] += 1
      await claim.undo('its handler failed', new StepTooLate())
      throw error
    }
    const text = JSON.stringify(work)
    const commit = await claim.complete({ statusCode: 201, headers: {}, body: Buffer.from(text) })
    if (commit.kind === 'committed') {
      counts['response committed by an atomic route'] += 1
      return this.#answers.done(key.key, text, 'stored', body)
    }
    if (commit.error instanceof LeaseLost) {
      counts['transaction refused: another was faster'] += 1
      return { kind: 'again', why: 'lost' }
    }
    // What the database refuses it always will.
    return body.includes('\0') ? { kind: 'unusable' } : this.#answers.failed(commit.error)
  }
}
