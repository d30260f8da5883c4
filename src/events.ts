import { createHash } from 'node:crypto'
import { channel } from 'node:diagnostics_channel'
import { fileURLToPath } from 'node:url'
import type { FastifyBaseLogger } from 'fastify'
import type { EventStatus } from './core/event.js'
import type { HeldBy, RecordKey } from './core/record.js'
import { isThrown, readThrown } from './core/thrown.js'
import { errorCode } from './store/client.js'

/** What is known of a failure without repeating anything that came from a request. */
export interface Failure {
  readonly name: string
  /** The code of Prisma, the database or the system, if there is one. */
  readonly code: string | undefined
  readonly hint: string | undefined
  /** Where it comes from: the first line of its stack that is the application's own, or the first. */
  readonly at: string | undefined
}

/** Why an operation is recorded without its response. */
export type OmittedReason =
  | 'too large'
  | 'written past the hooks'
  | 'timed out'
  | 'not storable'
  | 'database_limit'
  | 'redaction_failed'

/** Why a request with a key ran without protection: `tenant`, or `principal`, returned nothing. */
export type IgnoredReason = 'tenant_unknown' | 'principal_unknown'

/** Which webhook event something happened to. */
export interface WebhookSubject {
  readonly provider: string
  /** What the provider calls it. */
  readonly eventId: string | null
  /** What the inbox calls it. */
  readonly event: string
}

/** What happens to an event of the inbox. */
export type WebhookHappening = WebhookSubject &
  (
    | { readonly kind: 'webhook_recorded'; readonly type: string | null }
    | {
        readonly kind: 'webhook_duplicate'
        readonly deliveries: number
        readonly status: EventStatus
      }
    | { readonly kind: 'webhook_same_body'; readonly sameBodyAs: string }
    | { readonly kind: 'webhook_other_body' }
    | { readonly kind: 'webhook_without_id' }
    | { readonly kind: 'webhook_processed'; readonly attempt: number; readonly tookMs: number }
    | { readonly kind: 'webhook_ignored' }
    | {
        readonly kind: 'webhook_postponed'
        readonly attempt: number
        readonly deferrals: number
        readonly retryInMs: number | null
      }
    | {
        readonly kind: 'webhook_failed'
        readonly attempt: number
        readonly retryInMs: number | null
        readonly failure: Failure
      }
    | {
        readonly kind: 'webhook_dead'
        readonly attempt: number
        readonly why: string
        readonly failure: Failure | undefined
      }
    | { readonly kind: 'webhook_handed_back'; readonly attempt: number }
    | { readonly kind: 'webhook_left_to_provider'; readonly attempt: number }
    | {
        readonly kind: 'webhook_overdue'
        readonly attempt: number
        /** How many such handlers this process has, this one included. */
        readonly overdue: number
      }
    | {
        readonly kind: 'webhook_end_not_stored'
        readonly attempt: number
        readonly failure: Failure
      }
  )

/** What happens at the inbox's doors, and to the events in it. */
export type InboxHappening =
  | WebhookHappening
  | { readonly kind: 'webhook_refused'; readonly provider: string; readonly reason: string }
  | { readonly kind: 'webhook_handshake'; readonly provider: string }
  | { readonly kind: 'webhook_without_events'; readonly provider: string }
  | {
      readonly kind: 'webhook_not_verified'
      readonly provider: string
      readonly failure: Failure
    }
  | { readonly kind: 'webhook_too_large'; readonly provider: string; readonly bodyLimit: number }
  | { readonly kind: 'inbox_unavailable'; readonly failure: Failure }
  | { readonly kind: 'dispatch_failed'; readonly failure: Failure }

/** Which slots something happened to. */
export interface SlotsSubject {
  readonly resource: string
  readonly slots: readonly string[]
}

