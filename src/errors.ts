import { createError, type FastifyErrorConstructor } from '@fastify/error'

// The one table of everything that can be answered or thrown. docs/errors.md describes each code;
// a test holds the two together.

/** `Idempotency-Key` is required on the route and was not sent. */
export const KeyMissing = createError(
  'IDEMPOTENCY_KEY_MISSING',
  'This route needs an Idempotency-Key header: a value that is unique to this operation, such as a UUID',
  400,
)
/** The header is no structured-field String and no token, or too long. */
export const KeyMalformed: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_KEY_MALFORMED' },
  [string]
> = createError(
  'IDEMPOTENCY_KEY_MALFORMED',
  'The Idempotency-Key header cannot be used: %s. Send 1 to 255 printable ASCII characters, as "abc" or abc',
  400,
)
/** The body repeats the same values by reference, too often to be compared with an earlier one. */
export const BodyUnusable = createError(
  'IDEMPOTENCY_BODY_UNUSABLE',
  'The body repeats the same values by reference too often to be compared with that of a retry; send it without references',
  400,
)
/** `tenant` returned nothing for this request. */
export const TenantUnknown = createError(
  'IDEMPOTENCY_TENANT_UNKNOWN',
  'This request belongs to no tenant, and an Idempotency-Key, a webhook, or a method such as request.idempotency.reserve() needs one. Authenticate it, or let the tenant function name requests without a user; for requests with a key, see also onUnknownCaller',
  403,
)
/** `principal` returned nothing for this request. */
export const PrincipalUnknown = createError(
  'IDEMPOTENCY_PRINCIPAL_UNKNOWN',
  'An Idempotency-Key needs a known caller, and this request has none. Authenticate it, or let the principal function name requests without a user; see also onUnknownCaller',
  403,
)
/** The same operation is running now. */
export const InProgress = createError(
  'IDEMPOTENCY_IN_PROGRESS',
  'A request with this Idempotency-Key is being processed; repeat this one later',
  409,
)
/** The operation was interrupted and the route does not let it run again by itself. */
export const Uncertain = createError(
  'IDEMPOTENCY_UNCERTAIN',
  'An earlier request with this Idempotency-Key was interrupted; whether it took effect must be found out before it is repeated',
  409,
)
/** The operation is done, but its response, or its result, was not kept; says of what. */
export const NotReplayable: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_NOT_REPLAYABLE' },
  [string]
> = createError('IDEMPOTENCY_NOT_REPLAYABLE', '%s was not kept and cannot be repeated', 409)
/** An attempt lost its claim while it ran: to another attempt, or to a decision of `resolve()`. */
export const LeaseLost = createError(
  'IDEMPOTENCY_LEASE_LOST',
  'This attempt does not hold its operation any more: another attempt has begun or may begin, or an operator has decided it. Nothing more of this attempt is stored; repeat the call to get the result',
  409,
)
/** The key was used before, with another request or by another principal. */
export const KeyReused = createError(
  'IDEMPOTENCY_KEY_REUSED',
  'This Idempotency-Key was used before, with another request or by another caller; use a new key for a new operation',
  422,
)
/** `tenant` threw something that says nothing of a status, returned no name, or did not answer. */
export const TenantFailed = createError(
  'IDEMPOTENCY_TENANT_FAILED',
  'The tenant of this request could not be found out',
  500,
)
/** `principal` threw something that says nothing of a status, returned no name, or did not answer. */
export const PrincipalFailed = createError(
  'IDEMPOTENCY_PRINCIPAL_FAILED',
  'The caller of this request could not be found out',
  500,
)
/** The tenant used up its new keys. */
export const TooManyKeys = createError(
  'IDEMPOTENCY_TOO_MANY_KEYS',
  'Too many new Idempotency-Keys; retries with keys that were used already are still answered',
  429,
)
/** The database cannot be asked whether the operation was run; says in which words. Nothing was executed. */
export const StoreUnavailable: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_STORE_UNAVAILABLE' },
  [string, { cause: unknown }?]
> = createError(
  'IDEMPOTENCY_STORE_UNAVAILABLE',
  'Whether %s cannot be found out now; nothing was executed, repeat it later',
  503,
)

