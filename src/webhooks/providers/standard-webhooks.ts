import { createPublicKey, type KeyObject } from 'node:crypto'
import { toMs } from '../../checks.js'
import { at } from '../payload.js'
import { defineProvider, type HeaderReader, isName, type Provider } from '../provider.js'
import {
  type Algorithm,
  fromBase64,
  headerOf,
  type Incoming,
  type Read,
  type Refusal,
  type Signed,
  wholeNumber,
} from '../signature.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'

export interface StandardWebhooksOptions extends TolerantOptions {
  /** Names the provider in the inbox. Default `'standard-webhooks'`. */
  name?: string
}

/**
 * Everybody who signs by standardwebhooks.com, with `webhook-*` or `svix-*` headers. The secret is
 * the text `whsec_…`, or the sender's public key `whpk_…`. Window: 5 minutes. Only `v1` counts, with a
 * public key only `v1a` (Ed25519), and a time of digits only.
 */
export function standardWebhooks(options: StandardWebhooksOptions): Provider {
  const { name = 'standard-webhooks', ...rest } = readOptions(
    'standard-webhooks',
    { ...TOLERANT, name: isName },
    options,
  )
  return signedBy(name, rest, keyOfEither)
}

/** Svix. The secret is that of the endpoint, `whsec_…`, or its public key, `whpk_…`. Window: 5 minutes. */
export const svix = (options: TolerantOptions): Provider => signedBy('svix', options, keyOfEither)

/** Clerk. Dashboard → Webhooks → the endpoint's signing secret, `whsec_…`. Window: 5 minutes. */
export const clerk = (options: TolerantOptions): Provider => signedBy('clerk', options, keyOf)

/** Resend. Webhooks → the webhook's signing secret, `whsec_…`. Window: 5 minutes. */
export const resend = (options: TolerantOptions): Provider => ({
  ...signedBy('resend', options, keyOf),
  object: (payload) => at(payload, 'data.email_id') ?? at(payload, 'data.id'),
})

/** OpenAI. Project settings → Webhooks, `whsec_…`, shown once. Window: 5 minutes. */
export const openai = (options: TolerantOptions): Provider => signedBy('openai', options, keyOf)

/** Supabase's auth hooks. The secret is shown as `v1,whsec_…`. Window: 5 minutes. */
export const supabase = (options: TolerantOptions): Provider => ({
  ...signedBy('supabase', options, (secret) => keyOf(secret.replace(/^v1,/, ''))),
  // A hook is not called by a type: each has an address of its own.
  object: (payload) => at(payload, 'user.id') ?? at(payload, 'data.id'),
})

/** Polar. Unlike with everybody else, the secret is the key as it is written. Window: 5 minutes. */
export const polar = (options: TolerantOptions): Provider => signedBy('polar', options, Buffer.from)

export const STANDARD_SECRET = "'whsec_' and base64, as the provider shows it"

/** @throws for what is no base64. */
export function keyOf(secret: string): Uint8Array {
  const key = fromBase64(secret.replace(/^whsec_/, ''))
  if (key === undefined) throw new TypeError(STANDARD_SECRET)
  return key
}

function keyOfEither(secret: string): Uint8Array | KeyObject {
  if (!secret.startsWith(PUBLIC_KEY)) return keyOf(secret)
  const bytes = fromBase64(secret.slice(PUBLIC_KEY.length))
  if (bytes?.length !== 32) throw new TypeError('no Ed25519 key')
  return createPublicKey({
    key: { kty: 'OKP', crv: 'Ed25519', x: bytes.toString('base64url') },
    format: 'jwk',
  })
}

const PUBLIC_KEY = 'whpk_'

function signedBy(
  name: string,
  options: TolerantOptions,
  toKey: (secret: string) => Uint8Array | KeyObject,
): Provider {
  const { secret, tolerance = '5m' } = readOptions(name, TOLERANT, options)
  return defineProvider({
    name,
    secret,
    scheme: {
      algorithm: { kind: 'hmac', hash: 'sha256' },
      toKey,
      secretForm: toKey === keyOfEither ? `${STANDARD_SECRET}, or 'whpk_'` : STANDARD_SECRET,
      toleranceMs: toMs(tolerance),
      read: readStandard,
    },
    keptHeaders: STANDARD_HEADERS,
    eventId: (_payload, header) => header(`${prefixOf(header)}-id`),
    type: (payload) => at(payload, 'type'),
    object: (payload) => at(payload, 'data.id'),
  })
}

export const STANDARD_HEADERS = ['webhook', 'svix'].flatMap((prefix) =>
  ['id', 'timestamp', 'signature'].map((name) => `${prefix}-${name}`),
)

/** Decided by the signature, so that an id under the other name is never taken for a signed one. */
function prefixOf(header: HeaderReader): 'webhook' | 'svix' {
  return header('webhook-signature') === undefined ? 'svix' : 'webhook'
}

function readStandard(incoming: Incoming): Read {
  const prefix = prefixOf((name) => headerOf(incoming, name))
  const symmetric = readSigned(incoming, prefix)
  const asymmetric = readSigned(incoming, prefix, 'v1a')
  if (typeof asymmetric === 'string') return symmetric
  const or = { ...asymmetric, algorithm: ED25519 }
  return typeof symmetric === 'string' ? or : { ...symmetric, or: [or] }
}

const ED25519: Algorithm = { kind: 'public-key', hash: null }

/** Of Ed25519. What has another length beside `v1a` is none, so that it is no reason to look for a key. */
const ASYMMETRIC_BYTES = 64

export function readSigned(
  incoming: Incoming,
  prefix: 'webhook' | 'svix',
  version: 'v1' | 'v1a' = 'v1',
): Signed | Refusal {
  const id = headerOf(incoming, `${prefix}-id`)
  const timestamp = headerOf(incoming, `${prefix}-timestamp`)
  const given = headerOf(incoming, `${prefix}-signature`)
  if (id === undefined || timestamp === undefined || given === undefined) return 'missing_header'
  const seconds = wholeNumber(timestamp)
  const signatures = given
    .split(' ')
    .filter((part) => part.startsWith(`${version},`))
    .flatMap((part) => fromBase64(part.slice(version.length + 1)) ?? [])
    .filter(({ length }) => version === 'v1' || length === ASYMMETRIC_BYTES)
  if (seconds === undefined || signatures.length === 0) return 'malformed'
  const content = [id, '.', timestamp, '.', incoming.body]
  return { content, signatures, signedAtMs: seconds * 1_000 }
}
