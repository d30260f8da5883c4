import { toMs } from '../../checks.js'
import { at } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'
import { readPairs } from './pairs.js'

/**
 * Paddle. Developer tools → Notifications → the destination's secret key, `pdl_ntfset_…`. Window:
 * 5 minutes. Its library takes 5 seconds, which is less than clocks differ and queues hold, and a
 * repeated event is known by its id here.
 */
export function paddle(options: TolerantOptions): Provider {
  const { secret, tolerance = '5m' } = readOptions('paddle', TOLERANT, options)
  return defineProvider({
    name: 'paddle',
    secret,
    scheme: {
      algorithm: { kind: 'hmac', hash: 'sha256' },
      toleranceMs: toMs(tolerance),
      read: readPairs({
        header: 'paddle-signature',
        separator: ';',
        time: 'ts',
        signature: 'h1',
        joint: ':',
      }),
    },
    keptHeaders: ['paddle-signature'],
    // Not notification_id: one event is notified to each destination.
    eventId: (payload) => at(payload, 'event_id'),
    type: (payload) => at(payload, 'event_type'),
    object: (payload) => at(payload, 'data.id'),
  })
}