/** A webhook's signature was missing, wrong, or not of this time; `reason` says which. */
export const SignatureRefused = createError(
  'IDEMPOTENCY_SIGNATURE_REFUSED',
  'The signature of this webhook was not accepted; nothing was recorded',
  401,
)
/** Too many webhooks with a wrong signature from one address. */
export const TooManyRefusals = createError(
  'IDEMPOTENCY_TOO_MANY_REFUSALS',
  'Too many webhooks with a signature that was not accepted came from this address',
  429,
)
/** The inbox, or whoever knows the secrets, does not answer. The event was not acknowledged. */
export const InboxUnavailable = createError(
  'IDEMPOTENCY_INBOX_UNAVAILABLE',
  'This webhook cannot be recorded now; deliver it again later',
  503,
)
/** Whoever keeps the locks does not answer. The routine was not run. */
export const LockUnavailable = createError(
  'IDEMPOTENCY_LOCK_UNAVAILABLE',
  'Whether somebody holds this lock cannot be found out now; nothing was executed, repeat it later',
  503,
)
/** A statement of a public method failed or was not answered; says of which. `cause` is a `Failure`. */
export const DatabaseFailed: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_DATABASE_FAILED' },
  [string, { cause: unknown }?]
> = createError(
  'IDEMPOTENCY_DATABASE_FAILED',
  'The database refused or did not answer %s; whether it took effect is not known, and it is safe to repeat',
  503,
)
/** The database does not take what a public method was to write; says of which. `cause` is a `Failure`. */
export const DataRefused: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_DATA_REFUSED' },
  [string, { cause: unknown }?]
> = createError(
  'IDEMPOTENCY_DATA_REFUSED',
  'The database does not take a value of %s: text with a NUL, a number out of range, more than a column holds, or what a constraint or a trigger refuses. Nothing of it was written, and the same call fails again',
  500,
)
/** The name of a step or transaction is no text that every database stores as it is. */
export const StepNameInvalid = createError(
  'IDEMPOTENCY_STEP_NAME_INVALID',
  'The name of a step or transaction, and of keyFor(), must be text of 1 to 255 characters without NUL and without halves of surrogate pairs, such as "charge"',
  500,
)
/** A step or transaction with a name that this attempt used before. */
export const StepNameUsed: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_STEP_NAME_USED' },
  [string]
> = createError(
  'IDEMPOTENCY_STEP_NAME_USED',
  'There is a step called %s already: every step and transaction of a handler needs a name of its own, such as step("charge", …) and transaction(…, { name: "booking" })',
  500,
)
/** The result of a step is nothing that a later attempt could get back. */
export const StepNotStorable: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_STEP_NOT_STORABLE' },
  [string, string]
> = createError(
  'IDEMPOTENCY_STEP_NOT_STORABLE',
  'The %s cannot be stored for a later attempt: %s. Use plain data: objects, lists, text, numbers, dates; a Decimal as text',
  500,
)
/** A transaction within, or beside, another one or a step of the same handler, or the reverse. */
export const TransactionOpen = createError(
  'IDEMPOTENCY_TRANSACTION_OPEN',
  'A transaction runs alone in its handler: await each step before it, await the transaction before the next step or transaction, and use its tx inside of it',
  500,
)
/** A second `request.idempotency.run()` while one of the same request is running. */
export const RunOpen = createError(
  'IDEMPOTENCY_RUN_OPEN',
  'Another handler is running in this request, and recover() could finish only one of the two: await the first request.idempotency.run() before the next',
  500,
)
/** A handler returned while one of its steps or transactions was still under way. */
export const StepNotAwaited = createError(
  'IDEMPOTENCY_STEP_NOT_AWAITED',
  'The handler did not await a step, a transaction or a query of its transaction: it answered before that was done, or that failed. Write `await` in front of it, or return it',
  500,
)
/** The application closes. Nothing was executed. */
export const Closing = createError(
  'IDEMPOTENCY_CLOSING',
  'The application closes; nothing was executed, repeat it elsewhere or later',
  503,
)
/** A handler caught the error of a query of its transaction, and went on as if that were well. */
export const AtomicAborted = createError(
  'IDEMPOTENCY_ATOMIC_ABORTED',
  'A query of this atomic route failed, and PostgreSQL undoes a transaction in which one has: all of it was rolled back. Throw the error, or catch what a constraint says with once(…, { tx, find })',
  500,
)
/** A query of an atomic route, or of `transaction()`, was COMMIT, ROLLBACK or the like. */
export const TransactionEnded = createError(
  'IDEMPOTENCY_TRANSACTION_ENDED',
  'A query ended its transaction (COMMIT or ROLLBACK), so its result cannot be committed together with what it wrote. Leave that to the library: throw to undo what was done, or use savepoints',
  500,
)
/** A step or transaction within a step. */
export const StepNested = createError(
  'IDEMPOTENCY_STEP_NESTED',
  'A step or transaction was begun within a step: put them one after the other, because a step that is done is not run again, with all that is in it',
  500,
)
/** A step or transaction in a hook before the handler of a request whose key is not claimed yet. */
export const StepTooEarly = createError(
  'IDEMPOTENCY_STEP_TOO_EARLY',
  'A step, a transaction, a run or a keyFor() of request.idempotency was begun in a hook before the handler, where the Idempotency-Key is not claimed yet, and nothing of it was done: begin it in the handler',
  500,
)
/** A step or transaction that began after its handler had ended. */
export const StepTooLate = createError(
  'IDEMPOTENCY_STEP_TOO_LATE',
  'A step, a transaction or a query of its transaction was begun after the handler had ended, and nothing of it was done: begin it in the handler, and await it there',
  500,
)
/** `request.idempotency.tx` where there is no transaction of the route's own. */
export const NotAtomic = createError(
  'IDEMPOTENCY_NOT_ATOMIC',
  'request.idempotency.tx is there in the handler of an atomic route alone: give the route config: { idempotency: { atomic: true } }, or write await request.idempotency.transaction((tx) => …)',
  500,
)
/** A step, a transaction, `keyFor` or `run` in the handler of an atomic route; says which. */
export const NotInAtomic: FastifyErrorConstructor<{ code: 'IDEMPOTENCY_NOT_IN_ATOMIC' }, [string]> =
  createError(
    'IDEMPOTENCY_NOT_IN_ATOMIC',
    '%s is not for atomic routes: all of the handler is one transaction, request.idempotency.tx, and no part of it outlives a failure. For calls to other services and for long work, take `atomic` away',
    500,
  )
