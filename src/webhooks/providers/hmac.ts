import { type Check, isFunction, isHeader, isOneOf, toMs } from '../../checks.js'
import { OptionInvalid } from '../../errors.js'
import { returned } from '../payload.js'
import { type Answer, defineProvider, type HeaderReader, type Provider } from '../provider.js'
import {
  fromBase64,
  fromHex,
  headerOf,
  type Incoming,
  instantOf,
  type Key,
  type Part,
  type Read,
  wholeNumber,
} from '../signature.js'
import { EVENT_CHECKS, eventParts, isFilledText, titleOf } from './event-options.js'
import { isTolerance, readOptions, type TolerantOptions } from './options.js'

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
  /**
   * What separates several signatures, or a time and signatures, in the header. Default: the header
   * is one signature.
   */
  separator?: string
  /** The header that carries the time of signing. It only counts if `signed` covers it. */
  timestampHeader?: string
  /**
   * What stands before the time of signing, where it is a part of the header with the signature:
   * `'t='`, with `separator: ','` and `prefix: 'v1='`, reads `t=1492774577,v1=5257a8…`.
   */
  timestampPrefix?: string
  /** How that time is written. Default `'s'`: seconds since 1970. */
  timestampUnit?: 's' | 'ms' | 'rfc3339'
  /** What is signed. Default: the body, or `timestamp.body` when a time is signed. */
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
  /**
   * Whether deliveries of the same bytes are one event, where `eventId` returns `null`. Default `true`;
   * a signed time is part of what is compared.
   */
  mergesUnnamed?: boolean
  /** Default: `payload.type`. */
  type?: (payload: Payload, header: HeaderReader) => unknown
  object?: (payload: Payload, header: HeaderReader) => unknown
  /** Headers that are kept with the event, besides those of the signature. */
  keptHeaders?: readonly string[]
  /** Splits a batch into its items; nothing for a body that is one event. */
  items?: (payload: Payload) => readonly unknown[] | undefined
  /**
   * Answers a signed request that is a question of the sender's and no event, such as
   * `{ challenge }`. `keys` are those that it was signed with.
   */
  handshake?: (
    payload: Payload,
    incoming: Incoming,
    keys: readonly Key[],
  ) => Answer | undefined | Promise<Answer | undefined>
  /**
   * Whether it delivers again what was not acknowledged, or a function where that depends on the event. Default
   * `true`.
   */
  redelivers?: boolean | ((payload: Payload) => boolean)
  answers?: Provider['answers']
}

const READERS = {
  s: (text: string) => scaled(wholeNumber(text), 1_000),
  ms: (text: string) => wholeNumber(text),
  rfc3339: instantOf,
} as const

const isAnyText: Check = (value) => (typeof value === 'string' ? undefined : 'must be text')
const CHECKS: Record<keyof HmacOptions, Check> = {
  ...EVENT_CHECKS,
  header: isHeader,
  hash: isOneOf('sha1', 'sha256', 'sha512'),
  encoding: isOneOf('hex', 'base64'),
  prefix: isAnyText,
  separator: isFilledText,
  timestampHeader: isHeader,
  timestampPrefix: isFilledText,
  timestampUnit: isOneOf(...Object.keys(READERS)),
  tolerance: isTolerance,
  signed: isFunction,
}

const REQUIRED = ['name', 'header', 'eventId'] as const

/** For anybody who signs with HMAC: your own bank, your other service. */
export function hmac(options: HmacOptions): Provider {
  readOptions(titleOf('hmac', options), CHECKS, options, REQUIRED)
  const problem = contradictionIn(options) ?? unsignedTimeOf(options)
  if (problem !== undefined) throw new OptionInvalid(`option ${problem}`)
  const { header, hash = 'sha256', timestampHeader, tolerance = '5m' } = options
  const isTimed = (timestampHeader ?? options.timestampPrefix) !== undefined
  const parts = eventParts(options)
  return defineProvider({
    ...parts,
    scheme: {
      algorithm: { kind: 'hmac', hash },
      toleranceMs: isTimed ? toMs(tolerance) : undefined,
      read: hmacReader(options),
    },
    keptHeaders: [header, timestampHeader ?? []]
      .flat()
      .map((name) => name.toLowerCase())
      .concat(parts.keptHeaders),
  })
}

