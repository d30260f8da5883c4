import { STATUS_CODES } from 'node:http'
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { readThrown } from '../core/thrown.js'
import { BUSY_RETRY_S, problem, STORE_RETRY_S } from './problem.js'

/** Where a request keeps the error. */
export const THROWN_ERROR = Symbol('fastify-idempotency.thrown')

declare module 'fastify' {
  interface FastifyRequest {
    /** The error of the library's own that this request ends with, if it does. */
    [THROWN_ERROR]: Error | null
  }
}

/** One of the library's own, which an application has thrown, or let pass. */
export function isOwnError(error: unknown): error is Error {
  const code: unknown = readThrown(error, 'code')
  return typeof code === 'string' && code.startsWith('IDEMPOTENCY_')
}

/** Remembers the error, where it is one of the library's own. For the `onError` hook. */
export function noteThrown(request: FastifyRequest, error: unknown): void {
  if (isOwnError(error)) request[THROWN_ERROR] = error
}

/**
 * What goes out in place of Fastify's own answer to an error of the library's: a problem document. What
 * the application's error handler, or its schema for the status, has made of the error goes out as it is.
 * For the `onSend` hook.
 */
export function asProblem(
  request: FastifyRequest,
  reply: FastifyReply,
  payload: unknown,
  docs: string,
): unknown {
  const error = request[THROWN_ERROR] as FastifyError | null
  if (error === null || !isFastifysAnswer(reply, payload, error)) return payload
  request[THROWN_ERROR] = null
  reply.removeHeader('content-length')
  return problem(reply, docs, error, retryAfterOf(error))
}

/** There is no other sign of who has answered: Fastify's default handler cannot be told from others. */
function isFastifysAnswer(reply: FastifyReply, payload: unknown, error: FastifyError): boolean {
  if (typeof payload !== 'string') return false
  const { statusCode } = reply
  const { code, message } = error
  const own = { statusCode, code, error: STATUS_CODES[statusCode], message }
  return sameJson(payload, own)
}

function sameJson(text: string, expected: Record<string, unknown>): boolean {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return false
  }
  if (typeof value !== 'object' || value === null) return false
  const names = Object.keys(value)
  return (
    names.length === Object.keys(expected).length &&
    names.every((name) => Reflect.get(value, name) === expected[name])
  )
}

function retryAfterOf({ code, statusCode }: FastifyError): number | undefined {
  if (code === 'IDEMPOTENCY_LEASE_LOST') return BUSY_RETRY_S
  return statusCode === 503 ? STORE_RETRY_S : undefined
}
