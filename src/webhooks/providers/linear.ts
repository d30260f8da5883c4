import { toMs } from '../../checks.js'
import { at, parseJson } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import { fromHex, headerOf, type Incoming, type Read } from '../signature.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'

/**
 * Linear. Settings → API → Webhooks → the signing secret. Window: 1 minute, of the time inside the
 * body. Only 200 counts as delivered.
 */
export function linear(options: TolerantOptions): Provider {
  const { secret, tolerance = '1m' } = readOptions('linear', TOLERANT, options)
  return defineProvider({
    name: 'linear',
    secret,
    scheme: {
      algorithm: { kind: 'hmac', hash: 'sha256' },
      toleranceMs: toMs(tolerance),
      read,
    },
    keptHeaders: ['linear-signature', 'linear-delivery', 'linear-event'],
    eventId: (_payload, header) => header('linear-delivery'),
    type: (payload) => {
      const [type, action] = [at(payload, 'type'), at(payload, 'action')]
      return typeof type === 'string' && typeof action === 'string' ? `${type}.${action}` : type
    },
    object: (payload) => at(payload, 'data.id'),
  })
}

function read(incoming: Incoming): Read {
  const header = headerOf(incoming, 'linear-signature')
  if (header === undefined) return 'missing_header'
  const signature = fromHex(header)
  if (signature === undefined) return 'malformed'
  const signedAtMs = () => timeOf(incoming.body)
  return { content: [incoming.body], signatures: [signature], signedAtMs }
}

/** No time is none within the window. A body that cannot be read is found out next. */
function timeOf(body: Buffer): number | undefined {
  try {
    const sentAt = at(parseJson(body), 'webhookTimestamp')
    return typeof sentAt === 'number' ? sentAt : Number.NaN
  } catch {
    return undefined
  }
}