/** Finds options that contradict each other, and options about a time that is never read. */
function contradictionIn(options: HmacOptions): string | undefined {
  const { name, prefix = '', separator, timestampHeader, timestampPrefix } = options
  const isTimed = (timestampHeader ?? timestampPrefix) !== undefined
  for (const about of ['tolerance', 'timestampUnit'] as const) {
    if (isTimed || options[about] === undefined) continue
    return `"${about}" of ${name} must be left out, or timestampHeader or timestampPrefix must say where the time is`
  }
  if (timestampPrefix === undefined) return undefined
  if (timestampHeader !== undefined) {
    return `"timestampPrefix" of ${name} must be left out: timestampHeader already says where the time is`
  }
  if (separator === undefined) {
    return `"separator" of ${name} must say what stands between the time and the signature, such as ','`
  }
  if (prefix.startsWith(timestampPrefix) || timestampPrefix.startsWith(prefix)) {
    return `"prefix" of ${name} must say what stands before the signature, such as 'v1=', to distinguish it from the time after '${timestampPrefix}'`
  }
  return undefined
}

/** What "signed" returns must be a list. A time that is not signed could be replaced by any other. */
function unsignedTimeOf({ name, signed, timestampHeader, timestampPrefix }: HmacOptions) {
  if (signed === undefined) return undefined
  const request = { body: Buffer.from('{}'), header: () => 'x', method: 'POST', url: '/' }
  try {
    const lists = ['1', '2'].map(
      (timestamp) => returned('signed', signed({ ...request, timestamp })) as readonly Part[],
    )
    if (
      lists.some((pieces: unknown) => pieces instanceof Uint8Array || typeof pieces === 'string')
    ) {
      return `"signed" of ${name} must return a list of pieces, such as ({ body }) => [body]`
    }
    if ((timestampHeader ?? timestampPrefix) === undefined) return undefined
    const [one, other] = lists.map((pieces) =>
      Buffer.concat(pieces.map((part) => Buffer.from(part as string))),
    )
    if (one?.equals(other as Buffer) !== true) return undefined
  } catch {
    // It needs a request of the sender's: what it does with it cannot be known before.
    return undefined
  }
  return `"signed" of ${name} must return "timestamp" (not the header that it was read from) among its pieces, such as ({ timestamp, body }) => [timestamp, '.', body]: a time that is not signed proves nothing`
}

/** The options that describe the signature. */
type HmacForm = Pick<
  HmacOptions,
  | 'header'
  | 'encoding'
  | 'prefix'
  | 'separator'
  | 'timestampHeader'
  | 'timestampPrefix'
  | 'timestampUnit'
  | 'signed'
>

/** Finds the signatures of a request, and when it was signed. */
export function hmacReader(form: HmacForm): (incoming: Incoming) => Read {
  const { encoding = 'hex', prefix = '', separator, timestampUnit = 's', timestampPrefix } = form
  const header = form.header.toLowerCase()
  const timestampHeader = form.timestampHeader?.toLowerCase()
  const decode = encoding === 'hex' ? fromHex : fromBase64
  const signed = (request: Parameters<NonNullable<HmacForm['signed']>>[0]) =>
    returned('signed', form.signed?.(request)) as readonly Part[] | undefined
  const after = (start: string) => (part: string) =>
    part.startsWith(start) ? [part.slice(start.length)] : []

  return (incoming) => {
    const given = headerOf(incoming, header)
    if (given === undefined) return 'missing_header'
    const parts = (separator === undefined ? [given] : given.split(separator)).map((part) =>
      part.trim(),
    )
    const signatures = parts.flatMap(after(prefix)).flatMap((text) => decode(text) ?? [])
    if (signatures.length === 0) return 'malformed'
    const { body, method, url } = incoming
    const ask = { body, method, url, header: (of: string) => headerOf(incoming, of) }
    if (timestampHeader === undefined && timestampPrefix === undefined) {
      return { content: signed({ ...ask, timestamp: '' }) ?? [body], signatures }
    }
    const times =
      timestampPrefix === undefined
        ? [headerOf(incoming, timestampHeader as string)]
        : parts.flatMap(after(timestampPrefix))
    const [timestamp] = times
    if (timestamp === undefined) return timestampPrefix ? 'malformed' : 'missing_header'
    const signedAtMs = READERS[timestampUnit](timestamp)
    // With two times, it is ambiguous which of them was signed.
    if (signedAtMs === undefined || times.length > 1) return 'malformed'
    const content = signed({ ...ask, timestamp }) ?? [timestamp, '.', body]
    return { content, signatures, signedAtMs }
  }
}

function scaled(value: number | undefined, unitMs: number): number | undefined {
  return value === undefined ? undefined : value * unitMs
}
