import { at, defineProvider, type Provider } from '../provider.js'
import { fromHex, headerOf, type Incoming, type Read, wholeNumber } from '../signature.js'
import { type TolerantOptions, toleranceMs } from './hmac.js'

/** Stripe: `t=<seconds>,v1=<hex>,v1=<hex>`. Both sides of the window count, unlike in its library. */
export function stripe({ secret, tolerance = '5m' }: TolerantOptions): Provider {
  return defineProvider({
    name: 'stripe',
    secret,
    scheme: {
      algorithm: { kind: 'hmac', hash: 'sha256' },
      toleranceMs: toleranceMs(tolerance, 'stripe'),
      read: readPairs,
    },
    keptHeaders: ['stripe-signature'],
    eventId: (payload) => at(payload, 'id'),
    type: (payload) => at(payload, 'type'),
    object: (payload) => at(payload, 'data.object.id'),
  })
}

function readPairs(incoming: Incoming): Read {
  const header = headerOf(incoming, 'stripe-signature')
  if (header === undefined) return 'missing_header'
  const pairs = header.split(',').map((pair) => pair.trim().split('=') as [string, string?])
  const times = pairs.flatMap(([name, value]) => (name === 't' ? [value] : []))
  const timestamp = times[0]
  const seconds = wholeNumber(timestamp)
  const signatures = pairs.flatMap(([name, value]) =>
    name === 'v1' ? (fromHex(value ?? '') ?? []) : [],
  )
  if (seconds === undefined || times.length > 1 || signatures.length === 0) return 'malformed'
  return {
    content: [timestamp as string, '.', incoming.body],
    signatures,
    signedAtMs: seconds * 1_000,
  }
}
