import { at, nameOfAll } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import { fromBase64, headerOf, type Incoming, type Read } from '../signature.js'
import { readOptions, SECRET, type SecretOptions } from './options.js'

/**
 * Flutterwave. Settings → Webhooks → Secret hash. Version 4 signs the body with it; version 3 sends
 * it along as `verif-hash`, which is never kept. No time is signed. Events have no id. The kind, the
 * object and its status name what is completed; other kinds can repeat for one object and have no
 * id. `redelivers` is `false`: repeating has to be switched on.
 */
export function flutterwave(options: SecretOptions): Provider {
  const { secret } = readOptions('flutterwave', SECRET, options)
  return defineProvider({
    name: 'flutterwave',
    secret,
    scheme: { algorithm: { kind: 'hmac', hash: 'sha256' }, read },
    keptHeaders: ['flutterwave-signature'],
    secretHeaders: ['verif-hash'],
    eventId: (payload) => {
      const kind = typeOf(payload)
      const isFinal = typeof kind === 'string' && kind.endsWith('.completed')
      return isFinal ? nameOfAll(kind, at(payload, 'data.id'), at(payload, 'data.status')) : null
    },
    type: typeOf,
    object: (payload) => at(payload, 'data.id'),
    redelivers: false,
  })
}

function typeOf(payload: unknown): unknown {
  return at(payload, 'type') ?? at(payload, 'event')
}

function read(incoming: Incoming): Read {
  const header = headerOf(incoming, 'flutterwave-signature')
  if (header !== undefined) {
    const signature = fromBase64(header)
    return signature ? { content: [incoming.body], signatures: [signature] } : 'malformed'
  }
  const hash = headerOf(incoming, 'verif-hash')
  if (hash === undefined) return 'missing_header'
  return { algorithm: { kind: 'equality' }, content: [], signatures: [Buffer.from(hash)] }
}
