import type { FastifyBaseLogger } from 'fastify'
import type { Claim } from '../claims/claim.js'
import type { Claims, Outcome, Wish } from '../claims/claims.js'
import type { Steps } from '../claims/steps.js'
import type { AttemptToken, RecordKey } from '../core/record.js'
import { Drain } from '../drain.js'
import {
  Closing,
  LeaseLost,
  NotReplayable,
  OptionInvalid,
  StepNotAwaited,
  StoreUnavailable,
} from '../errors.js'
import { failureOf, type Report, reporter } from '../events.js'
import type { PluginOptions, PluginSettings } from '../options.js'
import { sealed, sealIn } from '../sealed.js'
import type { PrismaClientLike } from '../store/client.js'
import type { DatabaseClock } from '../store/clock.js'
import type { FoundRecord } from '../store/prisma.js'
import { complete } from './complete.js'
import { type Decision, type OperationName, readDecision, readOperationName } from './decision.js'
import {
  Handlers,
  inputOf,
  noteRecovery,
  type OperationHandler,
  type RunningOperation,
  recoveryBy,
  runningOperation,
  unprotectedOperation,
} from './handlers.js'
import {
  type OperationTimes,
  RECOVER_DEFAULTS,
  type RecoverOptions,
  type ResolveOptions,
  type RunOptions,
  readName,
  readRecover,
  readResolve,
  readRun,
} from './options.js'
import { beginRecovery, type RecoverContext, type Recovered, recover } from './recover.js'
import { type Resolved, resolve } from './resolve.js'
import { fingerprintOfRun, resultOf, storedKey } from './stored.js'

/** What `run()` did. */
export type RunResult<T> =
  /**
   * It ran now. Its result is stored, unless the database did not answer (`isStored: false`): then storing
   * it goes on in this process, and if that ends first, a later call runs it again.
   */
  | { kind: 'ran'; value: T; isStored: boolean }
  /** It had run before: this is what it returned then. */
  | { kind: 'replayed'; value: T }
  /** Another process, or another call, is running it: which one, and since when, as its record says. */
  | { kind: 'busy'; holder: string | undefined; since: Date | undefined }
  /** The key was used before, with another input or another handler. */
  | { kind: 'mismatch' }
  /** This attempt was interrupted, and does not say that it may be run again: `resolve()` decides. */
  | ({ kind: 'uncertain' } & AttemptToken)

/** Work of an application under a key, outside requests. */
export interface RunsOperations {
  /**
   * Runs `work` once for this key over all processes and calls, with the guarantees of a protected
   * request, and stores what it returns (plain data): a later call gets that.
   *
   * When `work` throws, the key is free again, the error is the caller's, and a later call runs it
   * again; what its steps and transactions have done stays done. When the process dies, the same
   * happens once the lease has run out. Given a handler in place of a function, `recover()` finishes it
   * then, too.
   *
   * @throws IDEMPOTENCY_STORE_UNAVAILABLE when nobody can say whether it ran; nothing was run.
   * @throws IDEMPOTENCY_LEASE_LOST when another attempt took over: its result counts.
   * @throws IDEMPOTENCY_STEP_NOT_STORABLE when what `work` returned is not plain data. It has run, and does
   * not run again: later calls throw IDEMPOTENCY_NOT_REPLAYABLE.
   */
  run<T>(
    key: string,
    work: (operation: RunningOperation) => T | Promise<T>,
    options?: RunOptions,
  ): Promise<RunResult<T>>
  run<Input, T>(
    key: string,
    work: OperationHandler<Input, T>,
    ...options: undefined extends Input
      ? [RunOptions<Input>?]
      : [RunOptions<Input> & { input: Input }]
  ): Promise<RunResult<T>>

  /**
   * Ends an operation whose process died, as somebody found out: with the response, or the result, that
   * later calls get from now on, or by releasing its key. An operation that runs, or has its result,
   * stays as it is; so does another one under the same key, when `operationId` and `attempt` say which
   * one the decision is about. `{ force: true }` also ends one that runs: its process can store nothing
   * more, and its `signal` is aborted at the next renewal of its lease.
   *
   * @throws IDEMPOTENCY_STORE_UNAVAILABLE when nobody can say whether it was decided: look again.
   * IDEMPOTENCY_OPTION_INVALID for a key of a request where its tenant is not named.
   */
  resolve(name: OperationName, decision: Decision, options?: ResolveOptions): Promise<Resolved>
}

/** A request whose operation a handler is to be run in. */
export interface RequestToRunIn {
  /** None where nothing protects the request. */
  readonly claim: Claim | undefined
  readonly steps: Steps
  readonly tenantId: () => Promise<string>
}

