import { at, parseForm, parseJson } from '../payload.js'
import type { Provider } from '../provider.js'
import { isForm } from '../signature.js'
import { hmac } from './hmac.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * GitHub. `redelivers` is `false`: it shows a failed delivery and leaves it to people to send it
 * again, so an event whose handler failed is run again from the inbox.
 */
export function github(options: SecretOptions): Provider {
  const { secret } = readOptions('github', SECRET, options)
  return {
    ...hmac({
      name: 'github',
      secret,
      header: 'x-hub-signature-256',
      prefix: 'sha256=',
      eventId: (_payload, header) => header('x-github-delivery'),
      type: (payload, header) => {
        const event = header('x-github-event')
        const action = at(payload, 'action')
        return event !== undefined && typeof action === 'string' ? `${event}.${action}` : event
      },
      keptHeaders: ['content-type', 'x-github-delivery', 'x-github-event', 'x-github-hook-id'],
      redelivers: false,
    }),
    bodyLimit: 25 * 1024 * 1024,
    // A webhook can be set to send a form with the JSON in it.
    parse: (incoming) =>
      isForm(incoming)
        ? JSON.parse(String(parseForm(incoming.body).payload))
        : parseJson(incoming.body),
  }
}
