import type { FastifyRequest } from 'fastify'
import { OptionInvalid } from '../errors.js'
import type { TenantId } from '../options.js'
import type { Arrival, StoredEvent } from '../store/event-store.js'
import type { WebhookEvent } from './event.js'
import { sha256, storableName, unreadableIn } from './names.js'
import type { EndpointSettings } from './options.js'
import { parseJson, returned } from './payload.js'
import type { Provider } from './provider.js'
import { headerOf, type Incoming } from './signature.js'
import { eventOf, type VerifiedEvent } from './verify.js'

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

/** Everything of a new event but its row's name, its lane, how it starts and how it is repeated. */
export function arrivalOf(
  { name, provider }: Endpoint,
  tenantId: string,
  { eventId, type, rawBody }: Pick<VerifiedEvent, 'eventId' | 'type' | 'rawBody'>,
  headers: Readonly<Record<string, string>>,
): Omit<Arrival, 'id' | 'lane' | 'status' | 'awaitsDelivery' | 'dueInMs' | 'errors'> {
  return {
    tenantId,
    provider: provider.name,
    eventId,
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

/**
 * Decodes the bytes of a stored event as they were decoded when they came; `undefined` for bytes that could not
 * be read.
 *
 * @throws what `parse` throws.
 */
export function payloadOf({ provider }: Endpoint, stored: StoredEvent): unknown {
  if (unreadableIn(stored.eventId) !== undefined) return undefined
  const incoming = incomingOf(stored)
  if (provider.parse === undefined) return parseJson(incoming.body)
  if (provider.items === undefined) return provider.parse(incoming)
  // An item is JSON in whatever form its request came; a request without items is as it came.
  try {
    return parseJson(incoming.body)
  } catch {
    return provider.parse(incoming)
  }
}

/** The lane of an event that is stored. @throws what reading it throws, and what `laneOf` throws. */
export function laneOfStored(endpoint: Endpoint, stored: StoredEvent): string | null {
  const { provider } = endpoint
  const { eventId, type, tenantId } = stored
  const incoming = incomingOf(stored)
  const isItem = provider.items !== undefined
  const read = { payload: payloadOf(endpoint, stored), rawBody: incoming.body, isItem }
  return laneOf(endpoint, tenantId, { ...eventOf(provider, incoming, read), eventId, type })
}

/** The request that brought a stored event, as far as it is kept. */
export function incomingOf({ payload, headers }: StoredEvent): Incoming {
  const { buffer, byteOffset, byteLength } = payload
  return { method: 'POST', url: '/', headers, body: Buffer.from(buffer, byteOffset, byteLength) }
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
