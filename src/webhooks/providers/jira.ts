import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Jira Cloud. System → WebHooks → the webhook's secret; webhooks of Connect and OAuth apps are not
 * signed with one. No time is signed. Jira redelivers up to 5 times after 408, 409, 425, 429 and 5xx.
 */
export function jira(options: SecretOptions): Provider {
  const { secret } = readOptions('jira', SECRET, options)
  return hmac({
    name: 'jira',
    secret,
    header: 'x-hub-signature',
    prefix: 'sha256=',
    eventId: (_payload, header) => header('x-atlassian-webhook-identifier'),
    type: (payload) => at(payload, 'webhookEvent'),
    object: (payload) => at(payload, 'issue.id'),
    keptHeaders: ['identifier', 'retry', 'flow'].map((name) => `x-atlassian-webhook-${name}`),
  })
}
