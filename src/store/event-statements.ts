// What the inbox says to PostgreSQL: one statement a verb of `EventStore`.
import { KEPT_DELIVERIES, KEPT_ERRORS, NOT_ENDED } from '../core/event.js'
import { asked, hasCome, NOW, NOW_ONCE, WAITS_BRIEFLY } from './statements.js'

// Cut off, not rounded: what is due now must not be due in half a millisecond.
const fromNow = (ms: string) =>
  `date_trunc('milliseconds', ${NOW} + ${ms} * interval '1 millisecond')`
const ISO_NOW = `to_char(${NOW}, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`
// As numbers: drivers read a `timestamp` in the time zone they believe in.
const msOf = (column: string) => `(extract(epoch FROM ${column}) * 1000)::float8`
const DUE_IN_MS = `(extract(epoch FROM e.due_at - ${NOW}) * 1000)::float8`

const WHOLE_ROW = `
  e.id, e.tenant_id, e.provider, e.event_id, e.endpoint, e.type, e.status, e.fence, e.attempts,
  e.deferrals, e.deliveries, e.delivered_at::text AS delivered_at, e.payload,
  e.headers::text AS headers, e.body_hash, e.same_body_as, e.other_bodies,
  e.awaits_delivery::text AS awaits_delivery, e.lane, e.steps::text AS steps,
  e.errors::text AS errors, ${msOf('e.received_at')} AS received_at`

// What makes a run of a row. The lane is unique among the rows that run.
// A run that is followed by another one while it is still processing has left no word.
const STARTS = `status = 'processing', fence = e.fence + 1, attempts = e.attempts + 1,
    running_lane = e.lane, errors = CASE WHEN e.status = 'processing' THEN jsonb_path_query_array(
      e.errors || jsonb_build_object('attempt', e.fence, 'at', ${ISO_NOW}, 'message', '${NOT_ENDED}'),
      '$[last - ${KEPT_ERRORS - 1} to last]') ELSE e.errors END`

// A crashed run keeps its lane until the same event is run again: nothing else may pass it.
const LANE_IS_RUN_BY_ANOTHER = `EXISTS (
    SELECT FROM webhook_event o WHERE o.running_lane = e.lane AND o.id <> e.id)`

// Whether an event can run is asked of the clock: a lease that has run out holds nothing.
const CAN_RUN = `(
  CASE e.status
    WHEN 'processing' THEN e.due_at <= ${NOW}
    ELSE e.status IN ('received', 'retrying')
  END)`

// Rows are inserted in the order of their names, so that two processes that record the same events
// wait for each other but seldom in a circle; a lane can still make one, which is told and said
// again. A row that is known takes no lane and is not compared with others, nor is one without a body.
//
// The look for the same body must be served by the index on it. Without statistics, the planner would
// as soon search the unique key by its first two columns, and so read every event of the provider:
// written as expressions, they cannot be searched for.
export const RECORD = `
WITH a AS MATERIALIZED (
  SELECT a.*, EXISTS (
    SELECT FROM webhook_event e
    WHERE e.tenant_id = a.tenant_id AND e.provider = a.provider AND e.event_id = a.event_id
  ) AS is_known
  FROM ${asked(
    ...(['id::text', 'tenant_id::text', 'provider::text', 'event_id::text'] as const),
    ...(['endpoint::text', 'type::text', 'payload::text', 'headers::text'] as const),
    ...(['body_hash::text', 'lane::text', 'status::text', 'due_ms::float8'] as const),
    ...(['awaits_delivery::boolean', 'errors::text', 'deliveries::int4'] as const),
  )}
), b AS (
  SELECT a.*,
    a.status = 'processing' AND (a.lane IS NULL OR NOT (
      EXISTS (SELECT FROM webhook_event e WHERE e.running_lane = a.lane)
      OR EXISTS (
        SELECT FROM a before WHERE before.lane = a.lane AND before.i < a.i
          AND before.status = 'processing' AND NOT before.is_known)
    )) AS starts,
    CASE WHEN NOT a.is_known AND a.payload <> '' THEN coalesce(
      (
        SELECT e.id FROM webhook_event e
        WHERE e.body_hash = a.body_hash
          AND e.tenant_id || '' = a.tenant_id AND e.provider || '' = a.provider
          AND (e.event_id = a.event_id) IS NOT TRUE
        LIMIT 1
      ), (
        SELECT before.id FROM a before
        WHERE before.tenant_id = a.tenant_id AND before.provider = a.provider
          AND before.body_hash = a.body_hash AND before.i < a.i AND NOT before.is_known
        LIMIT 1
      )
    ) END AS same_body_as
  FROM a
)
INSERT INTO webhook_event AS e
  (id, tenant_id, provider, event_id, endpoint, type, status, fence, attempts, deferrals, due_at,
   deliveries, delivered_at, payload, headers, body_hash, same_body_as, awaits_delivery, lane,
   running_lane, steps, errors, received_at)
SELECT id, tenant_id, provider, event_id, endpoint, type,
  CASE WHEN status = 'processing' AND NOT starts THEN 'received' ELSE status END,
  starts::int4, starts::int4, 0, ${fromNow('due_ms')},
  deliveries, to_jsonb(array_fill(${ISO_NOW}, ARRAY[least(deliveries, ${KEPT_DELIVERIES})])),
  decode(payload, 'base64'), headers::jsonb, body_hash, same_body_as, awaits_delivery, lane,
  CASE WHEN starts THEN lane END, '{}', errors::jsonb, ${fromNow('0')}
FROM b ORDER BY tenant_id, provider, event_id
ON CONFLICT (tenant_id, provider, event_id) DO UPDATE SET
  deliveries = e.deliveries + excluded.deliveries,
  delivered_at = jsonb_path_query_array(
    e.delivered_at || excluded.delivered_at, '$[last - ${KEPT_DELIVERIES - 1} to last]'),
  other_bodies = e.other_bodies
    + CASE WHEN e.body_hash = excluded.body_hash THEN 0 ELSE excluded.deliveries END,
  awaits_delivery = e.awaits_delivery AND excluded.awaits_delivery,
  due_at = CASE
    WHEN e.status = 'retrying' AND NOT excluded.awaits_delivery THEN coalesce(e.due_at, excluded.due_at)
    ELSE e.due_at END
RETURNING e.id, e.tenant_id, e.provider, e.event_id, e.status, e.fence, e.attempts, e.deliveries,
  ${DUE_IN_MS} AS due_in_ms, e.body_hash, e.same_body_as, ${msOf('e.received_at')} AS received_at`