export interface OperationsContext {
  readonly claims: Claims
  /** For what looks for operations. */
  readonly prisma: PrismaClientLike
  /** For what operations that run have to write. */
  readonly holderPrisma: PrismaClientLike
  readonly clock: DatabaseClock
  readonly find: (key: RecordKey) => Promise<FoundRecord | undefined>
  readonly options: PluginOptions
  readonly settings: PluginSettings
  readonly log: FastifyBaseLogger
}

/** Every operation outside a request: run, resolved, and recovered. */
export class Operations {
  readonly #context: OperationsContext
  readonly #handlers: Handlers
  readonly #running = new Set<Promise<unknown>>()
  readonly #recovering = new Set<Promise<void>>()
  readonly #overdue = new Set<Promise<unknown>>()
  /** What `run()` and `recover()` run. */
  readonly #held = new Set<Claim>()
  readonly #stop = new AbortController()
  readonly #drain: Drain
  #isClosed = false

  constructor(context: OperationsContext) {
    this.#context = context
    this.#handlers = new Handlers(context.options)
    this.#drain = new Drain(context.settings.drainMs, () => this.#abandonHeld())
  }

  get hasHandlers(): boolean {
    return this.#handlers.names.length > 0
  }

  handler<Input, Result>(
    name: string,
    work: (operation: RunningOperation, input: Input) => Promise<Result>,
    times?: OperationTimes,
  ): OperationHandler<Input, Result> {
    return this.#handlers.add(name, work, times)
  }

  of(tenantId: string): RunsOperations {
    return {
      run: <T>(
        key: string,
        // biome-ignore lint/suspicious/noExplicitAny: the overloads say what belongs together
        work: any,
        options: RunOptions = {},
      ) => this.#tracked(this.#run<T>(tenantId, key, work, options)),
      resolve: (name, decision, options) => this.#resolve(tenantId, name, decision, options),
    }
  }

  /** Where no tenant is named: requests have their keys there only in an application with one tenant. */
  ofApplication(): RunsOperations {
    const own = this.of('')
    const { tenant } = this.#context.settings
    if (tenant === false) return own
    return {
      ...own,
      async resolve(name, decision, options) {
        if (typeof name !== 'string') return own.resolve(name, decision, options)
        throw new OptionInvalid(
          'app.idempotency.resolve() finds no Idempotency-Key, because the tenant function says whose each is: write app.idempotency.for(tenantId).resolve(…). What app.idempotency.run() was called with is { run: key }',
        )
      },
    }
  }

  recover(options: RecoverOptions = {}): Promise<Recovered> {
    const read = readRecover(options)
    return this.#tracked(sealed('recover()', () => recover(this.#recovery(), read)))
  }

  /**
   * What `recoverEvery` does: as `recover()`, but fulfilled once all that was found has begun. What has
   * not ended when it is called again counts towards the same concurrency.
   */
  async recoverInBackground(report: Report): Promise<void> {
    const failed = (error: unknown) => report({ kind: 'recover_failed', failure: failureOf(error) })
    const onBegun = (finishing: Promise<unknown>) => void this.#tracked(finishing).catch(failed)
    const recovering = beginRecovery(this.#recovery(), RECOVER_DEFAULTS, this.#recovering, onBegun)
    await recovering.catch(failed)
  }

  #recovery(): RecoverContext {
    const { prisma, holderPrisma, clock, claims, settings, log } = this.#context
    return {
      prisma,
      holderPrisma,
      clock,
      claims,
      handlers: this.#handlers,
      storeTimeoutMs: settings.storeTimeoutMs,
      reportOf: (record) => reporter(log, undefined, record),
      overdue: this.#overdue,
      held: this.#held,
      stopped: this.#stop.signal,
    }
  }

