import { at, nameOfAll } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'

/**
 * Calendly. The signing key that the webhook subscription was made with, or that of the OAuth app.
 * Window: 3 minutes. Events have no id: the kind, what it is about and the moment together are one.
 * A delivery that fails is repeated for 24 hours, and the subscription disabled then.
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
