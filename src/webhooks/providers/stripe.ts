import { at } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import { type TolerantOptions, toleranceMs } from './hmac.js'
import { readPairs } from './pairs.js'

/**
 * Stripe. Workbench → Webhooks → the endpoint's signing secret, `whsec_…`. Window: 5 minutes, on
 * both sides, unlike in its library.
 */
export function stripe({ secret, tolerance = '5m' }: TolerantOptions): Provider {
  return defineProvider({
    name: 'stripe',
    secret,
    scheme: {
      algorithm: { kind: 'hmac', hash: 'sha256' },
      toleranceMs: toleranceMs(tolerance, 'stripe'),
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
    object: (payload) => at(payload, 'data.object.id'),
  })
}
