import { isFunction } from '../../checks.js'
import { at } from '../payload.js'
import type { Answer, Provider } from '../provider.js'
import { checkSecrets, keysOf, type SecretOwner, type Secrets } from '../secrets.js'
import { isEqual } from '../signature.js'
import { hmac, type Payload } from './hmac.js'
import { isSecret, readOptions, SECRET, type SecretOptions } from './options.js'

export interface MetaOptions extends SecretOptions {
  /** What you wrote into the field "Verify token" beside the callback URL. */
  verifyToken: Secrets
  /** Finds an id, where what you subscribed to has one. Default: none. */
  eventId?: (payload: Payload) => unknown
}

/**
 * Meta: Facebook, Instagram, Messenger, WhatsApp. The app secret, under App settings → Basic. No
 * time is signed. A request carries several changes of several objects; each change is an event,
 * whose payload is the request as it would be with this one change. They have no id, so that a
 * change which Meta repeats is processed again, unless `eventId` finds one:
 * `(payload) => payload.entry[0].changes[0].value.messages?.[0].id` for messages of WhatsApp.
 */
export function meta(options: MetaOptions): Provider {
  const {
    secret,
    verifyToken,
    eventId = () => null,
  } = readOptions('meta', { ...SECRET, verifyToken: isSecret, eventId: isFunction }, options)
  const tokens: SecretOwner = {
    name: 'meta',
    secret: verifyToken,
    secretOption: 'verifyToken',
    scheme: { algorithm: { kind: 'equality' } },
  }
  checkSecrets(tokens)

  async function greeting(query: URLSearchParams, tenantId: string): Promise<Answer | undefined> {
    const challenge = query.get('hub.challenge')
    if (query.get('hub.mode') !== 'subscribe' || challenge === null) return undefined
    const given = Buffer.from(query.get('hub.verify_token') ?? '')
    const keys = await keysOf(tokens, tenantId)
    if (!keys.some((key) => isEqual(key as Uint8Array, given))) return undefined
    // As text, since it is somebody else's.
    return { status: 200, headers: { 'content-type': 'text/plain' }, body: challenge }
  }

  return {
    ...hmac({
      name: 'meta',
      secret,
      header: 'x-hub-signature-256',
      prefix: 'sha256=',
      items: changesOf,
      eventId,
      type: (item) => typeOf(at(item, 'object'), first(at(item, 'entry'))),
      object: (item) => at(first(at(item, 'entry')), 'id'),
    }),
    greeting,
  }
}

/** Where an entry lists what happened. */
const LISTS = ['changes', 'messaging', 'standby']

function changesOf(payload: unknown): readonly unknown[] | undefined {
  const entries = at(payload, 'entry')
  if (!Array.isArray(entries)) return undefined
  return entries.flatMap(splitEntry).map((entry) => ({ ...(payload as object), entry: [entry] }))
}

function splitEntry(entry: unknown): unknown[] {
  const lists = LISTS.filter((name) => Array.isArray(at(entry, name)))
  // Without included values, an entry only names the fields that changed.
  if (lists.length === 0) return [entry]
  const rest = Object.entries(entry as object).filter(([name]) => !lists.includes(name))
  return lists.flatMap((name) =>
    (at(entry, name) as unknown[]).map((one) => ({ ...Object.fromEntries(rest), [name]: [one] })),
  )
}

function typeOf(object: unknown, entry: unknown): unknown {
  const list = LISTS.find((name) => at(entry, name) !== undefined)
  const field = list === 'changes' ? at(first(at(entry, 'changes')), 'field') : list
  return typeof object === 'string' && typeof field === 'string' ? `${object}.${field}` : object
}

function first(list: unknown): unknown {
  return Array.isArray(list) ? list[0] : undefined
}
