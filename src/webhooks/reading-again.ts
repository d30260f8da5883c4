import type { Endpoint } from './endpoint.js'
import type { WebhookEvent } from './event.js'
import type { Inbox } from './inbox.js'
import { nameOfRead, unreadableNameOf } from './names.js'
import type { DeliveryOutcome } from './provider.js'
import { readStored } from './verify.js'

/**
 * Beside the headers of an event that could not be read: the names of those that are kept. The options of its
 * endpoint may name others by the time it is read. No header has such a name.
 */
export const KEPT = ':kept'

/**
 * An endpoint as it handles an event that could not be read when it came: it reads the bytes again, and delivers
 * what they hold. An event that has been delivered meanwhile is a duplicate. `outcomes` gets one for each event.
 */
export function readingAgain(
  inbox: Pick<Inbox, 'deliver' | 'keepUnreadable'>,
  endpoint: Endpoint,
  outcomes: DeliveryOutcome[],
): Endpoint {
  const { provider, settings } = endpoint
  const handler = async ({ id, eventId, tenantId, rawBody, headers, log }: WebhookEvent) => {
    const { [KEPT]: names = '', ...sent } = headers
    const incoming = { method: 'POST', url: '/', headers: sent, body: rawBody }
    const reading = readStored(provider, incoming, unreadableNameOf(eventId), names.split(','))
    if (reading.kind === 'unreadable') throw reading.error
    // The first answer has acknowledged them: none of them comes again by itself.
    const delivery = { tenantId, headers: sent, from: 'elsewhere', log } as const
    for (const unreadable of reading.unreadable) {
      const { outcome } = await inbox.keepUnreadable(endpoint, unreadable, delivery)
      outcomes.push(outcome)
    }
    for (const [index, event] of reading.events.entries()) {
      // However often this is begun, none of them is delivered twice.
      const name = event.eventId ?? nameOfRead(id, index)
      const { outcome } = await inbox.deliver(endpoint, { ...event, eventId: name }, delivery)
      outcomes.push(outcome)
    }
  }
  // What cannot be read now cannot be read in a minute, either.
  const retry = { ...settings.retry, attempts: 1 }
  return { ...endpoint, handler, settings: { ...settings, retry } }
}