/** What keeps different operations on the same thing apart, and what it had to keep apart. */
export type GuardHappening =
  | { readonly kind: 'locked'; readonly names: readonly string[]; readonly waitedMs: number }
  | { readonly kind: 'lock_busy'; readonly names: readonly string[]; readonly waitedMs: number }
  | { readonly kind: 'lock_lost'; readonly names: readonly string[]; readonly why: string }
  | {
      readonly kind: 'lock_heartbeat_failed'
      readonly names: readonly string[]
      readonly failure: Failure
    }
  | {
      readonly kind: 'lock_release_failed'
      readonly names: readonly string[]
      readonly failure: Failure
    }
  | { readonly kind: 'lock_unavailable'; readonly failure: Failure }
  | { readonly kind: 'lock_redis_lost'; readonly failure: Failure }
  | { readonly kind: 'lock_redis_back' }
  | { readonly kind: 'redis_may_evict'; readonly policy: string }
  | ({ readonly kind: 'reserved' } & SlotsSubject)
  | ({ readonly kind: 'slots_taken' } & SlotsSubject)
  | ({ readonly kind: 'reservation_confirmed' } & SlotsSubject)
  | ({ readonly kind: 'reservation_cancelled' } & SlotsSubject)
  | {
      readonly kind: 'status_advanced'
      readonly entity: string
      readonly entityId: string
      readonly from: string
      readonly to: string
      readonly overridden: boolean
    }
  | {
      readonly kind: 'status_blocked'
      readonly entity: string
      readonly entityId: string
      readonly from: string
      readonly to: string
      readonly why: string
    }

/** What happens to an operation after its process died, other than that its client comes back. */
export type OperationHappening =
  | { readonly kind: 'recovered'; readonly attempt: number; readonly tookMs: number }
  | { readonly kind: 'recovery_failed'; readonly attempt: number; readonly failure: Failure }
  | {
      readonly kind: 'recovery_overdue'
      readonly attempt: number
      /** How many such handlers this process has, this one included. */
      readonly overdue: number
    }
  | { readonly kind: 'recover_failed'; readonly failure: Failure }
  | {
      readonly kind: 'resolved'
      readonly attempt: number
      readonly to: 'completed' | 'released'
      /** Whether it was taken away from a process whose lease still ran. */
      readonly forced: boolean
    }

/** What happens to an atomic operation besides what happens to any other. */
export type AtomicHappening =
  | { readonly kind: 'rolled_back'; readonly attempt: number; readonly why: string }
  | { readonly kind: 'not_confirmed'; readonly attempt: number; readonly failure: Failure }

/** Everything that happens, each with the facts that a log line or a metric needs. */
export type Happening =
  | { readonly kind: 'claimed'; readonly attempt: number }
  | { readonly kind: 'taken_over'; readonly attempt: number; readonly resumed: boolean }
  | { readonly kind: 'replayed'; readonly statusCode: number; readonly waitedMs: number }
  | ({ readonly kind: 'busy'; readonly waitedMs: number } & HeldBy)
  | { readonly kind: 'mismatch' }
  | { readonly kind: 'uncertain'; readonly operationId: string; readonly attempt: number }
  | { readonly kind: 'not_replayable' }
  | {
      readonly kind: 'completed'
      readonly attempt: number
      readonly statusCode: number
      readonly bytes: number
      readonly tookMs: number
    }
  | {
      readonly kind: 'response_omitted'
      readonly attempt: number
      readonly reason: OmittedReason
      /** Of `redact`. */
      readonly failure?: Failure
    }
  | {
      readonly kind: 'keep_status_failed'
      readonly attempt: number
      readonly statusCode: number
      readonly failure: Failure
    }
  | { readonly kind: 'response_not_stored'; readonly attempt: number; readonly failure: Failure }
  | { readonly kind: 'released'; readonly attempt: number; readonly why: string }
  | { readonly kind: 'release_failed'; readonly attempt: number; readonly failure: Failure }
  | { readonly kind: 'heartbeat_failed'; readonly attempt: number; readonly failure: Failure }
  | { readonly kind: 'lease_lost'; readonly attempt: number; readonly why: string }
  | { readonly kind: 'abandoned'; readonly attempt: number; readonly why: string }
  | { readonly kind: 'store_unavailable'; readonly bypassed: boolean; readonly failure: Failure }
  | { readonly kind: 'too_many_keys' }
  | { readonly kind: 'limiter_failed'; readonly failure: Failure }
  /** `what` is not compared, such as `an instance of FileStream`. */
  | { readonly kind: 'body_not_compared'; readonly what: string }
  | { readonly kind: 'key_rejected'; readonly reason: string }
  | { readonly kind: 'key_ignored'; readonly reason: IgnoredReason }
  | {
      readonly kind: 'caller_failed'
      readonly option: 'tenant' | 'principal'
      readonly failure: Failure
    }
  | { readonly kind: 'pruned'; readonly count: number; readonly tookMs: number }
  | { readonly kind: 'prune_failed'; readonly failure: Failure }
  | OperationHappening
  | AtomicHappening
  | InboxHappening
  | GuardHappening

