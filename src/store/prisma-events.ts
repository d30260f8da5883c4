import { backoff } from '../core/backoff.js'
import {
  type EventStatus,
  KEPT_DELIVERIES,
  KEPT_ERRORS,
  NOT_ENDED,
  type RunError,
} from '../core/event.js'
import type { StepResults } from '../core/record.js'
import { isUniqueViolation, type PrismaClientLike } from './client.js'
import type { DatabaseClock } from './clock.js'
import type {
  Arrival,
  Endpoints,
  EventStore,
  KeepEventSteps,
  Recorded,
  RunEnd,
  RunHold,
  StoredEvent,
} from './event-store.js'
import { sayingAgainEach } from './say-again.js'

interface RecordedRow {
  id: string
  tenantId: string
  provider: string
  eventId: string | null
  status: EventStatus
  fence: number
  attempts: number
  deliveries: number
  deliveredAt: string[]
  bodyHash: string
  otherBodies: number
  awaitsDelivery: boolean
  dueAt: Date | null
  receivedAt: Date
}

interface Row extends RecordedRow {
  endpoint: string
  type: string | null
  deferrals: number
  payload: Uint8Array
  headers: Record<string, string>
  sameBodyAs: string | null
  lane: string | null
  steps: StepResults
  errors: RunError[]
}

interface Candidate {
  id: string
  fence: number
  endpoint: string
  lane: string | null
  runningLane: string | null
  dueAt: Date
  status: EventStatus
  errors: RunError[]
}

const RECORDED = select<RecordedRow>(
  ...(['id', 'tenantId', 'provider', 'eventId', 'status', 'fence', 'attempts'] as const),
  ...(['deliveries', 'deliveredAt', 'bodyHash', 'otherBodies', 'awaitsDelivery'] as const),
  ...(['dueAt', 'receivedAt'] as const),
)
const CANDIDATE = select<Candidate>(
  ...(['id', 'fence', 'endpoint', 'lane', 'runningLane', 'dueAt', 'status', 'errors'] as const),
)

const WAITING = ['received', 'retrying']
const OVER = ['processed', 'ignored']

// So many rows are looked at, or named in a condition, at a time: on SQLite Prisma takes 999
// parameters, and on MariaDB the time of a delete grows with the square of its keys.
const AT_A_TIME = 200

// A row can be pruned between the constraint's answer and the look at it, and the next one too.
const LOOKS = 10

// Those who count a delivery at the same time take turns: of each round at least one is done. So
// many deliveries of one event at once as there are tries come from no provider.
const TURNS = 200
const NEXT_TURN = { firstMs: 2, mostMs: 50 }

/**
 * The portable inbox: nothing but Prisma's own calls, for every database that Prisma reaches. The
 * unique constraints decide which delivery was first and which event has a lane; every later write
 * is guarded in its `where`.
 */
