import { type Check, isFunction, isHeader } from '../../checks.js'
import { OptionInvalid } from '../../errors.js'
import { at, nameOfAll } from '../payload.js'
import { type Answer, defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { headerOf, type Incoming, type Known, type Read, type Scheme } from '../signature.js'
import type { Fetch } from './fetched.js'
import { bearerOf, publishedKeys, type TokenTerms, verifyToken } from './jwt.js'
import { isSecret, readOptions } from './options.js'
import { queryOf } from './public-url.js'

export interface AzureEventGridOptions {
  /** A secret of your own, which the event subscription sends along. */
  key?: Secrets
  /** The delivery property (a header) with the key. Default: the parameter `code` of the address. */
  header?: string
  /** The application that the event subscription asks a token for: its id or URI. The safer way. */
  audience?: Secrets
  /** The Microsoft Entra tenant that issues the tokens, by its id. */
  directory?: string
  /** Whom the tokens are issued to: the client id of a managed identity. Default: Event Grid itself. */
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
 * Azure Event Grid, in its own schema or as CloudEvents, also in batches. Nothing of an event is
 * signed. It is recognised by a token of Microsoft Entra (`audience` and `directory`), or by a `key`:
 * as a delivery property, which is a header, or in the address, and so in the access logs of
 * whatever stands in front. Both are never kept. Event Grid's questions before it delivers are answered.
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
      read: directory === undefined ? keyReader(header) : tokenReader(directory, options),
    },
    keptHeaders: [],
    secretHeaders: [header ?? 'authorization'],
    items: (payload) => (Array.isArray(payload) ? payload : undefined),
    // An id is unique for its source.
    eventId: (event) => nameOfAll(at(event, 'topic') ?? at(event, 'source'), at(event, 'id')),
    type: (event) => at(event, 'eventType') ?? at(event, 'type'),
    object: (event) => at(event, 'subject'),
    handshake: answerValidation,
    unsigned: answerOrigin,
    // A batch is as large as an event may be, which is 1 MB, and sometimes a little larger.
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
    // Of tokens of version 1 and 2: the application's manifest decides.
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

/** The question in Event Grid's own schema comes alone, and is signed like an event. */
function answerValidation(payload: unknown): Answer | undefined {
  if (!Array.isArray(payload) || payload.length !== 1) return undefined
  const [event] = payload
  const validationResponse = at(event, 'data.validationCode')
  const isAsked = at(event, 'eventType') === 'Microsoft.EventGrid.SubscriptionValidationEvent'
  return isAsked && typeof validationResponse === 'string'
    ? { status: 200, body: { validationResponse } }
    : undefined
}

/** That of CloudEvents is an OPTIONS request without a key: whether this origin may deliver here. */
function answerOrigin(incoming: Incoming): Answer | undefined {
  const isAsked =
    incoming.method === 'OPTIONS' && headerOf(incoming, 'webhook-request-origin') === ORIGIN
  if (!isAsked) return undefined
  const headers = { allow: 'POST', 'webhook-allowed-origin': ORIGIN, 'webhook-allowed-rate': '*' }
  return { status: 200, headers }
}
