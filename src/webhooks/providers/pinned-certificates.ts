import { type KeyObject, X509Certificate } from 'node:crypto'
import { type Fetch, fetchedByName, fetchText } from './fetched.js'

export type { Fetch } from './fetched.js'

export interface PinnedCertificates {
  readonly fetch: Fetch
  /** Whether the provider itself, and nobody else, can put a certificate there. */
  readonly isTheirs: (url: URL) => boolean
  /** Whether it was issued for this purpose. Default: any from there. */
  readonly isForSigning?: (certificate: X509Certificate) => boolean
}

/**
 * Finds the key of a certificate that a request names by its address. Answers `undefined` for an
 * address or a certificate that cannot be the provider's at that time.
 *
 * @throws CertificateUnreachable when the address is the provider's and cannot be reached: that says nothing of the request.
 */
export function pinnedCertificates(
  source: PinnedCertificates,
): (address: unknown, nowMs: number) => Promise<KeyObject | undefined> {
  const chainAt = fetchedByName({
    what: 'certificate',
    load: async (url) => {
      const { ok, text } = await fetchText(source.fetch, url, 'certificate')
      return ok ? chainOf(text) : undefined
    },
  })

  return async (address, nowMs) => {
    if (typeof address !== 'string' || !URL.canParse(address)) return undefined
    const url = new URL(address)
    if (!isPlainHttps(url) || !source.isTheirs(url)) return undefined
    const [leaf, ...issuers] = (await chainAt(url.href)) ?? []
    if (leaf === undefined || source.isForSigning?.(leaf) === false) return undefined
    return isChain([leaf, ...issuers], nowMs) ? leaf.publicKey : undefined
  }
}

/** No user, no port, no query: nothing that could lead elsewhere than the host says. */
export function isPlainHttps(url: URL): boolean {
  const { protocol, username, password, port, search, hash } = url
  return protocol === 'https:' && [username, password, port, search, hash].every((part) => !part)
}

function chainOf(pem: string): readonly X509Certificate[] | undefined {
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
  try {
    return blocks.length > 0 ? blocks.map((block) => new X509Certificate(block)) : undefined
  } catch {
    return undefined
  }
}

/**
 * Each is valid and issued by the next. The last one's issuer is not sent along, and Node has no
 * way to look for it: that it came from the pinned host over TLS stands in for it.
 */
function isChain(chain: readonly X509Certificate[], nowMs: number): boolean {
  return chain.every((certificate, index) => {
    const issuer = chain[index + 1]
    const isValid =
      Date.parse(certificate.validFrom) <= nowMs && nowMs <= Date.parse(certificate.validTo)
    const isIssued =
      issuer === undefined ||
      (certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey))
    return isValid && isIssued
  })
}
