import type { FastifyReply } from 'fastify'

type HeaderValue = string | number | string[] | undefined

/** Status and headers of a reply at one moment. */
export interface SavedHead {
  readonly statusCode: number
  readonly headers: Readonly<Record<string, HeaderValue>>
}

export function saveHead(reply: FastifyReply): SavedHead {
  const headers: Record<string, HeaderValue> = {}
  for (const [name, value] of Object.entries(reply.getHeaders())) {
    // HTTP/2 keeps the status among the headers once it was written.
    if (name.startsWith(':')) continue
    // Fastify adds further cookies to the list that it has.
    headers[name] = Array.isArray(value) ? [...value] : value
  }
  // Node cuts a fraction off as well.
  return { statusCode: Math.trunc(reply.statusCode), headers }
}

/** Undoes what was set since the head was saved: all of it, or its status and these headers. */
export function restoreHead(
  reply: FastifyReply,
  { statusCode, headers }: SavedHead,
  names?: readonly string[],
): void {
  if (reply.statusCode !== statusCode) reply.code(statusCode)
  const current = reply.getHeaders()
  for (const name of names ?? new Set([...Object.keys(current), ...Object.keys(headers)])) {
    const value = Object.hasOwn(headers, name) ? headers[name] : undefined
    if (isSame(current[name], value)) continue
    // Before it is set, too: one cookie would be added to those that are there.
    reply.removeHeader(name)
    if (value !== undefined) reply.header(name, Array.isArray(value) ? [...value] : value)
  }
}

function isSame(a: HeaderValue, b: HeaderValue): boolean {
  if (!Array.isArray(a) || !Array.isArray(b)) return a === b
  return a.length === b.length && a.every((item, index) => item === b[index])
}
