import { createPublicKey, type KeyObject } from 'node:crypto'
import { toMs } from '../../checks.js'
import type { Duration } from '../../core/duration.js'
import { at, nameOfAll } from '../payload.js'
import { type Answer, defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { fromHex, headerOf, type Incoming, type Read, wholeNumber } from '../signature.js'
import { isSecret, isTolerance, readOptions } from './options.js'

export interface DiscordOptions {
  /** General Information → Public Key: 64 hexadecimal digits. */
  publicKey: Secrets
  /** How far the signed time may lie from now, on both sides. Default `'15m'`. */
  tolerance?: Duration
}

/** Discord asks for a status without a body, and for a type even so. */
const NOTED: Answer = { status: 204, headers: { 'content-type': 'application/json' } }

/**
 * Discord: webhook events, and the pings of both kinds of endpoints. Window: 15 minutes, because it repeats for 10.
 * Interactions have an id. Webhook events have none: their kind, their time in microseconds and the id of
 * what they are about name them. Discord tests an endpoint with wrong signatures, and wants 401 for them.
 */
export function discord(options: DiscordOptions): Provider {
  const { publicKey, tolerance = '15m' } = readOptions(
    'discord',
    { publicKey: isSecret, tolerance: isTolerance },
    options,
  )
  return defineProvider({
    name: 'discord',
    secret: publicKey,
    secretOption: 'publicKey',
    scheme: {
      algorithm: { kind: 'public-key', hash: null },
      toKey,
      secretForm: '64 hexadecimal digits, as the developer portal shows the public key',
      toleranceMs: toMs(tolerance),
      read,
    },
    keptHeaders: ['x-signature-ed25519', 'x-signature-timestamp'],
    // The `type` of a webhook event is 1 as well, like that of an interaction's ping.
    eventId: (payload) =>
      isEvent(payload)
        ? nameOfAll(at(payload, 'event.type'), at(payload, 'event.timestamp'), objectOf(payload))
        : at(payload, 'id'),
    type: (payload) => at(payload, 'event.type') ?? at(payload, 'type'),
    object: objectOf,
    handshake: (payload) => {
      if (at(payload, 'type') === 0) return NOTED
      const isPing = at(payload, 'type') === 1 && !isEvent(payload)
      return isPing ? { status: 200, body: { type: 1 } } : undefined
    },
    answers: { processed: NOTED, duplicate: NOTED, accepted: NOTED, ignored: NOTED, dead: NOTED },
  })
}

function isEvent(payload: unknown): boolean {
  return at(payload, 'event') !== undefined
}

/** An entitlement or a message; of an authorization, the user. */
function objectOf(payload: unknown): unknown {
  return at(payload, 'event.data.id') ?? at(payload, 'event.data.user.id')
}

function toKey(text: string): KeyObject {
  const bytes = fromHex(text)
  if (bytes?.length !== 32) throw new TypeError('no Ed25519 key')
  return createPublicKey({
    key: { kty: 'OKP', crv: 'Ed25519', x: bytes.toString('base64url') },
    format: 'jwk',
  })
}

function read(incoming: Incoming): Read {
  const header = headerOf(incoming, 'x-signature-ed25519')
  const timestamp = headerOf(incoming, 'x-signature-timestamp')
  if (header === undefined || timestamp === undefined) return 'missing_header'
  const signature = fromHex(header)
  const seconds = wholeNumber(timestamp)
  if (signature === undefined || seconds === undefined) return 'malformed'
  const content = [timestamp, incoming.body]
  return { content, signatures: [signature], signedAtMs: seconds * 1_000 }
}
