import { at } from '../payload.js'
import type { Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { isSecret, readOptions } from './options.js'
import { sharedSecret } from './shared-secret.js'

export interface TelegramOptions {
  /** The `secret_token` that `setWebhook` was called with. */
  secretToken: Secrets
}

/**
 * Telegram bots. Nothing is signed: the secret token is sent with every update, and is never stored.
 * `event.respond()` can call a method of the Bot API.
 */
export function telegram(options: TelegramOptions): Provider {
  const { secretToken } = readOptions('telegram', { secretToken: isSecret }, options)
  return sharedSecret({
    name: 'telegram',
    secret: secretToken,
    secretOption: 'secretToken',
    header: 'x-telegram-bot-api-secret-token',
    eventId: (update) => at(update, 'update_id'),
    type: kindOf,
    object: (update) => {
      const content = at(update, kindOf(update) ?? '')
      return at(content, 'chat.id') ?? at(content, 'message.chat.id') ?? at(content, 'from.id')
    },
  })
}

/** Besides its id, an update has one field, whose name is the type. */
function kindOf(update: unknown): string | undefined {
  return Object.keys(Object(update)).find((name) => name !== 'update_id')
}
