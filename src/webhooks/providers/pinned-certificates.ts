import { type KeyObject, X509Certificate } from 'node:crypto'
import { CertificateUnreachable } from '../signature.js'

/** The part of `fetch` that is used. */
export type Fetch = (
  url: string,
  options: { redirect: 'error'; signal: AbortSignal },
) => Promise<{ readonly ok: boolean; readonly status: number; text(): Promise<string> }>

export interface PinnedCertificates {
  readonly fetch: Fetch
  /** Whether the provider itself, and nobody else, can put a certificate there. */
  readonly isTheirs: (url: URL) => boolean
  /** Whether it was issued for this purpose. Default: any from there. */
  readonly isForSigning?: (certificate: X509Certificate) => boolean
}

/** A provider has a few at a time. More would be somebody who makes addresses up. */
const MOST_KEPT = 16
const MOST_FETCHED_AT_ONCE = 8
const FETCH_TIMEOUT_MS = 5_000
/** An address where nothing was is not asked again for so long, and so many are remembered. */
const NOTHING_FOR_MS = 30_000
const MOST_NOTHING = 256

/**
 * Finds the key of a certificate that a request names by its address. Answers `undefined` for an
 * address or a certificate that cannot be the provider's at that time.
 *
 * @throws CertificateUnreachable when the address is the provider's and cannot be reached: that says nothing of the request.
 */
export function pinnedCertificates(
  source: PinnedCertificates,
): (address: unknown, nowMs: number) => Promise<KeyObject | undefined> {
  const kept = new Map<string, readonly X509Certificate[]>()
  /** Until when, by the process's own clock: what a request is compared with may be the past. */
  const nothing = new Map<string, number>()
  const underWay = new Map<string, Promise<readonly X509Certificate[] | undefined>>()

  async function load(url: string): Promise<readonly X509Certificate[] | undefined> {
    const chain = await fetchChain(source.fetch, url)
    if (chain === undefined) keep(nothing, url, performance.now() + NOTHING_FOR_MS, MOST_NOTHING)
    else keep(kept, url, chain, MOST_KEPT)
    return chain
  }

  function isNothing(url: string): boolean {
    const until = nothing.get(url)
    if (until === undefined) return false
    if (performance.now() < until) return true
    nothing.delete(url)
    return false
  }

  function chainAt(url: string): Promise<readonly X509Certificate[] | undefined> {
    const joined = underWay.get(url)
    if (joined !== undefined) return joined
    if (underWay.size >= MOST_FETCHED_AT_ONCE) {
      throw new CertificateUnreachable('too many certificates are fetched')
    }
    const loading = load(url).finally(() => underWay.delete(url))
    underWay.set(url, loading)
    return loading
  }

  return async (address, nowMs) => {
    if (typeof address !== 'string' || !URL.canParse(address)) return undefined
    const url = new URL(address)
    if (!isPlainHttps(url) || !source.isTheirs(url) || isNothing(url.href)) return undefined
    const [leaf, ...issuers] = kept.get(url.href) ?? (await chainAt(url.href)) ?? []
    if (leaf === undefined || source.isForSigning?.(leaf) === false) return undefined
    return isChain([leaf, ...issuers], nowMs) ? leaf.publicKey : undefined
  }
}

/** Adds to a memory, which forgets what came first. */
function keep<T>(memory: Map<string, T>, name: string, value: T, most: number): void {
  for (const oldest of memory.keys()) if (memory.size >= most) memory.delete(oldest)
  memory.set(name, value)
}

async function fetchChain(
  fetch: Fetch,
  url: string,
): Promise<readonly X509Certificate[] | undefined> {
  let pem: string | undefined
  let status: number
  try {
    const signal = AbortSignal.timeout(FETCH_TIMEOUT_MS)
    const response = await fetch(url, { redirect: 'error', signal })
    status = response.status
    pem = response.ok ? await response.text() : undefined
  } catch (cause) {
    throw new CertificateUnreachable('the certificate cannot be fetched now', { cause })
  }
  if (status >= 500 || status === 429) {
    throw new CertificateUnreachable(`the certificate cannot be fetched now: status ${status}`)
  }
  return pem === undefined ? undefined : chainOf(pem)
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
