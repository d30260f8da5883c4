import { crc32 } from 'node:zlib'
import { at, defineProvider, type Provider, type Secrets } from '../provider.js'
import { fromBase64, headerOf, type Part } from '../signature.js'
import { type Fetch, pinnedCertificates } from './pinned-certificates.js'

export interface PaypalOptions {
  /** The webhook's id, from the app's page in the developer dashboard: it is part of what is signed. */
  webhookId: Secrets
  /** Fetches the certificate. Default: `fetch`. */
  fetch?: Fetch
}

const HOSTS = new Set(
  ['api', 'api.sandbox', 'api-m', 'api-m.sandbox'].map((of) => `${of}.paypal.com`),
)
const SIGNER = /^CN=messageverificationcerts(?:\.sandbox)?\.paypal\.com$/m

/**
 * PayPal signs with a certificate that it names in each request; it is fetched once, from PayPal's
 * own hosts only. There is no window: deliveries are repeated for 3 days.
 */
export function paypal({ webhookId, fetch = globalThis.fetch }: PaypalOptions): Provider {
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
      read: async (incoming, { nowMs }) => {
        const [id, time, given, address] = NAMES.map((name) => headerOf(incoming, name))
        if (!id || !time || !given || !address) return 'missing_header'
        const signature = fromBase64(given)
        if (signature === undefined) return 'malformed'
        const key = await certificateAt(address, nowMs)
        if (key === undefined) return 'no_match'
        const content = (webhook: unknown): Part[] => [
          `${id}|${time}|`,
          webhook as Uint8Array,
          `|${crc32(incoming.body)}`,
        ]
        return { content, signatures: [signature], key }
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
