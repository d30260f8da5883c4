import { createHash } from 'node:crypto'
import { at, parseForm, parseJson } from '../payload.js'
import { type Answer, defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import {
  fromBase64,
  fromHex,
  headerOf,
  type Incoming,
  isEqual,
  isForm,
  type Read,
} from '../signature.js'
import { isSecret, readOptions } from './options.js'
import { checkPublicUrl, isPublicUrl, queryOf } from './public-url.js'

export interface TwilioOptions {
  /** The account's auth token, from the console's start page. */
  authToken: Secrets
  /** The address as it is written in the console, without a query. */
  url: string
}

/** Twilio reads the answer to a message or a call, and takes anything but TwiML for an error. */
const NOTHING: Answer = {
  status: 200,
  headers: { 'content-type': 'text/xml' },
  body: '<?xml version="1.0" encoding="UTF-8"?><Response/>',
}

/**
 * Twilio signs the address, and the fields of a form; the address of a request with another body
 * carries that body's hash. No time is signed. `redelivers` is `false`: by default Twilio repeats
 * a request that it could not send, and none that was answered. The answer is TwiML that does nothing, or what
 * `event.respond()` says.
 */
export function twilio(options: TwilioOptions): Provider {
  const { authToken, url } = readOptions(
    'twilio',
    { authToken: isSecret, url: isPublicUrl },
    options,
  )
  const address = checkPublicUrl('twilio', url, { query: false })
  return defineProvider({
    name: 'twilio',
    secret: authToken,
    secretOption: 'authToken',
    scheme: {
      algorithm: { kind: 'hmac', hash: 'sha1' },
      read: (incoming) => read(incoming, address + queryOf(incoming)),
    },
    keptHeaders: ['content-type', 'x-twilio-signature', 'i-twilio-idempotency-token'],
    parse: (incoming) => (isForm(incoming) ? parseForm(incoming.body) : parseJson(incoming.body)),
    eventId: (_payload, header) => header('i-twilio-idempotency-token'),
    // No type: what a request is about is said by the address that it was sent to.
    object: (payload) => at(payload, 'MessageSid') ?? at(payload, 'CallSid'),
    redelivers: false,
    answers: {
      ...{ processed: NOTHING, duplicate: NOTHING, accepted: NOTHING, ignored: NOTHING },
      dead: NOTHING,
    },
  })
}

function read(incoming: Incoming, url: string): Read {
  const header = headerOf(incoming, 'x-twilio-signature')
  if (header === undefined) return 'missing_header'
  const signature = fromBase64(header)
  if (signature === undefined) return 'malformed'
  const hashes = new URLSearchParams(queryOf(incoming)).getAll('bodySHA256')
  if (hashes.length > 0) {
    const actual = createHash('sha256').update(incoming.body).digest()
    const isWhole = hashes.every((hash) => isEqual(fromHex(hash) ?? Buffer.alloc(0), actual))
    return isWhole ? { content: [url], signatures: [signature] } : 'no_match'
  }
  // Without its hash in the address, a body that is no form is not signed at all.
  if (!isForm(incoming) && incoming.body.length > 0) return 'malformed'
  try {
    return { content: [url, fieldsOf(incoming.body)], signatures: [signature] }
  } catch {
    return 'malformed'
  }
}

/** Names and values, sorted by name; of a name that comes twice, each value once and sorted. */
function fieldsOf(body: Buffer): string {
  return Object.entries(parseForm(body))
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .flatMap(([name, value]) => [...new Set([value].flat())].sort().map((one) => name + one))
    .join('')
}
