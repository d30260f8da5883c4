import type {
  AttemptToken,
  RecordKey,
  RecordStatus,
  SeenRecord,
  StepResults,
  StoredResponse,
} from '../core/record.js'
import { isUniqueViolation, type PrismaClientLike } from './client.js'
import type { DatabaseClock } from './clock.js'
import { writeHeld } from './held-record.js'
import { sayingAgainEach } from './say-again.js'
import type { Ask, Extend, Finish, Hold, Inserted, Store, Taken, TakeOver } from './store.js'

interface Row {
  operationId: string
  attempt: number
  fingerprint: string
  status: RecordStatus
  holder: string | null
  claimedAt: Date | null
  leaseUntil: Date
  expiresAt: Date
  tenantId: string
  key: string
  statusCode: number | null
  headers: StoredResponse['headers'] | null
  body: Uint8Array | null
}

// On SQLite Prisma takes 999 parameters (498 keys) in one condition; on MariaDB the time of one
// delete grows with the square of its keys (12,000 of them took 18 s).
const KEYS_AT_A_TIME = 200

// Prisma writes no null into a JSON column without a value of the application's generated client.
const NOTHING = {}
const NOBODY = { handler: null, input: NOTHING }

// A row can be pruned between the constraint's answer and the look at it, and the next one too.
const MAX_LOOKS = 10

/**
 * The portable store: nothing but Prisma's own calls, for every database that Prisma reaches.
 * The unique constraint decides who was first; every later write is guarded in its `where`.
 */
export function prismaStore(client: PrismaClientLike, clock: DatabaseClock): Store {
  const records = sayingAgainEach(client.idempotencyRecord)

  async function insert(ask: Ask): Promise<Inserted> {
    const { tenantId, key, operationId, fingerprint } = ask
    for (let look = 1; ; look += 1) {
      // Read first: an insert would wait for a transaction that has updated the record.
      const row: Row | null = await records.findUnique({
        where: { tenantId_key: { tenantId, key } },
      })
      if (row !== null) {
        refuseOtherKey(row, ask)
        return { kind: 'seen', record: recordOf(row, await timeFor(row)) }
      }
      const now = await clock.estimate()
      try {
        await records.create({
          data: {
            tenantId,
            key,
            operationId,
            attempt: 1,
            fingerprint,
            status: 'in_progress',
            holder: ask.holder ?? null,
            claimedAt: now,
            leaseUntil: later(now, ask.leaseMs),
            expiresAt: later(now, ask.retentionMs),
            createdAt: now,
            ...ask.recovery,
          },
          select: { attempt: true },
        })
        return { kind: 'made' }
      } catch (error) {
        // Which constraint it was is not said reliably. The row under this key tells: none there
        // means that another constraint was hit, or that the row has just been pruned.
        if (!isUniqueViolation(error) || look === MAX_LOOKS) throw error
      }
    }
  }

  // An estimate is good enough to find a lease running; to take something over, ask.
  async function timeFor(row: Row): Promise<Date> {
    const estimate = await clock.estimate()
    return isFree(row, estimate) ? clock.ask() : estimate
  }

  async function takeOver(ask: TakeOver): Promise<Taken | undefined> {
    const now = await clock.ask()
    const { count } = await records.updateMany({
      where: {
        tenantId: ask.tenantId,
        key: ask.key,
        operationId: ask.seen.operationId,
        attempt: ask.seen.attempt,
        ...(ask.resumed ? { fingerprint: ask.fingerprint } : { expiresAt: { lte: now } }),
        OR: [
          { status: 'released' },
          { status: 'in_progress', ...(!ask.forced && { leaseUntil: { lte: now } }) },
          ...(ask.resumed ? [] : [{ status: 'completed', expiresAt: { lte: now } }]),
        ],
      },
      data: {
        ...(ask.resumed
          ? { attempt: { increment: 1 } }
          : { operationId: ask.operationId, attempt: 1 }),
        fingerprint: ask.fingerprint,
        status: 'in_progress',
        holder: ask.holder ?? null,
        claimedAt: now,
        leaseUntil: later(now, ask.leaseMs),
        expiresAt: later(now, ask.retentionMs),
        statusCode: null,
        body: null,
        ...(!ask.resumed && { steps: NOTHING, ...(ask.recovery ?? NOBODY) }),
      },
    })
    if (count === 0) return undefined
    if (!ask.resumed) return { steps: {} }
    // From now on nobody else can add to them.
    const row: (AttemptToken & { steps: StepResults | null }) | null = await records.findUnique({
      where: { tenantId_key: { tenantId: ask.tenantId, key: ask.key } },
      select: { operationId: true, attempt: true, steps: true },
    })
    const { operationId, attempt } = ask.seen
    const isTaken = row?.operationId === operationId && row.attempt === attempt + 1
    return isTaken ? { steps: row.steps ?? {} } : undefined
  }

  async function readBody(hold: Hold): Promise<Uint8Array | undefined> {
    const row: Pick<Row, 'body'> | null = await records.findFirst({
      where: { ...attemptOf(hold), status: 'completed' },
      select: { body: true },
    })
    return row?.body ?? undefined
  }

  async function finish({ response, ...hold }: Finish): Promise<boolean> {
    const status = response === null ? 'released' : 'completed'
    const { count } = await records.updateMany({
      where: heldBy(hold),
      data: {
        status,
        ...(response && { ...response, steps: NOTHING, ...NOBODY }),
      },
    })
    if (count === 1) return true
    // Sent twice, it has ended already: what was stored first may have been replayed.
    const where = { ...attemptOf(hold), status }
    return (await records.findFirst({ where, select: { attempt: true } })) !== null
  }

  async function extend({ leaseMs, ...hold }: Extend): Promise<boolean> {
    const leaseUntil = later(await clock.ask(), leaseMs)
    // One that was long on its way must not take back what a later one has given.
    const { count } = await records.updateMany({
      where: { ...heldBy(hold), leaseUntil: { lt: leaseUntil } },
      data: { leaseUntil },
    })
    if (count === 1) return true
    return (await records.findFirst({ where: heldBy(hold), select: { attempt: true } })) !== null
  }

  async function forget(hold: Hold): Promise<boolean> {
    const { count } = await records.deleteMany({ where: heldBy(hold) })
    return count === 1
  }

  return {
    combinesLists: false,
    insert: each(insert),
    takeOver: each(takeOver),
    readBodies: each(readBody),
    finish: each(finish),
    extend: each(extend),
    keepSteps: each(({ steps, ...hold }) =>
      writeHeld({ idempotencyRecord: records }, hold, { steps }),
    ),
    forget: each(forget),
    async prune(limit) {
      const now = await clock.ask()
      const isDoomed = {
        expiresAt: { lte: now },
        OR: [{ status: { not: 'in_progress' } }, { leaseUntil: { lte: now } }],
      }
      const found: Pick<Row, 'tenantId' | 'key'>[] = await records.findMany({
        where: isDoomed,
        select: { tenantId: true, key: true },
        orderBy: { expiresAt: 'asc' },
        take: limit,
      })
      let deleted = 0
      for (let at = 0; at < found.length; at += KEYS_AT_A_TIME) {
        const keys = found.slice(at, at + KEYS_AT_A_TIME)
        // Asked again in the delete: a row that was taken over in between stays.
        const { count } = await records.deleteMany({
          where: { AND: [{ OR: keys.map(({ tenantId, key }) => ({ tenantId, key })) }, isDoomed] },
        })
        deleted += count
      }
      return deleted
    },
  }
}

