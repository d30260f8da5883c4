import { toMs } from '../../checks.js'
import { at } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'
import { readPairs } from './pairs.js'

/**
 * Stripe. Workbench → Webhooks → the endpoint's signing secret, `whsec_…`. Window: 5 minutes, on
 * both sides, unlike in its library.
 */
export function stripe(options: TolerantOptions): Provider {
  const { secret, tolerance = '5m' } = readOptions('stripe', TOLERANT, options)
  return defineProvider({
    name: 'stripe',
    secret,
    scheme: {
      algorithm: { kind: 'hmac', hash: 'sha256' },
      toleranceMs: toMs(tolerance),
      read: readPairs({
        header: 'stripe-signature',
        separator: ',',
        time: 't',
        signature: 'v1',
        joint: '.',
      }),
    },
    keptHeaders: ['stripe-signature'],
    eventId: (payload) => at(payload, 'id'),
    type: (payload) => at(payload, 'type'),
    // Thin events carry no object, and name what they are about.
    object: (payload) => at(payload, 'data.object.id') ?? at(payload, 'related_object.id'),
  })
}
