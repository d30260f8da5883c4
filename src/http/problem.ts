import { STATUS_CODES } from 'node:http'
import type { FastifyError, FastifyReply } from 'fastify'

/** When to come back while another attempt runs: it is usually about to end. In seconds. */
export const BUSY_RETRY_S = 1
/** When to come back while a store does not answer. In seconds. */
export const STORE_RETRY_S = 5

/**
 * Turns a reply into a problem document (RFC 9457) and returns its body. It goes past the
 * application's own error handler: clients of every application see the same answers.
 */
export function problem(
  reply: FastifyReply,
  docs: string,
  error: FastifyError,
  retryAfterS?: number,
  more?: Readonly<Record<string, string>>,
): Buffer {
  const status = error.statusCode ?? 500
  reply.code(status).header('content-type', 'application/problem+json')
  if (retryAfterS !== undefined) reply.header('retry-after', retryAfterS)
  // As bytes: Fastify would add a charset to text, which this media type does not have.
  return Buffer.from(
    JSON.stringify({
      type: `${docs}#${error.code.toLowerCase()}`,
      title: STATUS_CODES[status],
      status,
      detail: error.message,
      code: error.code,
      ...more,
    }),
  )
}

/** The same in place of a response that is not the operation's answer: what tells of it goes, too. */
export function problemInstead(
  reply: FastifyReply,
  keptHeaders: readonly string[],
  docs: string,
  error: FastifyError,
  retryAfterS?: number,
): Buffer {
  for (const name of ['set-cookie', 'content-encoding', 'etag', ...keptHeaders]) {
    reply.removeHeader(name)
  }
  return problem(reply, docs, error, retryAfterS)
}
