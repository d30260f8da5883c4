import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { hmac } from './hmac.js'
import { isSecret, readOptions } from './options.js'
import { checkPublicUrl, isPublicUrl } from './public-url.js'

export interface SquareOptions {
  /** Developer Console → Webhooks → Subscriptions → the signature key. */
  signatureKey: Secrets
  /** The notification URL, letter by letter as it is written there. */
  url: string
}

/** Square signs its notification URL and the body. No time is signed. */
export function square(options: SquareOptions): Provider {
  const { signatureKey, url } = readOptions(
    'square',
    { signatureKey: isSecret, url: isPublicUrl },
    options,
  )
  const address = checkPublicUrl('square', url, { query: true })
  return hmac({
    name: 'square',
    secret: signatureKey,
    secretOption: 'signatureKey',
    header: 'x-square-hmacsha256-signature',
    encoding: 'base64',
    signed: ({ body }) => [address, body],
    eventId: (payload) => at(payload, 'event_id'),
    type: (payload) => at(payload, 'type'),
    object: (payload) => at(payload, 'data.id'),
  })
}
