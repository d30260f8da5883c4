import { at, parseJson } from '../payload.js'
import { type Answer, defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import type { Incoming, Read } from '../signature.js'
import { isSecret, readOptions } from './options.js'
import { queryOf } from './public-url.js'

export interface MicrosoftGraphOptions {
  /** The `clientState` that the subscription was made with. */
  clientState: Secrets
}

/**
 * Microsoft Graph: change notifications and lifecycle notifications. Nothing is signed: every
 * notification contains `clientState`, which is removed from the stored payload. Notifications have no
 * id, and two changes of one object can be identical. Graph waits 3 seconds for the response, so use
 * `mode: 'deferred'`, and redelivers for up to 4 hours. The validation request of a new subscription
 * is answered.
 */
export function microsoftGraph(options: MicrosoftGraphOptions): Provider {
  const { clientState } = readOptions('microsoft-graph', { clientState: isSecret }, options)
  return defineProvider({
    name: 'microsoft-graph',
    secret: clientState,
    secretOption: 'clientState',
    scheme: { algorithm: { kind: 'equality' }, read },
    keptHeaders: [],
    items: (payload) => listOf(payload)?.map(withoutSecret),
    eventId: () => null,
    mergesUnnamed: false,
    type: (item) => at(item, 'lifecycleEvent') ?? at(item, 'changeType'),
    object: (item) => at(item, 'resource') ?? at(item, 'subscriptionId'),
    unsigned: answerValidation,
  })
}

/** Graph validates the endpoint before it creates the subscription, so without a `clientState`. */
function answerValidation(incoming: Incoming): Answer | undefined {
  const token = new URLSearchParams(queryOf(incoming)).get('validationToken')
  if (token === null) return undefined
  // As plain text: the token comes from an unauthenticated request.
  const headers = { 'content-type': 'text/plain', 'x-content-type-options': 'nosniff' }
  return { status: 200, headers, body: token }
}

function read({ body }: Incoming): Read {
  const signed = listOf(parseJson(body))?.map((item) => {
    const clientState = at(item, 'clientState')
    const given = Buffer.from(typeof clientState === 'string' ? clientState : '')
    return { content: [], signatures: [given] }
  })
  return signed ?? 'malformed'
}

function listOf(payload: unknown): readonly unknown[] | undefined {
  const list = at(payload, 'value')
  return Array.isArray(list) ? list : undefined
}

function withoutSecret(item: unknown): unknown {
  const { clientState: _secret, ...rest } = item as Record<string, unknown>
  return rest
}
