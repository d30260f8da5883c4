import { type Check, isHeader } from '../../checks.js'
import { OptionInvalid } from '../../errors.js'
import { defineProvider, type Provider, secretAmong } from '../provider.js'
import { fromBase64, headerOf, type Incoming, type Read, type Scheme } from '../signature.js'
import {
  EVENT_CHECKS,
  type EventOptions,
  eventParts,
  isFilledText,
  titleOf,
} from './event-options.js'
import { readOptions } from './options.js'

/** The secret is `'user:password'`. */
export interface BasicAuthOptions extends EventOptions {}

export interface SharedSecretOptions extends EventOptions {
  /** The header that carries the secret. It is never kept. */
  header: string
  /** What stands before the secret in the header: `'Bearer '`. */
  prefix?: string
}

const CHECKS: Record<keyof SharedSecretOptions, Check> = {
  ...EVENT_CHECKS,
  header: isHeader,
  prefix: isFilledText,
}

/**
 * A sender that puts the secret itself in a header. It is a separate function and not an option of
 * `hmac()`, because the guarantee is weaker: neither the body nor a time is signed, so a single
 * leaked request is enough to forge others.
 */
export function sharedSecret(options: SharedSecretOptions): Provider {
  readOptions(titleOf('sharedSecret', options), CHECKS, options, ['name', 'header', 'eventId'])
  const prefix = (options.prefix ?? '').toLowerCase()
  return unsigned(options, options.header.toLowerCase(), (value) =>
    // The name of a scheme, such as Bearer, may be written in any case (RFC 9110, section 11.1).
    value.toLowerCase().startsWith(prefix) ? Buffer.from(value.slice(prefix.length)) : undefined,
  )
}

/**
 * A sender that authenticates with a user and a password (RFC 7617), as a sender does that was given
 * an address of the form `https://user:password@…`. Nothing is signed, as with `sharedSecret()`.
 */
export function basicAuth(options: BasicAuthOptions): Provider {
  readOptions(titleOf('basicAuth', options), EVENT_CHECKS, options, ['name', 'eventId'])
  const provider = unsigned(
    options,
    'authorization',
    (value) => fromBase64(/^basic +(\S+)$/i.exec(value)?.[1] ?? ''),
    {
      toKey: toCredentials,
      secretForm: "'user:password', as in the address that the sender was given",
    },
  )
  return { ...provider, challenge: 'Basic realm="webhooks", charset="UTF-8"' }
}

function toCredentials(secret: string): Uint8Array {
  if (!secret.includes(':')) throw new TypeError('no password')
  return Buffer.from(secret)
}

function unsigned(
  options: EventOptions,
  header: string,
  decode: (value: string) => Uint8Array | undefined,
  rest: Pick<Scheme, 'toKey' | 'secretForm'> = {},
): Provider {
  const problem = secretAmong(options.keptHeaders ?? [], [header])
  if (problem !== undefined) {
    throw new OptionInvalid(`option "keptHeaders" of ${options.name} ${problem}`)
  }
  function read(incoming: Incoming): Read {
    const value = headerOf(incoming, header)
    if (value === undefined) return 'missing_header'
    const secret = decode(value)
    return secret ? { content: [], signatures: [secret] } : 'malformed'
  }
  return defineProvider({
    ...eventParts(options),
    scheme: { algorithm: { kind: 'equality' }, ...rest, isWithoutBody: true, read },
    secretHeaders: [header],
  })
}
