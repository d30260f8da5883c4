import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Intercom. The app's client secret, under Basic Information. No time is signed. It repeats a
 * delivery once, after a minute, and suspends an endpoint that fails for 7 days.
 */
export function intercom(options: SecretOptions): Provider {
  const { secret } = readOptions('intercom', SECRET, options)
  return {
    ...hmac({
      name: 'intercom',
      secret,
      header: 'x-hub-signature',
      hash: 'sha1',
      prefix: 'sha1=',
      eventId: (payload) => at(payload, 'id'),
      type: (payload) => at(payload, 'topic'),
      object: (payload) => at(payload, 'data.item.id'),
    }),
    handshake: (payload) => (at(payload, 'topic') === 'ping' ? { status: 200 } : undefined),
  }
}
