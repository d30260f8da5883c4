import { randomUUID } from 'node:crypto'
import { ModelsMissing } from '../errors.js'
import {
  isUniqueViolation,
  type ModelDelegate,
  missingFromClient,
  type PrismaClientLike,
  type Provider,
  type TransactionClient,
} from '../store/client.js'
import type { DatabaseClock } from '../store/clock.js'
import { sayAgain, sayingAgainEach } from '../store/say-again.js'
import { BUSY, type HeldLock, type LockAsk, type LockBackend } from './lock.js'

interface Row {
  tenantId: string
  name: string
  owner: string
  holder: string
  fence: bigint
  heldUntil: Date
}

/** The owner of a row that was given back. */
const NOBODY = ''

// Between a look and the write after it, somebody else can take a name and give it back.
const LOOKS = 10

// As patient as a query outside of a transaction while many want a connection; how long it may take
// in all is for the caller to say.
const PATIENCE = { maxWait: 10_000, timeout: 10_000 }

/** So long after it was last held, a row is of no use to anybody. */
const FORGOTTEN_AFTER_MS = 86_400_000

// On SQLite Prisma takes 999 parameters in one condition, and MariaDB is slow with long ones.
const ROWS_AT_A_TIME = 200

/**
 * Locks as rows, one for each name, with nothing but Prisma's own calls. A row is taken by raising
 * its fence from the value that was read; of two who try, the database lets one, and none if its
 * holder was faster to renew it. The database's clock decides whether a row is free. What is held is
 * renewed and given back by `holder`'s client.
 *
 * @throws ModelsMissing
 */
