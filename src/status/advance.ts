import { randomUUID } from 'node:crypto'
import type { BlockedReason } from '../core/flow.js'
import { ModelsMissing, OptionInvalid } from '../errors.js'
import type { Report } from '../events.js'
import { WriteConflict } from '../sealed.js'
import type { StatementBounds } from '../store/bounded-client.js'
import type { PrismaClientLike, Provider } from '../store/client.js'
import { databaseClock } from '../store/clock.js'
import { type Entities, type EntityModel, entityModelOf, modelNameOf } from '../store/delegate.js'
import {
  type AdvanceOptions,
  type Ask,
  readOptions,
  type StatusDelegate,
  usedFields,
} from './options.js'

export type AdvanceResult<Status extends string = string> =
  | {
      readonly kind: 'advanced'
      readonly from: string
      readonly to: Status
      readonly entityId: string
      /** Whether it was by `override`. */
      readonly overridden: boolean
    }
  /** It had that status already. */
  | { readonly kind: 'unchanged'; readonly status: Status }
  | {
      readonly kind: 'blocked'
      readonly why: BlockedReason
      readonly from: string
      readonly to: Status
    }
  /** Nothing fits `where`. */
  | { readonly kind: 'missing' }

export interface Statuses {
  /**
   * Gives one entity another status if its flow allows it, and notes that in `StatusChange` in the
   * same transaction: that of the delegate (`tx.payment`), or one of its own (`prisma.payment`).
   * After a crash there are both or none. Said again, it is `unchanged`.
   *
   * @throws OptionInvalid when an option is wrong, or `where` fits several entities.
   * @throws {WriteConflict} when others changed the entity all the time, or when the transaction of
   * the delegate does not see what they have changed: it is to be repeated.
   */
  advance<Status extends string, Delegate extends StatusDelegate>(
    tenantId: string,
    report: Report,
    delegate: Delegate,
    options: AdvanceOptions<Status, Delegate>,
  ): Promise<AdvanceResult<Status>>
}

/**
 * How often an entity is looked at that others change between the look and the write. Forward-only
 * flows end sooner, and in one that goes round each lost turn is somebody else's success. Within a
 * transaction at REPEATABLE READ, which is MySQL's default, a further look shows what the first did.
 */
const LOOKS = 20

export interface StatusesContext {
  /** The application's client. */
  readonly prisma: PrismaClientLike
  /** What database it talks to. */
  readonly provider: Provider
  /** What a call keeps that is not part of a transaction of the caller's. */
  readonly bounds: StatementBounds
}

export function createStatuses({ prisma, provider, bounds }: StatusesContext): Statuses {
  return {
    async advance(tenantId, report, delegate, options) {
      const model = readModel(prisma, delegate)
      const ask = readOptions(delegate, options)
      return model.use(bounds, (entities) =>
        advanceOne({ tenantId, report, model: model.name, provider }, entities, ask),
      )
    },
  }
}

interface Subject {
  readonly tenantId: string
  readonly report: Report
  readonly model: string
  readonly provider: Provider
}

async function advanceOne<Status extends string, Delegate extends StatusDelegate>(
  { tenantId, report, model, provider }: Subject,
  entities: Entities<Delegate>,
  ask: Ask<Status>,
): Promise<AdvanceResult<Status>> {
  const { flow, to, occurredAt, override } = ask

  for (let look = 1; look <= LOOKS; look += 1) {
    const seen = await find(entities.reader, ask)
    if (seen === undefined) return { kind: 'missing' }
    const { from, entityId } = seen
    const subject = { entity: model, entityId, from, to }
    const isOlder = occurredAt !== undefined && isAfter(seen.occurredAt, occurredAt)
    const move = flow.decide(from, to, isOlder)
    if (move.kind === 'unchanged') {
      if (await noteTime(entities, ask, seen)) return { kind: 'unchanged', status: to }
      continue
    }
    if (move.kind === 'blocked' && override === undefined) {
      report({ kind: 'status_blocked', ...subject, why: move.why })
      return { kind: 'blocked', why: move.why, from, to }
    }
    const isChanged = await entities.transact(async (delegate, client) => {
      const { statusChange } = client
      if (statusChange === undefined) throw new ModelsMissing('model StatusChange')
      if (!(await change(delegate, ask, seen))) return false
      // Asked within the transaction, which may have the only connection; and once the row is
      // ours, so that the changes of an entity have their times in the order in which they were.
      const createdAt = await databaseClock(client, provider).ask()
      await statusChange.create({
        data: {
          id: randomUUID(),
          ...{ tenantId, entity: model, entityId, from, to, createdAt },
          occurredAt: occurredAt ?? null,
          reason: override?.reason ?? null,
          actor: override?.actor ?? null,
        },
        select: { id: true },
      })
      return true
    })
    if (!isChanged) continue
    const overridden = override !== undefined
    report({ kind: 'status_advanced', ...subject, overridden })
    return { kind: 'advanced', from, to, entityId, overridden }
  }
  throw new WriteConflict(
    `this ${model} was changed by others at the same time: repeat the transaction`,
  )
}

