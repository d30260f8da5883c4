import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Vercel. The webhook's secret, which is shown once under Settings → Webhooks; an integration's
 * webhooks are signed with its client secret. No time is signed. `redelivers` is `false`, because its
 * documentation does not mention redeliveries.
 */
export function vercel(options: SecretOptions): Provider {
  const { secret } = readOptions('vercel', SECRET, options)
  return hmac({
    name: 'vercel',
    secret,
    header: 'x-vercel-signature',
    hash: 'sha1',
    eventId: (payload) => at(payload, 'id'),
    type: (payload) => at(payload, 'type'),
    object: (payload) => at(payload, 'payload.deployment.id') ?? at(payload, 'payload.project.id'),
    redelivers: false,
  })
}