// So many of those that are due are looked at by one statement: a few times what a process claims at
// once, because others claim at the same time, and lanes are held.
export const HEAD = 64

const IS_OPEN = `e.status = ANY ((SELECT '{received,retrying,processing}'::text[])::text[])`

// Of a lane, the event that is due first stands for all, and its crashed run before that. Where many
// of one lane are at the head, they fill it: the next look leaves their lane out ($3).
//
// The index is walked row by row, each step the one row after the last. Asked for all at once, a
// planner that has no statistics, or old ones, would rather fetch and sort everything that is due,
// for each claim again while a backlog is worked off.
//
// CASE hides from it how few rows it should expect to pass, which would have the same effect.
const nextDue = (after: string) => `
  SELECT e.id, e.fence, e.lane, e.running_lane, e.due_at FROM webhook_event e
  WHERE ${after} AND e.due_at <= ${NOW_ONCE}
    AND CASE WHEN ${IS_OPEN}
      AND e.endpoint = ANY ((SELECT $2::text[])::text[])
      AND (e.lane IS NULL OR e.running_lane IS NOT NULL
        OR e.lane <> ALL ((SELECT $3::text[])::text[]))
    THEN true ELSE false END
  ORDER BY e.due_at, e.id LIMIT 1`
const head = (more: string) => `
RECURSIVE head AS (
  (SELECT e.*, 1 AS place FROM (${nextDue(`e.due_at > '-infinity'${more}`)}) AS e)
  UNION ALL
  SELECT e.*, head.place + 1
  FROM head CROSS JOIN LATERAL (${nextDue(`(e.due_at, e.id) > (head.due_at, head.id)${more}`)}) AS e
  WHERE head.place < ${HEAD}
), free AS MATERIALIZED (
  SELECT e.id, e.fence, e.due_at FROM (
    SELECT *, row_number() OVER (PARTITION BY lane ORDER BY due_at, id) AS n
    FROM head
  ) AS e
  WHERE e.n = e.n + (SELECT 0) AND (e.lane IS NULL OR e.running_lane IS NOT NULL OR (
    e.n = 1 AND NOT ${LANE_IS_RUN_BY_ANOTHER}
  ))
)`
const LOOK = `
  (SELECT count(*) FROM head)::int4 AS seen,
  (SELECT json_agg(DISTINCT lane) FROM head WHERE lane IS NOT NULL)::text AS lanes`
// Told once, not with each row.
const lookOf = (order: string) =>
  `look.seen, CASE WHEN row_number() OVER (ORDER BY ${order}) = 1 THEN look.lanes END AS lanes`

// SKIP LOCKED: those who claim at the same time share the work. What somebody claimed since `head`
// was read is no longer due, as it is once it is locked.
export const CLAIM_DUE = `
WITH ${head('')}, due AS MATERIALIZED (
  SELECT e.id FROM free JOIN webhook_event e ON e.id = free.id
  WHERE e.due_at <= ${NOW_ONCE} AND ${IS_OPEN}
  ORDER BY free.due_at LIMIT (SELECT $1::int4) FOR UPDATE OF e SKIP LOCKED
), claimed AS (
  UPDATE webhook_event e SET ${STARTS}, due_at = ${fromNow(`(
    SELECT max(lease_ms) FROM unnest($2::text[], $4::float8[]) AS served(endpoint, lease_ms)
    WHERE served.endpoint = e.endpoint)`)}
  FROM due WHERE e.id = due.id
  RETURNING array_position(ARRAY(SELECT id FROM due), e.id) AS i, ${WHOLE_ROW}
)
SELECT claimed.*, ${lookOf('claimed.i')}
FROM (SELECT ${LOOK}) AS look LEFT JOIN claimed ON true
ORDER BY claimed.i`

