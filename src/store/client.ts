import { readThrown } from '../core/thrown.js'

// The application's Prisma client, taken by its structure: the library imports no generated code,
// so it works with whichever output folder, adapter and extensions the application has.

// biome-ignore lint/suspicious/noExplicitAny: a generated delegate's generics fit no narrower type
type Call = (args: any) => PromiseLike<any>

/** The part of a generated model delegate that the library calls. */
export interface ModelDelegate {
  create: Call
  createMany: Call
  findUnique: Call
  findFirst: Call
  findMany: Call
  updateMany: Call
  deleteMany: Call
}

/** The part of a generated PrismaClient that the library calls. */
export interface PrismaClientLike {
  readonly idempotencyRecord: ModelDelegate
  /** An application that only uses Idempotency-Keys may lack it. */
  readonly webhookEvent?: ModelDelegate
  /** One without locks in the database may lack it, and so on. */
  readonly namedLock?: ModelDelegate
  readonly slotReservation?: ModelDelegate
  readonly statusChange?: ModelDelegate
  $queryRawUnsafe<T = unknown>(query: string, ...values: unknown[]): PromiseLike<T>
  // biome-ignore lint/suspicious/noExplicitAny: the application's own transaction client and options
  $transaction(fn: (tx: any) => Promise<any>, options?: any): PromiseLike<any>
}

/** The part of a generated client that the library calls inside an interactive transaction. */
export type TransactionClient = Omit<PrismaClientLike, '$transaction'>

/**
 * The client to read from where the answer decides something. One that reads from replicas
 * (`@prisma/extension-read-replicas`) has `$primary()`; what a replica says may be out of date.
 */
export function primaryOf<Client extends object>(client: Client): Client {
  const primary: unknown = Reflect.get(client, '$primary')
  return typeof primary === 'function' ? primary.call(client) : client
}

/** Databases that Prisma knows by these names. */
export type Provider = 'postgresql' | 'mysql' | 'sqlite'

/** What every model of the library must have in the application's client. */
const MODELS = {
  idempotencyRecord: [
    'tenantId',
    'key',
    'operationId',
    'attempt',
    'holder',
    'claimedAt',
    'fingerprint',
    'status',
    'leaseUntil',
    'expiresAt',
    'statusCode',
    'headers',
    'body',
    'steps',
    'handler',
    'input',
    'createdAt',
  ],
  webhookEvent: [
    'id',
    'tenantId',
    'provider',
    'eventId',
    'endpoint',
    'type',
    'status',
    'fence',
    'attempts',
    'deferrals',
    'dueAt',
    'deliveries',
    'deliveredAt',
    'payload',
    'headers',
    'bodyHash',
    'sameBodyAs',
    'otherBodies',
    'awaitsDelivery',
    'lane',
    'runningLane',
    'steps',
    'errors',
    'receivedAt',
  ],
  namedLock: ['tenantId', 'name', 'owner', 'holder', 'fence', 'heldUntil'],
  slotReservation: ['id', 'tenantId', 'resource', 'slot', 'holder', 'heldUntil', 'createdAt'],
  statusChange: [
    'id',
    'tenantId',
    'entity',
    'entityId',
    'from',
    'to',
    'occurredAt',
    'reason',
    'actor',
    'createdAt',
  ],
} as const

export type ModelName = keyof typeof MODELS

const EVERY_MODEL = Object.keys(MODELS) as readonly ModelName[]

/**
 * Whether a model that has a name of the library's is another one, of the application's own: it has less
 * than half of the fields. The library's own, of an older release, lacks few.
 */
export function isAnotherModel(missing: number, needed: number): boolean {
  return missing * 2 > needed
}

/** Whether the client has this model of the library's, complete, and not another one of that name. */
export function hasModel(client: object, model: ModelName): boolean {
  return missingFromClient(client, [model]).length === 0
}

/**
 * Names what the library needs of these models and the client lacks: models, or `model.field`.
 * Empty when complete.
 */
export function missingFromClient(
  client: object,
  models: readonly ModelName[] = EVERY_MODEL,
): string[] {
  const missing: string[] = []
  for (const model of models) {
    const name = model[0]?.toUpperCase() + model.slice(1)
    const delegate: unknown = Reflect.get(client, model)
    if (typeof delegate !== 'object' || delegate === null) {
      missing.push(`model ${name}`)
      continue
    }
    const known: unknown = Reflect.get(delegate, 'fields')
    // A wrapper around a client may hide `fields`; then the first query tells.
    if (typeof known !== 'object' || known === null) continue
    const fields = MODELS[model].filter((field) => !(field in known))
    if (isAnotherModel(fields.length, MODELS[model].length)) {
      missing.push(`model ${name} (another model has that name)`)
    } else missing.push(...fields.map((field) => `field ${name}.${field}`))
  }
  return missing
}

