import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'

/**
 * Twitch EventSub. The secret is what the subscription was made with. Window: 10 minutes. A
 * subscription that Twitch ended arrives as an event of type `revocation`.
 */
export function twitch(options: TolerantOptions): Provider {
  const { secret, tolerance = '10m' } = readOptions('twitch', TOLERANT, options)
  return {
    ...hmac({
      name: 'twitch',
      secret,
      header: 'twitch-eventsub-message-signature',
      prefix: 'sha256=',
      timestampHeader: 'twitch-eventsub-message-timestamp',
      timestampUnit: 'rfc3339',
      tolerance,
      signed: ({ timestamp, body, header }) => [
        header('twitch-eventsub-message-id') ?? '',
        timestamp,
        body,
      ],
      keptHeaders: ['twitch-eventsub-message-id'],
      eventId: (_payload, header) => header('twitch-eventsub-message-id'),
      // The header with the kind of message is not signed; the subscription's status is.
      type: (payload) =>
        at(payload, 'event') === undefined && at(payload, 'events') === undefined
          ? 'revocation'
          : at(payload, 'subscription.type'),
      object: (payload) => at(payload, 'subscription.id'),
    }),
    handshake: (payload) => {
      const challenge = at(payload, 'challenge')
      if (typeof challenge !== 'string') return undefined
      return { status: 200, headers: { 'content-type': 'text/plain' }, body: challenge }
    },
  }
}
