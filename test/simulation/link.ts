import type { PoolClientLike, PoolLike } from '../../src/store/pool.js'
import { Connections } from './connections.js'
import { DatabaseError } from './database-error.js'
import type { Owner } from './event-queue.js'
import type { Connect } from './model-prisma.js'
import { lockLimit, modelStatement, type Send } from './model-statements.js'
import { LEASE_MS } from './plan.js'
import {
  type Asked,
  type Doing,
  LONGEST_MS,
  type Network,
  Question,
  type Session,
} from './question.js'

/** One process's way to the database, on which everything can get lost. */
export class Link implements Connect {
  readonly #network: Network
  readonly #owner: Owner
  readonly #sessions = new Set<Session>()
  readonly #connections: Connections

  constructor(network: Network, owner: Owner) {
    this.#network = network
    this.#owner = owner
    this.#connections = new Connections(network.connections)
  }

  /** A statement that is a transaction of its own, on any connection, as Prisma sends it. */
  send: Send = (what, statement) => {
    const { database } = this.#network
    return new Promise((resolve, reject) => {
      this.#connections.take((giveBack) => {
        const transaction = database.begin()
        const doing: Doing<Awaited<ReturnType<typeof this.send>>> = (done, failed) =>
          database.runAlone(transaction, statement, done as never, failed)
        this.#ask({ what, doing, transaction, onOver: giveBack, resolve: resolve as never, reject })
      })
    })
  }

  /** The part of a `pg` pool that is used: each statement on a connection that is held for it. */
  readonly pool: PoolLike = {
    connect: () =>
      new Promise((resolve) =>
        this.#connections.take((giveBack) => resolve(this.#client(giveBack))),
      ),
  }

  /** As Prisma's interactive transactions: BEGIN, what `fn` says, COMMIT; each can get lost. */
  async transact<T>(
    fn: (send: Send) => Promise<T>,
    {
      maxWait = 2 * LEASE_MS,
      timeout = 5 * LEASE_MS,
    }: { maxWait?: number | undefined; timeout?: number | undefined },
  ): Promise<T> {
    const { database, world } = this.#network
    const { session, giveBack } = await this.#open(maxWait)
    const { transaction } = session
    let isClosed = false
    const rollback = () =>
      this.#inSession<void>(['ROLLBACK'], session, (done) => done(database.rollback(transaction)))
    const timer = setTimeout(() => {
      isClosed = true
      void rollback().then(giveBack, giveBack)
    }, timeout)
    try {
      const value = await fn(async (what, statement) => {
        if (isClosed) throw new DatabaseError('P2028')
        return this.#inSession(what, session, (done, failed) => {
          const answered: typeof done = (result) => {
            this.#boundSilence(session)
            done(result)
          }
          database.run(transaction, statement, answered, failed)
        })
      })
      // A process that has stood still since the last statement has not sent this one yet.
      if (this.#owner.pausedUntil > world.now) await world.sleep(0)
      if (isClosed) throw new DatabaseError('P2028')
      clearTimeout(timer)
      isClosed = true
      await this.#inSession<void>(['COMMIT'], session, (done, failed) =>
        database.commit(transaction) ? done() : failed(new DatabaseError('25P01')),
      )
      return value
    } catch (error) {
      clearTimeout(timer)
      if (!isClosed) {
        isClosed = true
        await rollback().catch(() => {})
      }
      throw error
    } finally {
      this.#sessions.delete(session)
      giveBack()
    }
  }

  /** The process is gone. The database finds out when it finds out. */
  hangUp(): void {
    for (const session of this.#sessions) this.#break(session)
  }

  #client(giveBack: () => void): PoolClientLike {
    const { database, world } = this.#network
    let question: Question<readonly object[]> | undefined
    return {
      query: ({ name, text, values }) =>
        new Promise((resolve, reject) => {
          const { what, statement } = modelStatement(name.replace(/_\d+$/, ''), text, values)
          const transaction = database.begin()
          question = this.#ask<readonly object[]>({
            ...{ what, transaction, limit: lockLimit(text, values) },
            doing: (done, failed) => database.runAlone(transaction, statement, done, failed),
            resolve: (rows) => resolve({ rows }),
            reject,
          })
        }),
      // What is destroyed is replaced.
      release: () => giveBack(),
      on: () => {},
      off: () => {},
      // src/store/cancel-statement.ts asks where the server is when a statement takes too long. It gets
      // no answer, and the request to cancel goes its way.
      get host() {
        const canceled = question
        world.in(world.random.between(0.1, LEASE_MS / 10), undefined, () => canceled?.cancel())
        return undefined
      },
    } as PoolClientLike
  }

  /** A connection, and BEGIN on it, for which Prisma waits only so long. */
  #open(maxWaitMs: number): Promise<{ session: Session; giveBack: () => void }> {
    const { database } = this.#network
    return new Promise((resolve, reject) => {
      let isWanted = true
      const timer = setTimeout(() => {
        isWanted = false
        reject(new DatabaseError('P2028'))
      }, maxWaitMs)
      this.#connections.take((giveBack) => {
        if (!isWanted) return giveBack()
        this.#ask<Session>({
          what: ['BEGIN'],
          doing: (done) => {
            const session = { transaction: database.begin(), isBroken: false, statements: 0 }
            this.#sessions.add(session)
            done(session)
          },
          resolve: (session) => {
            clearTimeout(timer)
            if (isWanted) return resolve({ session, giveBack })
            const rollback: Doing<void> = (done) => done(database.rollback(session.transaction))
            void this.#inSession(['ROLLBACK'], session, rollback).then(giveBack, giveBack)
          },
          reject: (error) => {
            clearTimeout(timer)
            giveBack()
            reject(error)
          },
        })
      })
    })
  }

  /** The server ends a transaction in which nothing is said for so long. */
  #boundSilence(session: Session): void {
    const { transaction } = session
    if (transaction.silenceMs === Number.POSITIVE_INFINITY) return
    const { world, database, counts } = this.#network
    session.statements += 1
    const { statements } = session
    world.in(transaction.silenceMs, undefined, () => {
      if (transaction.isOver || transaction.isWaiting || session.statements > statements) return
      counts['transaction ended by the server'] += 1
      session.isBroken = true
      database.rollback(transaction)
    })
  }

  #inSession<T>(what: Asked<T>['what'], session: Session, doing: Doing<T>): Promise<T> {
    if (session.isBroken && !this.#owner.isDead) return Promise.reject(new DatabaseError('P1017'))
    return new Promise((resolve, reject) => {
      const { transaction } = session
      const onBroken = () => this.#break(session)
      const { lockMs, statementMs } = transaction
      const limit =
        lockMs < statementMs
          ? ({ ms: lockMs, code: '55P03' } as const)
          : ({ ms: statementMs, code: '57014' } as const)
      this.#ask({ what, doing, transaction, session, limit, onBroken, resolve, reject })
    })
  }

  #ask<T>(asked: Asked<T>): Question<T> | undefined {
    // Nothing leaves a dead process, and nothing comes back to it.
    if (this.#owner.isDead) return undefined
    const question = new Question(this.#network, this.#owner, asked)
    question.send()
    return question
  }

  #break(session: Session): void {
    if (session.isBroken) return
    session.isBroken = true
    const { world, database } = this.#network
    world.in(world.random.between(0, LONGEST_MS), undefined, () =>
      database.hangUp(session.transaction),
    )
  }
}
