// What the statements of src/store/postgres.ts do in the model database, found by their names. All that
// surrounds the statements in that file runs as it is. The contract of stores (test/contracts/store.ts)
// holds the whole to the same promises as on a real database.
import type { RecordStatus } from '../../src/core/record.js'
import type { RunStatement } from '../../src/store/statements.js'
import { inAnyOrder } from './any-order.js'
import { DatabaseError } from './database-error.js'
import type { ModelDatabase, Statement } from './model-database.js'
import { EVENT_STATEMENTS, type EventItem } from './model-event-statements.js'
import { EMPTY, nameOf, type Row } from './model-rows.js'

/** Sends one statement to the database. */
export type Send = <T>(
  what: readonly [verb: string, ...about: readonly unknown[]],
  statement: Statement<T>,
) => Promise<T>

/** One item of a list, with the columns that its statement has; each statement reads its own. */
interface Item {
  /** Its place in the list, from 1. */
  readonly i: number
  readonly tenant_id: string
  readonly key: string
  readonly operation_id: string
  readonly attempt: number
  readonly seen_operation_id: string
  readonly seen_attempt: number
  readonly fingerprint: string
  readonly lease_ms: number
  readonly retention_ms: number
  readonly handler: string | null
  readonly input: string | null
  readonly holder: string | null
  readonly resumed: boolean
  readonly forced: boolean
  readonly status: RecordStatus
  readonly status_code: number | null
  readonly headers: string | null
  readonly body: string | null
  readonly steps: string
}

type Rows = readonly object[]

const STATEMENTS: Record<
  string,
  (items: readonly Item[], values: readonly unknown[]) => Statement<Rows>
> = {
  fi_insert: (items) =>
    function* (transaction, database) {
      const { records } = database
      // What a statement reads is what was committed when it began.
      const before = items.map((item) => records.see(nameOf(keyOf(item))))
      const made = new Set<string>()
      const absent = items.filter((_, n) => before[n] === undefined)
      for (const item of inAnyOrderOfKeys(absent)) {
        const row = newRow(item, database)
        if (yield* records.insert(transaction, row)) made.add(row.operationId)
      }
      return items.map((item, n) => ({
        i: item.i,
        made: Number(made.has(item.operation_id)),
        ...shown(before[n], database),
      }))
    },

  fi_take_over: (items) =>
    writeEach(
      items,
      (row, item, database) =>
        row.operationId === item.seen_operation_id &&
        row.attempt === item.seen_attempt &&
        (isFree(row, database) || (item.forced && row.status === 'in_progress')) &&
        isMeant(item, row, database),
      (row, item, database) => {
        const anew = newRow(item, database)
        const { chain, createdAt, steps, handler, input } = row
        if (!item.resumed) return { ...anew, chain, createdAt }
        const { operationId, attempt } = row
        const token = { operationId, attempt: attempt + 1 }
        return { ...anew, chain, createdAt, ...token, steps, handler, input }
      },
      {
        isLockedSkipped: true,
        returning: ({ steps }) => ({ steps: steps && JSON.stringify(steps) }),
      },
    ),

  fi_read_bodies: (items) =>
    function* (_, { records }) {
      return items.flatMap((item) => {
        const row = records.see(nameOf(keyOf(item)))
        const isIt = row !== undefined && isAttempt(row, item) && row.status === 'completed'
        return isIt ? [{ i: item.i, body: row.body }] : []
      })
    },

  fi_finish: (items) =>
    writeEach(
      items,
      (row, item) =>
        isAttempt(row, item) && (row.status === 'in_progress' || row.status === item.status),
      (row, { status, status_code, headers, body }) => {
        if (row.status === status) return row
        const { steps, handler, input } = status === 'released' ? row : EMPTY
        return {
          ...row,
          ...{ status, steps, handler, input, statusCode: status_code },
          headers: headers === null ? null : JSON.parse(headers),
          body: body === null ? null : Buffer.from(body, 'hex'),
        }
      },
    ),

  fi_extend: (items) =>
    writeEach(items, isHeldBy, (row, { lease_ms }, database) => ({
      ...row,
      leaseUntil: database.later(lease_ms),
    })),

  fi_keep_steps: (items) =>
    writeEach(items, isHeldBy, (row, { steps }) => ({ ...row, steps: JSON.parse(steps) })),

  fi_forget: (items) => writeEach(items, isHeldBy, () => undefined),

  fi_prune: (_, [limit]) =>
    function* (transaction, database) {
      const { records } = database
      const isDoomed = (row: Row) => row.expiresAt <= database.now() && isFree(row, database)
      let count = 0
      for (const row of [...records.rows]) {
        const name = nameOf(row)
        // SKIP LOCKED
        if (count === limit || !isDoomed(row) || database.isLocked(name)) continue
        yield name
        records.delete(transaction, name)
        count += 1
      }
      return [{ count }]
    },
}

