import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Lemon Squeezy. Settings → Webhooks → the signing secret. No time is signed. Events have
 * no id. Lemon Squeezy accepts 200 only; it redelivers three times, within three minutes.
 */
export function lemonSqueezy(options: SecretOptions): Provider {
  const { secret } = readOptions('lemon-squeezy', SECRET, options)
  return hmac({
    name: 'lemon-squeezy',
    secret,
    header: 'x-signature',
    eventId: () => null,
    type: (payload) => at(payload, 'meta.event_name'),
    object: (payload) => at(payload, 'data.id'),
  })
}
