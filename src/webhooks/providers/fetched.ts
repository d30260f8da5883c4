import { CertificateUnreachable } from '../signature.js'

/** The part of `fetch` that is used. */
export type Fetch = (url: string, options: FetchOptions) => Promise<FetchedPage>

interface FetchOptions {
  method?: 'POST'
  headers?: Record<string, string>
  body?: string
  redirect: 'error'
  signal: AbortSignal
}

interface FetchedPage {
  readonly ok: boolean
  readonly status: number
  text(): Promise<string>
}

export interface FetchedSource<T> {
  /** What is fetched, for error messages: `'certificate'`. */
  readonly what: string
  /** Fetches the value with this name; `undefined` when there is none. @throws CertificateUnreachable */
  readonly load: (name: string) => Promise<T | undefined>
  /** How long a value is cached. Default: until it is evicted. */
  readonly keptForMs?: number
}

/** A provider has a few at a time. A larger number means that requests contain invented names. */
const MOST_KEPT = 16
const MOST_FETCHED_AT_ONCE = 8
const FETCH_TIMEOUT_MS = 5_000
/** How long a name that was not found is not fetched again, and how many such names are remembered. */
const NOTHING_FOR_MS = 30_000
const MOST_NOTHING = 64
/** So many names that do not exist may be asked for in a minute: anybody can invent them. */
const MOST_MISSES = 30
const MISSES_FOR_MS = 60_000

/**
 * Caches what is fetched by name, and shares fetches that overlap. `isEnough` checks whether the
 * cached value contains what the caller needs. If it does not, the value is fetched again, as often
 * as a name that was not found.
 *
 * @returns `undefined` when nothing has that name.
 * @throws CertificateUnreachable when it cannot be fetched now. The request may still be genuine.
 */
export function fetchedByName<T>({
  what,
  load,
  keptForMs = Number.POSITIVE_INFINITY,
}: FetchedSource<T>): (name: string, isEnough?: (value: T) => boolean) => Promise<T | undefined> {
  const kept = new Map<string, { readonly value: T; readonly atMs: number }>()
  const nothing = new Map<string, { readonly atMs: number }>()
  const underWay = new Map<string, Promise<T | undefined>>()
  /** When names were asked for that did not exist: the oldest first. */
  const misses: number[] = []

  async function loadNow(name: string): Promise<T | undefined> {
    const value = await load(name)
    // By the monotonic clock: the time that a request is compared with may lie in the past.
    const atMs = performance.now()
    if (value === undefined) {
      remember(nothing, name, { atMs }, MOST_NOTHING)
      misses.push(atMs)
    } else remember(kept, name, { value, atMs }, MOST_KEPT)
    return value
  }

  return (name, isEnough = () => true) => {
    const known = kept.get(name)
    if (known !== undefined) {
      const limitMs = isEnough(known.value) ? keptForMs : NOTHING_FOR_MS
      if (performance.now() < known.atMs + limitMs) return Promise.resolve(known.value)
    }
    const missing = nothing.get(name)
    if (missing !== undefined) {
      if (performance.now() < missing.atMs + NOTHING_FOR_MS) return Promise.resolve(undefined)
      nothing.delete(name)
    }
    const joined = underWay.get(name)
    if (joined !== undefined) return joined
    while (misses[0] !== undefined && performance.now() > misses[0] + MISSES_FOR_MS) misses.shift()
    const isFull = underWay.size >= MOST_FETCHED_AT_ONCE || misses.length >= MOST_MISSES
    // What was there before is no invention.
    if (isFull && known === undefined) {
      return Promise.reject(new CertificateUnreachable(`too many ${what}s are fetched`))
    }
    const loading = loadNow(name).finally(() => underWay.delete(name))
    underWay.set(name, loading)
    return loading
  }
}

/** Adds to a cache, and evicts the oldest entries. */
function remember<V>(memory: Map<string, V>, name: string, value: V, most: number): void {
  memory.delete(name)
  for (const oldest of memory.keys()) if (memory.size >= most) memory.delete(oldest)
  memory.set(name, value)
}

/**
 * The text of a response, and whether its status is a 2xx.
 *
 * @throws CertificateUnreachable when the server does not respond, or responds with 429 or a 5xx.
 */
export async function fetchText(
  fetch: Fetch,
  url: string,
  what: string,
  request: Pick<FetchOptions, 'method' | 'headers' | 'body'> = {},
): Promise<{ readonly ok: boolean; readonly text: string }> {
  let page: FetchedPage
  let text: string
  try {
    const signal = AbortSignal.timeout(FETCH_TIMEOUT_MS)
    page = await fetch(url, { ...request, redirect: 'error', signal })
    text = await page.text()
  } catch (cause) {
    throw new CertificateUnreachable(`the ${what} cannot be fetched now`, { cause })
  }
  if (page.status >= 500 || page.status === 429) {
    throw new CertificateUnreachable(`the ${what} cannot be fetched now: status ${page.status}`)
  }
  return { ok: page.ok, text }
}
