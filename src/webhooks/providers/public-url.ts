import type { Check } from '../../checks.js'
import { OptionInvalid } from '../../errors.js'
import type { Incoming } from '../signature.js'

/** Checked by `checkPublicUrl`, which knows more of it. */
export const isPublicUrl: Check = () => undefined

/**
 * The address that a provider knows, for those that sign it: behind a proxy, the request does not
 * tell.
 *
 * @throws OptionInvalid
 */
export function checkPublicUrl(name: string, url: unknown, { query }: { query: boolean }): string {
  const isUrl = typeof url === 'string' && /^https?:\/\/[^/?#\s]+/.test(url) && URL.canParse(url)
  if (!isUrl || url.includes('#')) {
    throw new OptionInvalid(
      `option "url" of ${name} must be the address that ${name} sends to, such as 'https://example.com/webhooks/${name}'. Is an environment variable not set?`,
    )
  }
  if (!query && url.includes('?')) {
    throw new OptionInvalid(
      `option "url" of ${name} must end before the "?": the query is taken from each request`,
    )
  }
  return url
}

/** The query as it was sent, with its question mark. */
export function queryOf({ url }: Pick<Incoming, 'url'>): string {
  const start = url.indexOf('?')
  return start === -1 ? '' : url.slice(start)
}
