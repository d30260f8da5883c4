import { type Check, isBoolean, isFunction, isHeader, isOneOf, toMs } from '../../checks.js'
import { OptionInvalid } from '../../errors.js'
import { at } from '../payload.js'
import {
  defineProvider,
  type HeaderReader,
  isAnswers,
  isKeptHeaders,
  isName,
  type Provider,
} from '../provider.js'
import {
  fromBase64,
  fromHex,
  headerOf,
  type Incoming,
  instantOf,
  type Part,
  type Read,
  wholeNumber,
} from '../signature.js'
import { isSecret, isTolerance, readOptions, type TolerantOptions } from './options.js'

/** A decoded body, which nobody has looked at: read it with `?.`. */
// biome-ignore lint/suspicious/noExplicitAny: what a stranger sends has no type, and users write `payload.id`
export type Payload = any

export interface HmacOptions extends TolerantOptions {
  /** Names the provider in the inbox: `'my-bank'`. */
  name: string
  /** What the option with the secret is called in messages. Default `'secret'`. */
  secretOption?: string
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
  /** How that time is written. Default `'s'`: seconds since 1970. */
  timestampUnit?: 's' | 'ms' | 'rfc3339'
  /** What is signed. Default: the body, or `timestamp.body` when there is a `timestampHeader`. */
  signed?: (request: {
    body: Buffer
    timestamp: string
    header: HeaderReader
    method: string
    /** Path and query. */
    url: string
  }) => readonly Part[]
  /** Finds the event's id; `null` when there is none. Never the id of the object. */
  eventId: (payload: Payload, header: HeaderReader) => unknown
  /** Default: `payload.type`. */
  type?: (payload: Payload, header: HeaderReader) => unknown
  object?: (payload: Payload, header: HeaderReader) => unknown
  /** Headers that are kept with the event, besides those of the signature. */
  keptHeaders?: readonly string[]
  /** Splits a batch into its items; nothing for a body that is one event. */
  items?: (payload: Payload) => readonly unknown[] | undefined
  redelivers?: boolean
  answers?: Provider['answers']
}

const READERS = {
  s: (text: string) => scaled(wholeNumber(text), 1_000),
  ms: (text: string) => wholeNumber(text),
  rfc3339: instantOf,
} as const

const isAnyText: Check = (value) => (typeof value === 'string' ? undefined : 'must be text')
const isFilledText: Check = (value) =>
  typeof value === 'string' && value !== '' ? undefined : 'must be text of at least one character'

const CHECKS: Record<keyof HmacOptions, Check> = {
  name: isName,
  secret: isSecret,
  secretOption: isFilledText,
  header: isHeader,
  hash: isOneOf('sha1', 'sha256', 'sha512'),
  encoding: isOneOf('hex', 'base64'),
  prefix: isAnyText,
  separator: isFilledText,
  timestampHeader: isHeader,
  timestampUnit: isOneOf(...Object.keys(READERS)),
  tolerance: isTolerance,
  signed: isFunction,
  eventId: (value) =>
    typeof value === 'function'
      ? undefined
      : 'must be a function such as (payload) => payload.eventId',
  type: isFunction,
  object: isFunction,
  keptHeaders: isKeptHeaders,
  items: isFunction,
  redelivers: isBoolean,
  answers: isAnswers,
}

const REQUIRED = ['name', 'header', 'eventId'] as const

/** For anybody who signs with HMAC: your own bank, your other service. */
export function hmac(options: HmacOptions): Provider {
  readOptions(isName(Object(options).name) ? 'hmac' : options.name, CHECKS, options, REQUIRED)
  if (options.tolerance !== undefined && options.timestampHeader === undefined) {
    throw new OptionInvalid(
      `option "tolerance" of ${options.name} must be left out, or timestampHeader must say what it is compared with`,
    )
  }
  const { name, secret, hash = 'sha256', encoding = 'hex', prefix = '', separator } = options
  const timestampHeader = options.timestampHeader?.toLowerCase()
  const { timestampUnit = 's', tolerance = '5m' } = options
  const header = options.header.toLowerCase()
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
    const { body, method, url } = incoming
    const ask = { body, timestamp, method, url, header: (of: string) => headerOf(incoming, of) }
    const content = options.signed?.(ask) ?? (timestampHeader ? [timestamp, '.', body] : [body])
    if (timestampHeader === undefined) return { content, signatures }
    const signedAtMs = READERS[timestampUnit](timestamp)
    return signedAtMs === undefined ? 'malformed' : { content, signatures, signedAtMs }
  }

  return defineProvider({
    name,
    secret,
    ...(options.secretOption && { secretOption: options.secretOption }),
    scheme: {
      algorithm: { kind: 'hmac', hash },
      toleranceMs: timestampHeader === undefined ? undefined : toMs(tolerance),
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

function scaled(value: number | undefined, unitMs: number): number | undefined {
  return value === undefined ? undefined : value * unitMs
}
