import type { RecordKey, RecordStatus, SeenRecord } from '../core/record.js'
import {
  asked,
  hasCome,
  matchedItems,
  matchedRows,
  NOW,
  type RunStatement,
  sayingAgain,
} from './statements.js'
import type { Ask, Hold, Inserted, Store, Taken, TakeOver } from './store.js'

export const LEASE_LEFT_MS = `(extract(epoch FROM r.lease_until - ${NOW}) * 1000)::float8`
export const IS_FREE = `(
  CASE r.status
    WHEN 'in_progress' THEN r.lease_until <= ${NOW}
    WHEN 'released' THEN true
    ELSE r.expires_at <= ${NOW}
  END)`
const IS_ROW_OF = 'r.tenant_id = a.tenant_id AND r.key = a.key'
const IS_HELD_BY = `${IS_ROW_OF} AND r.fence = a.fence AND r.status = 'in_progress'`

// Rows are inserted in the order of their keys, so that two processes that insert the same keys
// wait for each other but never in a circle.
const INSERT = `
WITH a AS (
  SELECT * FROM ${asked('tenant_id::text', 'key::text', 'fingerprint::text', 'lease_ms::float8', 'retention_ms::float8', 'handler::text', 'input::text')}
), made AS (
  INSERT INTO idempotency_record
    (tenant_id, key, fingerprint, status, fence, lease_until, expires_at, created_at, handler, input)
  SELECT tenant_id, key, fingerprint, 'in_progress', 1,
    ${NOW} + lease_ms * interval '1 millisecond',
    ${NOW} + retention_ms * interval '1 millisecond', ${NOW}, handler, to_jsonb(input)
  FROM a ORDER BY tenant_id, key
  ON CONFLICT (tenant_id, key) DO NOTHING
  RETURNING tenant_id, key
)
SELECT a.i::int4 AS i, (made.key IS NOT NULL)::int4 AS made,
  r.fingerprint, r.status, r.fence, ${LEASE_LEFT_MS} AS lease_left_ms,
  (r.expires_at <= ${NOW})::int4 AS is_expired, r.status_code, r.headers::text AS headers, r.body
FROM a
LEFT JOIN made ON made.tenant_id = a.tenant_id AND made.key = a.key
LEFT JOIN idempotency_record r ON ${IS_ROW_OF}`

// A key that was forgotten begins with fence 1 again, and a statement can be long on its way: what it
// has seen must be what is taken over, the same operation, or one whose time is over.
const TAKE_OVER = `
UPDATE idempotency_record r SET
  fence = r.fence + 1, status = 'in_progress', fingerprint = a.fingerprint,
  lease_until = ${NOW} + a.lease_ms * interval '1 millisecond',
  expires_at = ${NOW} + a.retention_ms * interval '1 millisecond',
  status_code = NULL, headers = NULL, body = NULL,
  steps = CASE WHEN a.resumed THEN r.steps END,
  handler = CASE WHEN a.resumed THEN r.handler ELSE a.handler END,
  input = CASE WHEN a.resumed THEN r.input ELSE to_jsonb(a.input) END
FROM ${asked('tenant_id::text', 'key::text', 'fence::int4', 'fingerprint::text', 'lease_ms::float8', 'retention_ms::float8', 'handler::text', 'input::text', 'resumed::bool')}
WHERE ${IS_ROW_OF} AND r.fence = a.fence AND ${IS_FREE}
  AND CASE WHEN a.resumed THEN r.fingerprint = a.fingerprint ELSE r.expires_at <= ${NOW} END
RETURNING a.i::int4 AS i, r.steps::text AS steps`

// What was done step by step is of no use once there is a response: a retry gets that.
// A finish that is said twice matches its own first writing: the fence names one claim, and a
// claim says one thing.
const FINISH = `
UPDATE idempotency_record r SET
  status = a.status, status_code = a.status_code, headers = a.headers::jsonb, body = decode(a.body, 'hex'),
  steps = CASE WHEN a.status = 'released' THEN r.steps END,
  handler = CASE WHEN a.status = 'released' THEN r.handler END,
  input = CASE WHEN a.status = 'released' THEN r.input END
FROM ${asked('tenant_id::text', 'key::text', 'fence::int4', 'status::text', 'status_code::int4', 'headers::text', 'body::text')}
WHERE ${IS_ROW_OF} AND r.fence = a.fence
  AND r.status IN ('in_progress', a.status)
RETURNING a.i::int4 AS i`

const EXTEND = `
UPDATE idempotency_record r SET lease_until = ${NOW} + a.lease_ms * interval '1 millisecond'
FROM ${asked('tenant_id::text', 'key::text', 'fence::int4', 'lease_ms::float8')}
WHERE ${IS_HELD_BY}
RETURNING a.i::int4 AS i`

const FORGET = `
DELETE FROM idempotency_record r
USING ${asked('tenant_id::text', 'key::text', 'fence::int4')}
WHERE ${IS_HELD_BY}
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
  fingerprint: string | null
  status: RecordStatus
  fence: number
  lease_left_ms: number
  is_expired: number
  status_code: number | null
  headers: string | null
  body: Uint8Array | null
}

interface InsertRow extends RecordRow {
  i: number
  made: number
}

// A conflict with a row that committed after the statement's snapshot was taken neither inserts
// nor sees it; the next statement does. A row can also be pruned in between, so this can repeat.
const LOOKS = 10

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
        ...holds(list),
        ...wanted(list),
        list.map((ask) => ask.resumed),
      ],
    })
    return (rows as readonly ({ steps: string | null } | undefined)[]).map(
      (row) => row && { steps: row.steps === null ? {} : JSON.parse(row.steps) },
    )
  }

  async function insert(asks: readonly Ask[], looks = LOOKS): Promise<Inserted[]> {
    const rows = (await run('fi_insert', INSERT, [
      ...keys(asks),
      ...wanted(asks),
    ])) as readonly InsertRow[]
    const result = new Array<Inserted | undefined>(asks.length)
    const made = new Set<string>()
    for (const row of [...rows].sort((a, b) => a.i - b.i)) {
      const place = row.i - 1
      const isMade = Number(row.made) === 1
      const { tenantId, key } = asks[place] as Ask
      const name = JSON.stringify([tenantId, key])
      // The same key twice in one list: the first one made it.
      if (isMade && !made.has(name)) result[place] = { kind: 'made' }
      else if (row.fingerprint !== null) result[place] = { kind: 'seen', record: recordOf(row) }
      if (isMade) made.add(name)
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

function keys(list: readonly { tenantId: string; key: string }[]): unknown[] {
  return [list.map(({ tenantId }) => tenantId), list.map(({ key }) => key)]
}

function holds(list: readonly Hold[]): unknown[] {
  return [...keys(list), list.map(({ fence }) => fence)]
}

function wanted(list: readonly Ask[]): unknown[] {
  return [
    list.map(({ fingerprint }) => fingerprint),
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
  return {
    fingerprint: row.fingerprint as string,
    status: row.status,
    fence: Number(row.fence),
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
  }
}
