import { AtomicTimedOut, StepTooLate } from '../errors.js'
import type { AtomicSettings } from '../options.js'
import type { PrismaClientLike, TransactionClient } from '../store/client.js'
import type { Bounds } from '../store/transaction-bounds.js'
import { Gate } from './gate.js'

type Ending = () => Promise<void>

/** The last that is done in a transaction, before COMMIT. */
export type LastWrite = (tx: TransactionClient) => Promise<void>

/** How a commit went. Only `committed` lets anything be said of what was done. */
export type Commit =
  | { kind: 'committed' }
  /** Nothing of it is kept: the last write failed, with this error. */
  | { kind: 'rolled back'; error: unknown }
  /** COMMIT failed, or was not answered. */
  | { kind: 'unknown'; error: unknown }

/**
 * What is under way when the time is over gets as much time again: the server ends its statement by
 * then. After that Prisma gives the connection back, whatever it still does.
 */
const lastResortMs = (timeoutMs: number) => 2 * timeoutMs + 1_000

/**
 * The server's own bounds. Later than our own timer, which has the better answer, also on a machine that is
 * slow. A process that lives is silent in its transaction until that timer, and no longer.
 */
const boundsOf = ({ timeoutMs }: AtomicSettings): Bounds => ({
  statementMs: Math.ceil(timeoutMs) + 500,
  silenceMs: Math.ceil(timeoutMs) + 1_000,
})

/** One interactive transaction of the application's client, held open from outside of its function. */
export class AtomicTransaction {
  /** For the plugin's own statements. */
  readonly client: TransactionClient
  readonly bounds: Bounds
  readonly #gate: Gate
  readonly #end: (ending: Ending) => void
  /** Settles when Prisma has ended it. */
  readonly #over: Promise<void>
  readonly #aborted = new AbortController()
  readonly #limit: NodeJS.Timeout
  readonly #timeoutMs: number
  #giveUp: () => void = () => {}
  readonly #givenUp = new Promise<void>((resolve) => {
    this.#giveUp = resolve
  })
  #isEnding = false
  #isCommitting = false

  private constructor(
    client: TransactionClient,
    end: (ending: Ending) => void,
    over: Promise<void>,
    settings: AtomicSettings,
  ) {
    const { timeoutMs } = settings
    this.client = client
    this.bounds = boundsOf(settings)
    this.#gate = new Gate(client)
    this.#end = end
    this.#over = over
    this.#timeoutMs = timeoutMs
    this.#limit = setTimeout(() => this.#onTimeout(), timeoutMs)
    const stop = () => clearTimeout(this.#limit)
    over.then(stop, stop)
  }

  /** @throws what Prisma throws when no connection becomes free, or the database does not answer. */
  static open(prisma: PrismaClientLike, settings: AtomicSettings): Promise<AtomicTransaction> {
    const { maxWaitMs, timeoutMs, isolationLevel } = settings
    return new Promise((resolve, reject) => {
      const options = {
        maxWait: maxWaitMs,
        timeout: lastResortMs(timeoutMs),
        ...(isolationLevel !== undefined && { isolationLevel }),
      }
      const run = async (client: TransactionClient) => {
        const ending = await new Promise<Ending>((end) => {
          resolve(new AtomicTransaction(client, end, over, settings))
        })
        await ending()
      }
      const over: Promise<void> = Promise.resolve(prisma.$transaction(run, options))
      over.catch(reject)
    })
  }

  /** For the handler. What it begins after the end of the transaction fails. */
  get tx(): TransactionClient {
    return this.#gate.tx
  }

  /** Aborted when the transaction is rolled back; with `AtomicTimedOut`, because its time is over. */
  get signal(): AbortSignal {
    return this.#aborted.signal
  }

  /** Whether nothing that the handler has begun in it is still under way. */
  get isIdle(): boolean {
    return this.#gate.isIdle
  }

  /** Once it holds nothing any more, or a network that says nothing is no longer waited for. */
  get over(): Promise<void> {
    return Promise.race([this.#over.catch(() => {}), this.#givenUp])
  }

  /** Says the last, and commits. What the time cuts off after COMMIT was sent is `unknown`. */
  async commit(write: LastWrite): Promise<Commit> {
    this.#isEnding = true
    this.#gate.close(new StepTooLate())
    this.#end(async () => {
      await write(this.client)
      this.signal.throwIfAborted()
      // Prisma sends COMMIT next.
      this.#isCommitting = true
    })
    try {
      await Promise.race([this.#over, rejectedBy(this.signal)])
      return { kind: 'committed' }
    } catch (error) {
      return { kind: this.#isCommitting ? 'unknown' : 'rolled back', error }
    }
  }

  /**
   * Undoes all of it, once what the handler has begun is done: it must not go on without its
   * transaction. `refusal` is what the handler's further queries fail with.
   */
  async rollBack(refusal: Error): Promise<void> {
    this.#gate.close(refusal)
    if (!this.#isEnding) {
      this.#isEnding = true
      this.#aborted.abort(refusal)
      await this.#gate.idle()
      this.#end(() => Promise.reject(refusal))
    }
    await this.over
  }

  #onTimeout(): void {
    const error = new AtomicTimedOut()
    this.#aborted.abort(error)
    void this.rollBack(error)
    // Something may be under way that never ends.
    const lastResort = setTimeout(() => {
      this.#end(() => Promise.reject(error))
      this.#giveUp()
    }, lastResortMs(this.#timeoutMs) - this.#timeoutMs)
    void this.over.then(() => clearTimeout(lastResort))
  }
}

function rejectedBy(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason)
    signal.addEventListener('abort', () => reject(signal.reason))
  })
}
