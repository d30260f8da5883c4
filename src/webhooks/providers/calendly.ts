import { at, nameOfAll } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'

/**
 * Calendly. The signing key that the webhook subscription was made with, or that of the OAuth app.
 * Window: 3 minutes. Events have no id; `event`, `payload.uri` and `created_at` together identify one.
 * Calendly redelivers for 24 hours, and then disables the subscription.
 */
export function calendly(options: TolerantOptions): Provider {
  const { secret, tolerance = '3m' } = readOptions('calendly', TOLERANT, options)
  return hmac({
    name: 'calendly',
    secret,
    header: 'calendly-webhook-signature',
    separator: ',',
    prefix: 'v1=',
    timestampPrefix: 't=',
    tolerance,
    eventId: (payload) =>
      nameOfAll(at(payload, 'event'), at(payload, 'payload.uri'), at(payload, 'created_at')),
    type: (payload) => at(payload, 'event'),
    object: (payload) => at(payload, 'payload.uri'),
  })
}
