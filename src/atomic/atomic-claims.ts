import { randomUUID } from 'node:crypto'
import type { Outcome, Wish } from '../claims/claims.js'
import { WaitingRoom } from '../claims/waiting.js'
import { decide } from '../core/decide.js'
import { crashPoint } from '../crash-points.js'
import { StepTooLate } from '../errors.js'
import type { Report } from '../events.js'
import type { AtomicSettings } from '../options.js'
import { holdRecord, type Look, look, readBody } from '../store/atomic.js'
import type { PrismaClientLike, TransactionClient } from '../store/client.js'
import type { StatementLimit, StatementLimits } from '../store/statement-limit.js'
import { type Bounds, boundTransaction } from '../store/transaction-bounds.js'
import { within } from '../within.js'
import { AtomicClaim, type AtomicKey } from './atomic-claim.js'
import { type Asking, KeysUnderWay } from './keys-under-way.js'
import { AtomicTransaction } from './transaction.js'

/** What a request to an atomic route wants. It gets no lease, but a transaction. */
export interface AtomicWish extends Omit<Wish, 'leaseMs' | 'maxRunMs'> {
  readonly atomic: AtomicSettings
}

type Answered = Exclude<Outcome, { kind: 'run' }>

export type AtomicOutcome = Answered | { kind: 'run atomic'; claim: AtomicClaim }

export interface AtomicClaimsOptions {
  readonly prisma: PrismaClientLike
  /** How long the store may take for one answer. */
  readonly storeTimeoutMs: number
  readonly maxWaiters: number
  readonly limits: StatementLimits
}

/** Every operation of this process that is one transaction with its record. PostgreSQL only. */
export class AtomicClaims {
  readonly #prisma: PrismaClientLike
  readonly #storeTimeoutMs: number
  readonly #keys: KeysUnderWay
  readonly #waiting: WaitingRoom
  readonly #limit: StatementLimit
  readonly #running = new Set<Promise<void>>()

  constructor({ prisma, storeTimeoutMs, maxWaiters, limits }: AtomicClaimsOptions) {
    this.#prisma = prisma
    this.#waiting = new WaitingRoom(maxWaiters)
    this.#limit = limits.transaction
    this.#storeTimeoutMs = storeTimeoutMs
    this.#keys = KeysUnderWay.of(prisma)
  }

  /**
   * Decides what becomes of a request, waiting for a running attempt if the wish says so. Whoever
   * waits holds neither a transaction nor a connection.
   *
   * @throws what Prisma throws when no connection becomes free, or the database does not answer.
   * Nothing runs then, and nothing is left behind.
   */
  begin(wish: AtomicWish): Promise<AtomicOutcome> {
    return this.#waiting.whileBusy(wish, () => this.#beginNow(wish))
  }

  /** Begins an operation that nothing names: a transaction, and no more. @throws as `begin` does. */
  async beginWithoutKey(atomic: AtomicSettings, report: Report): Promise<AtomicClaim> {
    // It reads no table of the library, and is bounded like any transaction of the application.
    const [transaction] = await this.#open(atomic, boundTransaction, (start) => start())
    return this.#hold(undefined, transaction, report)
  }

  /** Tells those who wait that their answer will not come from here. */
  stopWaiting(): void {
    this.#waiting.close()
  }

