// The two statements of an operation that is one transaction with its record: the first of it and the
// last. PostgreSQL only.
import { createHash } from 'node:crypto'
import type { AttemptToken, RecordKey, SeenRecord, StoredResponse } from '../core/record.js'
import { errorCode, type TransactionClient } from './client.js'
import { hex, IS_FREE, type RecordRow, recordOf, SEEN } from './postgres.js'
import { isRolledBack } from './say-again.js'
import { NOW, WAITS_BRIEFLY } from './statements.js'
import { type Bounds, IS_SAME_TRANSACTION, setBounds } from './transaction-bounds.js'

/** What is found when an operation begins. */
export interface Look {
  /** Whether nobody else is at it, as far as that is known: this only saves work. */
  readonly isAlone: boolean
  readonly record: SeenRecord | undefined
}

export interface Recorded extends RecordKey, AttemptToken {
  readonly fingerprint: string
  readonly retentionMs: number
  /** The attempt that the record was at when the operation began; `undefined` when there was none. */
  readonly seen: AttemptToken | undefined
  readonly response: StoredResponse
}

// The update changes nothing. It takes the lock on the table that the last statement needs, so that
// whatever locks the table is waited for here, where few wait at once, and by whatever comes later.
//
// A statement sees what was committed before it began, and so not what the holder of the lock commits
// while it is being asked for. That is as good as no lock: whoever writes the record last is refused.
const LOOK = `
WITH nothing AS (UPDATE idempotency_record SET status = status WHERE false)
SELECT ${SEEN},
  pg_try_advisory_xact_lock($3::int8)::int4 AS is_alone,
  ${setBounds('$4', '$5')}
FROM (SELECT 1) AS one
LEFT JOIN idempotency_record r ON r.tenant_id = $1 AND r.key = $2`

// A large body is read apart, while the record is still that of the same attempt.
const READ_BODY = `
SELECT r.body FROM idempotency_record r
WHERE r.tenant_id = $1 AND r.key = $2 AND r.operation_id = $3 AND r.attempt = $4::int4`

// A record that another transaction has locked is held by it, and is not waited for.
const HOLD = `
SELECT 1 AS held FROM idempotency_record r
WHERE r.tenant_id = $1 AND r.key = $2 AND r.operation_id = $3 AND r.attempt = $4::int4 AND ${IS_FREE}
FOR NO KEY UPDATE SKIP LOCKED`

// The constraint lets one of two that saw no record insert it; of two that saw the same record, the
// attempt and the state let one replace it. The retention counts from when the transaction began.
const RECORD = `
WITH written AS (
  INSERT INTO idempotency_record AS r
    (tenant_id, key, operation_id, attempt, fingerprint, status, lease_until, expires_at, status_code,
     headers, body, created_at)
  SELECT $1::text, $2::text, $3::text, $4::int4, $5::text, 'completed', ${NOW},
    (now() AT TIME ZONE 'UTC') + $6::float8 * interval '1 millisecond',
    $7::int4, $8::jsonb, decode($9, 'hex'), (now() AT TIME ZONE 'UTC')
  WHERE ${IS_SAME_TRANSACTION} AND ${WAITS_BRIEFLY}
  ON CONFLICT (tenant_id, key) DO UPDATE SET
    operation_id = excluded.operation_id, attempt = excluded.attempt,
    fingerprint = excluded.fingerprint, status = excluded.status,
    lease_until = excluded.lease_until, expires_at = excluded.expires_at,
    status_code = excluded.status_code, headers = excluded.headers, body = excluded.body,
    steps = NULL, handler = NULL, input = NULL, holder = NULL, claimed_at = NULL
  WHERE r.operation_id = $10 AND r.attempt = $11::int4 AND ${IS_FREE}
  RETURNING attempt
)
SELECT (SELECT count(*) FROM written)::int4 AS written, ${IS_SAME_TRANSACTION}::int4 AS is_same`

