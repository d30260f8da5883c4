import type { RecordKey, RecordStatus, SeenRecord } from '../core/record.js'
import {
  asked,
  hasCome,
  lockTimeoutFor,
  matchedItems,
  matchedRows,
  NOW,
  type RunStatement,
  sayingAgain,
} from './statements.js'
import type { Ask, Hold, Inserted, Store, Taken, TakeOver } from './store.js'

/** A longer body is read by a statement of its own, so that one answer never carries many of them. */
const READ_ALONG_BYTES = 64 * 1024

export const IS_FREE = `(
  CASE r.status
    WHEN 'in_progress' THEN r.lease_until <= ${NOW}
    WHEN 'released' THEN true
    ELSE r.expires_at <= ${NOW}
  END)`
const IS_ROW_OF = 'r.tenant_id = a.tenant_id AND r.key = a.key'
const IS_ATTEMPT = 'r.operation_id = a.operation_id AND r.attempt = a.attempt'
const IS_SEEN = 'r.operation_id = a.seen_operation_id AND r.attempt = a.seen_attempt'

/** What `recordOf` reads; `seen_operation_id` is null where there is no record. */
export const SEEN = `
  r.operation_id AS seen_operation_id, r.attempt AS seen_attempt,
  r.fingerprint AS seen_fingerprint, r.status, r.holder AS seen_holder,
  (extract(epoch FROM r.claimed_at) * 1000)::float8 AS claimed_at_ms,
  (extract(epoch FROM r.lease_until - ${NOW}) * 1000)::float8 AS lease_left_ms,
  (r.expires_at <= ${NOW})::int4 AS is_expired, r.status_code, r.headers::text AS headers,
  CASE WHEN octet_length(r.body) <= ${READ_ALONG_BYTES} THEN r.body END AS body,
  octet_length(r.body) AS body_bytes`

// A record that is there is read and not inserted: an insert would wait for a transaction that has
// updated it. Only an insert of the same key that is not committed yet is waited for. Rows are inserted
// in the order of their keys, so that two processes that insert the same keys do not deadlock.
const INSERT = `
WITH a AS MATERIALIZED (
  SELECT a.*, ${SEEN}
  FROM ${asked('tenant_id::text', 'key::text', 'operation_id::text', 'fingerprint::text', 'holder::text', 'lease_ms::float8', 'retention_ms::float8', 'handler::text', 'input::text')}
  LEFT JOIN idempotency_record r ON ${IS_ROW_OF}
), made AS (
  INSERT INTO idempotency_record
    (tenant_id, key, operation_id, attempt, fingerprint, status, holder, claimed_at, lease_until,
     expires_at, created_at, handler, input)
  SELECT tenant_id, key, operation_id, 1, fingerprint, 'in_progress', holder, ${NOW},
    ${NOW} + lease_ms * interval '1 millisecond',
    ${NOW} + retention_ms * interval '1 millisecond', ${NOW}, handler, to_jsonb(input)
  FROM a WHERE seen_operation_id IS NULL ORDER BY tenant_id, key
  ON CONFLICT (tenant_id, key) DO NOTHING
  RETURNING operation_id
)
SELECT a.i::int4 AS i, (made.operation_id IS NOT NULL)::int4 AS made, seen_operation_id,
  seen_attempt, seen_fingerprint, status, seen_holder, claimed_at_ms, lease_left_ms, is_expired,
  status_code, headers, body, body_bytes
FROM a LEFT JOIN made ON made.operation_id = a.operation_id`

// A row that another transaction has locked is skipped: it is about to change, or its holder stands
// still, and nothing may wait for that.
const TAKE_OVER = `
WITH a AS MATERIALIZED (
  SELECT * FROM ${asked('tenant_id::text', 'key::text', 'operation_id::text', 'fingerprint::text', 'holder::text', 'lease_ms::float8', 'retention_ms::float8', 'handler::text', 'input::text', 'seen_operation_id::text', 'seen_attempt::int4', 'resumed::bool', 'forced::bool')}
), locked AS MATERIALIZED (
  SELECT a.* FROM a JOIN idempotency_record r ON ${IS_ROW_OF} AND ${IS_SEEN}
  WHERE (${IS_FREE} OR a.forced AND r.status = 'in_progress')
    AND CASE WHEN a.resumed THEN r.status <> 'completed' AND r.fingerprint = a.fingerprint
      ELSE r.expires_at <= ${NOW} END
  FOR UPDATE OF r SKIP LOCKED
)
UPDATE idempotency_record r SET
  operation_id = CASE WHEN a.resumed THEN r.operation_id ELSE a.operation_id END,
  attempt = CASE WHEN a.resumed THEN r.attempt + 1 ELSE 1 END,
  status = 'in_progress', fingerprint = a.fingerprint, holder = a.holder, claimed_at = ${NOW},
  lease_until = ${NOW} + a.lease_ms * interval '1 millisecond',
  expires_at = ${NOW} + a.retention_ms * interval '1 millisecond',
  status_code = NULL, headers = NULL, body = NULL,
  steps = CASE WHEN a.resumed THEN r.steps END,
  handler = CASE WHEN a.resumed THEN r.handler ELSE a.handler END,
  input = CASE WHEN a.resumed THEN r.input ELSE to_jsonb(a.input) END
FROM locked a
WHERE ${IS_ROW_OF} AND ${IS_SEEN}
RETURNING a.i::int4 AS i, r.steps::text AS steps`

