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
    // HubSpot does not promise that its eventId is unique. A repeated one differs in attemptNumber.
    eventId: (item) =>
      nameOfAll(
        ...['eventId', 'subscriptionId', 'occurredAt', 'objectId'].map((name) => at(item, name)),
      ),
    type: (item) => at(item, 'subscriptionType'),
    object: (item) => at(item, 'objectId'),
  })
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