const RECORD_NOTHING = `SELECT 1 AS written, ${IS_SAME_TRANSACTION}::int4 AS is_same`

/** The first statement: tries to be alone with the key, and looks what stands there. */
export async function look(
  tx: TransactionClient,
  { tenantId, key }: RecordKey,
  { statementMs, silenceMs }: Bounds,
): Promise<Look> {
  const [row] = await tx.$queryRawUnsafe<(RecordRow & { is_alone: number })[]>(
    LOOK,
    ...[tenantId, key, lockOf({ tenantId, key }), String(statementMs), String(silenceMs)],
  )
  if (row === undefined) throw new TypeError('the look at a record returned nothing')
  return {
    isAlone: Number(row.is_alone) === 1,
    record: row.seen_operation_id === null ? undefined : recordOf(row),
  }
}

/** The body of a completed record that was too large for the look; `undefined` when it is gone. */
export async function readBody(
  tx: TransactionClient,
  { tenantId, key }: RecordKey,
  { operationId, attempt }: AttemptToken,
): Promise<Uint8Array | undefined> {
  const values = [tenantId, key, operationId, attempt]
  const [row] = await tx.$queryRawUnsafe<{ body: Uint8Array | null }[]>(READ_BODY, ...values)
  return row?.body ?? undefined
}

/**
 * Locks a free record that was seen, for the transaction that is to replace it; `false` when another one has
 * locked it, or it is at another attempt by now. Otherwise the last write would wait.
 */
export async function holdRecord(
  tx: TransactionClient,
  { tenantId, key }: RecordKey,
  { operationId, attempt }: AttemptToken,
): Promise<boolean> {
  try {
    const held = await tx.$queryRawUnsafe<object[]>(HOLD, tenantId, key, operationId, attempt)
    return held.length === 1
  } catch (error) {
    // At REPEATABLE READ and above: it was changed since the transaction's snapshot.
    if (isRolledBack(error)) return false
    throw error
  }
}

/**
 * How the last statement went.
 *
 * - `lost`: another attempt has, or had, the operation: nothing may be kept.
 * - `ended`: this is not the transaction of the first statement any more. The handler has ended that
 *   itself, so what it wrote is undone, or committed, without this.
 */
export type Written = 'recorded' | 'lost' | 'ended'

/** The last statement. */
export async function record(
  tx: TransactionClient,
  { tenantId, key, operationId, attempt, seen, fingerprint, retentionMs, response }: Recorded,
): Promise<Written> {
  const { statusCode, headers, body } = response
  const rows = await tx.$queryRawUnsafe<WrittenRow[]>(
    RECORD,
    ...[tenantId, key, operationId, attempt, fingerprint, retentionMs],
    ...[statusCode, JSON.stringify(headers), body && hex(body)],
    ...[seen?.operationId ?? null, seen?.attempt ?? null],
  )
  return writtenOf(rows)
}

/**
 * The last statement of an operation without a key. PostgreSQL answers COMMIT without an error where
 * a failed statement has undone the transaction; any other statement tells.
 */
export async function recordNothing(tx: TransactionClient): Promise<Written> {
  return writtenOf(await tx.$queryRawUnsafe<WrittenRow[]>(RECORD_NOTHING))
}

interface WrittenRow {
  readonly written: number
  readonly is_same: number
}

function writtenOf([row]: readonly WrittenRow[]): Written {
  if (Number(row?.is_same) !== 1) return 'ended'
  return Number(row?.written) === 1 ? 'recorded' : 'lost'
}

/** What PostgreSQL says to every query after one that failed, until the transaction ends. */
export function isInFailedTransaction(error: unknown): boolean {
  return errorCode(error) === '25P02'
}

/** The lock of a key: 64 bits of a hash. Of two that share one, the second is told to come back. */
export function lockOf({ tenantId, key }: RecordKey): string {
  const hash = createHash('sha256').update(JSON.stringify(['fastify-idempotency', tenantId, key]))
  return hash.digest().readBigInt64BE().toString()
}
