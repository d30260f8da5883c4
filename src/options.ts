import type { FastifyRequest } from 'fastify'
import type { OnLeaseExpired } from './core/decide.js'
import type { Duration } from './core/duration.js'
import type { Dispatch } from './dispatch/dispatch.js'
import type { PrismaClientLike } from './store/client.js'
import type { PoolLike } from './store/pool.js'

/** What can be set for all routes at registration, and for one in `config.idempotency`. */
export interface RouteOptions {
  /** Answer 400 when the header is missing. Default `false`: such a request runs unprotected. */
  required?: boolean
  /**
   * How long a duplicate waits for the first request before it gets 409. Default `0`: not at all.
   * A waiting request holds its connection to the client and nothing else.
   */
  wait?: Duration
  /**
   * How long nobody may take an operation over after its process was last heard of. Renewed while
   * the handler runs; after a crash, the key is free again after at most this time. Default `'30s'`,
   * at least `'1s'`.
   */
  lease?: Duration
  /**
   * How long a lease is renewed for one attempt. A handler that has not answered by then keeps
   * running, but its `signal` is aborted and another attempt may start. Default `'15m'`.
   */
  maxRun?: Duration
  /**
   * How long a key is remembered, counted from the start of its last attempt. Default `'24h'`, at
   * least `maxRun` and `lease` together.
   */
  retention?: Duration
  /**
   * The largest response body that is kept, in bytes. A larger one reaches the client, but a retry
   * gets 409 `IDEMPOTENCY_NOT_REPLAYABLE` and the handler does not run again. A stream is read ahead
   * of its client up to this limit, in memory. Default 1 MiB, at most 64 MiB.
   */
  maxBodyBytes?: number
  /**
   * Whether a response is stored, to be replayed. With `false` its status alone is: a retry gets 409
   * `IDEMPOTENCY_NOT_REPLAYABLE`, and the handler does not run again. For responses that must not lie
   * in the database, such as tokens. Default `true`.
   */
  store?: boolean
  /**
   * Called with a copy of a response before it is stored; what it returns is stored in place of the
   * headers and the body, and is what retries get. The first client gets the response as it is. It must
   * return `body`: text, bytes, or `null`, with which a retry gets 409 `IDEMPOTENCY_NOT_REPLAYABLE`.
   * `headers` may be left out, and then stay as they are. When it throws, or returns anything else
   * (no `body`, a property that is `undefined`, a promise, headers that cannot be sent), nothing of the
   * response is stored, and a retry gets that 409, too. Called with the whole body of a stream, and not
   * for a body larger than `maxBodyBytes`.
   */
  redact?: (response: ResponseToRedact, request: FastifyRequest) => RedactedResponse
  /**
   * Response headers that are kept besides `content-type`, `location`, `link` and `retry-after`.
   * `set-cookie` is refused: a cookie belongs to the one who got it.
   */
  headers?: readonly string[]
  /**
   * Whether a response with this status is the operation's answer. Any other releases the key, and
   * a retry runs the handler again. Default: below 500, except 401, 403, 408, 425 and 429.
   *
   * Where it throws, or returns no boolean, the default decides, and `keep_status_failed` is reported: the
   * handler has taken effect by then.
   */
  keepStatus?: (statusCode: number) => boolean
  /**
   * What must stay the same when a key is used again on the same route, in place of parameters,
   * query and body. Called before validation, once for each request with a key; where Fastify does not
   * parse the body, after all hooks that may read it. Needed for bodies that the handler reads itself,
   * such as uploads that it streams. It returns text, numbers, dates, bytes, or plain
   * objects, lists, maps and sets of them; for `undefined`, an instance of a class of your own or a
   * function, the request fails with 500 and nothing runs.
   */
  fingerprint?: (request: FastifyRequest) => unknown
  /**
   * The caller within the tenant, such as `(request) => request.user?.id`. It is compared beside the
   * body: another principal with the same key gets 422 and never the stored response. Keys, locks and
   * reservations stay the tenant's. Called after authentication, before the handler; only a hash of
   * what it returns is stored. `false` on a route takes the plugin's away. Default `false`: every
   * caller of a tenant who knows the key and the body gets the response.
   *
   * It must answer within `storeTimeout`. An error that it throws with a `statusCode` is the answer;
   * any other is 500 `IDEMPOTENCY_PRINCIPAL_FAILED`. For nothing (`undefined`, `null`, `''`) see
   * `onUnknownCaller`.
   */
  principal?: ((request: FastifyRequest) => PrincipalId | Promise<PrincipalId>) | false
  /**
   * What happens to a request with a key for which `tenant`, or `principal`, returns nothing:
   * `'reject'` (default) answers 403 and runs nothing; `'bypass'` runs the handler without protection,
   * stores nothing, and reports `key_ignored`. For public routes, such as a login, to which clients
   * may add a key.
   */
  onUnknownCaller?: 'reject' | 'bypass'
  /**
   * What a retry does when the process that ran the operation died: `'rerun'` (default) starts
   * another attempt; `'uncertain'` answers 409 `IDEMPOTENCY_UNCERTAIN` until somebody says with
   * `app.idempotency.resolve()` what became of it, or the key expires.
   */
  onLeaseExpired?: OnLeaseExpired
  /**
   * What happens when the store does not answer: `'fail'` (default) answers 503 and runs nothing;
   * `'bypass'` runs the handler without protection.
   */
  onStoreError?: 'fail' | 'bypass'
  /**
   * Makes the claim, all that the handler writes through `request.idempotency.tx`, and the stored
   * response one transaction with one commit, before the response leaves: a crash leaves nothing
   * behind. PostgreSQL only, for handlers that do nothing but work in this database, and not for long.
   * Default `false`.
   */
  atomic?: boolean | AtomicOptions
}

