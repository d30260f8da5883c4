import type { Claim } from '../claims/claim.js'
import { decode, encode } from '../claims/codec.js'
import { type Operation, operationOf } from '../claims/operation.js'
import type { Steps } from '../claims/steps.js'
import { LeaseLost, OptionInvalid } from '../errors.js'
import type { PluginOptions, RouteSettings } from '../options.js'
import type { PrismaClientLike } from '../store/client.js'
import { writeHeld } from '../store/held-record.js'
import type { Recovery } from '../store/store.js'
import { type OperationTimes, readName, readTimes } from './options.js'
import { givenKey } from './stored.js'

/** What an operation is, by name, so that another process can finish it: made by `handler()`. */
export interface OperationHandler<Input = unknown, Result = unknown> {
  readonly name: string
  /** @internal */
  readonly work: (operation: RunningOperation, input: Input) => Promise<Result>
  /** @internal */
  readonly times: OperationTimes
  /** @internal */
  readonly settings: RouteSettings
}

/** An operation outside a request, or one of a request that is finished outside of it. */
export interface RunningOperation extends Operation {
  readonly tenantId: string
  /** As `run()` or the client gave it, also in `recover()`; empty where nothing protects a request. */
  readonly key: string
}

// biome-ignore lint/suspicious/noExplicitAny: each has an input and a result of its own
type AnyHandler = OperationHandler<any, any>

/** The handlers of this process. */
export class Handlers {
  readonly #options: PluginOptions
  readonly #byName = new Map<string, AnyHandler>()

  constructor(options: PluginOptions) {
    this.#options = options
  }

  get names(): string[] {
    return [...this.#byName.keys()]
  }

  add<Input, Result>(
    name: string,
    work: OperationHandler<Input, Result>['work'],
    times: OperationTimes = {},
  ): OperationHandler<Input, Result> {
    readName('the name of a handler', name)
    if (typeof work !== 'function') {
      throw new OptionInvalid(
        `handler ${JSON.stringify(name)} needs a function: handler(name, async (operation, input) => …)`,
      )
    }
    if (this.#byName.has(name)) {
      throw new OptionInvalid(
        `there is a handler ${JSON.stringify(name)} already; each needs a name of its own`,
      )
    }
    const handler = { name, work, times, settings: readTimes(this.#options, name, times) }
    this.#byName.set(name, handler)
    return handler
  }

  /** The handler of this process with that name. */
  named(name: string): AnyHandler | undefined {
    return this.#byName.get(name)
  }

  /** Makes sure that it is one of this process's. @throws OptionInvalid */
  check(handler: AnyHandler): AnyHandler {
    if (typeof handler === 'object' && this.#byName.get(handler?.name) === handler) return handler
    throw new OptionInvalid(
      'run() needs a function, or what app.idempotency.handler(name, …) of the same application returned',
    )
  }
}

/** Who finishes an operation if this process does not. @throws StepNotStorable */
export function recoveryBy({ name }: AnyHandler, input: unknown): Recovery {
  return { handler: name, input: encode(`input of handler ${JSON.stringify(name)}`, input) }
}

/**
 * Notes it for an operation that is under way, before that part of it begins.
 *
 * @throws LeaseLost when another attempt took over.
 */
export async function noteRecovery(
  prisma: PrismaClientLike,
  claim: Claim,
  recovery: Recovery,
): Promise<void> {
  if (!(await writeHeld(prisma, claim, recovery))) throw new LeaseLost()
}

/** Nobody needs to finish it any more: what it does is done. */
export async function forgetRecovery(prisma: PrismaClientLike, claim: Claim): Promise<void> {
  await writeHeld(prisma, claim, { handler: null })
}

/** A handler gets its input as it is stored, also in its first attempt: a caller may change its own. */
export const inputOf = (noted: unknown): unknown =>
  typeof noted === 'string' ? decode(noted) : undefined

/** A claim as its handler sees it, the same in `run()`, in a request and in `recover()`. */
export function runningOperation(claim: Claim): RunningOperation {
  return named(operationOf(claim), claim.tenantId, givenKey(claim))
}

/** The same where nothing protects the request. */
export function unprotectedOperation(steps: Steps, tenantId: string): RunningOperation {
  const { signal } = new AbortController()
  return named(operationOf({ attempt: 0, resumed: false, signal, steps }), tenantId, '')
}

/** An operation with its names. It is looked at through, not copied: some of it changes. */
function named(operation: Operation, tenantId: string, key: string): RunningOperation {
  return Object.create(operation, { tenantId: { value: tenantId }, key: { value: key } })
}
