import { validateHeaderName, validateHeaderValue } from 'node:http'
import { type Check, check, isInteger } from '../checks.js'
import { isRoot } from '../core/class-contents.js'
import { MAX_KEY_LENGTH } from '../core/key.js'
import { withForm } from '../core/payload-form.js'
import type { StoredResponse } from '../core/record.js'
import { isReplayable } from '../core/replayable-header.js'
import { OptionInvalid } from '../errors.js'
import { readName } from './options.js'
import { storedKey, storedResult } from './stored.js'

// What resolve() is called with.

/** Which operation a decision is about: a client's Idempotency-Key, or what `run()` was called with. */
export type OperationName = string | { readonly run: string }

/** What a person found out about an interrupted operation. */
export type Decision =
  /** It took effect: every retry gets this response from now on. */
  | { readonly response: ResponseToKeep }
  /** It took effect, and this is what `run()` returned, or would have. */
  | { readonly result: unknown }
  /** It did not, or it may be done again: the next retry runs it. */
  | { readonly release: true }

export interface ResponseToKeep {
  readonly statusCode: number
  readonly headers?: Readonly<Record<string, string>>
  /** Text and bytes are kept as they are; anything else as JSON. */
  readonly body?: unknown
}

/** @throws OptionInvalid */
export function readOperationName(name: OperationName): string {
  if (typeof name === 'string') return readName('the key of resolve()', name, MAX_KEY_LENGTH)
  return storedKey(readName('the key of resolve()', name?.run))
}

/**
 * What the record is to end with: `null` for a release.
 *
 * @throws OptionInvalid, StepNotStorable
 */
export function readDecision(name: OperationName, decision: Decision): StoredResponse | null {
  const isOfRun = typeof name !== 'string'
  const [kind, ...others] = typeof decision === 'object' ? Object.keys(decision ?? {}) : []
  const allowed = isOfRun ? ['result', 'release'] : ['response', 'release']
  if (kind === undefined || others.length > 0 || !allowed.includes(kind)) {
    throw new OptionInvalid(
      isOfRun
        ? 'resolve({ run: key }, …) needs { result: … } or { release: true }'
        : 'resolve(key, …) needs { response: { statusCode, headers, body } } or { release: true }; for what run() was called with, say resolve({ run: key }, …)',
    )
  }
  if ('result' in decision) return storedResult('resolve()', decision.result)
  if ('response' in decision) return readResponse(decision.response)
  if (decision.release === true) return null
  throw new OptionInvalid('"release" of resolve() must be true')
}

/** Not a `Headers` or a Map: their entries are no properties. */
function isPlainObject(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || isRoot(prototype)
}

const RESPONSE_CHECKS: Record<keyof ResponseToKeep, Check> = {
  statusCode: isInteger(200, 599),
  headers: (value) =>
    isPlainObject(value) ? undefined : "must be an object such as { location: '/payments/7' }",
  body: () => undefined,
}

function readResponse(response: ResponseToKeep): StoredResponse {
  check(' of the response of resolve()', RESPONSE_CHECKS, response, ['statusCode'])
  const { statusCode, headers = {}, body } = response
  const kept = Object.fromEntries(Object.entries(headers).map(readHeader))
  const refused = Object.keys(kept).find((name) => !isReplayable(name))
  if (refused !== undefined) {
    throw new OptionInvalid(
      `a response that is replayed must not have the header "${refused}": it belongs to one client, or to one connection`,
    )
  }
  if (body === undefined) return { statusCode, headers: kept, body: new Uint8Array() }
  if (body instanceof Uint8Array) return { statusCode, headers: kept, body }
  if (kept['content-encoding'] !== undefined) {
    throw new OptionInvalid(
      'header "content-encoding" of the response of resolve() needs a "body" of bytes that are encoded so; leave the header out',
    )
  }
  const isText = typeof body === 'string'
  kept['content-type'] ??= isText ? 'text/plain; charset=utf-8' : 'application/json; charset=utf-8'
  const text = isText ? body : jsonOf(body)
  return { statusCode, headers: withForm(kept, 'text'), body: Buffer.from(text) }
}

function readHeader([name, value]: [string, unknown]): [string, string] {
  try {
    validateHeaderName(name)
    if (typeof value !== 'string') throw new TypeError('it is no text')
    validateHeaderValue(name, value)
    return [name.toLowerCase(), value]
  } catch {
    throw new OptionInvalid(
      `header "${name.slice(0, 100)}" of the response of resolve() cannot be sent: give text that HTTP allows in a header, such as '/payments/7'`,
    )
  }
}

function jsonOf(body: unknown): string {
  let text: string | undefined
  try {
    text = JSON.stringify(body)
  } catch {
    // Its message may quote the body.
  }
  if (text !== undefined) return text
  throw new OptionInvalid(
    'option "body" of the response of resolve() cannot be written as JSON: it contains a bigint, itself, or nothing that JSON has. Give text, bytes, or what JSON.stringify() takes',
  )
}