/** A response as it would be stored. */
export interface ResponseToRedact {
  readonly statusCode: number
  /** Lower-case names, only those that the route keeps. */
  readonly headers: Readonly<Record<string, string | readonly string[]>>
  readonly body: Buffer
}

/** What is stored in place of it. Without `headers`, they stay as they are. */
export interface RedactedResponse {
  readonly headers?: Readonly<Record<string, string | readonly string[]>>
  readonly body: string | Uint8Array | null
}

/** Options of atomic routes. */
export interface AtomicOptions {
  /**
   * How long the transaction may take, with everything in it. After that it is rolled back, `signal`
   * is aborted, and the client gets 503 at once. Default `'5s'`, at most `'60s'`.
   */
  timeout?: Duration
  /** How long to wait for a connection before the client gets 503. Default `'2s'`. */
  maxWait?: Duration
  /** As Prisma names it: `'Serializable'`. Default: the database's. */
  isolationLevel?: string
}

/** A tenant's name, or nothing when the request belongs to no tenant. */
export type TenantId = string | number | bigint | null | undefined

/** The name of a caller within a tenant, or nothing when the request has none. */
export type PrincipalId = string | number | bigint | null | undefined

/** Where locks are kept. */
export type LocksKind = 'auto' | 'redis' | 'database' | 'memory'

/** A client of ioredis, by its structure. */
export interface RedisLike {
  defineCommand(name: string, definition: { lua: string; numberOfKeys?: number }): void
}

/** Options of the plugin. */
export interface PluginOptions extends RouteOptions {
  /** The application's own client, with the library's models in its schema. */
  prisma: PrismaClientLike
  /** The `pg.Pool` under the client's adapter, on PostgreSQL: statements then take the fast path. */
  pool?: PoolLike
  /**
   * The application's ioredis client: counts new keys for all processes together, and keeps those who
   * wait for a lock away from the database. An odd number of them, of servers that know nothing of each
   * other, keeps locks by their majority; the first of them counts.
   */
  redis?: RedisLike | readonly RedisLike[]
  /**
   * What the names of locks and counters in Redis begin with, after the `keyPrefix` of the client.
   * The same in all processes of one application, and different for each application that uses the
   * same Redis: otherwise they wait for each other's locks and share one count of new keys. Default
   * `'fastify-idempotency:'`.
   */
  redisPrefix?: string
  /**
   * Where locks are kept: `'auto'` (default) in the database, behind Redis while that answers;
   * `'redis'` in Redis alone, `'database'` in the database alone, `'memory'` in this process alone.
   */
  locks?: LocksKind
  /**
   * Whose keys a request uses, such as `(request) => request.user?.orgId`: part of every look-up.
   * Called after authentication, and for requests without a user, too; it must answer within
   * `storeTimeout`. `false` for an application with one tenant.
   */
  tenant: ((request: FastifyRequest) => TenantId | Promise<TenantId>) | false
  /** Protect every POST and PATCH that carries the header. Default `true`. */
  global?: boolean
  /** How many new keys a tenant may use in a time; retries do not count. Default: no limit. */
  rateLimit?: { max: number; timeWindow: Duration } | false
  /**
   * How many webhooks with a wrong signature one address may send before it gets 429 in place of
   * 401. Those with a right one are never held up. Default 60 in `'1m'`.
   */
  failedSignatures?: { max: number; timeWindow: Duration } | false
  /**
   * How webhook events that are durable get run: `inProcess()` by default, in the processes that
   * receive them; or `bullmq()`, on the workers of a queue.
   */
  dispatch?: Dispatch
  /** Whether this process runs webhook events that wait. Default `true`. */
  worker?: boolean
  /**
   * How long a closing server waits for the webhook events that it is running before it hands them
   * back to others, and for what `run()` and `recover()` are running. Counted from the beginning of
   * `close()`, whatever requests are in flight. Default `'10s'`.
   */
  drain?: Duration
  /**
   * How long the store may take to answer. With `pool`, PostgreSQL cancels a statement that takes
   * longer. Default `'5s'`.
   */
  storeTimeout?: Duration
  /**
   * How this process is named for operators: in the records of what it runs, in `busy` events and in
   * what `resolve()` returns, and in its locks. Never in an answer to a client. Default: the name of the
   * host, and the process's id.
   */
  holder?: string
  /**
   * How many connections the plugin's own statements take of the application's pool at once, so that
   * a database that stalls leaves the others to the application. At least 2. Default: 70 % of the
   * size of `pool`; 7 without one, of the 10 that Prisma's adapters open.
   */
  maxConnections?: number
  /**
   * How many requests of one process may wait for a running request (`wait`) at once; those above
   * get 409 without waiting. Default 1,000.
   */
  maxWaiters?: number
  /** How often a listening process deletes expired records; `false` leaves it to you. Default `'10m'`. */
  pruneEvery?: Duration | false
  /**
   * How often a listening process finishes operations that named a handler and lost their process, as
   * `recover()` does. Default `false`: not by itself.
   */
  recoverEvery?: Duration | false
  /** Where `type` in error answers points to; the code is added as the fragment. */
  docs?: string
}