/** What it happened to. A key is a secret of its client: it is told apart by `keyId` alone. */
export interface EventSubject {
  readonly tenantId: string | undefined
  /** The first 12 hex digits of SHA-256 over tenant and key. */
  readonly keyId: string | undefined
  /** `POST /payments`, or `undefined` outside a request. */
  readonly route: string | undefined
}

export type IdempotencyEvent = Happening & EventSubject

/** Where every event is published: `diagnostics_channel.subscribe(CHANNEL, (event) => …)`. */
export const CHANNEL = 'fastify-idempotency'

type Level = 'debug' | 'info' | 'warn' | 'error'

/** How loud each event is, and what the log says. */
const LOGGED: Record<Happening['kind'], readonly [Level, string]> = {
  claimed: ['debug', 'Idempotency key claimed'],
  taken_over: ['info', 'Idempotency key taken over for another attempt'],
  replayed: ['info', 'Stored response replayed'],
  busy: ['info', 'A request with this idempotency key is running'],
  mismatch: ['warn', 'Idempotency key was used before with another request, or by another caller'],
  uncertain: ['warn', 'An interrupted operation waits for a decision'],
  not_replayable: ['info', 'The response of a finished operation was not kept'],
  completed: ['debug', 'Response stored'],
  response_omitted: ['warn', 'Operation recorded without its response'],
  keep_status_failed: [
    'error',
    'keepStatus threw, or returned no boolean; the default rule decided whether to store a response',
  ],
  response_not_stored: ['error', 'Response could not be stored; storing it goes on'],
  released: ['info', 'Idempotency key released'],
  release_failed: ['warn', 'Idempotency key could not be released; its lease will run out'],
  heartbeat_failed: ['warn', 'Lease could not be renewed; trying again'],
  lease_lost: ['warn', 'Lease lost; the result of this attempt is not the answer'],
  abandoned: ['warn', 'Attempt given up; its lease will run out'],
  recovered: ['info', 'Interrupted operation finished by its handler'],
  recovery_failed: ['warn', 'Handler of an interrupted operation failed; trying again later'],
  recovery_overdue: [
    'warn',
    'Handler of an interrupted operation still runs although its lease is over; its place was given up',
  ],
  recover_failed: ['warn', 'Interrupted operations could not be looked for; trying again later'],
  resolved: ['info', 'Interrupted operation ended as a person decided'],
  rolled_back: ['info', 'Atomic operation rolled back; nothing of it is kept'],
  not_confirmed: [
    'error',
    'Commit of an atomic operation not confirmed; its response was held back',
  ],
  store_unavailable: ['error', 'Idempotency store failed or did not answer'],
  too_many_keys: ['warn', 'Too many new idempotency keys'],
  limiter_failed: ['warn', 'A limit could not be counted; nobody was held up'],
  body_not_compared: [
    'warn',
    'Bodies of this route are not compared, or not as a whole: set config.idempotency.fingerprint',
  ],
  key_rejected: ['info', 'Idempotency key rejected'],
  key_ignored: [
    'info',
    'Idempotency key ignored: the caller is unknown; the request ran unprotected',
  ],
  caller_failed: ['error', 'The tenant or the principal of a request could not be found out'],
  pruned: ['debug', 'Expired idempotency records deleted'],
  webhook_recorded: ['debug', 'Webhook event recorded'],
  webhook_duplicate: ['info', 'Duplicate webhook event detected'],
  webhook_same_body: ['warn', 'Webhook event has the body of another one'],
  webhook_other_body: ['warn', 'Duplicate webhook event has another body than its first delivery'],
  webhook_without_id: [
    'info',
    'A webhook event has no id of its provider; its bytes name it (told once for each endpoint)',
  ],
  webhook_processed: ['debug', 'Webhook event processed'],
  webhook_ignored: ['debug', 'Webhook event ignored'],
  webhook_postponed: ['info', 'Webhook event put back until later'],
  webhook_failed: ['warn', 'Webhook event failed'],
  webhook_dead: ['error', 'Webhook event is dead; it needs a person'],
  webhook_handed_back: ['info', 'Webhook event handed back: the server closes'],
  webhook_left_to_provider: [
    'info',
    'Webhook event not run by a worker: its provider delivers it again as another event',
  ],
  webhook_overdue: [
    'warn',
    'Handler of a webhook event still runs although its lease is over; its place was given up',
  ],
  webhook_end_not_stored: [
    'error',
    'How a webhook event ended could not be stored; storing it goes on',
  ],
  webhook_refused: ['warn', 'Webhook refused: its signature was not accepted'],
  webhook_handshake: ['info', 'Webhook handshake answered'],
  webhook_without_events: ['info', 'Webhook carried no event; nothing was recorded'],
  webhook_not_verified: ['error', 'Webhook could not be verified; it was not acknowledged'],
  webhook_too_large: [
    'error',
    'Webhook refused: its body is larger than option "bodyLimit" allows',
  ],
  inbox_unavailable: ['error', 'Inbox failed or did not answer; the webhook was not acknowledged'],
  dispatch_failed: [
    'warn',
    'Webhook events that are due could not be handed on; trying again later',
  ],
  locked: ['debug', 'Locked'],
  lock_busy: ['info', 'Somebody else holds this lock'],
  lock_lost: ['warn', 'Lock lost; somebody else may have it'],
  lock_heartbeat_failed: ['warn', 'Lock could not be renewed; trying again'],
  lock_release_failed: ['warn', 'Lock could not be released; it will run out'],
  lock_unavailable: ['error', 'Locks do not answer'],
  lock_redis_lost: ['warn', 'Redis does not answer; locks are taken in the database alone'],
  lock_redis_back: ['info', 'Redis answers again; locks are taken there first'],
  redis_may_evict: [
    'warn',
    'Redis may evict locks when its memory is full: set maxmemory-policy to noeviction',
  ],
  reserved: ['debug', 'Slots reserved'],
  slots_taken: ['info', 'Slots are taken by somebody else'],
  reservation_confirmed: ['debug', 'Reservation confirmed'],
  reservation_cancelled: ['debug', 'Reservation cancelled'],
  status_advanced: ['info', 'Status changed'],
  status_blocked: ['warn', 'Status not changed: its flow does not allow it'],
  prune_failed: ['warn', 'Expired idempotency records could not be deleted; trying again later'],
}

