import { validateHeaderName, validateHeaderValue } from 'node:http'
import type { Claims, Wish } from '../claims/claims.js'
import { MAX_KEY_LENGTH } from '../core/key.js'
import type { StoredResponse } from '../core/record.js'
import { OptionInvalid } from '../errors.js'
import type { FoundRecord } from '../store/prisma.js'
import { readName } from './options.js'
import { storedKey, storedResult } from './stored.js'

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

export type Resolved =
  | { kind: 'resolved' }
  /** There is no such operation, or it is forgotten. */
  | { kind: 'missing' }
  /** Somebody runs it now, for at least so long. */
  | { kind: 'running'; leaseLeftMs: number }
  /** It has its result already. */
  | { kind: 'completed' }
  /** It was released: the next retry runs it without a decision. */
  | { kind: 'released' }
  /** Another attempt than the one that was looked at has been interrupted. */
  | { kind: 'changed'; attempt: number }

/** How a decision reaches the store. */
export interface ResolveContext {
  /** The attempt that the decision is about. */
  readonly attempt: number | undefined
  readonly find: () => Promise<FoundRecord | undefined>
  readonly claims: Claims
  /** The operation's claim, as far as it is known without the record. */
  readonly wish: Omit<Wish, 'fingerprint'>
  readonly storeTimeoutMs: number
}

/**
 * Ends an operation whose lease ran out. It is taken over, so that the attempt that was interrupted can
 * store nothing any more if it turns out to live, and then ends as it was decided. A crash in between
 * leaves it as it was, for one more lease.
 */
export async function resolve(
  decided: StoredResponse | null,
  { attempt, find, claims, wish, storeTimeoutMs }: ResolveContext,
): Promise<Resolved> {
  for (;;) {
    const seen = await find()
    if (seen === undefined || seen.isExpired) return { kind: 'missing' }
    const { status, leaseLeftMs, fence, fingerprint } = seen
    if (status !== 'in_progress') return { kind: status }
    if (leaseLeftMs > 0) return { kind: 'running', leaseLeftMs }
    // The key may have expired since somebody looked, and name another operation now.
    if (attempt !== undefined && attempt !== fence) return { kind: 'changed', attempt: fence }
    // The route may remember its keys for longer than the plugin does.
    const retentionMs = Math.max(wish.retentionMs, seen.expiresInMs)
    const decisive = { ...wish, fingerprint, retentionMs }
    const claim = await claims.takeOver(decisive, { fence, resumed: true })
    // Somebody else was faster: look what it did.
    if (claim === undefined) continue
    const settled =
      decided === null
        ? await claim.release('a person decided', storeTimeoutMs)
        : await claim.complete(decided, storeTimeoutMs)
    if (settled === 'failed') throw new Error('the decision could not be stored')
    if (settled === 'lost') continue
    const to = decided === null ? 'released' : 'completed'
    wish.report({ kind: 'resolved', attempt: claim.fence, to })
    return { kind: 'resolved' }
  }
}

/** @throws OptionInvalid */
export function readOperationName(name: OperationName): string {
  if (typeof name === 'string') return readName('the key of resolve()', name, MAX_KEY_LENGTH)
  return storedKey(readName('the key of resolve()', name?.run))
}

/** What the record is to end with: `null` for a release. @throws OptionInvalid */
export function readDecision(name: OperationName, decision: Decision): StoredResponse | null {
  const isOfRun = typeof name !== 'string'
  const [kind, ...others] = Object.keys(Object(decision))
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

function readResponse({ statusCode, headers = {}, body }: ResponseToKeep): StoredResponse {
  if (!Number.isInteger(statusCode) || statusCode < 200 || statusCode > 599) {
    throw new OptionInvalid('"statusCode" of the response of resolve() must be from 200 to 599')
  }
  const kept: Record<string, string> = {}
  for (const [name, value] of Object.entries(headers)) {
    try {
      validateHeaderName(name)
      validateHeaderValue(name, value)
    } catch {
      throw new OptionInvalid(`header "${name}" of the response of resolve() cannot be sent`)
    }
    kept[name.toLowerCase()] = String(value)
  }
  if (kept['set-cookie'] !== undefined) {
    throw new OptionInvalid('a response that is replayed must not set a cookie')
  }
  if (body === undefined) return { statusCode, headers: kept, body: new Uint8Array() }
  if (body instanceof Uint8Array) return { statusCode, headers: kept, body }
  const isText = typeof body === 'string'
  kept['content-type'] ??= isText ? 'text/plain; charset=utf-8' : 'application/json; charset=utf-8'
  const text = isText ? body : JSON.stringify(body)
  return { statusCode, headers: kept, body: Buffer.from(text) }
}