/** Options of one route, checked, complete, and in milliseconds. */
export interface RouteSettings {
  readonly required: boolean
  readonly waitMs: number
  readonly leaseMs: number
  readonly maxRunMs: number
  readonly retentionMs: number
  readonly maxBodyBytes: number
  readonly isStored: boolean
  readonly redact: RouteOptions['redact']
  readonly headers: readonly string[]
  readonly keepStatus: (statusCode: number) => boolean
  readonly fingerprint: ((request: FastifyRequest) => unknown) | undefined
  readonly onLeaseExpired: OnLeaseExpired
  readonly onStoreError: 'fail' | 'bypass'
  readonly atomic: AtomicSettings | undefined
  readonly principal: Exclude<RouteOptions['principal'], false>
  readonly onUnknownCaller: 'reject' | 'bypass'
}

/** Options of an atomic route, checked, complete, and in milliseconds. */
export interface AtomicSettings {
  readonly timeoutMs: number
  readonly maxWaitMs: number
  readonly isolationLevel: string | undefined
}

/** Options of the plugin, checked, complete, and in milliseconds. */
export interface PluginSettings {
  readonly tenant: Exclude<PluginOptions['tenant'], false> | false
  readonly isGlobal: boolean
  readonly rateLimit: { readonly max: number; readonly timeWindowMs: number } | undefined
  readonly failedSignatures: { readonly max: number; readonly timeWindowMs: number } | undefined
  /** None without Redis. */
  readonly redis: readonly object[]
  readonly redisPrefix: string
  readonly locks: LocksKind
  readonly hasWorker: boolean
  readonly drainMs: number
  readonly storeTimeoutMs: number
  readonly holder: string
  readonly maxConnections: number | undefined
  readonly maxWaiters: number
  readonly pruneEveryMs: number | undefined
  readonly recoverEveryMs: number | undefined
  readonly docs: string
  readonly route: RouteSettings
}

export const DEFAULTS = {
  required: false,
  wait: 0,
  // Long enough for a pause of the runtime or a slow write, short enough to wait for after a crash.
  lease: '30s',
  maxRun: '15m',
  // What the large payment APIs remember.
  retention: '24h',
  maxBodyBytes: 1024 * 1024,
  store: true,
  headers: [],
  keepStatus: isAnswer,
  onLeaseExpired: 'rerun',
  onStoreError: 'fail',
  principal: false,
  onUnknownCaller: 'reject',
  atomic: false,
  global: true,
  // A secret that is being changed makes some of the provider's own fail for a while.
  failedSignatures: { max: 60, timeWindow: '1m' },
  redisPrefix: 'fastify-idempotency:',
  locks: 'auto',
  worker: true,
  drain: '10s',
  storeTimeout: '5s',
  maxWaiters: 1_000,
  pruneEvery: '10m',
  recoverEvery: false,
  docs: 'https://github.com/fastify-idempotency/fastify-idempotency/blob/main/docs/errors.md',
} as const satisfies Partial<PluginOptions>

/** Those of Prisma's transactions: rows are locked no longer than anywhere else. */
export const ATOMIC_DEFAULTS = { timeout: '5s', maxWait: '2s' } as const satisfies AtomicOptions

// A refusal for want of a login or a permission is that of one caller at one time, and so are limits
// and timeouts. Stored, they would be replayed to a caller who may.
const NOT_FINAL = [401, 403, 408, 425, 429]

/** The default of `keepStatus`: what a client did wrong stays wrong, a failure of ours may pass. */
export function isAnswer(statusCode: number): boolean {
  return statusCode < 500 && !NOT_FINAL.includes(statusCode)
}