const READ_BODIES = `
SELECT a.i::int4 AS i, r.body
FROM ${asked('tenant_id::text', 'key::text', 'operation_id::text', 'attempt::int4')}
JOIN idempotency_record r ON ${IS_ROW_OF} AND ${IS_ATTEMPT} AND r.status = 'completed'`

// What was done step by step is of no use once there is a response: a retry gets that.
// A finish that is sent twice matches its own first writing and leaves it as it is, whatever it carries
// this time: what was stored may have been replayed.
const FINISH = `
UPDATE idempotency_record r SET
  status = a.status,
  status_code = CASE WHEN r.status = a.status THEN r.status_code ELSE a.status_code END,
  headers = CASE WHEN r.status = a.status THEN r.headers ELSE a.headers::jsonb END,
  body = CASE WHEN r.status = a.status THEN r.body ELSE decode(a.body, 'hex') END,
  steps = CASE WHEN a.status = 'released' THEN r.steps END,
  handler = CASE WHEN a.status = 'released' THEN r.handler END,
  input = CASE WHEN a.status = 'released' THEN r.input END
FROM ${asked('tenant_id::text', 'key::text', 'operation_id::text', 'attempt::int4', 'status::text', 'status_code::int4', 'headers::text', 'body::text')}
WHERE ${IS_ROW_OF} AND ${IS_ATTEMPT}
  AND r.status IN ('in_progress', a.status)
RETURNING a.i::int4 AS i`

const EXTEND = `
UPDATE idempotency_record r SET lease_until = ${NOW} + a.lease_ms * interval '1 millisecond'
FROM ${asked('tenant_id::text', 'key::text', 'operation_id::text', 'attempt::int4', 'lease_ms::float8')}
WHERE ${IS_ROW_OF} AND ${IS_ATTEMPT} AND r.status = 'in_progress'
RETURNING a.i::int4 AS i`

const KEEP_STEPS = `
UPDATE idempotency_record r SET steps = a.steps::jsonb
FROM ${asked('tenant_id::text', 'key::text', 'operation_id::text', 'attempt::int4', 'steps::text')}
WHERE ${IS_ROW_OF} AND ${IS_ATTEMPT} AND r.status = 'in_progress'
RETURNING a.i::int4 AS i`

const FORGET = `
DELETE FROM idempotency_record r
USING ${asked('tenant_id::text', 'key::text', 'operation_id::text', 'attempt::int4')}
WHERE ${IS_ROW_OF} AND ${IS_ATTEMPT} AND r.status = 'in_progress'
RETURNING a.i::int4 AS i`

// SKIP LOCKED: processes that prune at the same time share the work. A row that is being taken
// over is locked, and so is left alone.
const PRUNE = `
WITH doomed AS (
  SELECT tenant_id, key FROM idempotency_record r
  WHERE ${hasCome('r.expires_at')} AND ${IS_FREE}
  ORDER BY r.expires_at LIMIT $1::int4 FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM idempotency_record r USING doomed d
  WHERE r.tenant_id = d.tenant_id AND r.key = d.key RETURNING 1
)
SELECT count(*)::int4 AS count FROM gone`

// Numbers are read with Number(): an application may have told pg to leave them as text.
export interface RecordRow {
  seen_operation_id: string | null
  seen_attempt: number
  seen_fingerprint: string
  status: RecordStatus
  seen_holder: string | null
  claimed_at_ms: number | null
  lease_left_ms: number
  is_expired: number
  status_code: number | null
  headers: string | null
  body: Uint8Array | null
  body_bytes: number | null
}

interface InsertRow extends RecordRow {
  i: number
  made: number
}

// A conflict with a row that committed after the statement's snapshot was taken neither inserts
// nor sees it; the next statement does. A row can also be pruned in between, so this can repeat.
const MAX_LOOKS = 10

