import { createHash } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import { isStorableText } from '../core/text.js'
import { OptionInvalid } from '../errors.js'
import type { TenantId } from '../options.js'
import type { Arrival } from '../store/event-store.js'
import type { WebhookEvent } from './event.js'
import type { EndpointSettings } from './options.js'
import { parseJson, returned } from './payload.js'
import type { Provider } from './provider.js'
import { headerOf, type Incoming } from './signature.js'
import type { VerifiedEvent } from './verify.js'

/** What an application does with an event. What it returns does not matter; that it returns, does. */
export type WebhookHandler = (event: WebhookEvent) => unknown

/** Where a provider posts to, and what happens then; resolved once when it was added. */
export interface Endpoint {
  readonly name: string
  readonly provider: Provider
  readonly handler: WebhookHandler
  readonly tenant: ((request: FastifyRequest) => TenantId | Promise<TenantId>) | false
  /** The one tenant whose events arrive, where there is but one. */
  readonly fixedTenant: string | undefined
  /** Whether workers run its events. Those of a route of the application's own, nobody else can. */
  readonly isServed: boolean
  readonly settings: EndpointSettings
}

/** The width on MySQL of the columns that name an event and its endpoint. */
export const LONGEST_NAME = 191

/** A name from a payload as a column can hold it: an unusual one is told apart by its hash. */
export function storableName(name: string): string {
  if (isStorableText(name, LONGEST_NAME)) return name
  // Of its code units: as UTF-8, all lone surrogates are the same character.
  return `sha256:${sha256(Buffer.from(name, 'utf16le'))}`
}

/** Everything of a new event but its row's name, its lane and how it starts. */
export function arrivalOf(
  { name, provider }: Endpoint,
  tenantId: string,
  event: VerifiedEvent,
  headers: Readonly<Record<string, string>>,
): Omit<Arrival, 'id' | 'lane' | 'status' | 'dueInMs' | 'errors'> {
  const { eventId, type, rawBody } = event
  return {
    tenantId,
    provider: provider.name,
    eventId: eventId === null ? null : storableName(eventId),
    endpoint: name,
    type: type === null ? null : storableName(type),
    payload: rawBody,
    headers,
    bodyHash: sha256(rawBody),
  }
}

/**
 * The lane of an event: those of one lane run one at a time.
 *
 * @throws OptionInvalid when `serialize` returns what names nothing; what `serialize` throws.
 */
export function laneOf(
  { name, provider, settings }: Endpoint,
  tenantId: string,
  { eventId, type, object, payload }: VerifiedEvent,
): string | null {
  const facts = { provider: provider.name, eventId, type, object, payload }
  const lane = laneName(name, returned('serialize', settings.serialize(facts)))
  // Of this endpoint: what waits under a name that nobody serves any more holds up nothing else.
  return lane === undefined ? null : sha256(JSON.stringify([tenantId, name, lane]))
}

/** What is no name, such as a promise, would serialize nothing. */
function laneName(endpoint: string, value: unknown): string | undefined {
  if (value === undefined || value === null || value === '') return undefined
  if (typeof value === 'string') return value
  if (typeof value === 'number' || typeof value === 'bigint') return String(value)
  throw new OptionInvalid(
    `option "serialize" of webhook ${endpoint} returned a value of type ${typeof value}; it must return text, a number or nothing`,
  )
}

/** Decodes the bytes of a stored event as they were decoded when they came. @throws like `parse`. */
export function payloadOf(
  { provider }: Endpoint,
  body: Buffer,
  headers: Readonly<Record<string, string>>,
): unknown {
  const isJson = provider.parse === undefined || provider.items !== undefined
  return isJson ? parseJson(body) : provider.parse({ method: 'POST', url: '/', headers, body })
}

/**
 * What was sent of the headers that are kept. NUL, which is invalid in a header and in JSON of
 * PostgreSQL's, becomes a space, as RFC 9110 (section 5.5) has it.
 */
export function keptOf({ settings }: Endpoint, incoming: Incoming): Record<string, string> {
  return Object.fromEntries(
    settings.keptHeaders.flatMap((name) => {
      const value = headerOf(incoming, name)
      return value === undefined ? [] : [[name, value.replaceAll('\0', ' ').toWellFormed()]]
    }),
  )
}

/**
 * Bytes and text as they are, and anything else as JSON. `caller` is the method that was given it.
 *
 * @throws OptionInvalid for what cannot be written as JSON.
 */
export function bytesOf(caller: string, payload: unknown): Buffer {
  if (payload === undefined) return Buffer.alloc(0)
  if (payload instanceof Uint8Array) {
    return Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength)
  }
  const text = typeof payload === 'string' ? payload : jsonOf(payload)
  if (text !== undefined) return Buffer.from(text)
  throw new OptionInvalid(
    `the "payload" of ${caller} cannot be written as JSON: give bytes, text or plain data, without cycles and without BigInt`,
  )
}

function jsonOf(payload: unknown): string | undefined {
  try {
    return JSON.stringify(payload)
  } catch {
    // Without the cause: it quotes the payload, and may be anything that a `toJSON` throws.
    return undefined
  }
}

function sha256(value: string | Uint8Array): string {
  return createHash('sha256').update(value).digest('base64url')
}