export function prismaEventStore(client: PrismaClientLike, clock: DatabaseClock): EventStore {
  const { webhookEvent } = client
  if (webhookEvent === undefined) throw new TypeError('the client lacks model WebhookEvent')
  // On MySQL, statements that touch several rows may meet in a deadlock.
  const events = sayingAgainEach(webhookEvent)

  const updateMany = async (args: object): Promise<number> => (await events.updateMany(args)).count

  async function record(arrival: Arrival): Promise<Recorded> {
    const { tenantId, provider, eventId, bodyHash, lane } = arrival
    const { dueInMs, payload, ...stored } = arrival
    let mayStart = arrival.status === 'processing'
    for (let look = 1; ; look += 1) {
      // One look for two answers: a redelivery mostly has the same bytes, too, and then it need not
      // run into the constraint, which is dear (PostgreSQL's pool closes the connection).
      const alike: RecordedRow[] = await events.findMany({
        where: { tenantId, provider, bodyHash },
        select: RECORDED,
        take: 2,
      })
      if (alike.some((row) => isNamed(row, arrival))) {
        const counted = await countDelivery(arrival)
        if (counted) return counted
      }
      const isAlike = (row: RecordedRow) =>
        row.tenantId === tenantId && row.provider === provider && !isNamed(row, arrival)
      const twin = payload.byteLength > 0 ? alike.find(isAlike) : undefined
      const isFree = mayStart && (lane === null || (await holderOf(lane)) === undefined)
      const run = isFree ? 1 : 0
      const status = arrival.status === 'processing' && !isFree ? 'received' : arrival.status
      // A lease must not end early, and what waits must be found by the next look.
      const now = await (isFree ? clock.estimate() : clock.estimatePassed())
      const row = {
        ...stored,
        ...{ status, fence: run, attempts: run, deferrals: 0, deliveries: 1 },
        ...{ dueAt: later(now, dueInMs), deliveredAt: [now.toISOString()], receivedAt: now },
        ...{ sameBodyAs: twin?.id ?? null, otherBodies: 0, runningLane: isFree ? lane : null },
        steps: {},
      }
      try {
        await events.create({ data: { ...row, payload }, select: { id: true } })
        return { ...recorded(row, now), isNew: true, sameBodyAs: row.sameBodyAs }
      } catch (error) {
        if (!isUniqueViolation(error)) throw error
        // Which constraint it was is not said reliably. The row under this name tells: none there
        // means that the lane was taken, that another constraint was hit, or that the row has just
        // been pruned.
        const counted = await countDelivery(arrival)
        if (counted) return counted
        if (isFree && lane !== null) mayStart = false
        else if (eventId === null || look >= LOOKS) throw error
      }
    }
  }

  /** Counts one more delivery of an event that is there: never two on top of each other. */
  async function countDelivery(arrival: Arrival): Promise<Recorded | undefined> {
    const { tenantId, provider, eventId } = arrival
    if (eventId === null) return undefined
    for (let turn = 1; turn <= TURNS; turn += 1) {
      const row: RecordedRow | null = await events.findUnique({
        where: named({ tenantId, provider, eventId }),
        select: RECORDED,
      })
      if (row === null) return undefined
      refuseOtherName(row, arrival)
      const now = await clock.estimate()
      const deliveries = row.deliveries + 1
      const deliveredAt = [...row.deliveredAt, now.toISOString()].slice(-KEPT_DELIVERIES)
      const otherBodies = row.otherBodies + (row.bodyHash === arrival.bodyHash ? 0 : 1)
      // Left as it is by one that is not acknowledged: it can have changed since it was read.
      const acknowledged = !arrival.awaitsDelivery && { awaitsDelivery: false }
      const count = await updateMany({
        where: { id: row.id, deliveries: row.deliveries },
        data: { deliveries, deliveredAt, otherBodies, ...acknowledged },
      })
      if (count === 1) {
        if (acknowledged && (row.awaitsDelivery || row.dueAt === null)) {
          // A run that has ended before the write above has left it without a time.
          const isParked = { id: row.id, status: 'retrying', ...acknowledged, dueAt: null }
          const dueAt = later(now, arrival.dueInMs)
          await updateMany({ where: isParked, data: { dueAt } })
        }
        return recorded({ ...row, deliveries }, now)
      }
      const pauseMs = backoff(NEXT_TURN, turn, Math.random())
      await new Promise((resolve) => setTimeout(resolve, pauseMs))
    }
    throw new Error('a delivery could not be counted: too many of the same event at once')
  }

  async function holderOf(lane: string): Promise<{ id: string } | undefined> {
    const [holder] = await events.findMany({
      where: { runningLane: lane },
      select: { id: true },
      take: 1,
    })
    return holder
  }

  /**
   * What is due, in its order: of each lane the first, or its crashed run, and none of a lane that
   * runs. Lanes that were passed are left out of what is read next, so that many events of one at
   * the head are not read to the end.
   */
  async function* dueNow({ names }: Endpoints, now: Date): AsyncGenerator<Candidate> {
    const passed = new Set<string>()
    let last: Candidate | undefined
    for (;;) {
      const page: Candidate[] = await events.findMany({
        where: {
          status: { in: [...WAITING, 'processing'] },
          endpoint: { in: names },
          dueAt: { lte: now },
          AND: [
            {
              OR: [
                { lane: null },
                { lane: { notIn: [...passed].slice(-AT_A_TIME) } },
                { runningLane: { not: null } },
              ],
            },
            ...(last === undefined
              ? []
              : [
                  {
                    OR: [{ dueAt: { gt: last.dueAt } }, { dueAt: last.dueAt, id: { gt: last.id } }],
                  },
                ]),
          ],
        },
        orderBy: [{ dueAt: 'asc' }, { id: 'asc' }],
        take: AT_A_TIME,
        select: CANDIDATE,
      })
      const lanes = [...new Set(page.flatMap(({ lane }) => lane ?? []))]
      const holders: { runningLane: string }[] =
        lanes.length === 0
          ? []
          : await events.findMany({
              where: { runningLane: { in: lanes } },
              select: { runningLane: true },
            })
      const running = new Set(holders.map(({ runningLane }) => runningLane))
      for (const candidate of page) {
        const { lane, runningLane } = candidate
        const isPassed = lane !== null && (passed.has(lane) || running.has(lane))
        if (lane !== null) passed.add(lane)
        if (!isPassed || runningLane !== null) yield candidate
      }
      last = page.at(-1)
      if (page.length < AT_A_TIME) return
    }
  }

  /** Starts the next run of an event as it was seen, if it still is as the guard says. */
  async function start(seen: Candidate, leaseMs: number, guard: object) {
    const { id, fence, lane } = seen
    // It has left no word, as long as that is still so when this is written.
    const isLost = seen.status === 'processing'
    try {
      const now = await clock.estimate()
      const lost = { attempt: fence, at: now.toISOString(), message: NOT_ENDED }
      const count = await updateMany({
        where: { id, fence, ...guard, ...(isLost && { AND: [{ status: 'processing' }] }) },
        data: {
          ...(isLost && { errors: [...seen.errors, lost].slice(-KEPT_ERRORS) }),
          status: 'processing',
          fence: fence + 1,
          attempts: { increment: 1 },
          dueAt: later(now, leaseMs),
          runningLane: lane,
        },
      })
      if (count === 0) return undefined
    } catch (error) {
      if (lane === null || !isUniqueViolation(error)) throw error
      return undefined
    }
    // Read after the claim: the run before may have written a step until then.
    const row: Row | null = await events.findUnique({ where: { id } })
    return row?.fence === fence + 1 ? storedEvent(row) : undefined
  }

  async function end(run: RunEnd): Promise<boolean> {
    const { id, fence, status, attempts, deferrals, errors, wakes } = run
    const now = await clock.ask()
    const where = { id, fence, status: { in: ['processing', status] } }
    const data = { status, attempts, deferrals, errors, runningLane: null }
    const isFinal = run.isAcknowledged || status !== 'retrying'
    // In this order: an event can stop to await a delivery between the two, and never begin to.
    let count = isFinal
      ? 0
      : await updateMany({
          where: { ...where, awaitsDelivery: true },
          data: { ...data, dueAt: null },
        })
    if (count === 0) {
      const dueAt = later(now, run.dueInMs)
      const acknowledged = run.isAcknowledged && { awaitsDelivery: false }
      // A row that was inserted between the two is not meant, either.
      const guard = { ...where, ...(!isFinal && { awaitsDelivery: false }) }
      count = await updateMany({ where: guard, data: { ...data, ...acknowledged, dueAt } })
    }
    // After the end, for which they wait. A crash in between leaves them to their own time.
    if (count === 1 && wakes !== null) {
      const asleep = { lane: wakes, dueAt: { gt: now }, id: { not: id } }
      await updateMany({ where: { ...asleep, status: 'received' }, data: { dueAt: now } })
      // To be woken is not to have waited in vain: it takes back one deferral.
      const deferred = { ...asleep, status: 'retrying' }
      await updateMany({ where: { ...deferred, deferrals: 1 }, data: { dueAt: now } })
      await updateMany({
        where: { ...deferred, deferrals: { gt: 1 } },
        data: { dueAt: now, deferrals: { decrement: 1 } },
      })
    }
    return count === 1
  }

  async function extend({ id, fence, leaseMs }: RunHold & { leaseMs: number }): Promise<boolean> {
    const dueAt = later(await clock.ask(), leaseMs)
    const where = { id, fence, status: 'processing' }
    // A renewal that was long in flight must not shorten what a later one has given.
    if ((await updateMany({ where: { ...where, dueAt: { lt: dueAt } }, data: { dueAt } })) === 1) {
      return true
    }
    return (await events.findFirst({ where, select: { id: true } })) !== null
  }

  async function keepSteps({ id, fence, steps }: KeepEventSteps): Promise<boolean> {
    const where = { id, fence, status: 'processing' }
    return (await updateMany({ where, data: { steps } })) === 1
  }

  return {
    combinesLists: false,
    record: each(record),
    end: each(end),
    extend: each(extend),
    keepSteps: each(keepSteps),

    async claimDue(limit, endpoints) {
      const claimed: StoredEvent[] = []
      if (limit === 0) return claimed
      const now = await clock.ask()
      for await (const candidate of dueNow(endpoints, now)) {
        const leaseMs = endpoints.leasesMs[endpoints.names.indexOf(candidate.endpoint)]
        // Of another case, on MySQL: nobody here serves it.
        if (leaseMs === undefined) continue
        const isStillDue = { status: { in: [...WAITING, 'processing'] }, dueAt: { lte: now } }
        const event = await start(candidate, leaseMs, isStillDue).catch((error) => {
          // Those that are claimed by now are to be run; the others are found by the next look.
          if (claimed.length === 0) throw error
        })
        if (event !== undefined && claimed.push(event) === limit) break
      }
      return claimed
    },

    async claim(id, leaseMs) {
      const seen: Candidate | null = await events.findUnique({ where: { id }, select: CANDIDATE })
      if (seen === null) return undefined
      // The constraint decides; this saves running into it.
      const holder = seen.lane === null ? undefined : await holderOf(seen.lane)
      if (holder !== undefined && holder.id !== seen.id) return undefined
      return start(seen, leaseMs, {
        OR: [
          { status: { in: WAITING } },
          { status: 'processing', dueAt: { lte: await clock.ask() } },
        ],
      })
    },

    async listDue(limit, endpoints) {
      const listed: RunHold[] = []
      if (limit === 0) return listed
      for await (const { id, fence } of dueNow(endpoints, await clock.ask())) {
        if (listed.push({ id, fence }) === limit) break
      }
      return listed
    },

    async find(name) {
      if (typeof name === 'string') {
        const row: Row | null = await events.findUnique({ where: { id: name } })
        return row === null ? undefined : storedEvent(row)
      }
      const row: Row | null = await events.findUnique({ where: named(name) })
      if (row === null) return undefined
      refuseOtherName(row, name)
      return storedEvent(row)
    },

    async reopen(id, force, lane) {
      const now = await clock.ask()
      const again = {
        ...{ status: 'received', attempts: 0, deferrals: 0, dueAt: now, runningLane: null },
        awaitsDelivery: false,
        ...(lane !== null && { lane }),
      }
      const count = await updateMany({
        where: {
          id,
          OR: [
            { status: { in: [...WAITING, 'dead', 'ignored'] } },
            { status: 'processing', dueAt: { lte: now } },
          ],
        },
        data: again,
      })
      if (count === 1 || !force) return count === 1
      const forced = await updateMany({
        where: { id, status: 'processed' },
        data: { ...again, steps: {} },
      })
      return forced === 1
    },

    async prune(limit) {
      const isDoomed = { status: { in: OVER }, dueAt: { lte: await clock.ask() } }
      const found: { id: string }[] = await events.findMany({
        where: isDoomed,
        select: { id: true },
        orderBy: { dueAt: 'asc' },
        take: limit,
      })
      let deleted = 0
      for (let at = 0; at < found.length; at += AT_A_TIME) {
        const ids = found.slice(at, at + AT_A_TIME).map(({ id }) => id)
        // Asked again in the delete: one that was reopened in between stays.
        const where = { id: { in: ids }, ...isDoomed }
        const { count } = await events.deleteMany({ where })
        deleted += count
      }
      return deleted
    },
  }
}

