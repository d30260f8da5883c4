import { at, nameOfAll, parseJson } from '../payload.js'
import { type Answer, defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { fromBase64, fromHex, type Incoming, type Read, type Signed } from '../signature.js'
import { isSecret, readOptions } from './options.js'

export interface AdyenOptions {
  /** Developers → Webhooks → HMAC key: hexadecimal. */
  hmacKey: Secrets
}

const ACCEPTED: Answer = {
  status: 200,
  // Webhooks that were made before 2023 wait for this text, later ones for the status.
  headers: { 'content-type': 'text/plain' },
  body: '[accepted]',
}

/**
 * Adyen's standard webhooks. Each item carries its own signature, over 8 of its fields and nothing
 * else: `additionalData`, `reason` and `eventDate` are not signed. All items must be genuine. No
 * time is signed. An event that fails holds up those behind it.
 */
export function adyen(options: AdyenOptions): Provider {
  const { hmacKey } = readOptions('adyen', { hmacKey: isSecret }, options)
  return defineProvider({
    name: 'adyen',
    secret: hmacKey,
    secretOption: 'hmacKey',
    scheme: {
      algorithm: { kind: 'hmac', hash: 'sha256' },
      toKey,
      secretForm: 'the hexadecimal HMAC key of the webhook, as the Customer Area shows it',
      read,
    },
    keptHeaders: [],
    items: itemsOf,
    // The same operation can fail first and succeed later.
    eventId: (item) =>
      nameOfAll(at(item, 'eventCode'), at(item, 'pspReference'), String(at(item, 'success'))),
    type: (item) => at(item, 'eventCode'),
    object: (item) => at(item, 'merchantReference'),
    answers: {
      processed: ACCEPTED,
      duplicate: ACCEPTED,
      accepted: ACCEPTED,
      ignored: ACCEPTED,
      dead: ACCEPTED,
    },
  })
}

function toKey(secret: string): Uint8Array {
  const key = fromHex(secret)
  if (key === undefined) throw new TypeError('no hexadecimal')
  return key
}

/** A request has a list; what the inbox keeps of it is one item, which can be verified as well. */
function itemsOf(payload: unknown): readonly unknown[] {
  const list = at(payload, 'notificationItems')
  if (!Array.isArray(list)) return [payload]
  return list.map((entry) => at(entry, 'NotificationRequestItem'))
}

function read({ body }: Incoming): Read {
  try {
    return itemsOf(parseJson(body)).map(signedOf)
  } catch {
    return 'malformed'
  }
}

const FIELDS = [
  'pspReference',
  'originalReference',
  'merchantAccountCode',
  'merchantReference',
  'amount.value',
  'amount.currency',
  'eventCode',
  'success',
]

/** @throws for an item that has no signature, or fields that are no plain values. */
function signedOf(item: unknown): Signed {
  const signature = fromBase64(String(at(item, 'additionalData.hmacSignature')))
  const fields = FIELDS.map((path) => at(item, path) ?? '')
  if (signature === undefined || fields.some((field) => typeof field === 'object')) {
    throw new TypeError('no signed item')
  }
  return { content: [fields.join(':')], signatures: [signature] }
}
