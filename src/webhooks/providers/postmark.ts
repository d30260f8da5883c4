import { at, nameOfAll } from '../payload.js'
import type { Provider } from '../provider.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'
import { basicAuth } from './shared-secret.js'

/**
 * Postmark, and its inbound mail. The secret is `'user:password'`, as in the webhook's URL,
 * `https://user:password@…`. Nothing is signed. Bounces and complaints have an id. A delivery is
 * identified by its message and recipient, inbound mail by its message. Opens, clicks and changes of a
 * subscription have no id. Postmark redelivers 10 times, within 11 hours.
 */
export function postmark(options: SecretOptions): Provider {
  const { secret } = readOptions('postmark', SECRET, options)
  return {
    ...basicAuth({
      name: 'postmark',
      secret,
      eventId: nameOfEvent,
      type: typeOf,
      object: (payload) => at(payload, 'MessageID'),
    }),
    // Inbound mail contains its attachments: up to 35 MB, as base64.
    bodyLimit: 50 * 1024 * 1024,
  }
}

/** Inbound mail has no `RecordType`. */
function typeOf(payload: unknown): unknown {
  const isReceived = at(payload, 'FromFull') !== undefined
  return at(payload, 'RecordType') ?? (isReceived ? 'Inbound' : undefined)
}

function nameOfEvent(payload: unknown): string | null {
  const type = typeOf(payload)
  const message = at(payload, 'MessageID')
  if (type === 'Inbound') return nameOfAll(type, message)
  if (type === 'Delivery') return nameOfAll(type, message, at(payload, 'Recipient'))
  return nameOfAll(type, at(payload, 'ID'))
}
