import { at, nameOfAll } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Paystack. The secret is the account's secret key, `sk_live_…`. No time is signed. Events have no
 * id of their own: the kind of event and the object together are one, so an object whose events
 * repeat (`subscription.not_renew`) has each kind only once.
 */
export function paystack(options: SecretOptions): Provider {
  const { secret } = readOptions('paystack', SECRET, options)
  return hmac({
    name: 'paystack',
    secret,
    header: 'x-paystack-signature',
    hash: 'sha512',
    eventId: (payload) => nameOfAll(at(payload, 'event'), at(payload, 'data.id')),
    type: (payload) => at(payload, 'event'),
    object: (payload) => at(payload, 'data.id'),
  })
}
