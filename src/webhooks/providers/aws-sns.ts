import { isFunction } from '../../checks.js'
import { at, parseJson } from '../payload.js'
import { type Answer, defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { fromBase64, type Incoming, isEqual, type Known, type Read } from '../signature.js'
import { isSecret, readOptions } from './options.js'
import { type Fetch, isPlainHttps, pinnedCertificates } from './pinned-certificates.js'

export interface AwsSnsOptions {
  /** The topic, `arn:aws:sns:…`. Everybody with an AWS account can have SNS sign something. */
  topicArn: Secrets
  /** Fetches the certificate, and visits `SubscribeURL`. Default: `fetch`. */
  fetch?: Fetch
}

const HOST = /^sns\.[a-z]{2}(?:-[a-z]+)+-\d{1,2}\.amazonaws\.com(?:\.cn)?$/
const ARN = /^arn:aws[\w-]*:sns:[\w-]+:\d{12}:[\w.-]{1,256}$/

/**
 * Amazon SNS, without raw delivery, which is not signed. Messages of versions 1 and 2 are verified
 * with a certificate that is fetched from SNS only; `MessageAttributes` are not signed. A new
 * subscription to the topic is confirmed by visiting its address. There is no window: deliveries are
 * repeated for weeks.
 */
export function awsSns(options: AwsSnsOptions): Provider {
  const { topicArn, fetch = globalThis.fetch } = readOptions(
    'aws-sns',
    { topicArn: isSecret, fetch: isFunction },
    options,
  )
  const certificateAt = pinnedCertificates({
    fetch,
    isTheirs: (url) => HOST.test(url.hostname) && /^\/[\w-]+\.pem$/.test(url.pathname),
  })

  async function read({ body }: Incoming, { keys, nowMs }: Known): Promise<Read> {
    const message = parseJson(body)
    const signed = canonical(message)
    if (signed === undefined) return 'malformed'
    const hash = HASHES[text(message, 'SignatureVersion')]
    const signature = fromBase64(text(message, 'Signature'))
    if (hash === undefined || signature === undefined) return 'malformed'
    const topic = Buffer.from(text(message, 'TopicArn'))
    if (!(await keys()).some((key) => isEqual(key as Uint8Array, topic))) return 'no_match'
    const key = await certificateAt(at(message, 'SigningCertURL'), nowMs)
    if (key === undefined) return 'no_match'
    const algorithm = { kind: 'public-key', hash } as const
    return { algorithm, content: [signed], signatures: [signature], key }
  }

  return defineProvider({
    name: 'aws-sns',
    secret: topicArn,
    secretOption: 'topicArn',
    scheme: {
      algorithm: { kind: 'public-key', hash: 'sha256' },
      toKey,
      secretForm: "the topic's ARN, such as 'arn:aws:sns:eu-central-1:123456789012:orders'",
      read,
    },
    keptHeaders: [],
    eventId: (payload) => at(payload, 'MessageId'),
    type: (payload) => at(payload, 'Type'),
    object: (payload) => at(payload, 'TopicArn'),
    handshake: (payload) =>
      at(payload, 'Type') === 'SubscriptionConfirmation'
        ? confirm(at(payload, 'SubscribeURL'), fetch)
        : undefined,
  })
}

const HASHES: Readonly<Record<string, 'sha1' | 'sha256' | undefined>> = { 1: 'sha1', 2: 'sha256' }

const SIGNED = ['Message', 'MessageId', 'Subject', 'Timestamp', 'TopicArn', 'Type']
const SIGNED_OF_CONFIRMATIONS = [
  'Message',
  'MessageId',
  'SubscribeURL',
  'Timestamp',
  'Token',
  'TopicArn',
  'Type',
]

const FIELDS = new Map([
  ['Notification', SIGNED],
  ['SubscriptionConfirmation', SIGNED_OF_CONFIRMATIONS],
  ['UnsubscribeConfirmation', SIGNED_OF_CONFIRMATIONS],
])

/**
 * Each field's name and value on lines of their own; a subject is optional. `undefined` for what SNS
 * would not send: nothing tells a line of a value from the name of the next field, so that text which
 * was signed could be cut differently. Read from its end, it can be cut in one way only, as long as
 * the message, which stands first, is the one field with lines of its own.
 */
function canonical(message: unknown): string | undefined {
  const names = FIELDS.get(text(message, 'Type'))
  const present = names?.filter((name) => name !== 'Subject' || at(message, name) != null)
  const isCut = present?.some((name) => {
    const value = at(message, name)
    return typeof value !== 'string' || (name !== 'Message' && /[\r\n]/.test(value))
  })
  if (isCut) return undefined
  return present?.map((name) => `${name}\n${text(message, name)}\n`).join('')
}

async function confirm(address: unknown, fetch: Fetch): Promise<Answer> {
  const url = URL.canParse(String(address)) ? new URL(String(address)) : undefined
  if (url === undefined || !isConfirmation(url)) return { status: 400 }
  try {
    const signal = AbortSignal.timeout(5_000)
    const { ok } = await fetch(url.href, { redirect: 'error', signal })
    return { status: ok ? 200 : 502 }
  } catch {
    // SNS asks again.
    return { status: 502 }
  }
}

/** SNS has other actions behind the same host. */
function isConfirmation(url: URL): boolean {
  const bare = new URL(url)
  bare.search = ''
  const isPinned = HOST.test(url.hostname) && isPlainHttps(bare)
  return isPinned && url.searchParams.get('Action') === 'ConfirmSubscription'
}

function text(message: unknown, name: string): string {
  const value = at(message, name)
  return typeof value === 'string' ? value : ''
}

function toKey(arn: string): Uint8Array {
  if (!ARN.test(arn)) throw new TypeError('no ARN')
  return Buffer.from(arn)
}