export function databaseLock(
  client: PrismaClientLike,
  clock: DatabaseClock,
  provider: Provider,
  holder: { readonly client: PrismaClientLike; readonly clock: DatabaseClock } = { client, clock },
): LockBackend {
  const missing = missingFromClient(client, ['namedLock'])
  if (missing.length > 0) throw new ModelsMissing(missing.join(', '))
  const locks = sayingAgainEach(client.namedLock as ModelDelegate)
  const heldLocks = sayingAgainEach(holder.client.namedLock as ModelDelegate)

  /** Takes one name as it was seen; `false` when somebody was faster. */
  async function take(rows: ModelDelegate, seen: Row | undefined, taken: Row): Promise<boolean> {
    const { tenantId, name, ...data } = taken
    if (seen !== undefined) {
      const { fence, heldUntil } = seen
      const where = { tenantId, name, fence, heldUntil }
      return (await rows.updateMany({ where, data })).count === 1
    }
    // There, a constraint that is hit costs a connection, or the transaction.
    if (provider === 'postgresql') {
      return (await rows.createMany({ data: [taken], skipDuplicates: true })).count === 1
    }
    try {
      await rows.create({ data: taken, select: { fence: true } })
      return true
    } catch (error) {
      if (isUniqueViolation(error)) return false
      throw error
    }
  }

  /** Takes all of them, or none. */
  async function takeAll(seen: readonly (Row | undefined)[], taken: readonly Row[]) {
    const each = async (rows: ModelDelegate) => {
      for (const [n, row] of taken.entries()) if (!(await take(rows, seen[n], row))) return false
      return true
    }
    if (taken.length === 1) return each(locks)
    try {
      return await sayAgain(() =>
        client.$transaction(
          async (tx: TransactionClient) => {
            if (!(await each(tx.namedLock as ModelDelegate))) throw new Outrun()
            return true
          },
          { ...PATIENCE },
        ),
      )
    } catch (error) {
      if (error instanceof Outrun) return false
      throw error
    }
  }

  function hold(ask: LockAsk, owner: string, fence: number, askedAt: number): HeldLock {
    const { tenantId, names, ttlMs } = ask
    const mine = { tenantId, name: { in: [...names] }, owner }
    const write = async (where: object, data: object) =>
      (await heldLocks.updateMany({ where, data })).count === names.length
    return {
      fence,
      askedAt,
      async extend() {
        const heldUntil = later(await holder.clock.ask(), ttlMs)
        // One that arrives after a later one must not take back what that gave.
        if (await write({ ...mine, heldUntil: { lte: heldUntil } }, { heldUntil })) return true
        // The same holds for one that the database's clock, set back, gives less time than an earlier
        // one. The owner decides whether the lock is lost: no other one gets it before its time.
        const owned: unknown[] = await heldLocks.findMany({ where: mine, select: { name: true } })
        return owned.length === names.length
      },
      async release() {
        return write(mine, { owner: NOBODY, heldUntil: await holder.clock.estimate() })
      },
    }
  }

  return {
    async acquire(ask) {
      const { tenantId, names, holder, ttlMs } = ask
      const owner = randomUUID()
      for (let look = 1; look <= LOOKS; look += 1) {
        const rows: Row[] = await locks.findMany({ where: { tenantId, name: { in: [...names] } } })
        refuseOtherNames(rows, ask)
        // An estimate is good enough to find a lock held; to take one, ask.
        const estimate = await clock.estimate()
        const askedAt = performance.now()
        const now = rows.some((row) => isHeld(row, estimate)) ? estimate : await clock.ask()
        const other = rows.find((row) => isHeld(row, now))
        if (other !== undefined) {
          return { kind: 'busy', name: other.name, holder: other.holder, until: other.heldUntil }
        }
        // Over all names, so that any of them can guard what all of them protect; and never below
        // the time, because an earlier row may have been deleted with its fence.
        const fence = Math.max(now.getTime(), ...rows.map((row) => Number(row.fence) + 1))
        const taken = {
          tenantId,
          owner,
          holder,
          fence: BigInt(fence),
          heldUntil: later(now, ttlMs),
        }
        const isTaken = await takeAll(
          names.map((name) => rows.find((row) => row.name === name)),
          names.map((name) => ({ ...taken, name })),
        )
        if (isTaken) return { kind: 'acquired', held: hold(ask, owner, fence, askedAt) }
      }
      return BUSY
    },

    async prune(limit) {
      const now = await clock.ask()
      const isForgotten = {
        heldUntil: { lte: later(now, -FORGOTTEN_AFTER_MS) },
        // The next acquisition begins at the time, and must not begin below this one.
        fence: { lt: BigInt(now.getTime()) },
      }
      const found: Pick<Row, 'tenantId' | 'name'>[] = await locks.findMany({
        where: isForgotten,
        select: { tenantId: true, name: true },
        orderBy: { heldUntil: 'asc' },
        take: limit,
      })
      let deleted = 0
      for (let at = 0; at < found.length; at += ROWS_AT_A_TIME) {
        const rows = found.slice(at, at + ROWS_AT_A_TIME)
        // Asked again in the delete: a row that was taken in between stays.
        const names = { OR: rows.map(({ tenantId, name }) => ({ tenantId, name })) }
        const where = { AND: [names, isForgotten] }
        const { count } = await locks.deleteMany({ where })
        deleted += count
      }
      return deleted
    },
  }
}

/** Thrown to undo a transaction: somebody else has taken one of the names meanwhile. */
class Outrun extends Error {}

function later(time: Date, ms: number): Date {
  return new Date(time.getTime() + ms)
}

function isHeld({ owner, heldUntil }: Row, now: Date): boolean {
  return owner !== NOBODY && heldUntil > now
}

// MySQL's usual collations find 'ABC' under 'abc', and then there is no row to take for one of them.
function refuseOtherNames(rows: readonly Row[], { tenantId, names }: LockAsk): void {
  if (rows.every((row) => row.tenantId === tenantId && names.includes(row.name))) return
  throw new Error(
    'named_lock compares names without regard to case: give tenant_id and name a binary collation',
  )
}