  /**
   * Runs a handler as the whole or a part of a request's operation. From here on `recover()` finishes
   * it if this process does not, and its result is a step of the request.
   */
  runIn<Input, T>(
    { claim, steps, tenantId }: RequestToRunIn,
    handler: OperationHandler<Input, T>,
    input: Input,
  ): Promise<T> {
    try {
      this.#handlers.check(handler)
    } catch (error) {
      return steps.refuse(error)
    }
    // Not awaited before: until it is a part, a handler that does not await it would seem to be done.
    return steps.part(handler.name, async () => {
      const recovery = recoveryBy(handler, input)
      const stored = inputOf(recovery.input) as Input
      if (claim === undefined) {
        return handler.work(unprotectedOperation(steps, await tenantId()), stored)
      }
      // Where a rerun is a person's decision, recover() must not find it.
      if (claim.onLeaseExpired === 'rerun') {
        await sealed('run()', () => noteRecovery(this.#context.holderPrisma, claim, recovery))
      }
      return handler.work(runningOperation(claim), stored)
    })
  }

  /**
   * Recovers nothing more. From here on, what `run()` and `recover()` run has the time of `drain` to
   * end, whatever requests there are; `run()` begins nothing after it.
   */
  stop(): void {
    this.#stop.abort()
    this.#drain.begin()
  }

  /** Lets what runs end, for as long as that may take; begins nothing more. */
  async close(): Promise<void> {
    this.stop()
    this.#isClosed = true
    await this.#drain.untilEnded(Promise.allSettled(this.#running))
  }

  #abandonHeld(): void {
    this.#isClosed = true
    for (const claim of this.#held) {
      if (!claim.isSettled) claim.abandon('the server closed while it ran')
    }
  }

  async #run<T>(
    tenantId: string,
    key: string,
    work: OperationHandler | ((operation: RunningOperation) => T | Promise<T>),
    options: RunOptions,
  ): Promise<RunResult<T>> {
    if (this.#isClosed) throw new Closing()
    readName('the key of run()', key)
    const { options: plugin, settings, log } = this.#context
    const handler = typeof work === 'function' ? undefined : this.#handlers.check(work)
    const terms = readRun(plugin, options, handler?.times)
    if (handler !== undefined && terms.onLeaseExpired === 'uncertain') {
      throw new OptionInvalid(
        "run() of a handler cannot be 'uncertain': recover() runs it again. Give it a function instead",
      )
    }
    const { leaseMs, maxRunMs, retentionMs, onLeaseExpired, waitMs } = terms
    const fingerprint = fingerprintOfRun(handler?.name, options.input)
    const recovery = handler && recoveryBy(handler, options.input)
    const report = reporter(log, undefined, { tenantId, key: storedKey(key) })
    const outcome = await this.#begin(report, {
      tenantId,
      key: storedKey(key),
      fingerprint,
      leaseMs,
      maxRunMs,
      retentionMs,
      onLeaseExpired,
      waitMs,
      ...(recovery && { recovery }),
      report,
    })
    switch (outcome.kind) {
      case 'replay':
        if (outcome.response.body === null) {
          report({ kind: 'not_replayable' })
          throw new NotReplayable('What run() was called with is done, but its result')
        }
        report({ kind: 'replayed', statusCode: 200, waitedMs: outcome.waitedMs })
        return { kind: 'replayed', value: resultOf(outcome.response) as T }
      case 'busy':
        report(outcome)
        return { kind: 'busy', holder: outcome.holder, since: outcome.since }
      case 'mismatch':
      case 'uncertain':
        report(outcome)
        return outcome
      case 'refused':
        throw new TypeError('nothing counts the new keys of run()')
    }
    const { claim } = outcome
    if (this.#isClosed) {
      await claim.release('the server closes', settings.storeTimeoutMs)
      throw new Closing()
    }
    this.#held.add(claim)
    const operation = runningOperation(claim)
    try {
      const value: T =
        typeof work === 'function'
          ? await work(operation)
          : ((await work.work(operation, inputOf(recovery?.input))) as T)
      if (!claim.closeSteps().isAwaited) throw new StepNotAwaited()
      const { storeTimeoutMs } = settings
      const { stored, refused } = await complete(claim, value, {
        storeTimeoutMs,
        report,
      })
      if (stored === 'lost') throw new LeaseLost()
      if (refused !== undefined) throw refused
      return { kind: 'ran', value, isStored: stored === 'stored' }
    } catch (error) {
      await claim.closeSteps().over
      await claim.release('it failed', settings.storeTimeoutMs)
      throw error
    } finally {
      this.#held.delete(claim)
    }
  }

  async #begin(report: Report, wish: Wish): Promise<Outcome> {
    try {
      return await this.#context.claims.begin(wish)
    } catch (error) {
      report({ kind: 'store_unavailable', bypassed: false, failure: failureOf(error) })
      throw sealIn((options) => new StoreUnavailable('run() has done this before', options), error)
    }
  }

  async #resolve(
    tenantId: string,
    name: OperationName,
    decision: Decision,
    options: ResolveOptions = {},
  ): Promise<Resolved> {
    const key = readOperationName(name)
    const decided = readDecision(name, decision)
    const { attempt, isForced } = readResolve(options)
    const { claims, settings, log, find } = this.#context
    const { leaseMs, maxRunMs, retentionMs } = settings.route
    const report = reporter(log, undefined, { tenantId, key })
    const resolving = resolve(decided, {
      attempt,
      isForced,
      find: () => find({ tenantId, key }),
      claims,
      storeTimeoutMs: settings.storeTimeoutMs,
      wish: {
        tenantId,
        key,
        leaseMs,
        maxRunMs,
        retentionMs,
        onLeaseExpired: 'rerun',
        waitMs: 0,
        report,
      },
    })
    return resolving.catch((error) => {
      report({ kind: 'store_unavailable', bypassed: false, failure: failureOf(error) })
      const what = 'this decision of resolve() took effect'
      throw sealIn((options) => new StoreUnavailable(what, options), error)
    })
  }

  #tracked<T>(running: Promise<T>): Promise<T> {
    this.#running.add(running)
    const over = () => void this.#running.delete(running)
    running.then(over, over)
    return running
  }
}
