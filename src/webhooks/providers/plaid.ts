import { createHash } from 'node:crypto'
import type { JWK } from 'jose'
import { isColumnText, isFunction, isOneOf, toMs } from '../../checks.js'
import type { Duration } from '../../core/duration.js'
import { at, nameOf } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import {
  CertificateUnreachable,
  fromHex,
  headerOf,
  type Incoming,
  isEqual,
  type Known,
  type Read,
} from '../signature.js'
import { type Fetch, fetchedByName, fetchText } from './fetched.js'
import { issuedAtMs, verifyToken } from './jwt.js'
import { isSecret, isTolerance, readOptions } from './options.js'

export interface PlaidOptions {
  /** Developers → Keys → client_id. */
  clientId: string
  /** The secret of that environment, on the same page: Plaid's keys are fetched with it. */
  secret: Secrets
  /** Default `'production'`. */
  environment?: 'production' | 'sandbox'
  /** How far the signed time may lie from now, on both sides. Default `'5m'`. */
  tolerance?: Duration
  /** Fetches the keys. Default: `fetch`. */
  fetch?: Fetch
}

/** How long a key is trusted after Plaid has revoked it, at most. */
const KEYS_KEPT_FOR_MS = 3_600_000

/**
 * Plaid. It signs a token that contains the hash of the body; the key is fetched from Plaid's API.
 * Window: 5 minutes. Events have no id, and two different events can have identical bodies: the signed
 * time is what distinguishes them, and a redelivery that is signed again is another event.
 */
export function plaid(options: PlaidOptions): Provider {
  const {
    clientId,
    secret,
    environment = 'production',
    tolerance = '5m',
    fetch = globalThis.fetch,
  } = readOptions(
    'plaid',
    {
      clientId: isColumnText('5d3f2b…'),
      secret: isSecret,
      environment: isOneOf('production', 'sandbox'),
      tolerance: isTolerance,
      fetch: isFunction,
    },
    options,
    ['clientId'],
  )
  const keys = fetchedByName({
    what: 'key',
    keptForMs: KEYS_KEPT_FOR_MS,
    load: (name) => {
      const [keyId, secret] = JSON.parse(name) as [keyId: string, secret: string]
      const body = JSON.stringify({ client_id: clientId, secret, key_id: keyId })
      return fetchKey(fetch, `https://${environment}.plaid.com`, body)
    },
  })

  async function read(incoming: Incoming, known: Known): Promise<Read> {
    const token = headerOf(incoming, HEADER)
    if (token === undefined) return 'missing_header'
    let used: Uint8Array | undefined
    // During a rotation, either secret may be the one that Plaid accepts.
    async function keyById(keyId: string): Promise<JWK | undefined> {
      let unreachable: unknown
      for (const secret of (await known.keys()) as readonly Uint8Array[]) {
        try {
          const key = await keys(JSON.stringify([keyId, Buffer.from(secret).toString()]))
          used = secret
          if (key !== undefined) return key
        } catch (error) {
          unreachable = error
        }
      }
      if (unreachable !== undefined) throw unreachable
      return undefined
    }
    const claims = await verifyToken(token, { algorithm: 'ES256', keyById }, known.nowMs)
    if (typeof claims === 'string') return claims
    const hash = fromHex(String(claims.request_body_sha256)) ?? Buffer.alloc(0)
    const isWhole = isEqual(hash, createHash('sha256').update(incoming.body).digest())
    if (!isWhole || used === undefined) return 'no_match'
    return { content: [], signatures: [used], signedAtMs: issuedAtMs(claims) }
  }

  return defineProvider({
    name: 'plaid',
    secret,
    scheme: { algorithm: { kind: 'equality' }, toleranceMs: toMs(tolerance), read },
    keptHeaders: [HEADER],
    eventId: () => null,
    type: (payload) => {
      const [type, code] = ['webhook_type', 'webhook_code'].map((name) => nameOf(at(payload, name)))
      return type && code && `${type}.${code}`
    },
    object: (payload) => at(payload, 'item_id'),
  })
}

const HEADER = 'plaid-verification'

async function fetchKey(fetch: Fetch, host: string, body: string): Promise<JWK | undefined> {
  const { ok, text } = await fetchText(fetch, `${host}/webhook_verification_key/get`, 'key', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body,
  })
  const answer = parsed(text)
  if (ok && at(answer, 'key.kty') === 'EC') {
    return at(answer, 'key.expired_at') == null ? (at(answer, 'key') as JWK) : undefined
  }
  const code = at(answer, 'error_code')
  if (code === 'INVALID_WEBHOOK_VERIFICATION_KEY_ID') return undefined
  // With wrong credentials of ours, the request may still be genuine.
  const name = nameOf(code) ?? 'no key'
  const error = new CertificateUnreachable(`Plaid does not say what the key is: ${name}`)
  throw Object.assign(error, { code: name })
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