/** A record as somebody sees it who does not want its key for himself. */
export interface FoundRecord extends SeenRecord {
  /** How long the key is remembered, from now. */
  readonly expiresInMs: number
}

/** The record of a key as it stands now. */
export async function findRecord(
  client: PrismaClientLike,
  clock: DatabaseClock,
  { tenantId, key }: RecordKey,
): Promise<FoundRecord | undefined> {
  const row: Row | null = await sayingAgainEach(client.idempotencyRecord).findUnique({
    where: { tenantId_key: { tenantId, key } },
  })
  if (row === null) return undefined
  const now = await clock.ask()
  return { ...recordOf(row, now), expiresInMs: row.expiresAt.getTime() - now.getTime() }
}

function each<I, O>(one: (item: I) => Promise<O>): (items: readonly I[]) => Promise<O[]> {
  return (items) => Promise.all(items.map(one))
}

function later(time: Date, ms: number): Date {
  return new Date(time.getTime() + ms)
}

function attemptOf({ tenantId, key, operationId, attempt }: Hold) {
  return { tenantId, key, operationId, attempt }
}

function heldBy(hold: Hold) {
  return { ...attemptOf(hold), status: 'in_progress' }
}

function isFree(row: Row, now: Date): boolean {
  if (row.status === 'released') return true
  return (row.status === 'in_progress' ? row.leaseUntil : row.expiresAt) <= now
}

function recordOf(row: Row, now: Date): SeenRecord {
  const { operationId, attempt, fingerprint, status, statusCode, headers, body } = row
  return {
    operationId,
    attempt,
    fingerprint,
    status,
    holder: row.holder ?? undefined,
    since: row.claimedAt ?? undefined,
    leaseLeftMs: row.leaseUntil.getTime() - now.getTime(),
    isExpired: row.expiresAt <= now,
    response:
      status === 'completed' && statusCode !== null
        ? { statusCode, headers: headers ?? {}, body }
        : null,
    unreadBodyBytes: 0,
  }
}

// MySQL's usual collations find 'ABC' under 'abc'. Two keys, or two tenants, must never share a
// record, so this is an answer that cannot be given.
function refuseOtherKey(row: Row, ask: RecordKey): void {
  if (row.tenantId === ask.tenantId && row.key === ask.key) return
  throw new Error(
    'idempotency_record compares keys without regard to case: give tenant_id and key a binary collation',
  )
}