/** A statement of the library's own, by its name. */
export function modelStatement(
  name: string,
  text: string,
  values: readonly unknown[],
): { what: Parameters<Send>[0]; statement: Statement<Rows> } {
  const items = itemsOf<Item>(text, values)
  if (items.some(isRefused)) return { what: [name, items], statement: refused }
  const ofEvents = EVENT_STATEMENTS[name]
  if (ofEvents !== undefined) {
    const events = items as unknown as readonly EventItem[]
    const what = events.length > 0 ? events : values
    return { what: [name, what], statement: ofEvents(events, values) }
  }
  const ofRecords = STATEMENTS[name]
  if (ofRecords === undefined) throw new TypeError(`the model has no statement ${name}`)
  return { what: [name, items], statement: ofRecords(items, values) }
}

/** How long a statement over a list waits for a lock: what stands behind its columns. */
export function lockLimit(text: string, values: readonly unknown[]) {
  const count = columnsOf(text).length
  if (count === 0 || values[count] === undefined) return undefined
  return { ms: Number(values[count]), code: '55P03' } as const
}

/** Runs the statements of a PostgreSQL store on the model database, with nothing on the way. */
export function modelStatements(send: Send): RunStatement {
  return (name, text, values) => {
    const { what, statement } = modelStatement(name, text, values)
    return send(what, statement)
  }
}

/** No text may have a NUL in it, and so no statement that carries one is executed. */
export function isRefused({
  fingerprint,
  headers,
}: {
  fingerprint?: string
  headers?: string | null
}): boolean {
  return fingerprint?.includes('\0') || headers?.includes('\\u0000') === true
}

// biome-ignore lint/correctness/useYield: it comes to nothing
function* refused(): Generator<never, never, undefined> {
  throw new DatabaseError('22021')
}

const columnsOfText = new Map<string, readonly string[]>()

function columnsOf(text: string): readonly string[] {
  const known = columnsOfText.get(text)
  if (known !== undefined) return known
  const columns = /AS items\((.*), i\)/.exec(text)?.[1]?.split(', ') ?? []
  columnsOfText.set(text, columns)
  return columns
}

/** The list that a statement carries, read by the names of its columns. */
function itemsOf<I>(text: string, values: readonly unknown[]): I[] {
  const columns = columnsOf(text)
  if (columns.length === 0) return []
  const [first] = values as readonly (readonly unknown[])[]
  return (first as readonly unknown[]).map((_, n) => {
    const item: Record<string, unknown> = { i: n + 1 }
    for (const [c, column] of columns.entries()) {
      item[column] = (values[c] as readonly unknown[])[n]
    }
    return item as I
  })
}

interface WriteOptions {
  /** FOR UPDATE … SKIP LOCKED: what another transaction has locked is left alone. */
  readonly isLockedSkipped?: boolean
  readonly returning?: (row: Row) => object
}

/**
 * UPDATE … FROM the list, or DELETE … USING it: the rows in the order of the list, each locked, looked at
 * again and written. A row that several items name is written once, by any one of those whose guard
 * matches, and only that one's place comes back.
 */
