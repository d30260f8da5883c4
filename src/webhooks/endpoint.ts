import { createHash } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import type { TenantId } from '../options.js'
import type { Arrival } from '../store/event-store.js'
import type { WebhookEvent } from './event.js'
import type { EndpointSettings } from './options.js'
import { parseJson } from './payload.js'
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

/** Names as long as their column on every database, and of characters that all of them store. */
const LONGEST_NAME = 191

/** A name from a payload as a column can hold it: an unusual one is told apart by its hash. */
export function storableName(name: string): string {
  const isPlain =
    name.length <= LONGEST_NAME && !name.includes('\0') && Buffer.from(name).toString() === name
  // Of its code units: as UTF-8, all halves of characters are the same one.
  return isPlain ? name : `sha256:${sha256(Buffer.from(name, 'utf16le'))}`
}

/** Everything of a new event but its row's name, its lane and how it starts. */
export function arrivalOf(
  { name, provider }: Endpoint,
  tenantId: string,
  event: VerifiedEvent,
  headers: Readonly<Record<string, string>>,
): Omit<Arrival, 'id' | 'lane' | 'status' | 'dueInMs'> {
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

/** The lane of an event: those of one lane run one at a time. @throws what `serialize` throws. */
export function laneOf(
  { name, provider, settings }: Endpoint,
  tenantId: string,
  { eventId, type, object, payload }: VerifiedEvent,
): string | null {
  const facts = { provider: provider.name, eventId, type, object, payload }
  const lane = laneName(settings.serialize(facts))
  // Of this endpoint: what waits under a name that nobody serves any more holds up nothing else.
  return lane === undefined ? null : sha256(JSON.stringify([tenantId, name, lane]))
}

/** @throws TypeError for what is no name, such as a promise: it would serialize nothing. */
function laneName(value: unknown): string | undefined {
  if (value === undefined || value === null || value === '') return undefined
  if (typeof value === 'string') return value
  if (typeof value === 'number' || typeof value === 'bigint') return String(value)
  throw new TypeError(
    `serialize returned ${typeof value}; it must return text, a number or nothing`,
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

/** What was sent of the headers that are kept. */
export function keptOf({ settings }: Endpoint, incoming: Incoming): Record<string, string> {
  return Object.fromEntries(
    settings.keptHeaders.flatMap((name) => {
      const value = headerOf(incoming, name)
      return value === undefined ? [] : [[name, value]]
    }),
  )
}

/** Bytes and text as they are, and anything else as JSON. */
export function bytesOf(payload: unknown): Buffer {
  if (payload === undefined) return Buffer.alloc(0)
  if (payload instanceof Uint8Array) {
    return Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength)
  }
  return Buffer.from(typeof payload === 'string' ? payload : JSON.stringify(payload))
}

function sha256(value: string | Uint8Array): string {
  return createHash('sha256').update(value).digest('base64url')
}
