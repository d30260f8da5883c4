import { createHash } from 'node:crypto'
import { at, nameOfAll } from '../payload.js'
import type { Provider } from '../provider.js'
import { isForm } from '../signature.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * WooCommerce. Settings → Advanced → Webhooks → the webhook's secret. No time is signed. The ping that
 * it sends when a webhook is saved is not signed, and is answered. It sends each event once, and
 * disables a webhook that fails more than 5 times in a row.
 */
export function woocommerce(options: SecretOptions): Provider {
  const { secret } = readOptions('woocommerce', SECRET, options)
  return {
    ...hmac({
      name: 'woocommerce',
      secret,
      header: 'x-wc-webhook-signature',
      encoding: 'base64',
      // The delivery's id is a hash of the webhook and the second: two events can have the same.
      eventId: (payload, header) =>
        nameOfAll(header('x-wc-webhook-delivery-id'), hashOf(JSON.stringify(payload))),
      type: (_payload, header) => header('x-wc-webhook-topic'),
      object: (payload) => at(payload, 'id'),
      keptHeaders: ['topic', 'delivery-id', 'id', 'source'].map((name) => `x-wc-webhook-${name}`),
      redelivers: false,
    }),
    unsigned: (incoming) =>
      isForm(incoming) && /^webhook_id=\d+$/.test(incoming.body.toString())
        ? { status: 200 }
        : undefined,
  }
}

function hashOf(text: string): string {
  return createHash('sha256').update(text).digest('base64url')
}
