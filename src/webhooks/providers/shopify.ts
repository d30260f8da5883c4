import { at } from '../payload.js'
import type { HeaderReader, Provider } from '../provider.js'
import { headerOf } from '../signature.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/** Headers of webhooks begin with `x-`, and those of Shopify's newer events do not. */
const PREFIXES = ['x-shopify-', 'shopify-'] as const
type Prefix = (typeof PREFIXES)[number]

/**
 * Shopify: webhooks, and events, which have headers without `x-`. The app's client secret, or the
 * secret under Settings → Notifications → Webhooks for those made in the admin. No time is signed.
 * After 8 failures in 4 hours Shopify deletes a subscription that an app made, so nothing that is
 * not its fault should fail for long.
 */
export function shopify(options: SecretOptions): Provider {
  const { secret } = readOptions('shopify', SECRET, options)
  const [webhooks, events] = PREFIXES.map((prefix) => signedUnder(prefix, secret)) as [
    Provider,
    Provider,
  ]
  return {
    ...webhooks,
    scheme: {
      ...webhooks.scheme,
      read: (incoming, known) => {
        const prefix = prefixOf((name) => headerOf(incoming, name))
        return (prefix === 'shopify-' ? events : webhooks).scheme.read(incoming, known)
      },
    },
    keptHeaders: [...webhooks.keptHeaders, ...events.keptHeaders],
  }
}

function signedUnder(prefix: Prefix, secret: SecretOptions['secret']): Provider {
  return hmac({
    name: 'shopify',
    secret,
    header: `${prefix}hmac-sha256`,
    encoding: 'base64',
    // Not the event's id: one event reaches several subscriptions of an app.
    eventId: (_payload, header) => header(`${prefixOf(header)}webhook-id`),
    type: typeOf,
    object: (payload, header) =>
      header('shopify-resource-id') ?? at(payload, 'admin_graphql_api_id') ?? at(payload, 'id'),
    keptHeaders: KEPT.map((name) => `${prefix}${name}`),
  })
}

const KEPT = [
  ...['webhook-id', 'topic', 'shop-domain', 'api-version', 'event-id', 'triggered-at'],
  ...['action', 'resource-id'],
]

/** Decided by the signature, so that an id under the other name is never taken for its own. */
function prefixOf(header: HeaderReader): Prefix {
  return header('shopify-hmac-sha256') === undefined ? 'x-shopify-' : 'shopify-'
}

/** `orders/paid` of a webhook, and `Product/update` of an event, whose body says what its headers do. */
function typeOf(payload: unknown, header: HeaderReader): unknown {
  const prefix = prefixOf(header)
  const topic = header(`${prefix}topic`)
  if (prefix === 'x-shopify-') return topic
  const [signedTopic, action] = [at(payload, 'topic'), at(payload, 'action')]
  return typeof signedTopic === 'string' && typeof action === 'string'
    ? `${signedTopic}/${action}`
    : topic
}
