// What the statements of src/store/postgres.ts do, each at one instant. The contract of stores
// (test/contracts/store.ts) holds both to the same promises.
import type { SeenRecord } from '../../src/core/record.js'
import { sayAgain } from '../../src/store/say-again.js'
import type { Ask, Hold, Inserted, Store, Taken, TakeOver } from '../../src/store/store.js'
import {
  EMPTY,
  insertNew,
  lockedIf,
  type ModelDatabase,
  nameOf,
  type Row,
  type Statement,
} from './model-database.js'

/** Sends one statement to the database. */
export type Send = <T>(
  what: readonly [verb: string, ...about: readonly unknown[]],
  statement: Statement<T>,
) => Promise<T>

export function modelStore(sendOnce: Send): Store {
  const send: Send = (what, statement) => sayAgain(() => sendOnce(what, statement))

  return {
    combinesLists: true,

    insert: (asks) =>
      send(['insert', asks], function* (transaction, database) {
        const made = new Set<number>()
        for (const place of inOrder(asks)) {
          const ask = asks[place] as Ask
          if (insertNew(database, transaction, rowOf(ask, database))) made.add(place)
        }
        return asks.map((ask, place): Inserted => {
          if (made.has(place)) return { kind: 'made' }
          const row = database.see(nameOf(ask), transaction) as Row
          return { kind: 'seen', record: seenAt(row, database) }
        })
      }),

    takeOver: (asks) =>
      send(['takeOver', asks], function* (transaction, database) {
        const result = new Array<Taken | undefined>(asks.length)
        for (const place of inOrder(asks)) {
          const ask = asks[place] as (typeof asks)[number]
          const mayTake = (row: Row) =>
            row.fence === ask.fence && isFree(row, database) && isMeant(ask, row, database)
          const row = yield* lockedIf(database, transaction, nameOf(ask), mayTake)
          if (row === undefined) continue
          const anew = rowOf(ask, database)
          const { steps, handler, input } = ask.resumed ? row : anew
          const { createdAt, fence } = row
          const fresh = { ...anew, createdAt, steps, handler, input }
          database.put(transaction, { ...fresh, fence: fence + 1 })
          result[place] = { steps: steps ?? {} }
        }
        return result
      }),

    finish: (finishes) =>
      send(['finish', finishes], function* (transaction, database) {
        const result = new Array<boolean>(finishes.length).fill(false)
        for (const place of inOrder(finishes)) {
          const hold = finishes[place] as (typeof finishes)[number]
          const { response } = hold
          const status = response === null ? 'released' : 'completed'
          const mayFinish = (row: Row) =>
            row.fence === hold.fence && (row.status === 'in_progress' || row.status === status)
          const row = yield* lockedIf(database, transaction, nameOf(hold), mayFinish)
          if (row === undefined) continue
          const left = response === null ? row : EMPTY
          const { steps, handler, input } = left
          const kept = response ?? { statusCode: null, headers: null, body: null }
          database.put(transaction, { ...row, ...kept, status, steps, handler, input })
          result[place] = true
        }
        return result
      }),

    extend: (extends_) =>
      send(['extend', extends_], function* (transaction, database) {
        const result = new Array<boolean>(extends_.length).fill(false)
        for (const place of inOrder(extends_)) {
          const extend = extends_[place] as (typeof extends_)[number]
          const row = yield* lockedIf(database, transaction, nameOf(extend), isHeldBy(extend))
          if (row === undefined) continue
          database.put(transaction, { ...row, leaseUntil: database.later(extend.leaseMs) })
          result[place] = true
        }
        return result
      }),

    forget: (holds) =>
      send(['forget', holds], function* (transaction, database) {
        const result = new Array<boolean>(holds.length).fill(false)
        for (const place of inOrder(holds)) {
          const hold = holds[place] as Hold
          const row = yield* lockedIf(database, transaction, nameOf(hold), isHeldBy(hold))
          if (row === undefined) continue
          database.delete(transaction, nameOf(row))
          result[place] = true
        }
        return result
      }),

    prune: (limit) =>
      send(['prune'], function* (transaction, database) {
        const isDoomed = (row: Row) => row.expiresAt <= database.now() && isFree(row, database)
        const doomed = [...database.rows].filter(isDoomed).slice(0, limit)
        let count = 0
        for (const { tenantId, key } of doomed) {
          const name = nameOf({ tenantId, key })
          const row = yield* lockedIf(database, transaction, name, isDoomed)
          if (row === undefined) continue
          database.delete(transaction, name)
          count += 1
        }
        return count
      }),
  }
}

function rowOf(ask: Ask, database: ModelDatabase): Row {
  const { tenantId, key, fingerprint, leaseMs, retentionMs } = ask
  return {
    ...EMPTY,
    ...ask.recovery,
    ...{ tenantId, key, fingerprint, fence: 1, status: 'in_progress', createdAt: database.now() },
    leaseUntil: database.later(leaseMs),
    expiresAt: database.later(retentionMs),
  }
}

function isFree(row: Row, database: ModelDatabase): boolean {
  if (row.status === 'released') return true
  return (row.status === 'in_progress' ? row.leaseUntil : row.expiresAt) <= database.now()
}

/** What was seen is what is taken over, or a key that was forgotten has begun with fence 1 again. */
function isMeant({ resumed, fingerprint }: TakeOver, row: Row, database: ModelDatabase): boolean {
  return resumed ? row.fingerprint === fingerprint : row.expiresAt <= database.now()
}

function isHeldBy({ fence }: Hold): (row: Row) => boolean {
  return (row) => row.fence === fence && row.status === 'in_progress'
}

function seenAt(row: Row, database: ModelDatabase): SeenRecord {
  const { fingerprint, status, fence, statusCode, headers, body } = row
  return {
    ...{ fingerprint, status, fence },
    leaseLeftMs: row.leaseUntil.getTime() - database.now().getTime(),
    isExpired: row.expiresAt <= database.now(),
    response:
      status === 'completed' && statusCode !== null
        ? { statusCode, headers: headers ?? {}, body }
        : null,
  }
}

/** Rows are locked in the order of their keys. */
function inOrder(items: readonly { key: string }[]): number[] {
  const keyAt = (place: number) => (items[place] as { key: string }).key
  const places = [...items.keys()]
  return places.length === 1 ? places : places.sort((a, b) => (keyAt(a) < keyAt(b) ? -1 : 1))
}
