import { randomUUID } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import type { Operation } from '../claims/operation.js'
import { Steps } from '../claims/steps.js'
import { NotAtomic, NotInAtomic, StepTooEarly, StepTooLate } from '../errors.js'
import type { OperationHandler } from '../operations/handlers.js'
import type { Operations } from '../operations/operations.js'
import type { ApplicationTransaction } from '../register.js'
import type { PrismaClientLike } from '../store/client.js'
import { exchangeOf, stageOf } from './hooks.js'

/**
 * What a handler can know of its own protection, and do under it. Where nothing protects the request
 * (it carries no key and its route requires none, or it came while the store was bypassed), steps and
 * transactions are run as they are, and no later attempt knows of them.
 *
 * Steps, transactions, `run` and `keyFor` are for the handler. In a hook of a request that its route
 * protects, they are refused: before the handler by `IDEMPOTENCY_STEP_TOO_EARLY`, because the key is not
 * claimed yet; after it, and in a request that was answered without it (a replay, a refusal), by
 * `IDEMPOTENCY_STEP_TOO_LATE`. Nothing of them is done then.
 */
export interface RequestIdempotency extends Operation {
  /** The Idempotency-Key that protects this request; `undefined` when nothing does. */
  readonly key: string | undefined
  /** Which attempt at the operation this is, from 1; 0 when nothing protects the request. */
  readonly attempt: number
  /**
   * Runs a handler of `app.idempotency.handler()` as the whole or a part of this request's operation.
   * If this process dies, `recover()` finishes it, and the client's retry gets its result without
   * running it: it is a step of the handler's name. Handlers run one after the other.
   *
   * @throws IDEMPOTENCY_RUN_OPEN beside or within another one of the same request.
   */
  run<Input, T>(handler: OperationHandler<Input, T>, input: Input): Promise<T>
  /**
   * On an atomic route, the transaction that the handler runs in, the application's own client in it:
   * what is written with it is committed together with the stored response, or not at all. `step`,
   * `transaction`, `keyFor` and `run` are refused there.
   *
   * @throws IDEMPOTENCY_NOT_ATOMIC anywhere else.
   */
  readonly tx: ApplicationTransaction
}

/** What a request's helpers need of the application. */
export interface RequestContext {
  readonly prisma: PrismaClientLike
  readonly operations: Operations
  readonly tenantOf: (request: FastifyRequest) => Promise<string>
}

/** The view of a request's claim that handlers get. */
export function requestIdempotency(
  request: FastifyRequest,
  { prisma, operations, tenantOf }: RequestContext,
): RequestIdempotency {
  const claim = () => exchangeOf(request)?.claim
  const atomic = () => exchangeOf(request)?.atomicClaim
  let unprotected: Steps | undefined
  const steps = () => {
    const protectedSteps = claim()?.steps
    if (protectedSteps !== undefined) return protectedSteps
    unprotected ??= new Steps({
      prisma,
      operationId: randomUUID(),
      earlier: {},
      keep: async () => true,
      prepare: async () => async () => true,
      isClosed: false,
    })
    return unprotected
  }
  const refusalOf = (call: string): Error | undefined => {
    switch (stageOf(request)) {
      case 'atomic':
        return new NotInAtomic(`request.idempotency.${call}`)
      case 'unclaimed':
        return new StepTooEarly()
      case 'answered':
        return new StepTooLate()
      default:
        return undefined
    }
  }
  // Thrown where it fails the handler, also when the call is not awaited. Elsewhere it is refused by what it
  // returns: one that is not awaited must not end the process.
  const refused = (call: string): Promise<never> | undefined => {
    const refusal = refusalOf(call)
    if (refusal === undefined) return undefined
    if (stageOf(request) === 'atomic') throw refusal
    const rejected = Promise.reject(refusal)
    rejected.catch(() => {})
    return rejected
  }
  const operation: RequestIdempotency = {
    get key() {
      return atomic()?.key?.key ?? claim()?.key
    },
    get attempt() {
      return (atomic() ?? claim())?.attempt ?? 0
    },
    get resumed() {
      return (atomic()?.key ?? claim())?.resumed ?? false
    },
    get signal() {
      return (atomic() ?? claim())?.signal ?? new AbortController().signal
    },
    get tx() {
      const transaction = atomic()?.tx
      if (transaction === undefined) throw new NotAtomic()
      return transaction as ApplicationTransaction
    },
    transaction: (fn, options) => refused('transaction') ?? steps().transaction(fn, options),
    step: (name, fn) => refused('step') ?? steps().step(name, fn),
    keyFor(name) {
      const refusal = refusalOf('keyFor')
      if (refusal !== undefined) throw refusal
      return steps().keyFor(name)
    },
    run: (handler, input) =>
      refused('run') ??
      operations.runIn(
        { claim: claim(), steps: steps(), tenantId: () => tenantOf(request) },
        handler,
        input,
      ),
  }
  return operation
}
