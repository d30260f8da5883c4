import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Shopify. The app's client secret, or the secret under Settings → Notifications → Webhooks for
 * those made in the admin. No time is signed. After 8 failures in 4 hours Shopify deletes a
 * subscription that an app made, so nothing that is not its fault should fail for long.
 */
export function shopify(options: SecretOptions): Provider {
  const { secret } = readOptions('shopify', SECRET, options)
  return hmac({
    name: 'shopify',
    secret,
    header: 'x-shopify-hmac-sha256',
    encoding: 'base64',
    // Not X-Shopify-Event-Id: one event reaches several subscriptions of an app.
    eventId: (_payload, header) => header('x-shopify-webhook-id'),
    type: (_payload, header) => header('x-shopify-topic'),
    object: (payload) => at(payload, 'admin_graphql_api_id') ?? at(payload, 'id'),
    keptHeaders: [
      'x-shopify-webhook-id',
      'x-shopify-topic',
      'x-shopify-shop-domain',
      'x-shopify-api-version',
      'x-shopify-event-id',
      'x-shopify-triggered-at',
    ],
  })
}