export const LIST_DUE = `
WITH ${head(' AND e.id <> ALL ((SELECT $4::text[])::text[])')}
SELECT listed.*, ${lookOf('listed.due_at')}
FROM (SELECT ${LOOK}) AS look
LEFT JOIN (SELECT id, fence, due_at FROM free ORDER BY due_at LIMIT (SELECT $1::int4)) AS listed
  ON true
ORDER BY listed.due_at`

export const CLAIM = `
UPDATE webhook_event e SET ${STARTS}, due_at = ${fromNow('(SELECT $2::float8)')}
WHERE e.id = (SELECT $1::text WHERE ${WAITS_BRIEFLY}) AND ${CAN_RUN}
  AND (e.lane IS NULL OR NOT ${LANE_IS_RUN_BY_ANOTHER})
RETURNING ${WHOLE_ROW}`

// An end that is said twice matches its own first writing: the fence names one run, and a run ends
// in one way. Those that are woken are locked in the order of their ids; the second look, at the
// row as it is once it is locked, leaves alone what has been claimed meanwhile. To be woken is not to
// have waited in vain: it takes back one deferral.
export const END = `
WITH ended AS (
  UPDATE webhook_event e SET
    status = a.status, attempts = a.attempts,
    awaits_delivery = e.awaits_delivery AND NOT a.is_acknowledged,
    due_at = CASE
      WHEN a.status = 'retrying' AND e.awaits_delivery AND NOT a.is_acknowledged THEN NULL
      ELSE ${fromNow('a.due_ms')} END,
    deferrals = a.deferrals, errors = a.errors::jsonb, running_lane = NULL
  FROM ${asked(
    ...(['id::text', 'fence::int4', 'status::text', 'is_acknowledged::boolean'] as const),
    ...(['due_ms::float8', 'attempts::int4', 'deferrals::int4', 'errors::text'] as const),
    'wakes::text',
  )}
  WHERE e.id = a.id AND e.fence = a.fence AND e.status IN ('processing', a.status)
  RETURNING a.i, a.wakes
), waiting AS MATERIALIZED (
  SELECT e.id FROM ended JOIN webhook_event e ON e.lane = ended.wakes
  WHERE e.status IN ('received', 'retrying') AND e.due_at > ${NOW_ONCE}
    AND (e.status = 'received' OR e.deferrals > 0)
  ORDER BY e.id FOR UPDATE OF e
), woken AS (
  UPDATE webhook_event e SET
    due_at = ${fromNow('0')}, deferrals = greatest(e.deferrals - 1, least(e.deferrals, 1))
  FROM waiting WHERE e.id = waiting.id
)
SELECT i::int4 AS i FROM ended`

export const EXTEND = `
UPDATE webhook_event e SET due_at = ${fromNow('a.lease_ms')}
FROM ${asked('id::text', 'fence::int4', 'lease_ms::float8')}
WHERE e.id = a.id AND e.fence = a.fence AND e.status = 'processing'
RETURNING a.i::int4 AS i`

export const KEEP_STEPS = `
UPDATE webhook_event e SET steps = a.steps::jsonb
FROM ${asked('id::text', 'fence::int4', 'steps::text')}
WHERE e.id = a.id AND e.fence = a.fence AND e.status = 'processing'
RETURNING a.i::int4 AS i`

export const FIND = `SELECT ${WHOLE_ROW} FROM webhook_event e WHERE e.id = (SELECT $1::text)`

export const FIND_BY_NAME = `
SELECT ${WHOLE_ROW} FROM webhook_event e
WHERE e.tenant_id = (SELECT $1::text) AND e.provider = (SELECT $2::text)
  AND e.event_id = (SELECT $3::text)`

// The fence goes on from where it was: a run that is still on its way somewhere cannot write.
export const REOPEN = `
UPDATE webhook_event e SET
  status = 'received', attempts = 0, deferrals = 0, due_at = ${fromNow('0')}, running_lane = NULL,
  awaits_delivery = false, lane = coalesce($3::text, e.lane),
  steps = CASE WHEN e.status = 'processed' THEN '{}' ELSE e.steps END
WHERE e.id = (SELECT $1::text WHERE ${WAITS_BRIEFLY}) AND (
  CASE e.status
    WHEN 'processing' THEN e.due_at <= ${NOW}
    WHEN 'processed' THEN $2::boolean
    ELSE true
  END)
RETURNING 1 AS reopened`

export const PRUNE = `
WITH doomed AS MATERIALIZED (
  SELECT e.id FROM webhook_event e
  WHERE ${hasCome('e.due_at')}
    AND e.status = ANY ((SELECT '{processed,ignored}'::text[])::text[])
  ORDER BY e.due_at LIMIT (SELECT $1::int4) FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM webhook_event e USING doomed WHERE e.id = doomed.id RETURNING 1
)
SELECT count(*)::int4 AS count FROM gone`