/** What Prisma knows of a model's names: `dbName` where the schema maps it to another one. */
interface NamedByPrisma {
  readonly dbName?: string | null
  readonly fields?: readonly { readonly name: string; readonly dbName?: string | null }[]
}

/**
 * Says of each model and field what the schema maps it to, where that is not the name that statements
 * of the library's own use. Empty where the client does not tell, such as a wrapper around one.
 */
export function renamedInClient(client: object, model: ModelName): string[] {
  const name = model.charAt(0).toUpperCase() + model.slice(1)
  const models: unknown = Reflect.get(Object(Reflect.get(client, '_runtimeDataModel')), 'models')
  const known: NamedByPrisma | undefined = Reflect.get(Object(models), name)
  if (known === undefined) return []
  const names = [{ what: `model ${name}`, own: name, actual: known.dbName ?? name }]
  for (const field of MODELS[model]) {
    const found = known.fields?.find((one) => one.name === field)
    if (found === undefined) continue
    names.push({ what: `field ${name}.${field}`, own: field, actual: found.dbName ?? field })
  }
  return names
    .map(({ what, own, actual }) => ({ what, actual, expected: snakeCase(own) }))
    .filter(({ actual, expected }) => actual !== expected)
    .map(({ what, actual, expected }) => `${what} to "${actual}" in place of "${expected}"`)
}

/**
 * What the database calls a model and its fields: as the schema maps them, or as `init` does where the
 * client does not tell.
 */
export function namesInDatabase(
  client: object,
  model: ModelName,
): { table: string; columnOf: (field: string) => string } {
  const name = model.charAt(0).toUpperCase() + model.slice(1)
  const models: unknown = Reflect.get(Object(Reflect.get(client, '_runtimeDataModel')), 'models')
  const known: NamedByPrisma | undefined = Reflect.get(Object(models), name)
  if (known === undefined) return { table: snakeCase(model), columnOf: snakeCase }
  return {
    table: known.dbName ?? name,
    columnOf: (field) => known.fields?.find((one) => one.name === field)?.dbName ?? field,
  }
}

/** How `init` maps every model and field: `leaseUntil` to `lease_until`. */
function snakeCase(name: string): string {
  return name.replace(/(?<=.)[A-Z]/g, (letter) => `_${letter}`).toLowerCase()
}

/** Which database the client talks to, as far as it lets us know. */
export function providerOf(client: object): Provider | undefined {
  const provider: unknown = Reflect.get(client, '_activeProvider')
  if (provider === 'postgres' || provider === 'postgresql') return 'postgresql'
  if (provider === 'mysql' || provider === 'sqlite') return provider
  return undefined
}

/** Prisma's code for a unique constraint that was hit. */
export function isUniqueViolation(error: unknown): boolean {
  return readThrown(error, 'code') === 'P2002'
}

/** So many errors may be wrapped in each other; one may be its own cause. */
const DEEPEST_CAUSE = 8

/** The code that the database, the system or Prisma gave an error, the innermost first. */
export function errorCode(error: unknown, depth = 0): string | undefined {
  if (typeof error !== 'object' || error === null || depth > DEEPEST_CAUSE) return undefined
  // A conflict that COMMIT meets comes as the adapter threw it.
  const own: unknown = readThrown(error, 'originalCode')
  if (typeof own === 'string') return own
  // Prisma wraps what a raw query met: P2010 says nothing, the code of the database does.
  const inner: unknown = readThrown(readThrown(error, 'meta'), 'driverAdapterError')
  const original: unknown = readThrown(readThrown(inner, 'cause'), 'originalCode')
  if (typeof original === 'string') return original
  // As other calls than raw queries say it. No database has given a code.
  if (readThrown(readThrown(inner, 'cause'), 'kind') === 'DatabaseNotReachable') {
    return 'P1001'
  }
  const code: unknown = readThrown(error, 'code')
  // Prisma's own name for a serialization failure or a deadlock.
  if (code === 'P2034') return '40001'
  if (typeof code === 'string') return code
  return errorCode(readThrown(error, 'cause'), depth + 1)
}

// MySQL's own numbers: a packet is larger than max_allowed_packet, a value than its column.
const DATA_REFUSED = ['1153', '1406']

/** Whether the database has said that it does not take these data: it will not when they come again. */
export function isDataRefused(error: unknown): boolean {
  const code = errorCode(error) ?? ''
  // SQLSTATE: data exceptions, and limits of the server.
  return DATA_REFUSED.includes(code) || /^(22|54)\w{3}$/.test(code)
}