  /** Gives what is being committed the time of one answer. What still runs then is a crash's to undo. */
  async close(): Promise<void> {
    this.stopWaiting()
    await within(Promise.all(this.#running), this.#storeTimeoutMs).catch(() => {})
  }

  async #beginNow(wish: AtomicWish): Promise<AtomicOutcome> {
    const other = this.#keys.get(wish)
    // Many may read a finished operation side by side; only who runs one keeps others away.
    if (other !== undefined && (await other.isRunning)) {
      if (other.fingerprint !== wish.fingerprint) return { kind: 'mismatch' }
      void other.ended.then(() => this.#waiting.wake(wish))
      return { kind: 'busy', waitedMs: 0 }
    }
    const asking = this.#keys.enter(wish)
    try {
      return await this.#ask(wish, asking)
    } catch (error) {
      asking.end()
      throw error
    }
  }

  async #ask(wish: AtomicWish, asking: Asking): Promise<AtomicOutcome> {
    const lookAt = (client: TransactionClient, bounds: Bounds) => look(client, wish, bounds)
    const [transaction, seen] = await this.#open(wish.atomic, lookAt, this.#limit)
    const decided = await decideFor(wish, seen, transaction.client).catch((error) => {
      void transaction.rollBack(new StepTooLate())
      throw error
    })
    if (decided.kind !== 'take') {
      void transaction.rollBack(new StepTooLate())
      asking.end()
      return decided
    }
    asking.run()
    void transaction.over.then(() => asking.end())
    return { kind: 'run atomic', claim: this.#hold(decided.key, transaction, wish.report) }
  }

  /**
   * A transaction, and the answer to its first statement. Its place is kept for as long as its connection
   * is, which may be after its caller has given up: while the table is locked, nothing else ends the wait.
   */
  #open<A>(
    atomic: AtomicSettings,
    first: (client: TransactionClient, bounds: Bounds) => Promise<A>,
    limit: <T>(start: () => Promise<T>) => Promise<T>,
  ): Promise<[AtomicTransaction, A]> {
    return new Promise((resolve, reject) => {
      const begin = async () => {
        const transaction = await AtomicTransaction.open(this.#prisma, atomic)
        this.#remember(transaction)
        const answer = first(transaction.client, transaction.bounds)
        try {
          resolve([transaction, await within(answer, this.#storeTimeoutMs)])
        } catch (error) {
          reject(error)
          await Promise.allSettled([answer, transaction.rollBack(new StepTooLate())])
        }
      }
      limit(begin).catch(reject)
    })
  }

  #remember({ over }: AtomicTransaction): void {
    this.#running.add(over)
    void over.then(() => this.#running.delete(over))
  }

  #hold(key: AtomicKey | undefined, transaction: AtomicTransaction, report: Report): AtomicClaim {
    if (key !== undefined) {
      const { attempt, resumed } = key
      report(
        attempt === 1 ? { kind: 'claimed', attempt } : { kind: 'taken_over', attempt, resumed },
      )
    }
    crashPoint('atomic:begun')
    return new AtomicClaim(key, transaction, { report, patienceMs: this.#storeTimeoutMs })
  }
}

/** A key that nobody has used. */
const NEW = { kind: 'take', seen: undefined, resumed: false } as const

async function decideFor(
  wish: AtomicWish,
  { record, isAlone }: Look,
  tx: TransactionClient,
): Promise<Answered | { kind: 'take'; key: AtomicKey }> {
  const { tenantId, key, fingerprint, retentionMs, onLeaseExpired, mayAdd } = wish
  const decision = record ? decide(record, fingerprint, onLeaseExpired) : NEW
  if (decision.kind === 'busy') return { ...decision, waitedMs: 0 }
  if (decision.kind === 'replay') {
    if (!record?.unreadBodyBytes) return { ...decision, waitedMs: 0 }
    const body = await readBody(tx, wish, record)
    // Pruned, and perhaps used again, since: the next look decides.
    if (body === undefined) return { kind: 'busy', waitedMs: 0 }
    return { kind: 'replay', response: { ...decision.response, body }, waitedMs: 0 }
  }
  if (decision.kind !== 'take') return decision
  // Somebody is at it. What he will write cannot be seen before he commits.
  if (!isAlone) return { kind: 'busy', waitedMs: 0 }
  if (decision === NEW && mayAdd !== undefined && !(await mayAdd())) return { kind: 'refused' }
  const { seen, resumed } = decision
  const isOurs = seen === undefined || (await holdRecord(tx, wish, seen))
  if (!isOurs) return { kind: 'busy', waitedMs: 0 }
  const token =
    resumed && seen
      ? { operationId: seen.operationId, attempt: seen.attempt + 1 }
      : { operationId: randomUUID(), attempt: 1 }
  return {
    kind: 'take',
    key: { tenantId, key, fingerprint, retentionMs, ...token, seen, resumed },
  }
}
