import type { KeyObject } from 'node:crypto'
import { at } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { fromBase64, headerOf, type Incoming, publicKeyOf, type Read } from '../signature.js'
import { isSecret, readOptions } from './options.js'

export interface SendgridOptions {
  /** Settings → Mail Settings → Event Webhooks → the verification key. */
  publicKey: Secrets
}

/**
 * SendGrid's event webhook: up to thousands of events in a request, each with its own id. Its time
 * is signed and has no window, since deliveries are repeated for a day.
 */
export function sendgrid(options: SendgridOptions): Provider {
  const { publicKey } = readOptions('sendgrid', { publicKey: isSecret }, options)
  return defineProvider({
    name: 'sendgrid',
    secret: publicKey,
    secretOption: 'publicKey',
    scheme: {
      algorithm: { kind: 'public-key', hash: 'sha256' },
      toKey,
      secretForm: 'the verification key, as SendGrid shows it',
      read,
    },
    keptHeaders: [SIGNATURE, TIMESTAMP],
    items: (payload) => (Array.isArray(payload) ? payload : undefined),
    eventId: (item) => at(item, 'sg_event_id'),
    type: (item) => at(item, 'event'),
    object: (item) => at(item, 'sg_message_id'),
  })
}

const SIGNATURE = 'x-twilio-email-event-webhook-signature'
const TIMESTAMP = 'x-twilio-email-event-webhook-timestamp'

function toKey(text: string): KeyObject {
  const key = publicKeyOf(text)
  if (key.asymmetricKeyType !== 'ec') throw new TypeError('no ECDSA key')
  return key
}

function read(incoming: Incoming): Read {
  const header = headerOf(incoming, SIGNATURE)
  const timestamp = headerOf(incoming, TIMESTAMP)
  if (header === undefined || timestamp === undefined) return 'missing_header'
  const signature = fromBase64(header)
  return signature ? { content: [timestamp, incoming.body], signatures: [signature] } : 'malformed'
}