function writeEach(
  items: readonly Item[],
  guard: (row: Row, item: Item, database: ModelDatabase) => boolean,
  /** The row as it becomes; `undefined` deletes it. */
  write: (row: Row, item: Item, database: ModelDatabase) => Row | undefined,
  { isLockedSkipped = false, returning = () => ({}) }: WriteOptions = {},
): Statement<Rows> {
  return function* (transaction, database) {
    const { records } = database
    database.watch?.listed(items.map((item) => nameOf(keyOf(item))))
    const matching = new Map<string, { readonly seen: Row; readonly items: Item[] }>()
    for (const item of items) {
      const name = nameOf(keyOf(item))
      const seen = records.see(name)
      if (seen === undefined || !guard(seen, item, database)) continue
      const known = matching.get(name)
      if (known) known.items.push(item)
      else matching.set(name, { seen, items: [item] })
    }
    const returned: object[] = []
    for (const [name, { seen, items }] of matching) {
      if (isLockedSkipped && database.isLocked(name)) continue
      for (const item of inAnyOrder(items)) {
        const isMatch = (row: Row) => guard(row, item, database)
        const row = yield* records.lockedIf(transaction, name, isMatch, seen)
        if (row === undefined) continue
        const after = write(row, item, database)
        if (after === undefined) records.delete(transaction, name)
        else yield* records.put(transaction, after)
        returned.push({ i: item.i, ...returning(after ?? row) })
        break
      }
    }
    return returned
  }
}

function keyOf({ tenant_id, key }: Item) {
  return { tenantId: tenant_id, key }
}

function newRow(item: Item, database: ModelDatabase): Row {
  const { operation_id, fingerprint, holder, handler, input, lease_ms, retention_ms } = item
  return {
    ...EMPTY,
    chain: database.records.newChain(),
    ...keyOf(item),
    ...{ fingerprint, holder, claimedAt: database.now(), handler, input },
    ...{ operationId: operation_id, attempt: 1 },
    ...{ status: 'in_progress', createdAt: database.now() },
    leaseUntil: database.later(lease_ms),
    expiresAt: database.later(retention_ms),
  }
}

export function isFree(row: Row, database: ModelDatabase): boolean {
  if (row.status === 'released') return true
  return (row.status === 'in_progress' ? row.leaseUntil : row.expiresAt) <= database.now()
}

function isMeant({ resumed, fingerprint }: Item, row: Row, database: ModelDatabase): boolean {
  if (!resumed) return row.expiresAt <= database.now()
  return row.status !== 'completed' && row.fingerprint === fingerprint
}

function isAttempt(row: Row, { operation_id, attempt }: Item): boolean {
  return row.operationId === operation_id && row.attempt === attempt
}

function isHeldBy(row: Row, item: Item): boolean {
  return isAttempt(row, item) && row.status === 'in_progress'
}

/** A body of so many bytes is large here, and read by a statement of its own. */
const LARGE_BYTES = 64

/** What a statement returns of a row that it has seen, or of none. */
export function shown(row: Row | undefined, database: ModelDatabase): object {
  if (row === undefined) return { seen_operation_id: null }
  const { operationId, attempt, fingerprint, status, statusCode, headers, body } = row
  return {
    ...{ seen_operation_id: operationId, seen_attempt: attempt, seen_fingerprint: fingerprint },
    ...{ status, status_code: statusCode, headers: headers && JSON.stringify(headers) },
    ...{ seen_holder: row.holder, claimed_at_ms: row.claimedAt?.getTime() ?? null },
    lease_left_ms: row.leaseUntil.getTime() - database.now().getTime(),
    is_expired: Number(row.expiresAt <= database.now()),
    body: body && body.byteLength > LARGE_BYTES ? null : body,
    body_bytes: body?.byteLength ?? null,
  }
}

/** ORDER BY tenant_id, key: of two that are equal, either may come first. */
function inAnyOrderOfKeys(items: readonly Item[]): readonly Item[] {
  if (items.length === 1) return items
  const name = (item: Item) => nameOf(keyOf(item))
  return inAnyOrder(items).sort((a, b) => (name(a) < name(b) ? -1 : name(a) > name(b) ? 1 : 0))
}