/** @throws OptionInvalid for what is no model, and for one that no transaction can be begun for. */
function readModel<Delegate extends StatusDelegate>(
  prisma: PrismaClientLike,
  delegate: Delegate,
): EntityModel<Delegate> {
  const name = modelNameOf(Object(delegate))
  if (name === undefined) {
    throw new OptionInvalid(
      'advance() takes a model of your Prisma client first, such as prisma.payment or tx.payment',
    )
  }
  const model = entityModelOf(prisma, delegate)
  if (model !== undefined) return model
  throw new OptionInvalid(
    `advance() cannot begin a transaction for this ${name}: it belongs to a client that was made by $extends. Give that client as option "prisma", or begin a transaction of it and pass the model of its tx`,
  )
}

/** An entity as it was found. */
interface Seen {
  readonly id: unknown
  readonly entityId: string
  readonly status: unknown
  readonly from: string
  readonly occurredAt: Date | null
}

async function find(
  delegate: Pick<StatusDelegate, 'findMany'>,
  ask: Ask,
): Promise<Seen | undefined> {
  const { where, fields } = ask
  const select = Object.fromEntries(usedFields(ask).map((name) => [name, true]))
  const [row, another]: object[] = await delegate.findMany({ where, select, take: 2 })
  if (row === undefined) return undefined
  if (another !== undefined) {
    throw new OptionInvalid('option "where" of advance() fits more than one: name one, by its id')
  }
  const id: unknown = Reflect.get(row, fields.id)
  const status: unknown = Reflect.get(row, fields.status)
  const occurredAt: Date | null = Reflect.get(row, fields.occurredAt) ?? null
  return { id, entityId: String(id), status, from: String(status ?? ''), occurredAt }
}

/** Changes the entity. `false` when it is no more what was seen. */
async function change(delegate: StatusDelegate, ask: Ask, seen: Seen): Promise<boolean> {
  const { to, occurredAt, override, data, fields } = ask
  const time = occurredAt && { [fields.occurredAt]: occurredAt }
  const { count } = await delegate.updateMany({
    where: { AND: [asSeen(ask, seen), override === undefined ? notAfter(ask, seen) : {}] },
    data: { ...data, ...time, [fields.status]: to },
  })
  return count > 0
}

/**
 * Of an entity that has its status already, only the time moves on: what happened in between and
 * arrives after this is older than it. `false` when the entity is no more what was seen.
 */
async function noteTime<Delegate extends StatusDelegate>(
  { transact }: Entities<Delegate>,
  ask: Ask,
  seen: Seen,
): Promise<boolean> {
  const { occurredAt, fields } = ask
  if (occurredAt === undefined) return true
  if (seen.occurredAt !== null && !isAfter(occurredAt, seen.occurredAt)) return true
  return transact(async (delegate) => {
    const { count } = await delegate.updateMany({
      where: { AND: [asSeen(ask, seen), notAfter(ask, seen)] },
      data: { [fields.occurredAt]: occurredAt },
    })
    return count > 0
  })
}

/** Finds the entity as long as it has the status that was seen. */
function asSeen({ where, fields }: Ask, { id, status }: Seen): object {
  return { AND: [where, { [fields.id]: id, [fields.status]: status }] }
}

/** Finds it as long as nothing that happened later was applied. */
function notAfter({ occurredAt, fields }: Ask, seen: Seen): object {
  if (occurredAt === undefined) return {}
  // Only a column that may be null can be compared with it.
  return { [fields.occurredAt]: seen.occurredAt === null ? null : { lte: occurredAt } }
}

function isAfter(time: Date | null, other: Date): boolean {
  return time !== null && time.getTime() > other.getTime()
}
