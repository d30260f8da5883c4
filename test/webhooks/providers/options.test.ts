import t from 'tap'
import { defineProvider, type Provider } from '../../../src/webhooks/provider.js'
import * as providers from '../../../src/webhooks/providers/index.js'
import { verify } from '../../../src/webhooks/verify.js'

const OWN: providers.HmacOptions = {
  name: 'my-bank',
  secret: 'secret-of-the-bank',
  header: 'X-Signature',
  eventId: (payload) => payload.id,
}
const github = providers.github({ secret: 's' })
const WITH_URL = {
  twilio: (url: unknown) => providers.twilio({ authToken: 's', url: url as string }),
  square: (url: unknown) => providers.square({ signatureKey: 's', url: url as string }),
  hubspot: (url: unknown) => providers.hubspot({ secret: 's', url: url as string }),
}

/** Each wrong option, and what its error says to write instead. */
const wrong: readonly [title: string, make: () => Provider, message: RegExp][] = [
  ['no name', () => providers.hmac({ ...OWN, name: '' }), /"name" of hmac must be 1 to 64/],
  ['a long name', () => providers.hmac({ ...OWN, name: 'a'.repeat(65) }), /1 to 64 letters/],
  [
    'no header',
    () => providers.hmac({ ...OWN, header: '' }),
    /"header" of my-bank must name a header, such as 'x-signature'/,
  ],
  [
    'another hash',
    () => providers.hmac({ ...OWN, hash: 'md5' as 'sha1' }),
    /must be 'sha1' or 'sha256' or 'sha512'/,
  ],
  [
    'another encoding',
    () => providers.hmac({ ...OWN, encoding: 'utf8' as 'hex' }),
    /must be 'hex' or 'base64'/,
  ],
  [
    'another unit',
    () => providers.hmac({ ...OWN, timestampHeader: 'x-time', timestampUnit: 'min' as 's' }),
    /"timestampUnit" of my-bank must be 's' or 'ms' or 'rfc3339'/,
  ],
  ['an empty separator', () => providers.hmac({ ...OWN, separator: '' }), /at least one character/],
  [
    'no eventId',
    () => providers.hmac({ ...OWN, eventId: 'id' as never }),
    /such as \(payload\) =>/,
  ],
  ['a tolerance of no time', () => providers.hmac({ ...OWN, tolerance: '5m' }), /timestampHeader/],
  [
    'text that is no base64',
    () => providers.standardWebhooks({ secret: 'whsec_%' }),
    /'whsec_' and base64/,
  ],
  [
    'an empty key',
    () => providers.standardWebhooks({ secret: 'whsec_' }),
    /"secret" of standard-webhooks/,
  ],
  [
    'a key that is no hexadecimal',
    () => providers.adyen({ hmacKey: 'xyz' }),
    /"hmacKey" of adyen must be the hex/,
  ],
  [
    'a short key',
    () => providers.discord({ publicKey: 'ab' }),
    /"publicKey" of discord must be 64 hex/,
  ],
  [
    'bytes for a public key',
    () => providers.discord({ publicKey: new Uint8Array(32) }),
    /must be text, 64/,
  ],
  [
    'no public key',
    () => providers.sendgrid({ publicKey: 'AAAA' }),
    /"publicKey" of sendgrid must be the ver/,
  ],
  [
    'no ARN',
    () => providers.awsSns({ topicArn: 'orders' }),
    /"topicArn" of aws-sns must be the topic's ARN/,
  ],
  [
    'no webhook id',
    () => providers.paypal({ webhookId: '' }),
    /"webhookId" of paypal is missing or empty/,
  ],
  [
    'a secret that holds nothing',
    () =>
      defineProvider({ ...github, scheme: { ...github.scheme, toKey: () => new Uint8Array() } }),
    /"secret" of github holds an empty key/,
  ],
  [
    'no auth token',
    () => providers.twilio({ authToken: '', url: 'https://a.example' }),
    /"authToken" of twilio/,
  ],
  ...(['twilio', 'square', 'hubspot'] as const).flatMap((name) =>
    [
      '',
      undefined,
      '/webhooks',
      'example.com',
      'ftp://example.com',
      'https://',
      'https://a.example/#x',
    ].map((url): (typeof wrong)[number] => [
      `the url ${url} of ${name}`,
      () => WITH_URL[name](url),
      new RegExp(`"url" of ${name} must be the address that ${name} sends to, such as 'https://`),
    ]),
  ),
  ...(['twilio', 'hubspot'] as const).map((name): (typeof wrong)[number] => [
    `a query in the url of ${name}`,
    () => WITH_URL[name]('https://a.example/?a=1'),
    /must end before the "\?"/,
  ]),
]

