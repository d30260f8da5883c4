import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'

/** WorkOS. Dashboard → Webhooks → the endpoint's signing secret. Window: 3 minutes, as in its library. */
export function workos(options: TolerantOptions): Provider {
  const { secret, tolerance = '3m' } = readOptions('workos', TOLERANT, options)
  return hmac({
    name: 'workos',
    secret,
    header: 'workos-signature',
    separator: ',',
    prefix: 'v1=',
    timestampPrefix: 't=',
    timestampUnit: 'ms',
    tolerance,
    eventId: (payload) => at(payload, 'id'),
    type: (payload) => at(payload, 'event'),
    object: (payload) => at(payload, 'data.id'),
  })
}
