import { createHash } from 'node:crypto'
import { isFunction } from '../../checks.js'
import { at, nameOf, nameOfAll } from '../payload.js'
import type { Answer, Provider } from '../provider.js'
import { checkSecrets, keysOf, type SecretOwner, type Secrets } from '../secrets.js'
import { isEqual } from '../signature.js'
import { hmac, type Payload } from './hmac.js'
import { isSecret, readOptions, SECRET, type SecretOptions } from './options.js'

export interface MetaOptions extends SecretOptions {
  /** What you wrote into the field "Verify token" beside the callback URL. */
  verifyToken: Secrets
  /**
   * Finds the id of an event. Default: that of a message, with its status if that is what is reported,
   * and nothing for changes of other kinds.
   */
  eventId?: (payload: Payload) => unknown
}

/**
 * Meta: Facebook, Instagram, Messenger, WhatsApp. The app secret, under App settings → Basic. No
 * time is signed. A request carries several changes of several objects, and a change of WhatsApp
 * carries several messages or statuses. Each is an event, whose payload is the request as it would be
 * with this one alone. Messages have an id; what happens to a message is named by its id, its status
 * and its time, or by a hash. Changes of other kinds have none.
 */
export function meta(options: MetaOptions): Provider {
  const {
    secret,
    verifyToken,
    eventId = eventIdOf,
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
/** Where the value of a change does: WhatsApp. */
const VALUE_LISTS = ['messages', 'statuses', 'message_echoes', 'calls']

function changesOf(payload: unknown): readonly unknown[] | undefined {
  const entries = at(payload, 'entry')
  if (!Array.isArray(entries)) return undefined
  return entries.flatMap(splitEntry).map((entry) => ({ ...(payload as object), entry: [entry] }))
}

function splitEntry(entry: unknown): unknown[] {
  // Without included values, an entry only names the fields that changed.
  return split(entry, LISTS).flatMap((alone) => {
    const change = first(at(alone, 'changes'))
    return split(at(change, 'value'), VALUE_LISTS).map((value) =>
      isObject(value)
        ? { ...(alone as object), changes: [{ ...(change as object), value: withContact(value) }] }
        : alone,
    )
  })
}

/** A copy for each item of these lists, which has no other item; the whole, if they have none. */
function split(whole: unknown, names: readonly string[]): unknown[] {
  const lists = names.filter((name) => first(at(whole, name)) !== undefined)
  if (lists.length === 0) return [whole]
  const rest = Object.entries(whole as object).filter(([name]) => !lists.includes(name))
  return lists.flatMap((name) =>
    (at(whole, name) as unknown[]).map((one) => ({ ...Object.fromEntries(rest), [name]: [one] })),
  )
}

/** Contacts stand beside the messages, so that the first would be taken for the sender of each. */
function withContact(value: object): object {
  const message = first(at(value, 'messages'))
  const sender = at(message, 'from') ?? at(message, 'from_user_id')
  const contacts = at(value, 'contacts')
  if (sender === undefined || !Array.isArray(contacts)) return value
  const own = contacts.filter(
    (contact) => at(contact, 'wa_id') === sender || at(contact, 'user_id') === sender,
  )
  return own.length === 0 ? value : { ...value, contacts: own }
}

const MEMBERS = ['recipient_participant_id', 'recipient_participant_user_id']

function eventIdOf(payload: unknown): unknown {
  const entry = first(at(payload, 'entry'))
  const value = at(first(at(entry, 'changes')), 'value')
  const message = first(at(value, 'messages')) ?? first(at(value, 'message_echoes'))
  if (message !== undefined) return at(message, 'id')
  const status = first(at(value, 'statuses'))
  if (status !== undefined) {
    // Each member of a group has a status of its own, and one or both of these names.
    const members = MEMBERS.flatMap((name) => nameOf(at(status, name)) ?? [])
    return nameOfAll(named(status, ['id', 'status', 'timestamp']), ...members)
  }
  const call = first(at(value, 'calls'))
  if (call !== undefined) return named(call, ['id', 'event', 'timestamp'])
  // Instagram, and the console's tests, send the same under `changes`.
  const item = first(at(entry, 'messaging')) ?? first(at(entry, 'standby')) ?? value
  if (at(item, 'recipient') === undefined) return null
  const id = at(item, 'message.mid')
  if (id === undefined) return hashOf(entry, item)
  // A message can come back as an echo, in standby and as deleted, under one id.
  const marks = ['is_echo', 'is_deleted'].filter((mark) => at(item, `message.${mark}`) === true)
  return nameOfAll(id, ...(at(entry, 'standby') === undefined ? [] : ['standby']), ...marks)
}

function named(item: unknown, names: readonly string[]): string | null {
  return nameOfAll(...names.map((name) => at(item, name)))
}

/** Reads, postbacks, reactions and others have no id, and a time; deliveries have that of their messages. */
function hashOf(entry: unknown, item: unknown): string | null {
  if (nameOf(at(item, 'timestamp') ?? at(item, 'delivery.watermark')) === null) return null
  return createHash('sha256')
    .update(JSON.stringify([at(entry, 'id'), item]))
    .digest('base64url')
}

function typeOf(object: unknown, entry: unknown): unknown {
  const list = LISTS.find((name) => at(entry, name) !== undefined)
  const field = list === 'changes' ? at(first(at(entry, 'changes')), 'field') : list
  return typeof object === 'string' && typeof field === 'string' ? `${object}.${field}` : object
}

function first(list: unknown): unknown {
  return Array.isArray(list) ? list[0] : undefined
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null
}
