// How each provider signs, written down a second time and without the code under test.
import {
  createHash,
  createHmac,
  generateKeyPairSync,
  type KeyObject,
  sign as signWithKey,
} from 'node:crypto'
import { readFileSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import type { Provider } from '../../../src/webhooks/provider.js'
import * as providers from '../../../src/webhooks/providers/index.js'
import {
  type Names,
  NOW,
  type Party,
  type ProviderCase,
  type Sent,
} from '../../contracts/provider.js'

const file = new URL('../../fixtures/webhook-certificates.json', import.meta.url)
export const certificates = JSON.parse(readFileSync(file, 'utf8'))

type Hash = 'sha1' | 'sha256' | 'sha512'
type Encoding = 'hex' | 'base64'

const mac = (hash: Hash, key: string | Buffer, text: string, encoding: Encoding) =>
  createHmac(hash, key).update(text).digest(encoding)

const FORM = { 'content-type': 'application/x-www-form-urlencoded' }
const seconds = (ms: number) => String(Math.floor(ms / 1_000))

/** Two secrets, and one way to sign with either. */
function parties(
  secrets: readonly [string, string],
  headers: (secret: string, body: string, atMs: number) => Record<string, string>,
  rest: Omit<Sent, 'headers' | 'body'> = {},
): readonly [Party, Party] {
  const party = (secret: string): Party => ({
    secret,
    sign: (body, atMs) => ({
      ...rest,
      headers: headers(secret, body, atMs),
      body: Buffer.from(body),
    }),
  })
  return [party(secrets[0]), party(secrets[1])]
}

const SECRETS = ['first-secret-0123456789', 'second-secret-0123456789'] as const
const BASE64_SECRETS = [
  'MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw',
  'C2FVsBQIhrscChlQIMV+b5sSYspob7oD',
] as const
const MINUTE = 60_000

/** Fields that make a body's signature depend on something visible. */
const json = (value: object) => JSON.stringify({ ...value, note: 'SIGNED' })

function standard(
  factory: (options: providers.TolerantOptions) => Provider,
  name: string,
  prefix: 'webhook' | 'svix',
  written: (base64: string) => string = (base64) => `whsec_${base64}`,
  keyOf: (secret: string) => Buffer = (secret) => Buffer.from(secret.split('_')[1] ?? '', 'base64'),
): ProviderCase {
  const secrets = BASE64_SECRETS.map(written) as unknown as readonly [string, string]
  return {
    name,
    make: (secret, tolerance) => factory({ secret, ...tolerant(tolerance) }),
    parties: parties(secrets, (secret, body, at) => ({
      [`${prefix}-id`]: 'msg_1',
      [`${prefix}-timestamp`]: seconds(at),
      [`${prefix}-signature`]: `v1a,AAAA v1,${mac('sha256', keyOf(secret), `msg_1.${seconds(at)}.${body}`, 'base64')}`,
    })),
    body: json({ type: 'user.created', data: { id: 'u_1' } }),
    event: { eventId: 'msg_1', type: 'user.created', object: 'u_1' },
    header: `${prefix}-signature`,
    listsSignatures: true,
    windowMs: 5 * MINUTE,
    nameless: { signedHeader: `${prefix}-id` },
  }
}

const tolerant = (tolerance: number | undefined) =>
  tolerance === undefined ? {} : { tolerance: tolerance as number }

/** Answers like the hosts that certificates are fetched from, and counts. */
export function certificateHost(pages: Record<string, string>) {
  const visited: string[] = []
  const fetch: providers.Fetch = async (url) => {
    visited.push(url)
    const text = pages[url]
    return {
      ok: text !== undefined,
      status: text === undefined ? 404 : 200,
      text: async () => text ?? '',
    }
  }
  return { fetch, visited }
}

export const PAYPAL_CERT =
  'https://api.paypal.com/v1/notifications/certs/CERT-360caa42-fca2a594-1d93a270'
export const SNS_CERT =
  'https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem'
export const SUBSCRIBE =
  'https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=x&Token=y'

const hosts = certificateHost({
  [PAYPAL_CERT]: `${certificates.paypal.certificate}\n${certificates.ca}`,
  [SNS_CERT]: certificates.sns.certificate,
  [SUBSCRIBE]: 'confirmed',
})

export function paypalHeaders(
  webhookId: string,
  body: string,
  { key = certificates.paypal.key, at = NOW } = {},
) {
  const time = new Date(at).toISOString().replace('.000Z', 'Z')
  const text = `t-1|${time}|${webhookId}|${crc32(body)}`
  return {
    'paypal-transmission-id': 't-1',
    'paypal-transmission-time': time,
    'paypal-auth-algo': 'SHA256withRSA',
    'paypal-cert-url': PAYPAL_CERT,
    'paypal-transmission-sig': signWithKey('sha256', Buffer.from(text), key).toString('base64'),
  }
}

/** Signs a message of SNS: the topic is the secret, and everything else is in the body. */
export function snsBody(topicArn: string, message: Record<string, string>, version = '2'): string {
  const whole: Record<string, string> = {
    TopicArn: topicArn,
    Timestamp: '2027-01-15T12:00:00.000Z',
    SignatureVersion: version,
    SigningCertURL: SNS_CERT,
    ...message,
  }
  const names =
    message.Type === 'Notification'
      ? ['Message', 'MessageId', 'Subject', 'Timestamp', 'TopicArn', 'Type']
      : ['Message', 'MessageId', 'SubscribeURL', 'Timestamp', 'Token', 'TopicArn', 'Type']
  const text = names
    .flatMap((name) => (name in whole ? [`${name}\n${whole[name]}\n`] : []))
    .join('')
  const hash = version === '1' ? 'sha1' : 'sha256'
  const Signature = signWithKey(hash, Buffer.from(text), certificates.sns.key).toString('base64')
  return JSON.stringify({ ...whole, Signature })
}

const ARNS = [
  'arn:aws:sns:eu-central-1:123456789012:invoices',
  'arn:aws:sns:eu-central-1:123456789012:bills',
] as const

const ADYEN_KEYS = [
  '44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056',
  'DFB1EB5485895CFA84146406857104ABB4CBCABDC8AAF103A624C8F6A3EAAB00',
] as const

export type AdyenItem = Record<string, unknown> & { amount: { value: number; currency: string } }

export function adyenItem(key: string, over: Partial<AdyenItem> = {}): AdyenItem {
  const item: AdyenItem = {
    pspReference: '7914073381342284',
    merchantAccountCode: 'Shop',
    merchantReference: 'order-SIGNED',
    amount: { value: 1130, currency: 'EUR' },
    eventCode: 'AUTHORISATION',
    success: 'true',
    ...over,
  }
  const { amount } = item
  const text = [
    item.pspReference,
    item.originalReference,
    item.merchantAccountCode,
    item.merchantReference,
    amount.value,
    amount.currency,
    item.eventCode,
    item.success,
  ].join(':')
  const hmacSignature = mac('sha256', Buffer.from(key, 'hex'), text, 'base64')
  return { ...item, additionalData: { hmacSignature } }
}

/** Signs each item of a body that is written without signatures. */
function adyenParty(secret: string): Party {
  const sign = (body: string): Sent => {
    let text = body
    try {
      const { items } = JSON.parse(body) as { items: AdyenItem[] }
      const notificationItems = items.map((item) => ({
        NotificationRequestItem: adyenItem(secret, item),
      }))
      text = JSON.stringify({ live: 'false', notificationItems })
    } catch {
      // Junk has no items.
    }
    return { headers: {}, body: Buffer.from(text) }
  }
  return { secret, sign }
}

function mailgunParty(secret: string): Party {
  const token = 'ab'.repeat(25)
  const sign = (body: string, atMs: number): Sent => {
    const timestamp = seconds(atMs)
    const signature = mac('sha256', secret, timestamp + token, 'hex')
    const text = body.startsWith('{"event-data"')
      ? `${body.slice(0, -1)},"signature":${JSON.stringify({ timestamp, token, signature })}}`
      : body
    return { headers: { 'content-type': 'application/json' }, body: Buffer.from(text) }
  }
  return { secret, sign }
}

/** Bodies that carry the time of signing get it when they are signed. */
function linearParty(secret: string): Party {
  const sign = (body: string, atMs: number): Sent => {
    const text = body.replace('"NOW"', String(atMs))
    return {
      headers: {
        'linear-signature': mac('sha256', secret, text, 'hex'),
        'linear-delivery': 'd-1',
        'linear-event': 'Issue',
      },
      body: Buffer.from(text),
    }
  }
  return { secret, sign }
}

function keyPairParty(
  type: 'ec' | 'ed25519',
  written: (publicKey: KeyObject) => string,
  headers: (signature: Buffer, time: string) => Record<string, string>,
): Party {
  const { privateKey, publicKey } =
    type === 'ec'
      ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
      : generateKeyPairSync('ed25519')
  const sign = (body: string, atMs: number): Sent => {
    const text = Buffer.from(seconds(atMs) + body)
    const signature = signWithKey(type === 'ec' ? 'sha256' : null, text, privateKey)
    return { headers: headers(signature, seconds(atMs)), body: Buffer.from(body) }
  }
  return { secret: written(publicKey), sign }
}

const sendgridParty = () =>
  keyPairParty(
    'ec',
    (key) => key.export({ format: 'der', type: 'spki' }).toString('base64'),
    (signature, time) => ({
      'x-twilio-email-event-webhook-signature': signature.toString('base64'),
      'x-twilio-email-event-webhook-timestamp': time,
    }),
  )

const discordParty = () =>
  keyPairParty(
    'ed25519',
    (key) => key.export({ format: 'der', type: 'spki' }).subarray(-32).toString('hex'),
    (signature, time) => ({
      'x-signature-ed25519': signature.toString('hex'),
      'x-signature-timestamp': time,
    }),
  )

export const TWILIO_URL = 'https://example.com/webhooks/twilio'

function twilioParty(secret: string): Party {
  const sign = (body: string): Sent => {
    const isForm = /^\w+=/.test(body)
    const hash = createHash('sha256').update(body).digest('hex')
    const query = isForm ? '' : `?bodySHA256=${hash}`
    const fields = isForm ? [...new URLSearchParams(body)].sort().flat().join('') : ''
    return {
      headers: {
        ...(isForm ? FORM : { 'content-type': 'application/json' }),
        'x-twilio-signature': mac('sha1', secret, TWILIO_URL + query + fields, 'base64'),
        'i-twilio-idempotency-token': 'token-1',
      },
      url: `/behind/a/proxy${query}`,
      body: Buffer.from(body),
    }
  }
  return { secret, sign }
}

/** A JSON Web Token, made without a library. */
export function token(
  { privateKey, kid }: { privateKey: KeyObject; kid: string },
  claims: object,
  header: object = {},
): string {
  const isEc = privateKey.asymmetricKeyType === 'ec'
  const parts = [{ alg: isEc ? 'ES256' : 'RS256', kid, typ: 'JWT', ...header }, claims]
  const text = parts
    .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
    .join('.')
  const key = { key: privateKey, dsaEncoding: 'ieee-p1363' } as const
  return `${text}.${signWithKey('sha256', Buffer.from(text), key).toString('base64url')}`
}

/** A key pair, and its public half as it is published. */
export function publishedKey(type: 'rsa' | 'ec', kid: string) {
  const { privateKey, publicKey } =
    type === 'ec'
      ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
      : generateKeyPairSync('rsa', { modulusLength: 2048 })
  const alg = type === 'ec' ? 'ES256' : 'RS256'
  return { kid, privateKey, jwk: { ...publicKey.export({ format: 'jwk' }), kid, alg, use: 'sig' } }
}

export const GOOGLE_KEYS = 'https://www.googleapis.com/oauth2/v3/certs'
export const googleKey = publishedKey('rsa', 'google-1')
export const PUBSUB_AUDIENCE = 'https://example.com/webhooks/pubsub'

export const pubsubClaims = (email: string, atMs: number) => ({
  iss: 'https://accounts.google.com',
  aud: PUBSUB_AUDIENCE,
  email,
  email_verified: true,
  iat: atMs / 1_000,
  exp: atMs / 1_000 + 3_600,
})

export const ENTRA = '11111111-2222-4333-8444-555555555555'
export const ENTRA_KEYS = `https://login.microsoftonline.com/${ENTRA}/discovery/v2.0/keys`
export const entraKey = publishedKey('rsa', 'entra-1')

export const entraClaims = (audience: string, atMs: number) => ({
  iss: `https://sts.windows.net/${ENTRA}/`,
  aud: audience,
  appid: '4962773b-9cdb-44cf-a8bf-237846a00ab7',
  iat: atMs / 1_000,
  nbf: atMs / 1_000,
  exp: atMs / 1_000 + 50 * 365 * 86_400,
})

/** Writes the secret into each notification, where Graph has it. */
function graphParty(secret: string): Party {
  const sign = (body: string): Sent => {
    const text = body.replaceAll('"clientState":""', `"clientState":${JSON.stringify(secret)}`)
    return { headers: { 'content-type': 'application/json' }, body: Buffer.from(text) }
  }
  return { secret, sign }
}

const notification = (over: object) => ({
  subscriptionId: 's-1',
  clientState: '',
  changeType: 'updated',
  resource: 'users/u-1/messages/m-1',
  ...over,
})

const gridEvent = {
  id: '831e1650-001e-001b-66ab-eeb76e069631',
  topic: '/subscriptions/s/topics/t',
  subject: '/blobServices/default/containers/c/blobs/b',
  eventType: 'Microsoft.Storage.BlobCreated',
}
const cloudEvent = { id: 'c-1', source: '/s', subject: 'b', type: 'B.C', specversion: '1.0' }
const gridCase: Omit<ProviderCase, 'name' | 'make' | 'parties' | 'header'> = {
  body: JSON.stringify([gridEvent]),
  event: {
    eventId: `${gridEvent.topic}:${gridEvent.id}`,
    type: gridEvent.eventType,
    object: gridEvent.subject,
  },
  windowMs: null,
  nameless: { body: JSON.stringify([{ ...gridEvent, id: undefined }]) },
  leavesBodyUnsigned: true,
  batch: {
    body: JSON.stringify([gridEvent, cloudEvent]),
    events: [
      { eventId: `${gridEvent.topic}:${gridEvent.id}`, type: gridEvent.eventType },
      { eventId: '/s:c-1', type: 'B.C', object: 'b' },
    ],
  },
  handshakes: [
    {
      body: JSON.stringify([
        {
          ...gridEvent,
          eventType: 'Microsoft.EventGrid.SubscriptionValidationEvent',
          data: { validationCode: '512d38b6-c7b8-40c8-89fe-f46f9e9622b6' },
        },
      ]),
      answer: () => ({
        status: 200,
        body: { validationResponse: '512d38b6-c7b8-40c8-89fe-f46f9e9622b6' },
      }),
    },
  ],
}

export const plaidKeys = SECRETS.map((secret, n) => ({ secret, ...publishedKey('ec', `k-${n}`) }))

export const plaidToken = (secret: string, body: string, atMs: number) =>
  token(plaidKeys.find((key) => key.secret === secret) as (typeof plaidKeys)[number], {
    iat: atMs / 1_000,
    request_body_sha256: createHash('sha256').update(body).digest('hex'),
  })

/** Answers like Plaid's API, which knows the keys of each secret. */
export const plaidApi: providers.Fetch = async (_url, { body = '' }) => {
  const { secret, key_id } = JSON.parse(body) as Record<string, string>
  const key = plaidKeys.find((one) => one.secret === secret && one.kid === key_id)
  const text = JSON.stringify(
    key === undefined
      ? { error_code: 'INVALID_WEBHOOK_VERIFICATION_KEY_ID' }
      : { key: { ...key.jwk, created_at: 1, expired_at: null } },
  )
  return { ok: key !== undefined, status: key === undefined ? 400 : 200, text: async () => text }
}

const hubspotEvent = {
  eventId: 100,
  subscriptionId: 7,
  portalId: 1,
  occurredAt: 1_700_000_000_000,
  subscriptionType: 'contact.creation',
  attemptNumber: 0,
  objectId: 123,
}

const withText = { headers: { 'content-type': 'text/plain' } }

const simple = (
  factory: (options: providers.TolerantOptions) => Provider,
  name: string,
  over: Omit<ProviderCase, 'name' | 'make' | 'header' | 'parties'> & {
    header: string
    headers: (secret: string, body: string, atMs: number) => Record<string, string>
  },
): ProviderCase => {
  const { headers, ...rest } = over
  return {
    name,
    make: (secret, tolerance) => factory({ secret, ...tolerant(tolerance) }),
    parties: parties(SECRETS, headers),
    ...rest,
  }
}

const slackHeaders = (secret: string, body: string, at: number) => ({
  ...(body.startsWith('{') ? { 'content-type': 'application/json' } : {}),
  'x-slack-request-timestamp': seconds(at),
  'x-slack-signature': `v0=${mac('sha256', secret, `v0:${seconds(at)}:${body}`, 'hex')}`,
})

const zoomBody = json({
  event: 'meeting.started',
  event_ts: 1_700_000_000_000,
  payload: { object: { id: 'm-1' } },
})
const wooBody = json({ id: 727, status: 'processing' })
const interaction = json({ id: 'i-1', type: 2 })
const change = (id: string, value: string) => ({
  id,
  time: 1,
  changes: [{ field: 'messages', value }],
})

export const cases: readonly ProviderCase[] = [
  standard(providers.standardWebhooks, 'standardWebhooks', 'webhook'),
  standard(providers.svix, 'svix', 'svix'),
  standard(providers.clerk, 'clerk', 'svix'),
  standard(providers.resend, 'resend', 'svix'),
  standard(providers.openai, 'openai', 'webhook'),
  standard(providers.supabase, 'supabase', 'webhook', (base64) => `v1,whsec_${base64}`),
  standard(
    providers.polar,
    'polar',
    'webhook',
    (base64) => `polar_whs_${base64}`,
    (secret) => Buffer.from(secret),
  ),
  simple(providers.stripe, 'stripe', {
    listsSignatures: true,
    header: 'stripe-signature',
    headers: (secret, body, at) => ({
      'stripe-signature': `t=${seconds(at)},v0=ab,v1=${'0'.repeat(64)},v1=${mac('sha256', secret, `${seconds(at)}.${body}`, 'hex')}`,
    }),
    body: json({ id: 'evt_1', type: 'invoice.paid', data: { object: { id: 'in_1' } } }),
    event: { eventId: 'evt_1', type: 'invoice.paid', object: 'in_1' },
    windowMs: 5 * MINUTE,
    nameless: { body: json({ type: 'invoice.paid', data: { object: { id: 'in_1' } } }) },
  }),
  simple(providers.github, 'github', {
    header: 'x-hub-signature-256',
    headers: (secret, body) => ({
      'x-hub-signature-256': `sha256=${mac('sha256', secret, body, 'hex')}`,
      'x-github-delivery': 'd-1',
      'x-github-event': 'issues',
    }),
    body: json({ action: 'opened', issue: { id: 1 } }),
    event: { eventId: 'd-1', type: 'issues.opened' },
    windowMs: null,
    nameless: { without: ['x-github-delivery'] },
  }),
  simple(providers.gitlab, 'gitlab', {
    header: 'x-gitlab-token',
    headers: (secret) => ({
      'x-gitlab-token': secret,
      'idempotency-key': 'k-1',
      'x-gitlab-event': 'Issue Hook',
      'x-gitlab-event-uuid': 'shared-by-recursive-events',
    }),
    body: json({ object_kind: 'issue', object_attributes: { id: 301 } }),
    event: { eventId: 'k-1', type: 'issue', object: '301' },
    windowMs: null,
    nameless: { without: ['idempotency-key'] },
    leavesBodyUnsigned: true,
  }),
  {
    ...standard(providers.standardWebhooks, 'standardWebhooks', 'webhook'),
    name: 'gitlab with a signing token',
    make: (signingToken, tolerance) => providers.gitlab({ signingToken, ...tolerant(tolerance) }),
    body: json({ object_kind: 'issue', object_attributes: { id: 301 } }),
    event: { eventId: 'msg_1', type: 'issue', object: '301' },
  },
  simple(providers.shopify, 'shopify', {
    header: 'x-shopify-hmac-sha256',
    headers: (secret, body) => ({
      'x-shopify-hmac-sha256': mac('sha256', secret, body, 'base64'),
      'x-shopify-webhook-id': 'w-1',
      'x-shopify-event-id': 'shared-by-subscriptions',
      'x-shopify-topic': 'orders/paid',
    }),
    body: json({ id: 450789469, admin_graphql_api_id: 'gid://shopify/Order/450789469' }),
    event: { eventId: 'w-1', type: 'orders/paid', object: 'gid://shopify/Order/450789469' },
    windowMs: null,
    nameless: { without: ['x-shopify-webhook-id'] },
  }),
  simple(providers.slack, 'slack', {
    header: 'x-slack-signature',
    headers: slackHeaders,
    body: json({
      type: 'event_callback',
      event_id: 'Ev1',
      event: { type: 'message', channel: 'C1' },
    }),
    event: { eventId: 'Ev1', type: 'message', object: 'C1' },
    windowMs: 5 * MINUTE,
    nameless: { body: json({ type: 'app_rate_limited' }) },
    handshakes: [
      {
        body: json({ type: 'url_verification', challenge: 'c-1', token: 'x' }),
        answer: () => ({ status: 200, body: { challenge: 'c-1' } }),
      },
    ],
  }),
  {
    name: 'twilio',
    make: (authToken) => providers.twilio({ authToken, url: TWILIO_URL }),
    parties: [twilioParty(SECRETS[0]), twilioParty(SECRETS[1])],
    body: 'MessageSid=SM1&Body=SIGNED+%26+more&From=%2B14158675310',
    event: { eventId: 'token-1', type: null, object: 'SM1' },
    header: 'x-twilio-signature',
    windowMs: null,
    nameless: { without: ['i-twilio-idempotency-token'], isNamedByFields: true },
  },
  {
    name: 'twilio with JSON',
    make: (authToken) => providers.twilio({ authToken, url: TWILIO_URL }),
    parties: [twilioParty(SECRETS[0]), twilioParty(SECRETS[1])],
    body: json({ MessageSid: 'SM1' }),
    event: { eventId: 'token-1', type: null, object: 'SM1' },
    header: 'x-twilio-signature',
    windowMs: null,
    nameless: { without: ['i-twilio-idempotency-token'] },
  },
  {
    name: 'square',
    make: (signatureKey) =>
      providers.square({ signatureKey, url: 'https://example.com/webhooks/square?a=1' }),
    parties: parties(SECRETS, (secret, body) => ({
      'x-square-hmacsha256-signature': mac(
        'sha256',
        secret,
        `https://example.com/webhooks/square?a=1${body}`,
        'base64',
      ),
    })),
    body: json({ event_id: 'e-1', type: 'payment.updated', data: { id: 'p-1' } }),
    event: { eventId: 'e-1', type: 'payment.updated', object: 'p-1' },
    header: 'x-square-hmacsha256-signature',
    windowMs: null,
    nameless: { body: json({ type: 'payment.updated', data: { id: 'p-1' } }) },
  },
  {
    name: 'adyen',
    make: (hmacKey) => providers.adyen({ hmacKey }),
    parties: [adyenParty(ADYEN_KEYS[0]), adyenParty(ADYEN_KEYS[1])],
    body: JSON.stringify({ items: [{}] }),
    event: {
      eventId: 'AUTHORISATION:7914073381342284:true',
      type: 'AUTHORISATION',
      object: 'order-SIGNED',
    },
    header: null,
    windowMs: null,
    nameless: { body: JSON.stringify({ items: [{ pspReference: '' }] }) },
    readsBody: true,
    batch: {
      body: JSON.stringify({ items: [{}, { eventCode: 'CAPTURE', success: 'false' }] }),
      events: [
        { eventId: 'AUTHORISATION:7914073381342284:true', type: 'AUTHORISATION' },
        { eventId: 'CAPTURE:7914073381342284:false', type: 'CAPTURE' },
      ],
    },
  },
  {
    name: 'paypal',
    make: (webhookId, tolerance) =>
      providers.paypal({ webhookId, fetch: hosts.fetch, ...tolerant(tolerance) }),
    parties: parties(['0EH40505U7160970P', '7XH40505U7160970P'], (id, body, at) =>
      paypalHeaders(id, body, { at }),
    ),
    body: json({ id: 'WH-1', event_type: 'PAYMENT.SALE.COMPLETED', resource: { id: 'S-1' } }),
    event: { eventId: 'WH-1', type: 'PAYMENT.SALE.COMPLETED', object: 'S-1' },
    header: 'paypal-transmission-sig',
    windowMs: 4 * 24 * 60 * MINUTE,
    nameless: { body: json({ event_type: 'PAYMENT.SALE.COMPLETED', resource: { id: 'S-1' } }) },
  },
  simple(providers.paystack, 'paystack', {
    header: 'x-paystack-signature',
    headers: (secret, body) => ({ 'x-paystack-signature': mac('sha512', secret, body, 'hex') }),
    body: json({ event: 'charge.success', data: { id: 302961 } }),
    event: { eventId: 'charge.success:302961', type: 'charge.success', object: '302961' },
    windowMs: null,
    nameless: { body: json({ event: 'charge.success', data: {} }) },
  }),
  simple(providers.flutterwave, 'flutterwave', {
    header: 'flutterwave-signature',
    headers: (secret, body) => ({ 'flutterwave-signature': mac('sha256', secret, body, 'base64') }),
    body: json({ type: 'charge.completed', data: { id: 'chg_1', status: 'succeeded' } }),
    event: {
      eventId: 'charge.completed:chg_1:succeeded',
      type: 'charge.completed',
      object: 'chg_1',
    },
    windowMs: null,
    nameless: { body: json({ type: 'charge.completed', data: { status: 'succeeded' } }) },
  }),
  {
    ...simple(providers.flutterwave, 'flutterwave', {
      header: 'verif-hash',
      headers: (secret) => ({ 'verif-hash': secret }),
      body: json({ event: 'charge.completed', data: { id: 285959875, status: 'successful' } }),
      event: { eventId: 'charge.completed:285959875:successful', type: 'charge.completed' },
      windowMs: null,
      nameless: { body: json({ event: 'charge.completed', data: {} }) },
      leavesBodyUnsigned: true,
    }),
    name: 'flutterwave, version 3',
  },
  {
    name: 'sendgrid',
    make: (publicKey) => providers.sendgrid({ publicKey }),
    parties: [sendgridParty(), sendgridParty()],
    body: JSON.stringify([{ sg_event_id: 'e-SIGNED', sg_message_id: 'm-1', event: 'open' }]),
    event: { eventId: 'e-SIGNED', type: 'open', object: 'm-1' },
    header: 'x-twilio-email-event-webhook-signature',
    windowMs: null,
    nameless: { body: JSON.stringify([{ event: 'open', sg_message_id: 'm-1' }]) },
    batch: {
      body: JSON.stringify([{ sg_event_id: 'e-1', event: 'open' }, { event: 'click' }]),
      events: [
        { eventId: 'e-1', type: 'open' },
        { eventId: null, type: 'click' },
      ],
    },
  },
  {
    name: 'mailgun',
    make: (signingKey, tolerance) => providers.mailgun({ signingKey, ...tolerant(tolerance) }),
    parties: [mailgunParty(SECRETS[0]), mailgunParty(SECRETS[1])],
    body: JSON.stringify({
      'event-data': {
        id: 'e-1',
        event: 'opened',
        timestamp: 1521472262.908181,
        message: { headers: { 'message-id': 'm-1' } },
      },
    }),
    event: { eventId: 'e-1:1521472262.908181', type: 'opened', object: 'm-1' },
    header: null,
    windowMs: 24 * 60 * MINUTE,
    nameless: { body: JSON.stringify({ 'event-data': { event: 'opened', id: 'e-1' } }) },
    leavesBodyUnsigned: true,
    readsBody: true,
  },
  {
    name: 'discord',
    make: (publicKey, tolerance) => providers.discord({ publicKey, ...tolerant(tolerance) }),
    parties: [discordParty(), discordParty()],
    body: interaction,
    event: { eventId: 'i-1', type: '2' },
    header: 'x-signature-ed25519',
    windowMs: 15 * MINUTE,
    nameless: {
      body: json({
        type: 1,
        application_id: 'a-1',
        event: { type: 'ENTITLEMENT_CREATE', data: { id: 'n-1' } },
      }),
    },
    handshakes: [
      { body: json({ type: 1, id: 'i-1' }), answer: () => ({ status: 200, body: { type: 1 } }) },
      {
        body: json({ type: 0 }),
        answer: () => ({ status: 204, headers: { 'content-type': 'application/json' } }),
      },
    ],
  },
  {
    name: 'linear',
    make: (secret, tolerance) => providers.linear({ secret, ...tolerant(tolerance) }),
    parties: [linearParty(SECRETS[0]), linearParty(SECRETS[1])],
    body: json({ type: 'Issue', action: 'update', data: { id: 'i-1' }, webhookTimestamp: 'NOW' }),
    event: { eventId: 'd-1', type: 'Issue.update', object: 'i-1' },
    header: 'linear-signature',
    windowMs: MINUTE,
    nameless: { without: ['linear-delivery'] },
  },
  simple(providers.zoom, 'zoom', {
    header: 'x-zm-signature',
    headers: (secret, body, at) => ({
      'x-zm-request-timestamp': seconds(at),
      'x-zm-signature': `v0=${mac('sha256', secret, `v0:${seconds(at)}:${body}`, 'hex')}`,
    }),
    body: zoomBody,
    event: {
      eventId: createHash('sha256').update(zoomBody).digest('base64url'),
      type: 'meeting.started',
      object: 'm-1',
    },
    windowMs: 5 * MINUTE,
    nameless: { body: json({ event: 'meeting.started' }) },
    handshakes: [
      {
        body: json({
          event: 'endpoint.url_validation',
          payload: { plainToken: 'qgg8vlvZRS6UYooatFL8Aw' },
        }),
        answer: ({ secret }) => ({
          status: 200,
          body: {
            plainToken: 'qgg8vlvZRS6UYooatFL8Aw',
            encryptedToken: mac('sha256', secret, 'qgg8vlvZRS6UYooatFL8Aw', 'hex'),
          },
        }),
      },
    ],
  }),
  {
    name: 'hubspot',
    make: (secret, tolerance) =>
      providers.hubspot({ secret, url: 'https://example.com/hooks', ...tolerant(tolerance) }),
    parties: parties(
      SECRETS,
      (secret, body, at) => ({
        'x-hubspot-request-timestamp': String(at),
        'x-hubspot-signature-v3': mac(
          'sha256',
          secret,
          // HubSpot signs some characters as they were before they were encoded.
          `POSThttps://example.com/hooks?to=a/b:c%20d${body}${at}`,
          'base64',
        ),
      }),
      { url: '/prefix?to=a%2Fb%3ac%20d' },
    ),
    body: JSON.stringify([{ ...hubspotEvent, note: 'SIGNED' }]),
    event: { eventId: '100:7:1700000000000:1:123', type: 'contact.creation', object: '123' },
    header: 'x-hubspot-signature-v3',
    windowMs: 5 * MINUTE,
    nameless: { body: JSON.stringify([{ subscriptionType: 'contact.creation' }]) },
    batch: {
      body: JSON.stringify([hubspotEvent, { ...hubspotEvent, objectId: 124 }]),
      events: [
        { eventId: '100:7:1700000000000:1:123' },
        { eventId: '100:7:1700000000000:1:124' },
      ] as Names[],
    },
  },
  simple(providers.intercom, 'intercom', {
    header: 'x-hub-signature',
    headers: (secret, body) => ({ 'x-hub-signature': `sha1=${mac('sha1', secret, body, 'hex')}` }),
    body: json({ id: 'notif_1', topic: 'user.created', data: { item: { id: 'u-1' } } }),
    event: { eventId: 'notif_1', type: 'user.created', object: 'u-1' },
    windowMs: null,
    nameless: { body: json({ id: null, topic: 'user.created', data: { item: { id: 'u-1' } } }) },
    handshakes: [{ body: json({ topic: 'ping' }), answer: () => ({ status: 200 }) }],
  }),
  simple(providers.paddle, 'paddle', {
    listsSignatures: true,
    header: 'paddle-signature',
    headers: (secret, body, at) => ({
      'paddle-signature': `ts=${seconds(at)};h1=${'0'.repeat(64)};h1=${mac('sha256', secret, `${seconds(at)}:${body}`, 'hex')}`,
    }),
    body: json({
      event_id: 'evt_1',
      notification_id: 'ntf_1',
      event_type: 'a.b',
      data: { id: 't-1' },
    }),
    event: { eventId: 'evt_1', type: 'a.b', object: 't-1' },
    windowMs: 5 * MINUTE,
    nameless: { body: json({ notification_id: 'ntf_1', event_type: 'a.b', data: { id: 't-1' } }) },
  }),
  simple(providers.twitch, 'twitch', {
    header: 'twitch-eventsub-message-signature',
    headers: (secret, body, at) => {
      const time = new Date(at).toISOString().replace('.000Z', '.000000001Z')
      return {
        'twitch-eventsub-message-id': 'm-1',
        'twitch-eventsub-message-timestamp': time,
        'twitch-eventsub-message-signature': `sha256=${mac('sha256', secret, `m-1${time}${body}`, 'hex')}`,
      }
    },
    body: json({ subscription: { id: 's-1', type: 'stream.online' }, event: {} }),
    event: { eventId: 'm-1', type: 'stream.online', object: 's-1' },
    windowMs: 10 * MINUTE,
    nameless: { signedHeader: 'twitch-eventsub-message-id' },
    handshakes: [
      {
        body: json({ challenge: 'pogchamp', subscription: { type: 'stream.online' } }),
        answer: () => ({ status: 200, ...withText, body: 'pogchamp' }),
      },
    ],
  }),
  simple(providers.zendesk, 'zendesk', {
    header: 'x-zendesk-webhook-signature',
    headers: (secret, body, at) => {
      const time = new Date(at).toISOString().replace('.000Z', 'Z')
      return {
        'x-zendesk-webhook-signature-timestamp': time,
        'x-zendesk-webhook-signature': mac('sha256', secret, time + body, 'base64'),
      }
    },
    body: json({ id: 'e-1', type: 'zen:event-type:ticket.created', subject: 'zen:ticket:35436' }),
    event: { eventId: 'e-1', type: 'zen:event-type:ticket.created', object: 'zen:ticket:35436' },
    windowMs: 5 * MINUTE,
    // What a trigger sends, with the id of a ticket.
    nameless: { body: json({ id: '35436' }) },
  }),
  {
    ...simple((options) => providers.meta({ ...options, verifyToken: 'meatyhamhock' }), 'meta', {
      header: 'x-hub-signature-256',
      headers: (secret, body) => ({
        'x-hub-signature-256': `sha256=${mac('sha256', secret, body, 'hex')}`,
      }),
      body: JSON.stringify({
        object: 'whatsapp_business_account',
        entry: [change('a-1', 'SIGNED')],
      }),
      event: { eventId: null, type: 'whatsapp_business_account.messages', object: 'a-1' },
      windowMs: null,
      nameless: {},
      batch: {
        body: JSON.stringify({
          object: 'page',
          entry: [
            {
              ...change('a-1', 'one'),
              messaging: [{ recipient: { id: 'a-1' }, message: { mid: 'm-1' } }],
            },
            change('a-2', 'two'),
            { id: 'a-3', time: 2, changed_fields: ['photos'] },
          ],
        }),
        events: [
          { eventId: null, type: 'page.messages', object: 'a-1' },
          { eventId: 'm-1', type: 'page.messaging', object: 'a-1' },
          { eventId: null, type: 'page.messages', object: 'a-2' },
          { eventId: null, type: 'page', object: 'a-3' },
        ],
      },
    }),
    make: (secret) => providers.meta({ secret, verifyToken: 'meatyhamhock' }),
  },
  {
    name: 'awsSns',
    make: (topicArn) => providers.awsSns({ topicArn, fetch: hosts.fetch }),
    parties: ARNS.map((secret) => ({
      secret,
      sign: (body: string) => ({
        headers: { 'x-amz-sns-topic-arn': secret },
        body: Buffer.from(body.startsWith('{"Type"') ? snsBody(secret, JSON.parse(body)) : body),
      }),
    })) as unknown as readonly [Party, Party],
    body: JSON.stringify({ Type: 'Notification', MessageId: 'm-1', Message: 'SIGNED' }),
    event: { eventId: 'm-1', type: 'Notification', object: ARNS[0] },
    header: null,
    windowMs: null,
    nameless: { body: JSON.stringify({ Type: 'Notification', MessageId: '', Message: 'hello' }) },
    readsBody: true,
    handshakes: [
      {
        body: JSON.stringify({
          Type: 'SubscriptionConfirmation',
          MessageId: 'm-1',
          Message: 'You have chosen',
          Token: 't-1',
          SubscribeURL: SUBSCRIBE,
        }),
        answer: () => ({ status: 200 }),
      },
    ],
  },
  simple(providers.woocommerce, 'woocommerce', {
    header: 'x-wc-webhook-signature',
    headers: (secret, body) => ({
      'x-wc-webhook-signature': mac('sha256', secret, body, 'base64'),
      'x-wc-webhook-topic': 'order.updated',
      'x-wc-webhook-delivery-id': 'd-1',
    }),
    body: wooBody,
    event: {
      eventId: `d-1:${createHash('sha256').update(wooBody).digest('base64url')}`,
      type: 'order.updated',
      object: '727',
    },
    windowMs: null,
    nameless: { without: ['x-wc-webhook-delivery-id'] },
  }),
  simple(providers.razorpay, 'razorpay', {
    header: 'x-razorpay-signature',
    headers: (secret, body) => ({
      'x-razorpay-signature': mac('sha256', secret, body, 'hex'),
      'x-razorpay-event-id': 'e-1',
    }),
    body: json({
      event: 'order.paid',
      contains: ['payment', 'order'],
      payload: { payment: { entity: { id: 'pay_1' } }, order: { entity: { id: 'order_1' } } },
    }),
    event: { eventId: 'e-1', type: 'order.paid', object: 'order_1' },
    windowMs: null,
    nameless: { without: ['x-razorpay-event-id'] },
  }),
  simple(providers.vercel, 'vercel', {
    header: 'x-vercel-signature',
    headers: (secret, body) => ({ 'x-vercel-signature': mac('sha1', secret, body, 'hex') }),
    body: json({ id: 'w-1', type: 'deployment.created', payload: { deployment: { id: 'dpl_1' } } }),
    event: { eventId: 'w-1', type: 'deployment.created', object: 'dpl_1' },
    windowMs: null,
    nameless: { body: json({ type: 'deployment.created' }) },
  }),
  simple(providers.calendly, 'calendly', {
    listsSignatures: true,
    header: 'calendly-webhook-signature',
    headers: (secret, body, at) => ({
      'calendly-webhook-signature': `t=${seconds(at)},v1=${mac('sha256', secret, `${seconds(at)}.${body}`, 'hex')}`,
    }),
    body: json({
      event: 'invitee.created',
      created_at: '2027-01-15T12:00:00.000000Z',
      payload: { uri: 'https://api.calendly.com/scheduled_events/E/invitees/I' },
    }),
    event: {
      eventId:
        'invitee.created:https://api.calendly.com/scheduled_events/E/invitees/I:2027-01-15T12:00:00.000000Z',
      type: 'invitee.created',
      object: 'https://api.calendly.com/scheduled_events/E/invitees/I',
    },
    windowMs: 3 * MINUTE,
    nameless: { body: json({ event: 'invitee.created', payload: {} }) },
  }),
  simple(providers.workos, 'workos', {
    listsSignatures: true,
    header: 'workos-signature',
    headers: (secret, body, at) => ({
      'workos-signature': `t=${at}, v1=${mac('sha256', secret, `${at}.${body}`, 'hex')}`,
    }),
    body: json({ id: 'event_1', event: 'dsync.user.created', data: { id: 'directory_user_1' } }),
    event: { eventId: 'event_1', type: 'dsync.user.created', object: 'directory_user_1' },
    windowMs: 3 * MINUTE,
    nameless: { body: json({ event: 'dsync.user.created' }) },
  }),
  simple(providers.lemonSqueezy, 'lemonSqueezy', {
    header: 'x-signature',
    headers: (secret, body) => ({ 'x-signature': mac('sha256', secret, body, 'hex') }),
    body: json({ meta: { event_name: 'order_created' }, data: { type: 'orders', id: '1' } }),
    event: { eventId: null, type: 'order_created', object: '1' },
    windowMs: null,
    nameless: {},
  }),
  simple(providers.jira, 'jira', {
    header: 'x-hub-signature',
    headers: (secret, body) => ({
      'x-hub-signature': `sha256=${mac('sha256', secret, body, 'hex')}`,
      'x-atlassian-webhook-identifier': 'w-1',
    }),
    body: json({ webhookEvent: 'jira:issue_updated', issue: { id: '10002', key: 'TEST-1' } }),
    event: { eventId: 'w-1', type: 'jira:issue_updated', object: '10002' },
    windowMs: null,
    nameless: { without: ['x-atlassian-webhook-identifier'] },
  }),
  simple(providers.bitbucket, 'bitbucket', {
    header: 'x-hub-signature',
    headers: (secret, body) => ({
      'x-hub-signature': `sha256=${mac('sha256', secret, body, 'hex')}`,
      'x-request-uuid': 'r-1',
      'x-event-key': 'repo:push',
      'x-attempt-number': '1',
    }),
    body: json({ repository: { uuid: '{r-1}' }, push: { changes: [] } }),
    event: { eventId: 'r-1', type: 'repo:push', object: '{r-1}' },
    windowMs: null,
    nameless: { without: ['x-request-uuid'] },
  }),
  {
    name: 'telegram',
    make: (secretToken) => providers.telegram({ secretToken }),
    parties: parties(SECRETS, (secret) => ({ 'x-telegram-bot-api-secret-token': secret })),
    body: json({ update_id: 10000, message: { message_id: 1365, chat: { id: 1111111 } } }),
    event: { eventId: '10000', type: 'message', object: '1111111' },
    header: 'x-telegram-bot-api-secret-token',
    windowMs: null,
    nameless: { body: JSON.stringify({ message: { chat: { id: 1111111 } } }) },
    leavesBodyUnsigned: true,
  },
  {
    ...simple(providers.postmark, 'postmark', {
      header: 'authorization',
      headers: (secret) => ({
        authorization: `Basic ${Buffer.from(secret).toString('base64')}`,
      }),
      body: json({ RecordType: 'Bounce', ID: 42, MessageID: 'm-1' }),
      event: { eventId: 'Bounce:42', type: 'Bounce', object: 'm-1' },
      windowMs: null,
      nameless: { body: json({ RecordType: 'Open', MessageID: 'm-1' }) },
      leavesBodyUnsigned: true,
    }),
    parties: parties(['postmark:first-secret-0123', 'postmark:second:secret'], (secret) => ({
      authorization: `Basic ${Buffer.from(secret).toString('base64')}`,
    })),
  },
  {
    name: 'googlePubsub',
    make: (serviceAccount, tolerance) =>
      providers.googlePubsub({
        serviceAccount,
        audience: PUBSUB_AUDIENCE,
        fetch: certificateHost({ [GOOGLE_KEYS]: JSON.stringify({ keys: [googleKey.jwk] }) }).fetch,
        ...tolerant(tolerance),
      }),
    parties: parties(['push@one.example', 'push@two.example'], (email, _body, at) => ({
      authorization: `Bearer ${token(googleKey, pubsubClaims(email, at))}`,
    })),
    body: json({
      subscription: 'projects/p/subscriptions/s',
      message: { messageId: '136969346945', data: 'SGVsbG8=', orderingKey: 'o-1' },
    }),
    event: {
      eventId: 'projects/p/subscriptions/s:136969346945',
      type: null,
      object: 'o-1',
    },
    header: 'authorization',
    windowMs: 60 * MINUTE,
    nameless: { body: json({ subscription: 's', message: {} }) },
    leavesBodyUnsigned: true,
  },
  {
    name: 'plaid',
    make: (secret, tolerance) =>
      providers.plaid({ clientId: 'c-1', secret, fetch: plaidApi, ...tolerant(tolerance) }),
    parties: parties(SECRETS, (secret, body, at) => ({
      'plaid-verification': plaidToken(secret, body, at),
    })),
    body: json({ webhook_type: 'ITEM', webhook_code: 'ERROR', item_id: 'i-1' }),
    event: { eventId: null, type: 'ITEM.ERROR', object: 'i-1' },
    header: 'plaid-verification',
    windowMs: 5 * MINUTE,
    nameless: {},
  },
  {
    name: 'microsoftGraph',
    make: (clientState) => providers.microsoftGraph({ clientState }),
    parties: [graphParty(SECRETS[0]), graphParty(SECRETS[1])],
    body: JSON.stringify({ value: [notification({})] }),
    event: { eventId: null, type: 'updated', object: 'users/u-1/messages/m-1' },
    header: null,
    windowMs: null,
    nameless: {},
    leavesBodyUnsigned: true,
    readsBody: true,
    batch: {
      body: JSON.stringify({
        value: [
          notification({ changeType: 'created' }),
          notification({ changeType: undefined, resource: undefined, lifecycleEvent: 'missed' }),
        ],
      }),
      events: [
        { eventId: null, type: 'created', object: 'users/u-1/messages/m-1' },
        { eventId: null, type: 'missed', object: 's-1' },
      ],
    },
  },
  {
    ...gridCase,
    name: 'azureEventGrid',
    make: (audience) =>
      providers.azureEventGrid({
        audience,
        directory: ENTRA,
        fetch: certificateHost({ [ENTRA_KEYS]: JSON.stringify({ keys: [entraKey.jwk] }) }).fetch,
      }),
    parties: parties(['api://webhooks-one', 'api://webhooks-two'], (audience, _body, at) => ({
      authorization: `Bearer ${token(entraKey, entraClaims(audience, at))}`,
    })),
    header: 'authorization',
  },
  {
    ...gridCase,
    name: 'azureEventGrid with a key in a header',
    make: (key) => providers.azureEventGrid({ key, header: 'X-Key' }),
    parties: parties(SECRETS, (secret) => ({ 'x-key': secret })),
    header: 'x-key',
  },
  {
    ...gridCase,
    name: 'azureEventGrid with a key in the address',
    make: (key) => providers.azureEventGrid({ key }),
    parties: SECRETS.map((secret) => ({
      secret,
      sign: (body: string) => ({
        headers: {},
        url: `/hooks?code=${encodeURIComponent(secret)}`,
        body: Buffer.from(body),
      }),
    })) as unknown as readonly [Party, Party],
    header: null,
  },
]
