import { type Duration, parseDuration } from '../../core/duration.js'
import { OptionInvalid } from '../../errors.js'
import { at, defineProvider, type HeaderReader, type Provider, type Secrets } from '../provider.js'
import {
  fromBase64,
  fromHex,
  headerOf,
  type Incoming,
  type Read,
  wholeNumber,
} from '../signature.js'

/** A decoded body, which nobody has looked at: read it with `?.`. */
// biome-ignore lint/suspicious/noExplicitAny: what a stranger sends has no type, and users write `payload.id`
export type Payload = any

/** Options that every provider with a secret has. */
export interface SecretOptions {
  secret: Secrets
}

/** Options of providers that sign a time. */
export interface TolerantOptions extends SecretOptions {
  /** How far the signed time may lie from now, on both sides. Default: what the provider says. */
  tolerance?: Duration
}

export interface HmacOptions extends TolerantOptions {
  /** Names the provider in the inbox: `'my-bank'`. */
  name: string
  /** The header that carries the signature. */
  header: string
  /** Default `'sha256'`. */
  hash?: 'sha1' | 'sha256' | 'sha512'
  /** Default `'hex'`. */
  encoding?: 'hex' | 'base64'
  /** What stands before the signature in the header: `'sha256='`. */
  prefix?: string
  /** What separates several signatures in the header. Default: there is one. */
  separator?: string
  /** The header that carries the time of signing. It only counts if `signed` covers it. */
  timestampHeader?: string
  /** The unit of that time. Default `'s'`. */
  timestampUnit?: 's' | 'ms'
  /** What is signed. Default: the body, or `timestamp.body` when there is a `timestampHeader`. */
  signed?: (request: {
    body: Buffer
    timestamp: string
    header: HeaderReader
  }) => readonly (string | Uint8Array)[]
  /** Finds the event's id; `null` when there is none. Never the id of the object. */
  eventId: (payload: Payload, header: HeaderReader) => unknown
  /** Default: `payload.type`. */
  type?: (payload: Payload, header: HeaderReader) => unknown
  object?: (payload: Payload, header: HeaderReader) => unknown
  /** Headers that are kept with the event, besides those of the signature. */
  keptHeaders?: readonly string[]
  items?: Provider['items']
  redelivers?: boolean
  answers?: Provider['answers']
}

/** For anybody who signs with HMAC: your own bank, your other service. */
export function hmac(options: HmacOptions): Provider {
  const { name, secret, hash = 'sha256', encoding = 'hex', prefix = '', separator } = options
  const timestampHeader = options.timestampHeader?.toLowerCase()
  const header = String(options.header ?? '').toLowerCase()
  if (header === '') throw new OptionInvalid(`option "header" of ${name} must name a header`)
  if (typeof options.eventId !== 'function') {
    throw new OptionInvalid(
      `option "eventId" of ${name} must be a function such as (payload) => payload.eventId`,
    )
  }
  const decode = encoding === 'hex' ? fromHex : fromBase64

  function read(incoming: Incoming): Read {
    const given = headerOf(incoming, header)
    const timestamp = timestampHeader === undefined ? '' : headerOf(incoming, timestampHeader)
    if (given === undefined || timestamp === undefined) return 'missing_header'
    const signatures = (separator === undefined ? [given] : given.split(separator)).flatMap(
      (part) => {
        const text = part.trim()
        return text.startsWith(prefix) ? (decode(text.slice(prefix.length)) ?? []) : []
      },
    )
    if (signatures.length === 0) return 'malformed'
    const { body } = incoming
    const ask = { body, timestamp, header: (name: string) => headerOf(incoming, name) }
    const content = options.signed?.(ask) ?? (timestampHeader ? [timestamp, '.', body] : [body])
    if (timestampHeader === undefined) return { content, signatures }
    const time = wholeNumber(timestamp)
    if (time === undefined) return 'malformed'
    return { content, signatures, signedAtMs: options.timestampUnit === 'ms' ? time : time * 1_000 }
  }

  return defineProvider({
    name,
    secret,
    scheme: {
      algorithm: { kind: 'hmac', hash },
      toleranceMs:
        timestampHeader === undefined ? undefined : toleranceMs(options.tolerance ?? '5m', name),
      read,
    },
    keptHeaders: [header, timestampHeader ?? [], options.keptHeaders ?? []].flat(),
    eventId: options.eventId,
    type: options.type ?? ((payload) => at(payload, 'type')),
    ...(options.object && { object: options.object }),
    ...(options.items && { items: options.items }),
    ...(options.answers && { answers: options.answers }),
    ...(options.redelivers !== undefined && { redelivers: options.redelivers }),
  })
}

/** @throws OptionInvalid */
export function toleranceMs(tolerance: Duration, name: string): number {
  const ms = parseDuration(tolerance)
  if (ms !== undefined && ms > 0) return ms
  throw new OptionInvalid(`option "tolerance" of ${name} must be a duration such as '5m'`)
}
