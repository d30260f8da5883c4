import type { FastifyRequest } from 'fastify'

/** What a handler gets of its request, as it was before the handler ran. */
export interface SavedInput {
  /** Gives the handler the same once more. */
  restore(): void
}

/**
 * Saves body, parameters, query and headers, so that a handler that changes them can be run again. Costs
 * a copy of the body.
 *
 * @returns `undefined` when that cannot be: the body is a stream, or holds something that is no plain
 * data, such as a function or an instance of a class.
 */
export function saveInput(request: FastifyRequest): SavedInput | undefined {
  const { raw } = request
  try {
    if (isBodyUnread(request)) return undefined
    const { body, params, query } = copyOf({
      body: request.body,
      params: request.params,
      query: request.query,
    })
    const headers = { ...raw.headers }
    return {
      restore() {
        request.body = copyOf(body)
        request.params = copyOf(params)
        request.query = copyOf(query)
        // In place: Node gives every reader the same object.
        for (const name of Object.keys(raw.headers)) delete raw.headers[name]
        Object.assign(raw.headers, headers)
      },
    }
  } catch (error) {
    if (error instanceof NotPlain) return undefined
    throw error
  }
}

/** Whether the handler reads the body itself, which it can do once. */
function isBodyUnread({ body, headers }: FastifyRequest): boolean {
  if (body !== undefined && body !== null) return false
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0
}

/** What is copied holds something that is not plain data. */
class NotPlain extends Error {}

/** Deeper than any body that an application reads, and no danger to the stack. */
const MAX_DEPTH = 1_000

function copyOf<T>(value: T): T {
  return copy(value, 0) as T
}

function copy(value: unknown, depth: number): unknown {
  if (typeof value === 'function' || depth > MAX_DEPTH) throw new NotPlain()
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map((one) => copy(one, depth + 1))
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype === Object.prototype) return copyInto({}, value, depth + 1)
  if (Buffer.isBuffer(value)) return Buffer.from(value)
  switch (prototype) {
    case Uint8Array.prototype:
      return (value as Uint8Array).slice()
    case Date.prototype:
      return new Date(value as Date)
    case URLSearchParams.prototype:
      return new URLSearchParams(value as URLSearchParams)
    case Map.prototype:
      return new Map(copy([...(value as Map<unknown, unknown>)], depth) as [unknown, unknown][])
    case Set.prototype:
      return new Set(copy([...(value as Set<unknown>)], depth) as unknown[])
  }
  // None, or an empty one of a parser's own in its place.
  const isPlain = prototype === null || Object.getPrototypeOf(prototype) === null
  if (!isPlain) throw new NotPlain()
  return copyInto(Object.create(prototype as object | null), value, depth + 1)
}

function copyInto(target: Record<string, unknown>, value: object, depth: number): object {
  for (const name of Object.keys(value)) {
    const one = copy((value as Record<string, unknown>)[name], depth)
    if (name !== '__proto__') target[name] = one
    else Object.defineProperty(target, name, { ...PLAIN, value: one })
  }
  return target
}

const PLAIN = { configurable: true, enumerable: true, writable: true }
