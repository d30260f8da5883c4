import { crc32 } from 'node:zlib'
import { isFunction, toMs } from '../../checks.js'
import type { Duration } from '../../core/duration.js'
import { at } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { fromBase64, headerOf, instantOf, type Part } from '../signature.js'
import { isSecret, isTolerance, readOptions } from './options.js'
import { type Fetch, pinnedCertificates } from './pinned-certificates.js'

export interface PaypalOptions {
  /** The webhook's id, from the app's page in the developer dashboard: it is part of what is signed. */
  webhookId: Secrets
  /** How far the signed time may lie from now, on both sides. Default `'4d'`. */
  tolerance?: Duration
  /** Fetches the certificate. Default: `fetch`. */
  fetch?: Fetch
}

const HOSTS = new Set(
  ['api', 'api.sandbox', 'api-m', 'api-m.sandbox'].map((of) => `${of}.paypal.com`),
)
const SIGNER = /^CN=messageverificationcerts(?:\.sandbox)?\.paypal\.com$/m

/**
 * PayPal signs with a certificate that it names in each request; it is fetched once, from PayPal's
 * own hosts only. Of the body it signs the CRC-32, which is no hash: whoever has seen one request can
 * make another body that has the same, and send it until its time is over. Window: 4 days, because
 * deliveries are repeated for 3.
 */
export function paypal(options: PaypalOptions): Provider {
  const {
    webhookId,
    tolerance = '4d',
    fetch = globalThis.fetch,
  } = readOptions(
    'paypal',
    { webhookId: isSecret, tolerance: isTolerance, fetch: isFunction },
    options,
  )
  const certificateAt = pinnedCertificates({
    fetch,
    isTheirs: (url) =>
      HOSTS.has(url.hostname) && /^\/v1\/notifications\/certs\/[\w-]+$/.test(url.pathname),
    isForSigning: (certificate) => SIGNER.test(certificate.subject),
  })
  return defineProvider({
    name: 'paypal',
    secret: webhookId,
    secretOption: 'webhookId',
    scheme: {
      algorithm: { kind: 'public-key', hash: 'sha256' },
      toKey: Buffer.from,
      secretForm: "the webhook's id, as the developer dashboard shows it",
      toleranceMs: toMs(tolerance),
      read: async (incoming, { nowMs }) => {
        const [id, time, given, address] = NAMES.map((name) => headerOf(incoming, name))
        if (!id || !time || !given || !address) return 'missing_header'
        const signature = fromBase64(given)
        const signedAtMs = instantOf(time)
        if (signature === undefined || signedAtMs === undefined) return 'malformed'
        const key = await certificateAt(address, nowMs)
        if (key === undefined) return 'no_match'
        const content = (webhook: unknown): Part[] => [
          `${id}|${time}|`,
          webhook as Uint8Array,
          `|${crc32(incoming.body)}`,
        ]
        return { content, signatures: [signature], signedAtMs, key }
      },
    },
    keptHeaders: NAMES,
    eventId: (payload) => at(payload, 'id'),
    type: (payload) => at(payload, 'event_type'),
    object: (payload) => at(payload, 'resource.id'),
  })
}

const NAMES = ['id', 'time', 'sig']
  .map((name) => `paypal-transmission-${name}`)
  .concat('paypal-cert-url')
