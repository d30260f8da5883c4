import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Bitbucket Cloud. Repository settings → Webhooks → the webhook's secret. No time is signed.
 * After a 5xx, Bitbucket redelivers immediately, at most twice.
 */
export function bitbucket(options: SecretOptions): Provider {
  const { secret } = readOptions('bitbucket', SECRET, options)
  return hmac({
    name: 'bitbucket',
    secret,
    header: 'x-hub-signature',
    prefix: 'sha256=',
    eventId: (_payload, header) => header('x-request-uuid'),
    type: (_payload, header) => header('x-event-key'),
    object: (payload) => at(payload, 'repository.uuid'),
    keptHeaders: ['x-request-uuid', 'x-event-key', 'x-hook-uuid', 'x-attempt-number'],
  })
}