const published = channel(CHANNEL)

/** Says that something happened to the operation it is bound to. */
export type Report = (event: Happening) => void

/** Binds events to a log and to what they are about. Costs nothing where nobody listens. */
export function reporter(
  log: FastifyBaseLogger,
  route: string | undefined,
  subject: (Pick<RecordKey, 'tenantId'> & Partial<RecordKey>) | undefined,
): Report {
  let about: EventSubject | undefined
  return (happening) => {
    const [level, text] = LOGGED[happening.kind]
    const isLogged = isLevelEnabled(log, level)
    if (!isLogged && !published.hasSubscribers) return
    if (about === undefined) {
      const { tenantId, key } = subject ?? {}
      const keyId =
        tenantId === undefined || key === undefined ? undefined : keyIdOf({ tenantId, key })
      about = { tenantId, keyId, route }
    }
    const event: IdempotencyEvent = { ...happening, ...about }
    if (isLogged) log[level]({ idempotency: event }, text)
    if (published.hasSubscribers) published.publish(event)
  }
}

/** How logs and metrics name a key without telling it. */
export function keyIdOf({ tenantId, key }: RecordKey): string {
  return createHash('sha256').update(`${tenantId}\0${key}`).digest('hex').slice(0, 12)
}

/** Those that are the cause of an error of the library's own. */
const known = new WeakSet<object>()