function each<I, O>(one: (item: I) => Promise<O>): (items: readonly I[]) => Promise<O[]> {
  return (items) => Promise.all(items.map(one))
}

function select<R>(...fields: readonly (keyof R & string)[]): Record<string, true> {
  return Object.fromEntries(fields.map((field) => [field, true]))
}

function later(time: Date, ms: number): Date
function later(time: Date, ms: number | null): Date | null
function later(time: Date, ms: number | null): Date | null {
  return ms === null ? null : new Date(time.getTime() + ms)
}

type Name = Pick<RecordedRow, 'tenantId' | 'provider' | 'eventId'>

function named({ tenantId, provider, eventId }: Name) {
  return { tenantId_provider_eventId: { tenantId, provider, eventId } }
}

function isNamed(row: Name, { tenantId, provider, eventId }: Name): boolean {
  if (eventId === null) return false
  return row.tenantId === tenantId && row.provider === provider && row.eventId === eventId
}

// MySQL's usual collations find 'ABC' under 'abc'. Two events, or two tenants, must never share a
// row, so this is an answer that cannot be given.
function refuseOtherName(row: Name, name: Name): void {
  if (isNamed(row, name)) return
  throw new Error(
    'webhook_event compares names without regard to case: give tenant_id, provider and event_id a binary collation',
  )
}

function recorded(row: Omit<RecordedRow, 'deliveredAt'>, now: Date): Recorded {
  const { id, status, fence, attempts, deliveries, bodyHash, dueAt, receivedAt } = row
  const dueInMs = dueAt === null ? null : dueAt.getTime() - now.getTime()
  const seen = { id, status, fence, attempts, deliveries, bodyHash, dueInMs, receivedAt }
  return { ...seen, isNew: false, sameBodyAs: null }
}

function storedEvent(row: Row): StoredEvent {
  return {
    id: row.id,
    tenantId: row.tenantId,
    provider: row.provider,
    eventId: row.eventId,
    endpoint: row.endpoint,
    type: row.type,
    status: row.status,
    fence: row.fence,
    attempts: row.attempts,
    deferrals: row.deferrals,
    deliveries: row.deliveries,
    deliveredAt: row.deliveredAt,
    payload: row.payload,
    headers: row.headers,
    bodyHash: row.bodyHash,
    sameBodyAs: row.sameBodyAs,
    otherBodies: row.otherBodies,
    awaitsDelivery: row.awaitsDelivery,
    lane: row.lane,
    steps: row.steps,
    errors: row.errors,
    receivedAt: row.receivedAt,
  }
}
