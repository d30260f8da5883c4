import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'

/**
 * Zendesk. Admin Center → Webhooks → the signing secret. Window: 5 minutes. What a trigger sends is
 * up to whoever wrote it, so only Zendesk's own events are asked for their id; the others have that
 * of their invocation. `redelivers` is `false`: it repeats timeouts, 409, 429 and 503 for some
 * seconds, and no other answer.
 */
export function zendesk(options: TolerantOptions): Provider {
  const { secret, tolerance } = readOptions('zendesk', TOLERANT, options)
  return hmac({
    name: 'zendesk',
    secret,
    header: 'x-zendesk-webhook-signature',
    encoding: 'base64',
    timestampHeader: 'x-zendesk-webhook-signature-timestamp',
    timestampUnit: 'rfc3339',
    signed: ({ timestamp, body }) => [timestamp, body],
    ...(tolerance !== undefined && { tolerance }),
    keptHeaders: ['x-zendesk-webhook-invocation-id', 'x-zendesk-webhook-id'],
    eventId: (payload, header) =>
      isEvent(payload) ? at(payload, 'id') : header('x-zendesk-webhook-invocation-id'),
    type: (payload) => (isEvent(payload) ? at(payload, 'type') : undefined),
    object: (payload) => (isEvent(payload) ? at(payload, 'subject') : undefined),
    redelivers: false,
  })
}

function isEvent(payload: unknown): boolean {
  const type = at(payload, 'type')
  return typeof type === 'string' && type.startsWith('zen:event-type:')
}
