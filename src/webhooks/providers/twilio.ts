import { createHash } from 'node:crypto'
import { at, parseForm, parseJson } from '../payload.js'
import { type Answer, defineProvider, type HeaderReader, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import {
  fromBase64,
  fromHex,
  headerOf,
  type Incoming,
  isEqual,
  isForm,
  type Read,
  type Refusal,
} from '../signature.js'
import { isSecret, readOptions } from './options.js'
import { checkPublicUrl, isPublicUrl, queryOf } from './public-url.js'

export interface TwilioOptions {
  /**
   * The account's auth token, from the console's start page. Where a webhook rule signs with a shared
   * key, that key, or both in a list.
   */
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
 * Twilio signs the address, with or without its port, and the fields of a form; the address of a
 * request with another body carries that body's hash. The hash of the signature is SHA-1, or SHA-256
 * where a webhook rule says so. No time is signed. `redelivers` is `false`: by default Twilio repeats
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
    keptHeaders: ['content-type', 'x-twilio-signature', SETTINGS, 'i-twilio-idempotency-token'],
    parse: (incoming) => (isForm(incoming) ? parseForm(incoming.body) : parseJson(incoming.body)),
    // Event Streams sends a list of CloudEvents.
    items: (payload) => (Array.isArray(payload) ? payload : undefined),
    eventId: (payload, header) =>
      isCloudEvent(payload)
        ? at(payload, 'id')
        : (header('i-twilio-idempotency-token') ?? nameOfFields(payload, header)),
    // A form has no type: what it is about is said by the address that it was sent to.
    type: (payload) => (isCloudEvent(payload) ? at(payload, 'type') : undefined),
    object: (payload) => OBJECTS.map((path) => at(payload, path)).find((sid) => sid !== undefined),
    redelivers: false,
    answers: {
      ...{ processed: NOTHING, duplicate: NOTHING, accepted: NOTHING, ignored: NOTHING },
      dead: NOTHING,
    },
  })
}

const OBJECTS = ['MessageSid', 'CallSid', 'data.messageSid', 'data.MessageSid']

function isCloudEvent(payload: unknown): boolean {
  return at(payload, 'specversion') !== undefined
}

const SETTINGS = 'x-twilio-webhooks-signature-settings'

function read(incoming: Incoming, url: string): Read {
  const header = headerOf(incoming, 'x-twilio-signature')
  if (header === undefined) return 'missing_header'
  const signature = fromBase64(header)
  const hash = hashOf(headerOf(incoming, SETTINGS))
  if (signature === undefined || hash === undefined) return 'malformed'
  const fields = signedFields(incoming)
  if (typeof fields !== 'string') return fields.refusal
  const readAt = (address: string) => ({
    algorithm: { kind: 'hmac', hash } as const,
    content: [address, fields],
    signatures: [signature],
  })
  // Twilio's products differ in whether the port belongs to the address.
  return { ...readAt(url), or: [readAt(withOrWithoutPort(url))] }
}

/** A rule for a webhook's address can choose the hash: `key=…,algorithm=HMAC_SHA256`. */
function hashOf(settings: string | undefined): 'sha1' | 'sha256' | undefined {
  if (settings === undefined) return 'sha1'
  const algorithm = /(?:^|,)algorithm=([^,]*)/.exec(settings)?.[1]
  return HASHES.get(algorithm)
}

const HASHES = new Map<unknown, 'sha1' | 'sha256'>([
  ['HMAC_SHA1', 'sha1'],
  ['HMAC_SHA256', 'sha256'],
])

/** The same address without its port, or with the standard one where it has none. */
function withOrWithoutPort(url: string): string {
  const [, scheme, authority = '', rest] = /^(https?):\/\/([^/?]*)(.*)$/s.exec(url) ?? []
  const port = /:\d+$/.exec(authority)?.[0]
  const other =
    port === undefined
      ? `${authority}:${scheme === 'https' ? 443 : 80}`
      : authority.slice(0, -port.length)
  return `${scheme}://${other}${rest}`
}

/** What is signed behind the address. */
function signedFields(incoming: Incoming): string | { refusal: Refusal } {
  const hashes = new URLSearchParams(queryOf(incoming)).getAll('bodySHA256')
  if (hashes.length > 0) {
    const actual = createHash('sha256').update(incoming.body).digest()
    const isWhole = hashes.every((hash) => isEqual(fromHex(hash) ?? Buffer.alloc(0), actual))
    return isWhole ? '' : { refusal: 'no_match' }
  }
  // Without its hash in the address, a body that is no form is not signed at all.
  if (!isForm(incoming) && incoming.body.length > 0) return { refusal: 'malformed' }
  try {
    return fieldsOf(incoming.body)
  } catch {
    return { refusal: 'malformed' }
  }
}

/**
 * What is signed of a form does not tell where a field ends: forms that share a signature share a name. A body
 * with its hash in the address is named after its bytes.
 */
function nameOfFields(payload: unknown, header: HeaderReader): string | null {
  const isOfForm = /^application\/x-www-form-urlencoded/i.test(header('content-type') ?? '')
  return isOfForm ? createHash('sha256').update(textOf(payload)).digest('base64url') : null
}

/** Names and values, sorted by name; of a name that comes twice, each value once and sorted. */
function fieldsOf(body: Buffer): string {
  return textOf(parseForm(body))
}

function textOf(form: unknown): string {
  return Object.entries(form as Record<string, string | string[]>)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .flatMap(([name, value]) => [...new Set([value].flat())].sort().map((one) => name + one))
    .join('')
}
