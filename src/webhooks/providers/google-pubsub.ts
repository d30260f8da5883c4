import { type Check, isFunction, toMs } from '../../checks.js'
import type { Duration } from '../../core/duration.js'
import { at, nameOfAll } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import type { Incoming, Known, Read } from '../signature.js'
import type { Fetch } from './fetched.js'
import { bearerOf, issuedAtMs, publishedKeys, type TokenTerms, verifyToken } from './jwt.js'
import { isSecret, isTolerance, readOptions } from './options.js'

export interface GooglePubsubOptions {
  /**
   * The service account of the push subscription: `push@project.iam.gserviceaccount.com`. The audience
   * alone proves nothing: every Google Cloud project can push with the same one.
   */
  serviceAccount: Secrets
  /** The audience of the push subscription. If none was configured there, the endpoint's URL. */
  audience: string | readonly string[]
  /** How far the time of the token may lie from now, on both sides. Default `'1h'`. */
  tolerance?: Duration
  /** Fetches Google's keys. Default: `fetch`. */
  fetch?: Fetch
}

const KEYS = 'https://www.googleapis.com/oauth2/v3/certs'

/**
 * Google Pub/Sub, push subscriptions with authentication and without payload unwrapping. Google signs
 * a token that identifies the service account; the message itself is not signed. Google uses a token
 * for up to an hour, which is the default window. The payload is Pub/Sub's envelope: `message.data`
 * is base64.
 */
export function googlePubsub(options: GooglePubsubOptions): Provider {
  const {
    serviceAccount,
    audience,
    tolerance = '1h',
    fetch = globalThis.fetch,
  } = readOptions(
    'google-pubsub',
    {
      serviceAccount: isSecret,
      audience: isAudience,
      tolerance: isTolerance,
      fetch: isFunction,
    },
    options,
    ['audience'],
  )
  const terms: TokenTerms = {
    algorithm: 'RS256',
    requiredClaims: ['exp'],
    keyById: publishedKeys(fetch, KEYS),
    issuer: ['https://accounts.google.com', 'accounts.google.com'],
    audience: [audience].flat(),
  }

  async function read(incoming: Incoming, { nowMs }: Known): Promise<Read> {
    const token = bearerOf(incoming)
    if (token === 'missing_header' || token === 'malformed') return token
    const claims = await verifyToken(token, terms, nowMs)
    if (typeof claims === 'string') return claims
    const { email, email_verified: isVerified } = claims
    if (typeof email !== 'string' || isVerified !== true) return 'no_match'
    return { content: [], signatures: [Buffer.from(email)], signedAtMs: issuedAtMs(claims) }
  }

  return defineProvider({
    name: 'google-pubsub',
    secret: serviceAccount,
    secretOption: 'serviceAccount',
    scheme: {
      algorithm: { kind: 'equality' },
      toKey,
      secretForm: "the service account's e-mail, such as 'push@project.iam.gserviceaccount.com'",
      toleranceMs: toMs(tolerance),
      isWithoutBody: true,
      read,
    },
    keptHeaders: [],
    secretHeaders: ['authorization'],
    // A message's id is unique within its topic.
    eventId: (payload) => nameOfAll(at(payload, 'subscription'), at(payload, 'message.messageId')),
    object: (payload) => at(payload, 'message.orderingKey'),
    // A message of 10 MB, as base64.
    bodyLimit: 15 * 1024 * 1024,
  })
}

const isAudience: Check = (value) => {
  const all = [value].flat()
  return all.length > 0 && all.every((one) => typeof one === 'string' && one !== '')
    ? undefined
    : "must be the push subscription's audience, such as 'https://example.com/webhooks/pubsub', or several. Is an environment variable not set?"
}

function toKey(email: string): Uint8Array {
  if (!/^[^@\s]+@[^@\s]+$/.test(email)) throw new TypeError('no e-mail')
  return Buffer.from(email)
}