for (const [title, make, message] of wrong) {
  t.test(`${title} is refused, and the error says what to write`, async (t) => {
    t.throws(make, { code: 'IDEMPOTENCY_OPTION_INVALID', message })
  })
}

/** Each provider, with what it needs. */
const URL = 'https://a.example/webhooks'
const ED25519 = '00'.repeat(32)
const EC =
  'MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaINXvVpiglSI8eNEc6wEA3F+g=='
const NEEDED: Record<string, object> = {
  adyen: { hmacKey: '00' },
  awsSns: { topicArn: 'arn:aws:sns:eu-central-1:123456789012:orders' },
  azureEventGrid: { key: 's' },
  basicAuth: { name: 'my-bank', secret: 'user:password', eventId: OWN.eventId },
  discord: { publicKey: ED25519 },
  googlePubsub: { serviceAccount: 'push@a.example', audience: URL },
  hmac: OWN,
  hubspot: { secret: 's', url: URL },
  mailgun: { signingKey: 's' },
  meta: { secret: 's', verifyToken: 's' },
  microsoftGraph: { clientState: 's' },
  paypal: { webhookId: 's' },
  plaid: { clientId: 's', secret: 's' },
  postmark: { secret: 'user:password' },
  sendgrid: { publicKey: EC },
  sharedSecret: OWN,
  square: { signatureKey: 's', url: URL },
  telegram: { secretToken: 's' },
  twilio: { authToken: 's', url: URL },
}
const BASE64 = ['standardWebhooks', 'svix', 'clerk', 'resend', 'openai', 'supabase']

for (const [name, value] of Object.entries(providers)) {
  const make = value as (options: unknown) => Provider
  const needed = NEEDED[name] ?? { secret: BASE64.includes(name) ? 'whsec_AAAA' : 's' }

  t.test(`${name}: no option is ignored`, async (t) => {
    const code = 'IDEMPOTENCY_OPTION_INVALID'
    t.ok(make(needed))
    t.throws(() => make({ ...needed, other: 1 }), { code, message: /"other" of .* is not known/ })
    const [first = ''] = Object.keys(needed)
    const misspelled = { ...needed, [`${first}x`]: 's' }
    t.throws(() => make(misspelled), { code, message: new RegExp(`did you mean "${first}"`) })
    for (const nothing of [undefined, null, 's']) {
      t.throws(() => make(nothing), { code, message: /needs an object with its options, such as/ })
    }
    const withHeader = name === 'hmac' ? { timestampHeader: 'x-time' } : {}
    for (const tolerance of ['5 minutes', -1, 0, 300, Number.NaN]) {
      const options = { ...needed, ...withHeader, tolerance }
      t.throws(() => make(options), { code, message: /"tolerance" of / }, String(tolerance))
    }
  })
}

t.test('a copy of a provider with a misspelled change is refused', async (t) => {
  const changed = { ...github, redeliver: true } as unknown as Provider
  const message = /"redeliver" of github is not known; did you mean "redelivers"/
  await t.rejects(verify(changed, {}, ''), { message })
  t.throws(() => defineProvider(changed), { message })
})

t.test('a public key is read as it is shown, and as PEM', async (t) => {
  const pem = `-----BEGIN PUBLIC KEY-----\n${EC}\n-----END PUBLIC KEY-----`
  for (const publicKey of [EC, pem, [EC, pem]]) t.ok(providers.sendgrid({ publicKey }))
})

t.test('bytes are a key as they are', async (t) => {
  const secret = Buffer.from('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'base64')
  const headers = {
    'webhook-id': 'msg_p5jXN8AQM9LWM0D4loKWxJek',
    'webhook-timestamp': '1614265330',
    'webhook-signature': 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=',
  }
  const at = 1_614_265_330_000
  const result = await verify(
    providers.standardWebhooks({ secret }),
    headers,
    '{"test": 2432232314}',
    { at },
  )
  t.equal(result.kind, 'verified')
})