/** The handler of an atomic route answered with a stream, which would be sent before it is over. */
export const AtomicStream = createError(
  'IDEMPOTENCY_ATOMIC_STREAM',
  'An atomic route cannot answer with a stream, nor with a fetch Response that has one: its response is stored before any of it is sent. Return text, bytes or an object',
  500,
)
/** An atomic operation took longer than its `timeout`. All of it was rolled back. */
export const AtomicTimedOut = createError(
  'IDEMPOTENCY_ATOMIC_TIMED_OUT',
  'This request took longer than its transaction may; nothing of it was kept, repeat it later',
  503,
)
/** It is not known whether an atomic operation was committed, or a conflict undid it at its end. */
export const NotConfirmed = createError(
  'IDEMPOTENCY_NOT_CONFIRMED',
  'The database did not confirm that this request took effect; with the same Idempotency-Key it can be repeated safely, and that tells',
  503,
)
/** An event that the inbox does not have, or an endpoint that this application does not have. */
export const EventMissing: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_EVENT_MISSING' },
  [string]
> = createError('IDEMPOTENCY_EVENT_MISSING', 'fastify-idempotency: there is no %s', 404)

/** A request to a route that was added before the plugin. Nothing ran. */
export const RouteMissed = createError(
  'IDEMPOTENCY_ROUTE_MISSED',
  'This route was added before fastify-idempotency was loaded and would run unprotected. Write `await app.register(idempotency, …)`, and add routes after it',
  500,
)
/** An option is wrong; thrown at registration. */
export const OptionInvalid: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_OPTION_INVALID' },
  [string]
> = createError('IDEMPOTENCY_OPTION_INVALID', 'fastify-idempotency: %s', 500, TypeError)
/** The Prisma client lacks the library's models; thrown at registration. */
export const ModelsMissing: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_MODELS_MISSING' },
  [string]
> = createError(
  'IDEMPOTENCY_MODELS_MISSING',
  'fastify-idempotency: the Prisma client lacks %s. Run `npx fastify-idempotency init`: it adds models, and prints the lines to write into a model that is there already. Then run `npx prisma migrate dev` and `npx prisma generate`',
  500,
)
/** The schema maps the library's models to other tables or columns; thrown at registration. */
export const ModelsRenamed: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_MODELS_RENAMED' },
  [string]
> = createError(
  'IDEMPOTENCY_MODELS_RENAMED',
  'fastify-idempotency: the Prisma schema maps %s. On PostgreSQL, statements use these names: give the models the @@map and @map that `npx fastify-idempotency init` writes, and rename the table or column in a migration',
  500,
)
/** MySQL or MariaDB takes different keys for the same. Thrown at start. */
export const CollationInvalid: FastifyErrorConstructor<
  { code: 'IDEMPOTENCY_COLLATION_INVALID' },
  [string]
> = createError(
  'IDEMPOTENCY_COLLATION_INVALID',
  'fastify-idempotency: the database takes names for the same that differ in case, in accents or in spaces at the end, so that one key could be answered with the response of another. Run in a migration: %s',
  500,
)
/** The plugin was registered before in the same scope, or in one around it. */
export const AlreadyRegistered = createError(
  'IDEMPOTENCY_ALREADY_REGISTERED',
  'fastify-idempotency is registered in this scope, or in one around it, already: register it once, and set what differs for single routes in config: { idempotency: { … } }. For other options in a part of the application, such as another database, register it in scopes side by side: app.register(async (scope) => { await scope.register(idempotency, …) })',
  500,
)
