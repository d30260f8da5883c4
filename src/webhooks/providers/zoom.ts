import { createHash, createHmac } from 'node:crypto'
import { at, nameOf } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'

/**
 * Zoom. The app's Features → Access → Secret Token. Window: 5 minutes. Events have no id. The body
 * carries the time of the event in milliseconds, so its hash is one, without the token for
 * downloads, which Zoom makes anew for each delivery.
 */
export function zoom(options: TolerantOptions): Provider {
  const { secret, tolerance } = readOptions('zoom', TOLERANT, options)
  return {
    ...hmac({
      name: 'zoom',
      secret,
      header: 'x-zm-signature',
      prefix: 'v0=',
      timestampHeader: 'x-zm-request-timestamp',
      signed: ({ timestamp, body }) => ['v0:', timestamp, ':', body],
      ...(tolerance !== undefined && { tolerance }),
      eventId: (payload) => {
        const { download_token: _token, ...event } = Object(payload)
        return nameOf(event.event_ts) === null
          ? null
          : createHash('sha256').update(JSON.stringify(event)).digest('base64url')
      },
      type: (payload) => at(payload, 'event'),
      object: (payload) => at(payload, 'payload.object.id'),
    }),
    handshake: (payload, _incoming, [key]) => {
      const plainToken = at(payload, 'payload.plainToken')
      const isAsked = at(payload, 'event') === 'endpoint.url_validation'
      if (!isAsked || typeof plainToken !== 'string' || key === undefined) return undefined
      const encryptedToken = createHmac('sha256', key).update(plainToken).digest('hex')
      return { status: 200, body: { plainToken, encryptedToken } }
    },
  }
}