/** One statement for each verb, whatever the length of its list. */
export function postgresStore(runOnce: RunStatement): Store {
  const run = sayingAgain(runOnce)
  const matched = <I extends RecordKey>(
    name: string,
    text: string,
    items: readonly I[],
    columnsOf: (items: readonly I[]) => readonly unknown[],
  ) => matchedItems(run, name, text, items, { compare, columnsOf })

  async function takeOver(asks: readonly TakeOver[]): Promise<(Taken | undefined)[]> {
    const rows = await matchedRows(run, 'fi_take_over', TAKE_OVER, asks, {
      compare,
      columnsOf: (list: readonly TakeOver[]) => [
        ...wanted(list),
        list.map(({ seen }) => seen.operationId),
        list.map(({ seen }) => seen.attempt),
        list.map(({ resumed }) => resumed),
        list.map(({ forced }) => forced ?? false),
      ],
    })
    return (rows as readonly ({ steps: string | null } | undefined)[]).map(
      (row) => row && { steps: row.steps === null ? {} : JSON.parse(row.steps) },
    )
  }

  async function insert(asks: readonly Ask[], looks = MAX_LOOKS): Promise<Inserted[]> {
    const values = [...wanted(asks), lockTimeoutFor(asks)]
    const rows = (await run('fi_insert', INSERT, values)) as readonly InsertRow[]
    const result = new Array<Inserted | undefined>(asks.length)
    for (const row of rows) {
      const place = row.i - 1
      if (Number(row.made) === 1) result[place] = { kind: 'made' }
      else if (row.seen_operation_id !== null) {
        result[place] = { kind: 'seen', record: recordOf(row) }
      }
    }
    const unseen = asks.flatMap((ask, i) => (result[i] === undefined ? [{ ask, i }] : []))
    if (unseen.length > 0) {
      if (looks === 1) throw new Error('a record neither could be inserted nor was found')
      const again = await insert(
        unseen.map(({ ask }) => ask),
        looks - 1,
      )
      for (const [n, { i }] of unseen.entries()) result[i] = again[n]
    }
    return result as Inserted[]
  }

  return {
    combinesLists: true,
    insert: (asks) => insert(asks),
    takeOver,
    async readBodies(list) {
      const rows = await matchedRows(run, 'fi_read_bodies', READ_BODIES, list, {
        compare,
        columnsOf: holds,
      })
      return (rows as readonly ({ body: Uint8Array } | undefined)[]).map((row) => row?.body)
    },
    finish: (finishes) =>
      matched('fi_finish', FINISH, finishes, (list) => [
        ...holds(list),
        list.map(({ response }) => (response === null ? 'released' : 'completed')),
        list.map(({ response }) => response?.statusCode ?? null),
        list.map(({ response }) => response && JSON.stringify(response.headers)),
        list.map(({ response }) => (response?.body ? hex(response.body) : null)),
      ]),
    extend: (extends_) =>
      matched('fi_extend', EXTEND, extends_, (list) => [
        ...holds(list),
        list.map(({ leaseMs }) => leaseMs),
      ]),
    keepSteps: (list) =>
      matched('fi_keep_steps', KEEP_STEPS, list, (items) => [
        ...holds(items),
        items.map(({ steps }) => JSON.stringify(steps)),
      ]),
    forget: (list) => matched('fi_forget', FORGET, list, holds),
    async prune(limit) {
      const [row] = (await run('fi_prune', PRUNE, [limit])) as readonly { count: number }[]
      return Number(row?.count ?? 0)
    },
  }
}

function compare(a: RecordKey, b: RecordKey): number {
  if (a.tenantId !== b.tenantId) return a.tenantId < b.tenantId ? -1 : 1
  return a.key < b.key ? -1 : a.key > b.key ? 1 : 0
}

function keys(list: readonly RecordKey[]): unknown[] {
  return [list.map(({ tenantId }) => tenantId), list.map(({ key }) => key)]
}

function holds(list: readonly Hold[]): unknown[] {
  return [
    ...keys(list),
    list.map(({ operationId }) => operationId),
    list.map(({ attempt }) => attempt),
  ]
}

function wanted(list: readonly Ask[]): unknown[] {
  return [
    ...keys(list),
    list.map(({ operationId }) => operationId),
    list.map(({ fingerprint }) => fingerprint),
    list.map(({ holder }) => holder ?? null),
    list.map(({ leaseMs }) => leaseMs),
    list.map(({ retentionMs }) => retentionMs),
    list.map(({ recovery }) => recovery?.handler ?? null),
    list.map(({ recovery }) => recovery?.input ?? null),
  ]
}

// As text: no two drivers send an array of bytes objects in the same way.
export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex')
}

export function recordOf(row: RecordRow): SeenRecord {
  const bodyBytes = row.body_bytes === null ? 0 : Number(row.body_bytes)
  return {
    operationId: row.seen_operation_id as string,
    attempt: Number(row.seen_attempt),
    fingerprint: row.seen_fingerprint,
    status: row.status,
    holder: row.seen_holder ?? undefined,
    since: row.claimed_at_ms === null ? undefined : new Date(Number(row.claimed_at_ms)),
    leaseLeftMs: Number(row.lease_left_ms),
    isExpired: Number(row.is_expired) === 1,
    response:
      row.status === 'completed' && row.status_code !== null
        ? {
            statusCode: Number(row.status_code),
            headers: JSON.parse(row.headers ?? '{}'),
            body: row.body,
          }
        : null,
    unreadBodyBytes: row.body === null ? bodyBytes : 0,
  }
}
