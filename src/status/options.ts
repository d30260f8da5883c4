import { type Check, check, defined } from '../checks.js'
import type { Flow } from '../core/flow.js'
import { MOST_STATUSES } from '../core/flow-problem.js'
import { OptionInvalid } from '../errors.js'
import type { ModelDelegate } from '../store/client.js'
import { isObject, isText, isTextList, LONGEST_TEXT, takes } from './checks.js'

/** The part of a generated model delegate that `advance` calls: `prisma.payment`, `tx.payment`. */
export type StatusDelegate = Pick<ModelDelegate, 'findMany' | 'updateMany'>

/** What a delegate takes under this name. */
type Taken<Delegate extends StatusDelegate, Name extends 'where' | 'data'> = NonNullable<
  Parameters<Delegate['updateMany']>[0]
>[Name]

export interface AdvanceOptions<
  Status extends string = string,
  Delegate extends StatusDelegate = StatusDelegate,
> {
  /** Which entity: what `findFirst` takes, and what fits one at most. */
  where: NonNullable<Taken<Delegate, 'where'>>
  flow: Flow<Status>
  to: NoInfer<Status>
  /**
   * When it happened, as its source says. It is kept with the entity, and what happened before it is
   * blocked as `older` from then on. A year from 1000 to 9999. Default: nothing is known of that, and nothing compared.
   */
  occurredAt?: Date | undefined
  /** Goes to `to` from anywhere. Default: no, the flow decides. */
  override?: Override | undefined
  /** Other columns that are set in the same update. Not set unless the status changes. */
  data?: Taken<Delegate, 'data'> | undefined
  /** How the model calls its columns. Default: `{ id: 'id', status: 'status', occurredAt: 'statusAt' }`. */
  fields?: Partial<StatusFields> | undefined
}

/** Why the flow does not count this time, and who says so: kept in the audit. */
export interface Override {
  /** 1 to 191 characters. */
  reason: string
  /** 1 to 191 characters. Default: nobody is named. */
  actor?: string | undefined
}

export interface StatusFields {
  id: string
  status: string
  /** A `DateTime?`. Needed when `occurredAt` is given. */
  occurredAt: string
}

/** The options, checked, with all fields named. */
export interface Ask<Status extends string = string> {
  readonly where: object
  readonly flow: Flow<Status>
  readonly to: Status
  readonly occurredAt: Date | undefined
  readonly override: Override | undefined
  readonly data: object | undefined
  readonly fields: StatusFields
}

const DEFAULT_FIELDS: StatusFields = { id: 'id', status: 'status', occurredAt: 'statusAt' }

const OVERRIDE = `{ reason, actor } with a reason of 1 to ${LONGEST_TEXT} characters; actor may be left out`

const isOverride = (value: unknown) => {
  if (!isObject(value)) return false
  const { reason, actor, ...others } = value as Partial<Override>
  const isNamed = actor === undefined || isText(actor)
  return isText(reason) && isNamed && Object.keys(others).length === 0
}

/** Nothing that is written by hand is nested deeper; what contains itself is, and has no end. */
const DEEPEST_NESTING = 100

const isShallow = (value: unknown, levels = DEEPEST_NESTING): boolean =>
  !isPlain(value) ||
  (levels > 0 && Object.values(value).every((item) => isShallow(item, levels - 1)))

/** At every depth: `{ id: { equals: undefined } }` fits everything, too. */
const isDefined = (value: unknown): boolean =>
  isPlain(value) ? Object.values(value).every(isDefined) : value !== undefined

const isPlain = (value: unknown): value is object =>
  Array.isArray(value) || (isObject(value) && Object.getPrototypeOf(value) === Object.prototype)

// What a DateTime column of every database holds: the range of MySQL's.
const EARLIEST = new Date('1000-01-01T00:00:00.000Z')
const LATEST = new Date('9999-12-31T23:59:59.999Z')

const ADVANCE_CHECKS: Record<string, Check> = {
  where: takes(
    // Prisma takes undefined for anything, and the only payment there is would be the one.
    (value) =>
      isObject(value) && Object.keys(value).length > 0 && isShallow(value) && isDefined(value),
    `what findFirst takes and name one entity, such as { id }; nothing in it may be undefined, or nested deeper than ${DEEPEST_NESTING} levels`,
  ),
  flow: takes((value) => {
    const { decide, statuses } = Object(value)
    return typeof decide === 'function' && isTextList(statuses) && statuses.length <= MOST_STATUSES
  }, 'what defineFlow returned'),
  to: takes(isText, 'a status of the flow'),
  occurredAt: takes(
    (value) => value instanceof Date && value >= EARLIEST && value <= LATEST,
    'a Date of the years 1000 to 9999, such as new Date(event.payload.created * 1000)',
  ),
  override: takes(isOverride, OVERRIDE),
  data: takes(
    (value) => isObject(value) && isShallow(value),
    `the other columns that are to be set, such as { amount }, nested at most ${DEEPEST_NESTING} levels deep`,
  ),
  fields: takes(
    (value) =>
      isObject(value) &&
      Object.entries(value).every(
        ([name, field]) =>
          Object.hasOwn(DEFAULT_FIELDS, name) && (field === undefined || isText(field)),
      ),
    "the names of columns, such as { id: 'id', status: 'status', occurredAt: 'statusAt' }",
  ),
}

export function readOptions<Status extends string, Delegate extends StatusDelegate>(
  delegate: Delegate,
  options: AdvanceOptions<Status, Delegate>,
): Ask<Status> {
  check(' of advance()', ADVANCE_CHECKS, options, ['where', 'flow', 'to'])
  const { where, flow, to, occurredAt, override, data } = options
  const fields = { ...DEFAULT_FIELDS, ...defined(options.fields ?? {}) }
  const ask: Ask<Status> = { where, flow, to, occurredAt, override, data, fields }
  if (!ask.flow.statuses.includes(ask.to)) {
    const statuses = ask.flow.statuses.join(', ')
    throw new OptionInvalid(
      `option "to" of advance() must be a status of the flow; these are ${statuses}`,
    )
  }
  const taken = Object.values(fields).find((field) => Object.hasOwn(ask.data ?? {}, field))
  if (taken !== undefined) {
    throw new OptionInvalid(
      `option "data" of advance() must not set ${taken}: give the status as "to", and its time as "occurredAt"`,
    )
  }
  const known: unknown = Reflect.get(delegate, 'fields')
  const unknown = isObject(known) && usedFields(ask).find((field) => !(field in known))
  if (typeof unknown === 'string') {
    throw new OptionInvalid(
      `advance() needs the column ${unknown} in this model: add it, or say in "fields" what it is called`,
    )
  }
  return ask
}

/** The columns that are read and written. */
export function usedFields({ fields, occurredAt }: Ask): string[] {
  const { id, status } = fields
  return occurredAt === undefined ? [id, status] : [id, status, fields.occurredAt]
}
