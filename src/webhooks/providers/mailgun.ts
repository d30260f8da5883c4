import { toMs } from '../../checks.js'
import type { Duration } from '../../core/duration.js'
import { at, nameOf, nameOfAll, parseForm, parseJson } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { fromHex, type Incoming, isForm, type Read, wholeNumber } from '../signature.js'
import { isSecret, isTolerance, readOptions } from './options.js'

export interface MailgunOptions {
  /** Sending → Webhooks → HTTP webhook signing key. */
  signingKey: Secrets
  /** How far the signed time may lie from now, on both sides. Default `'24h'`. */
  tolerance?: Duration
}

/**
 * Mailgun signs a time and a token inside the body, and not what it reports: whoever has seen one
 * request can send others until its time is over. Window: 24 hours, because deliveries are repeated
 * for 8. Subaccounts are recognised by the key of their parent as well.
 */
export function mailgun(options: MailgunOptions): Provider {
  const { signingKey, tolerance = '24h' } = readOptions(
    'mailgun',
    { signingKey: isSecret, tolerance: isTolerance },
    options,
  )
  return defineProvider({
    name: 'mailgun',
    secret: signingKey,
    secretOption: 'signingKey',
    scheme: {
      algorithm: { kind: 'hmac', hash: 'sha256' },
      toleranceMs: toMs(tolerance),
      read,
    },
    keptHeaders: ['content-type'],
    parse,
    eventId,
    type: (payload) => at(payload, 'event-data.event'),
    object: (payload) => at(payload, 'event-data.message.headers.message-id'),
    // Everything else but 200 is repeated.
    answers: { dead: { status: 406 } },
  })
}

/** Mailgun promises that an id is unique within a day. The event's time is in seconds, with a fraction. */
function eventId(payload: unknown): unknown {
  const seconds = at(payload, 'event-data.timestamp')
  return typeof seconds === 'number'
    ? nameOfAll(at(payload, 'event-data.id'), String(seconds))
    : null
}

function parse(incoming: Incoming): unknown {
  return isForm(incoming) ? parseForm(incoming.body) : parseJson(incoming.body)
}

function read(incoming: Incoming): Read {
  const payload = parse(incoming)
  // A route's form has the same three fields beside the others.
  const carrier = typeof at(payload, 'signature') === 'object' ? at(payload, 'signature') : payload
  const timestamp = nameOf(at(carrier, 'timestamp')) ?? ''
  const token = at(carrier, 'token')
  const seconds = wholeNumber(timestamp)
  const signatures = ['signature', 'parent-signature'].flatMap(
    (name) => fromHex(nameOf(at(carrier, name)) ?? '') ?? [],
  )
  if (seconds === undefined || typeof token !== 'string' || signatures.length === 0) {
    return 'malformed'
  }
  // Nothing separates the two, but a digit more or less is a time of another century.
  return { content: [timestamp, token], signatures, signedAtMs: seconds * 1_000 }
}
