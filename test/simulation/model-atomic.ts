// What the statements of src/store/atomic.ts do in the model database, found by what they begin with.
import { DatabaseError } from './database-error.js'
import type { Transaction } from './model-database.js'
import { EMPTY, nameOf, type Row } from './model-rows.js'
import { isFree, isRefused, type Send, shown } from './model-statements.js'

/** How long before it has the lock a statement may have looked at the table. */
const LOOKED_BEFORE_MS = 5

/** Runs a raw statement within a transaction. */
export async function runInTransaction(
  send: Send,
  text: string,
  values: readonly unknown[],
): Promise<readonly object[]> {
  if (text.includes('pg_try_advisory_xact_lock')) return look(send, values)
  if (/^\s*SELECT r\.body FROM idempotency_record r\b/.test(text)) return readBody(send, values)
  if (text.includes('FOR NO KEY UPDATE SKIP LOCKED')) return hold(send, values)
  if (text.includes('INSERT INTO idempotency_record AS r')) return record(send, values)
  if (text.startsWith('SELECT (current_setting')) return isOpen(send, values)
  if (text.includes('idle_in_transaction_session_timeout')) return setBounds(send, values)
  throw new TypeError(`the model has no statement ${text}`)
}

function isOpen(send: Send, [lockMs]: readonly unknown[]): Promise<readonly object[]> {
  return send(['is open'], (transaction) => {
    transaction.lockMs = Number(lockMs)
    return rows([IS_SAME])
  })
}

function setBounds(send: Send, values: readonly unknown[]): Promise<readonly object[]> {
  return send(['bounds'], (transaction) => {
    bound(transaction, values)
    return rows([{}])
  })
}

function bound(transaction: Transaction, [statementMs, silenceMs]: readonly unknown[]): void {
  transaction.statementMs = Number(statementMs)
  transaction.silenceMs = Number(silenceMs)
}

function look(
  send: Send,
  [tenantId, key, lock, ...bounds]: readonly unknown[],
): Promise<readonly object[]> {
  return send(['look', key], (transaction, database) => {
    const name = nameOf({ tenantId: String(tenantId), key: String(key) })
    bound(transaction, bounds)
    // It sees what was committed when it began, and has the lock when it ends.
    const { records } = database
    const isEarly = Math.random() < 0.5
    const seen = isEarly ? records.seeEarlier(name, LOOKED_BEFORE_MS) : records.see(name)
    const isAlone = database.tryAdvisoryLock(transaction, String(lock))
    return rows([{ ...shown(seen, database), is_alone: Number(isAlone) }])
  })
}

function readBody(
  send: Send,
  [tenantId, key, operationId, attempt]: readonly unknown[],
): Promise<readonly object[]> {
  return send(['read body', key], (_, { records }) => {
    const row = records.see(nameOf({ tenantId: String(tenantId), key: String(key) }))
    const isIt = row?.operationId === operationId && row?.attempt === attempt
    return rows(isIt ? [{ body: row?.body }] : [])
  })
}

function hold(
  send: Send,
  [tenantId, key, operationId, attempt]: readonly unknown[],
): Promise<readonly object[]> {
  return send(['hold', key], function* (transaction, database) {
    const { records } = database
    const name = nameOf({ tenantId: String(tenantId), key: String(key) })
    if (database.isLocked(name)) return []
    const isSeen = (row: Row) =>
      row.operationId === operationId && row.attempt === attempt && isFree(row, database)
    const row = yield* records.lockedIf(transaction, name, isSeen)
    return row === undefined ? [] : [{ held: 1 }]
  })
}

// The model's handlers leave the end of a transaction to the library.
const IS_SAME = { is_same: 1 }
const RECORDED = { ...IS_SAME, written: 1 }

/** INSERT … ON CONFLICT DO UPDATE … WHERE it is the attempt that was seen, and free. */
function record(send: Send, values: readonly unknown[]): Promise<readonly object[]> {
  const [tenantId, key, operationId, attempt, fingerprint, retentionMs] = values as [
    ...[string, string, string, number, string, number],
  ]
  const [statusCode, headers, body, seenId, seenAttempt] = values.slice(6) as [
    ...[number, string, string | null, string | null, number | null],
  ]
  return send(['record', { key, attempt, seenAttempt }], function* (transaction, database) {
    if (isRefused({ fingerprint, headers })) throw new DatabaseError('22021')
    const { records } = database
    const made: Row = {
      ...EMPTY,
      ...{ chain: records.newChain(), tenantId, key, operationId, attempt, fingerprint },
      ...{ status: 'completed', statusCode, headers: JSON.parse(headers) },
      body: body === null ? null : Buffer.from(body, 'hex'),
      createdAt: database.now(),
      leaseUntil: database.now(),
      expiresAt: database.later(retentionMs),
    }
    if (yield* records.insert(transaction, made)) return [RECORDED]
    const mayWrite = (row: Row) =>
      row.operationId === seenId && row.attempt === seenAttempt && isFree(row, database)
    const row = yield* records.lockedIf(transaction, nameOf(made), mayWrite)
    if (row === undefined) return [{ ...IS_SAME, written: 0 }]
    const { chain, createdAt } = row
    yield* records.put(transaction, { ...made, chain, createdAt })
    return [RECORDED]
  })
}

// biome-ignore lint/correctness/useYield: it waits for nothing
function* rows(found: readonly object[]): Generator<never, readonly object[], undefined> {
  return found
}
