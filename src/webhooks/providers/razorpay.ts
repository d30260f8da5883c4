import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Razorpay. The secret that was entered with the webhook, under Account & Settings → Webhooks. No
 * time is signed. Razorpay redelivers for 24 hours, and then disables the webhook.
 */
export function razorpay(options: SecretOptions): Provider {
  const { secret } = readOptions('razorpay', SECRET, options)
  return hmac({
    name: 'razorpay',
    secret,
    header: 'x-razorpay-signature',
    eventId: (_payload, header) => header('x-razorpay-event-id'),
    type: (payload) => at(payload, 'event'),
    object: (payload) => at(payload, `payload.${kindOf(payload)}.entity.id`),
    keptHeaders: ['x-razorpay-event-id'],
  })
}

/** `order.paid` carries the payment as well, and is about the order. */
function kindOf(payload: unknown): string {
  return String(at(payload, 'event')).split('.', 1).join()
}
