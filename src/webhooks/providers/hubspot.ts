import { at, nameOfAll } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'
import { checkPublicUrl, isPublicUrl, queryOf } from './public-url.js'

export interface HubspotOptions extends TolerantOptions {
  /** The target URL as it is written in the app's settings, without a query. */
  url: string
}

/**
 * HubSpot, signatures of version 3. The secret is the app's client secret. Window: 5 minutes. A
 * request is a batch of up to 100 events.
 */
export function hubspot(options: HubspotOptions): Provider {
  const { secret, url, tolerance } = readOptions(
    'hubspot',
    { ...TOLERANT, url: isPublicUrl },
    options,
  )
  const address = checkPublicUrl('hubspot', url, { query: false })
  return hmac({
    name: 'hubspot',
    secret,
    header: 'x-hubspot-signature-v3',
    encoding: 'base64',
    timestampHeader: 'x-hubspot-request-timestamp',
    timestampUnit: 'ms',
    signed: ({ method, url, body, timestamp }) => [
      method,
      decoded(address + queryOf({ url })),
      body,
      timestamp,
    ],
    ...(tolerance !== undefined && { tolerance }),
    items: (payload) => (Array.isArray(payload) ? payload : undefined),
    eventId,
    type: typeOf,
    object: (item) =>
      at(item, 'objectId') ?? at(item, 'primaryObjectId') ?? at(item, 'fromObjectId'),
  })
}

// What an event is about, as far as its kind has it: a change or message, a merge, an association.
const SUBJECTS = [
  ...['objectId', 'propertyName', 'messageId'],
  ...['primaryObjectId', 'mergedObjectIds'],
  ...['fromObjectId', 'toObjectId', 'associationType', 'associationTypeId', 'associationRemoved'],
]

/** HubSpot does not promise that its `eventId` is unique. A repeated event differs in `attemptNumber`. */
function eventId(item: unknown): string | null {
  const subjects = SUBJECTS.map((name) => at(item, name)).filter((value) => value != null)
  if (subjects.length === 0) return null
  return nameOfAll(
    at(item, 'eventId'),
    // Not every app is told its subscription.
    at(item, 'subscriptionId') ?? typeOf(item),
    at(item, 'occurredAt'),
    // Ids of objects are those of an account.
    ...[at(item, 'portalId') ?? []].flat(),
    ...subjects.map(textOf),
  )
}

function typeOf(item: unknown): unknown {
  return at(item, 'subscriptionType') ?? at(item, 'eventType')
}

function textOf(value: unknown): unknown {
  if (Array.isArray(value)) return nameOfAll(...value)
  return typeof value === 'boolean' ? String(value) : value
}

/** HubSpot decodes these before it signs an address, and no others. */
const DECODED: Readonly<Record<string, string>> = Object.fromEntries(
  [...":/?@!$'()*,;"].map((char) => [char.charCodeAt(0).toString(16).toUpperCase(), char]),
)

function decoded(url: string): string {
  return url.replace(
    /%([0-9a-f]{2})/gi,
    (whole, code: string) => DECODED[code.toUpperCase()] ?? whole,
  )
}
