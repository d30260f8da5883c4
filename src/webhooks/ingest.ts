import { type Check, check, isColumnText } from '../checks.js'
import { isStorableText } from '../core/text.js'
import { OptionInvalid } from '../errors.js'
import { bytesOf, type Endpoint, keptOf } from './endpoint.js'
import { LONGEST_NAME, storableName } from './names.js'
import { parseJson, returnedList } from './payload.js'
import type { Incoming } from './signature.js'
import { eventOf, type VerifiedEvent } from './verify.js'

/** An event that did not come over HTTP: fetched from a provider's API by a reconciler, say. */
export interface EventToIngest {
  /** The endpoint whose handler runs it: its `name`, or its URL where it has none. */
  endpoint: string
  /** Whose event it is. Default: the endpoint's tenant, where it has but one. */
  tenantId?: string
  /** One event as the provider would have sent it: bytes, text, or what becomes JSON. */
  payload: unknown
  /**
   * What the provider would have sent with it, where it names the event in a header. Of one that is
   * kept, NUL becomes a space.
   */
  headers?: Readonly<Record<string, string>>
  /**
   * What the provider calls the event, where `payload` and `headers` do not say it. `null` for an
   * event without a name, which is run however often it is ingested.
   */
  eventId?: string | null
}

const isHeaders: Check = (value) => {
  const areHeaders =
    typeof value === 'object' &&
    value !== null &&
    !Array.isArray(value) &&
    Object.values(value).every((header) => typeof header === 'string')
  return areHeaders ? undefined : "must be text by name, such as { 'x-github-delivery': id }"
}

/** Any text names an event: what a column does not hold is stored as its hash. */
export const isEventId: Check = (value) =>
  value === null || (typeof value === 'string' && value !== '')
    ? undefined
    : 'must be what the sender calls the event, or null when it has no name'

/** `''` is the only tenant of an application with `tenant: false`. */
export const isTenantName: Check = (value) =>
  value === '' || isStorableText(value)
    ? undefined
    : 'must name a tenant: text of at most 255 characters, without NUL and without lone surrogates'

const CHECKS: Record<keyof EventToIngest, Check> = {
  endpoint: isColumnText('/webhooks/stripe', LONGEST_NAME),
  tenantId: isTenantName,
  payload: () => undefined,
  headers: isHeaders,
  eventId: isEventId,
}

/** @throws OptionInvalid */
export function readEventToIngest(given: EventToIngest): EventToIngest {
  check(' of ingest', CHECKS, given, ['endpoint'])
  return given
}

/** An event that did not come as a request, as if it had. @throws OptionInvalid */
export function ingestedEvent(
  endpoint: Endpoint,
  { payload: given, headers: givenHeaders = {}, eventId }: EventToIngest,
): { event: VerifiedEvent; headers: Record<string, string> } {
  const { provider } = endpoint
  const body = bytesOf('ingest', given)
  const isRaw = typeof given === 'string' || given instanceof Uint8Array
  const headers = Object.fromEntries(
    Object.entries({ 'content-type': 'application/json', ...givenHeaders }).map(([name, value]) => [
      name.toLowerCase(),
      value,
    ]),
  )
  const incoming: Incoming = { method: 'POST', url: '/', headers, body }
  let payload: unknown
  try {
    payload = isRaw && provider.parse ? provider.parse(incoming) : parseJson(body)
  } catch {
    // Without the cause: its message quotes the payload.
    throw new OptionInvalid(
      `the "payload" of ingest cannot be read as ${provider.name} sends it: give an object, or the bytes with their content-type among the "headers"`,
    )
  }
  const list = returnedList('items', provider.items?.(payload))
  const items = list ?? [payload]
  if (items.length !== 1) {
    throw new OptionInvalid(
      `ingest takes one event at a time, and this payload has ${items.length}`,
    )
  }
  const isItem = list !== undefined
  const rawBody = provider.items ? Buffer.from(JSON.stringify(items[0])) : body
  const event = eventOf(provider, incoming, { payload: items[0], rawBody, isItem })
  return { event: { ...event, ...nameGiven(event, eventId) }, headers: keptOf(endpoint, incoming) }
}

/** The bytes that the provider would have sent are not known, so that they name nothing. @throws OptionInvalid */
function nameGiven(
  { eventId: found, namedBy }: VerifiedEvent,
  given: string | null | undefined,
): Pick<VerifiedEvent, 'eventId' | 'namedBy'> {
  if (given === null) return { eventId: null, namedBy: 'nothing' }
  if (given !== undefined) return { eventId: storableName(given), namedBy: 'provider' }
  if (namedBy === 'provider') return { eventId: found, namedBy }
  throw new OptionInvalid(
    'ingest found no id of the provider for this event, and would run it each time: give the "headers" that name it or an "eventId", or eventId: null if that is meant',
  )
}
