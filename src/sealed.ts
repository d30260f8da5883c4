import type { FastifyError } from '@fastify/error'
import { isThrown, readThrown } from './core/thrown.js'
import { DatabaseFailed, DataRefused, OptionInvalid } from './errors.js'
import { type Failure, failureOf } from './events.js'
import { errorCode, isDataRefused } from './store/client.js'
import { isRolledBack } from './store/say-again.js'

// The messages of Prisma, of drivers and of databases quote arguments and rows, and so do their causes
// and properties. Loggers print all of that, and Fastify sends a message to the client. So whatever a
// public method lets out is an error of the library's own, whose cause is what is known of the failure.

/**
 * Other transactions changed the same rows, and this one is to be repeated. Has the code of Prisma's own
 * error of that meaning, so that a caller which repeats after that repeats after this.
 */
export class WriteConflict extends Error {
  readonly code = 'P2034'
  override readonly name = 'WriteConflict'
}

/** The errors that were sealed, by what they were sealed in. */
const originals = new WeakMap<object, unknown>()

/** An error of the library's own in place of another one, of which only what is safe is its cause. */
export function sealIn(
  create: (options: { cause: Failure }) => FastifyError,
  error: unknown,
): FastifyError {
  return keepOriginal(create({ cause: failureOf(error) }), error)
}

/**
 * Runs the statements of a public method, which is called `call` in what it throws. What says itself what
 * to answer (errors of the library's own, and of the application) is thrown on as it is.
 *
 * @throws DatabaseFailed; DataRefused when a repetition cannot help.
 */
export async function sealed<T>(call: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    throw seal(call, error)
  }
}

/**
 * The same for a method that may be part of a transaction of the caller's, who repeats that for a conflict.
 *
 * @throws DatabaseFailed; DataRefused; `WriteConflict` when the database rolled back for another transaction.
 */
export async function sealedInTransaction<T>(call: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!isRolledBack(error) || isThrown(error, WriteConflict)) throw seal(call, error)
    const message = `the database rolled ${call} back, because of another transaction: repeat it`
    throw keepOriginal(new WriteConflict(message), error)
  }
}

/** What `sealed` throws for an error. */
export function seal(call: string, error: unknown): unknown {
  const isError = typeof error === 'object' && error !== null
  if (!isError || hasStatus(error) || isThrown(error, WriteConflict)) return error
  if (readThrown(error, 'name') === 'PrismaClientValidationError') {
    // No query was sent. Its message quotes the arguments.
    const what = `Prisma refused the arguments of ${call}: names and types must be those of the model. databaseErrorOf(error) returns Prisma's own error`
    return keepOriginal(new OptionInvalid(what), error)
  }
  const Failed = isRefused(error) ? DataRefused : DatabaseFailed
  return keepOriginal(new Failed(call, { cause: failureOf(error) }), error)
}

// A constraint, or a trigger of the application's, as PostgreSQL and as Prisma say it.
const OF_A_RULE = /^(23|44|P0)\w{3}$|^P20(02|03|04|11|14)$/

/** Whether the same call would fail again. */
function isRefused(error: unknown): boolean {
  return isDataRefused(error) || OF_A_RULE.test(errorCode(error) ?? '')
}

/**
 * The error of the database, the driver or Prisma behind one of the library's own, if there is one. Its
 * message and properties may quote rows and arguments: to be looked at, and neither sent nor logged where
 * those must not be.
 */
export function databaseErrorOf(error: unknown): unknown {
  return originals.get(Object(error))
}

/** Whether an error says itself what to answer, as those of authentication do. */
export function hasStatus(error: unknown): boolean {
  const status = readThrown(error, 'statusCode')
  return typeof status === 'number' && status >= 400
}

function keepOriginal<E extends Error>(sealedError: E, error: unknown): E {
  originals.set(sealedError, error)
  return sealedError
}
