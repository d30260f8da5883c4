import { at, nameOfAll } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Paystack. The secret is the account's secret key, `sk_live_…`. No time is signed. Events have no
 * id of their own. The kind of event and the object name those kinds that an object has once. The
 * others, such as reminders and the states of a refund, can repeat for one object and have no id.
 */
export function paystack(options: SecretOptions): Provider {
  const { secret } = readOptions('paystack', SECRET, options)
  return hmac({
    name: 'paystack',
    secret,
    header: 'x-paystack-signature',
    hash: 'sha512',
    eventId: (payload) => {
      const kind = at(payload, 'event')
      return ONCE.has(kind) ? nameOfAll(kind, objectOf(payload)) : null
    },
    type: (payload) => at(payload, 'event'),
    object: objectOf,
  })
}

const ONCE: ReadonlySet<unknown> = new Set([
  'charge.success',
  'charge.dispute.create',
  'invoice.create',
  'paymentrequest.success',
  'subscription.create',
  'transfer.failed',
  'transfer.reversed',
  'transfer.success',
])

/** A code comes first: some events of a subscription have an `id` beside it, and others do not. */
function objectOf(payload: unknown): unknown {
  const data = at(payload, 'data')
  // A refund has an `id` in some of its events only, and the reference of its transaction in all.
  if (at(data, 'refund_reference') !== undefined) return at(data, 'transaction_reference')
  return OBJECTS.map((path) => at(data, path)).find((value) => value !== undefined)
}

const OBJECTS = [
  'subscription_code',
  'invoice_code',
  'id',
  'customer_code',
  'customer.customer_code',
]