// The messages of Prisma and of databases quote arguments and rows; only what cannot is passed on.
export function failureOf(error: unknown): Failure {
  const cause = readThrown(error, 'cause')
  if (known.has(Object(cause))) return cause as Failure
  const code = errorCode(error)
  const failure: Failure = {
    name: nameOf(error),
    code,
    hint: code === undefined ? undefined : HINTS[code],
    at: isThrown(error, Error) ? frameOf(error) : undefined,
  }
  known.add(failure)
  return failure
}

function nameOf(error: unknown): string {
  if (!isThrown(error, Error)) return typeof error
  const name = readThrown(error, 'name')
  return typeof name === 'string' ? name : 'Error'
}

// Where this file is, in src or in dist: the library's own code.
const LIBRARY = fileURLToPath(new URL('.', import.meta.url))

/**
 * Where an error comes from: the first line of its stack that is the application's, or the first one. The
 * stack begins with the message, which may quote a stack, or anything.
 */
function frameOf(error: Error): string | undefined {
  const stack = readThrown(error, 'stack')
  const message = readThrown(error, 'message')
  if (typeof stack !== 'string' || typeof message !== 'string') return undefined
  const messageAt = stack.indexOf(message)
  if (messageAt === -1) return undefined
  const lines = stack.slice(messageAt + message.length).matchAll(/\n +at (.+)/g)
  const frames = [...lines].map(([, frame]) => frame as string)
  return frames.find(isOfApplication) ?? frames[0]
}

/** Where a frame is of a package, of Node, or of nothing. A function without a name is `<anonymous>`, too. */
const ELSEWHERE = /[\\/]node_modules[\\/]|(^|\(|async )(node:|<anonymous>\)?$)/

function isOfApplication(frame: string): boolean {
  return !ELSEWHERE.test(frame) && !frame.includes(LIBRARY)
}

const MIGRATE =
  'the tables are missing or old: run `npx prisma migrate deploy` (after `npx fastify-idempotency init`)'
const UNREACHABLE = 'the database cannot be reached'
const NO_DATABASE = 'the server has no database of this name'
const NO_ACCESS = 'the server refuses the user or its password'
const ONE_PROCESS =
  'the SQLite file is locked by another process: SQLite is for an application of one process'

const HINTS: Record<string, string> = {
  '42P01': MIGRATE,
  '42703': MIGRATE,
  P2021: MIGRATE,
  P2022: MIGRATE,
  // MySQL and MariaDB: no such table, no such column.
  1146: MIGRATE,
  1054: MIGRATE,
  P1001: UNREACHABLE,
  ECONNREFUSED: UNREACHABLE,
  ENOTFOUND: UNREACHABLE,
  EAI_AGAIN: UNREACHABLE,
  '3D000': NO_DATABASE,
  1049: NO_DATABASE,
  '28000': NO_ACCESS,
  '28P01': NO_ACCESS,
  1045: NO_ACCESS,
  // All that the pool of MariaDB's driver says.
  45028: `${UNREACHABLE}, refuses its user, or has no free connection in the pool`,
  P1008: ONE_PROCESS,
  5: ONE_PROCESS,
  SQLITE_BUSY: ONE_PROCESS,
  P2024: 'no connection became free in the pool: it is too small, or something holds connections',
  P2028: 'no connection became free for a transaction in time, or it took longer than its timeout',
}

function isLevelEnabled(log: FastifyBaseLogger, level: Level): boolean {
  const ask: unknown = Reflect.get(log, 'isLevelEnabled')
  return typeof ask === 'function' ? ask.call(log, level) === true : log.level !== 'silent'
}
