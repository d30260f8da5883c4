import { type Check, isFunction, isHeader } from '../../checks.js'
import { OptionInvalid } from '../../errors.js'
import { at, nameOf, nameOfAll } from '../payload.js'
import { type Answer, defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { headerOf, type Incoming, type Known, type Read, type Scheme } from '../signature.js'
import type { Fetch } from './fetched.js'
import { bearerOf, publishedKeys, type TokenTerms, verifyToken } from './jwt.js'
import { isSecret, readOptions } from './options.js'
import { queryOf } from './public-url.js'

export interface AzureEventGridOptions {
  /** A secret that the event subscription sends with every delivery. */
  key?: Secrets
  /** The delivery property (a header) with the key. Default: the parameter `code` of the address. */
  header?: string
  /** The application that the tokens are issued for: its id or URI. Safer than `key`. */
  audience?: Secrets
  /** The Microsoft Entra tenant that issues the tokens, by its id. */
  directory?: string
  /** The client id that the tokens are issued to, such as a managed identity's. Default: Event Grid's. */
  sender?: string
  /** Fetches Microsoft's keys. Default: `fetch`. */
  fetch?: Fetch
}

/** Event Grid's application id, in every tenant of the public cloud. */
const EVENT_GRID = '4962773b-9cdb-44cf-a8bf-237846a00ab7'

const isId: Check = (value) =>
  typeof value === 'string' && /^[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/i.test(value)
    ? undefined
    : `must be an id such as '${EVENT_GRID}'. Is an environment variable not set?`

const ORIGIN = 'eventgrid.azure.net'

/**
 * Azure Event Grid, in its own schema or as CloudEvents, also in batches. The event itself is not
 * signed. Event Grid authenticates with a token of Microsoft Entra (`audience` and `directory`), or
 * with a `key`: in a delivery property, which is a header, or in the URL, where it ends up in the
 * access logs of proxies. Neither is stored. Event Grid's validation requests are answered.
 */
export function azureEventGrid(options: AzureEventGridOptions): Provider {
  readOptions(
    'azure-event-grid',
    {
      key: isSecret,
      header: isHeader,
      audience: isSecret,
      directory: isId,
      sender: isId,
      fetch: isFunction,
    },
    options,
  )
  const { key, audience, directory } = options
  const header = options.header?.toLowerCase()
  if ((key === undefined) === (audience === undefined)) {
    throw new OptionInvalid(
      'azure-event-grid needs option "key", or options "audience" and "directory", and not both. Is an environment variable not set?',
    )
  }
  for (const name of key === undefined ? KEY_ONLY : TOKEN_ONLY) {
    if (options[name] === undefined) continue
    const of = key === undefined ? 'key' : 'audience'
    throw new OptionInvalid(`option "${name}" of azure-event-grid must be left out without "${of}"`)
  }
  if (audience !== undefined && directory === undefined) {
    throw new OptionInvalid(
      'option "directory" of azure-event-grid must be the id of the Microsoft Entra tenant that issues the tokens for "audience"',
    )
  }
  return defineProvider({
    name: 'azure-event-grid',
    secret: key ?? audience,
    secretOption: key === undefined ? 'audience' : 'key',
    scheme: {
      algorithm: { kind: 'equality' },
      isWithoutBody: true,
      read: directory === undefined ? keyReader(header) : tokenReader(directory, options),
    },
    keptHeaders: [],
    secretHeaders: [header ?? 'authorization'],
    items: (payload) => (Array.isArray(payload) ? payload : undefined),
    // An id is unique for its source. Both may contain what separates them.
    eventId: (event) => {
      const source = nameOf(at(event, 'topic') ?? at(event, 'source'))
      return nameOfAll(source?.replaceAll('%', '%25').replaceAll(':', '%3A'), at(event, 'id'))
    },
    type: (event) => at(event, 'eventType') ?? at(event, 'type'),
    object: (event) => at(event, 'subject'),
    handshake: answerValidation,
    unsigned: answerOrigin,
    // An event and a batch have at most 1 MB; Event Grid can exceed that slightly.
    bodyLimit: 2 * 1024 * 1024,
  })
}

const KEY_ONLY = ['header'] as const
const TOKEN_ONLY = ['directory', 'sender', 'fetch'] as const

function keyReader(header: string | undefined): Scheme['read'] {
  return (incoming) => {
    const given =
      header === undefined
        ? new URLSearchParams(queryOf(incoming)).get('code')
        : headerOf(incoming, header)
    return given ? { content: [], signatures: [Buffer.from(given)] } : 'missing_header'
  }
}

function tokenReader(
  directory: string,
  { sender = EVENT_GRID, fetch = globalThis.fetch }: AzureEventGridOptions,
): Scheme['read'] {
  const host = 'https://login.microsoftonline.com'
  const tenant = directory.toLowerCase()
  const terms: TokenTerms = {
    algorithm: 'RS256',
    keyById: publishedKeys(fetch, `${host}/${tenant}/discovery/v2.0/keys`),
    requiredClaims: ['exp'],
    // Of tokens of version 1 and 2, which the application's manifest chooses between.
    issuer: [`https://sts.windows.net/${tenant}/`, `${host}/${tenant}/v2.0`],
  }
  return async (incoming: Incoming, { nowMs }: Known): Promise<Read> => {
    const token = bearerOf(incoming)
    if (token === 'missing_header' || token === 'malformed') return token
    const claims = await verifyToken(token, terms, nowMs)
    if (typeof claims === 'string') return claims
    const isFromSender = (claims.appid ?? claims.azp) === sender.toLowerCase()
    if (typeof claims.aud !== 'string' || !isFromSender) return 'no_match'
    return { content: [], signatures: [Buffer.from(claims.aud)] }
  }
}

/** The validation request of Event Grid's own schema: a batch of one, authenticated like an event. */
function answerValidation(payload: unknown): Answer | undefined {
  if (!Array.isArray(payload) || payload.length !== 1) return undefined
  const [event] = payload
  const validationResponse = at(event, 'data.validationCode')
  const isAsked = at(event, 'eventType') === 'Microsoft.EventGrid.SubscriptionValidationEvent'
  return isAsked && typeof validationResponse === 'string'
    ? { status: 200, body: { validationResponse } }
    : undefined
}

/** The validation request of CloudEvents: an OPTIONS request without authentication. */
function answerOrigin(incoming: Incoming): Answer | undefined {
  const isAsked =
    incoming.method === 'OPTIONS' && headerOf(incoming, 'webhook-request-origin') === ORIGIN
  if (!isAsked) return undefined
  const headers = { allow: 'POST', 'webhook-allowed-origin': ORIGIN, 'webhook-allowed-rate': '*' }
  return { status: 200, headers }
}
