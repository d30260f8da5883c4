// Our answer and that of the library which the provider publishes, for the same request.
//
// | provider          | compared with                       | where they differ, and why                      |
// | ----------------- | ----------------------------------- | ----------------------------------------------- |
// | Standard Webhooks | standardwebhooks                    | it takes "<time>junk" for a time; it decodes    |
// |                   |                                     | the body, so that several bodies have one       |
// |                   |                                     | signature; it wants JSON, we say "unreadable"   |
// | Svix              | svix                                | the same, of which it makes use                 |
// | Stripe            | stripe 21 (22 is twice the size)    | it takes any time in the future, and decodes    |
// | GitHub            | @octokit/webhooks-methods           | –                                               |
// | Paddle            | @paddle/paddle-node-sdk             | it takes any time in the future, and one of two |
// |                   |                                     | signatures only: the last; its window is 5 s    |
// | Linear            | @linear/sdk                         | it throws for bodies that are no JSON           |
// | Discord           | discord-interactions                | it reads other characters in a signature as 0,  |
// |                   |                                     | and looks at no time                            |
// | SendGrid          | @sendgrid/eventwebhook              | it decodes the body, and passes over what is no |
// |                   |                                     | base64; its verifier is in JavaScript and slow, |
// |                   |                                     | so it is asked less often                       |
// | Amazon SNS        | sns-payload-validator               | it knows no topic, and fetches without a limit  |
//
// Too large to be installed for a test (20 to 80 MB with what they depend on), and compared once by
// hand, with 500 to 5,000 random requests each and no difference: twilio 6.2 (forms and JSON),
// @adyen/api-library 32.1, square 46.0, @hubspot/api-client 14.0, @slack/bolt 5.1, openai 7.57 and
// @polar-sh/sdk. twilio also accepts an address whose query it has decoded and encoded anew; ours takes the
// query as it was sent. Too large as well, and not compared: @shopify/shopify-api. resend and
// @clerk/backend hand the request to standardwebhooks. PayPal, Mailgun, Paystack, Flutterwave, Zoom,
// Intercom, Twitch, Zendesk and Meta publish none for Node that verifies without their servers.
import { createHmac, generateKeyPairSync, sign as signWithKey } from 'node:crypto'
import https from 'node:https'
import { PassThrough } from 'node:stream'
import { LinearWebhookClient } from '@linear/sdk/webhooks'
import { verify as verifyGithub } from '@octokit/webhooks-methods'
import { Paddle } from '@paddle/paddle-node-sdk'
import { EventWebhook } from '@sendgrid/eventwebhook'
import { verifyKey } from 'discord-interactions'
import fc from 'fast-check'
import SnsValidator from 'sns-payload-validator'
import { Webhook } from 'standardwebhooks'
import Stripe from 'stripe'
import { Webhook as SvixWebhook } from 'svix'
import t from 'tap'
import type { Provider } from '../../../src/webhooks/provider.js'
import {
  awsSns,
  discord,
  github,
  linear,
  paddle,
  sendgrid,
  standardWebhooks,
  stripe,
  svix,
} from '../../../src/webhooks/providers/index.js'
import { verify } from '../../../src/webhooks/verify.js'
import { certificateHost, certificates, SNS_CERT, snsBody } from './cases.js'

const RUNS = { seed: 20_270_115, numRuns: 400 }
const SECRET = 'a-secret-of-some-length'
const WHSEC = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'

interface Request {
  readonly headers: Record<string, string>
  readonly body: string
}

/** What was done to a genuine request on its way. */
const tampering = fc.record({
  body: fc.oneof(
    { weight: 3, arbitrary: fc.constant('as it was') },
    { weight: 1, arbitrary: fc.constantFrom('a byte more', 'another byte') },
  ),
  header: fc.oneof(
    { weight: 4, arbitrary: fc.constant('as it was') },
    {
      weight: 1,
      arbitrary: fc.constantFrom('removed', 'empty', 'cut', 'another character', 'upper case'),
    },
  ),
  which: fc.nat(5),
  place: fc.nat(400),
  // Seconds away from the clock, not so near to the edge that two clocks differ.
  away: fc.oneof(
    { weight: 3, arbitrary: fc.integer({ min: -3, max: 0 }) },
    {
      weight: 1,
      arbitrary: fc.constantFrom(-20, -57, -63, -290, -310, -90_000, 20, 57, 63, 290, 310, 90_000),
    },
  ),
  isOwnKey: fc.oneof(
    { weight: 5, arbitrary: fc.constant(true) },
    { weight: 1, arbitrary: fc.constant(false) },
  ),
})
type Tampering = typeof tampering extends fc.Arbitrary<infer T> ? T : never

const json = fc.jsonValue({ maxDepth: 2 }).map((data) => JSON.stringify({ id: 'e-1', data }))

function tamper({ headers, body }: Request, how: Tampering): Request {
  const names = Object.keys(headers)
  const name = names[how.which % names.length]
  const at = how.place % Math.max(1, body.length)
  const changed =
    how.body === 'a byte more'
      ? `${body} `
      : how.body === 'another byte'
        ? `${body.slice(0, at)}~${body.slice(at + 1)}`
        : body
  if (name === undefined || how.header === 'as it was') return { headers, body: changed }
  const value = headers[name] as string
  const point = how.place % Math.max(1, value.length)
  const values: Record<string, string> = {
    empty: '',
    cut: value.slice(0, point),
    'another character': `${value.slice(0, point)}~${value.slice(point + 1)}`,
    'upper case': value.toUpperCase(),
  }
  const { [name]: _removed, ...others } = headers
  const given = values[how.header]
  return { headers: given === undefined ? others : { ...headers, [name]: given }, body: changed }
}

const hex = (key: string | Buffer, text: string) =>
  createHmac('sha256', key).update(text).digest('hex')
const nowS = () => Math.floor(Date.now() / 1_000)
const isGenuine = async (provider: Provider, { headers, body }: Request) => {
  const { kind } = await verify(provider, headers, body)
  return kind === 'verified' || kind === 'unreadable' || kind === 'handshake'
}
const holds = async (call: () => unknown) => {
  try {
    return (await call()) !== false
  } catch {
    return false
  }
}

interface Comparison {
  readonly title: string
  readonly provider: Provider
  readonly sign: (body: string, atS: number, isOwnKey: boolean) => Request
  readonly library: (request: Request) => unknown
  /** Differences that are named in the table; they are asked for one by one below. */
  readonly differs?: (request: Request, how: Tampering) => boolean
  readonly runs?: number
}

const standardHeaders = (prefix: string) => (body: string, atS: number, isOwnKey: boolean) => {
  const key = Buffer.from(isOwnKey ? WHSEC.slice(6) : 'AAAA', 'base64')
  const signature = createHmac('sha256', key).update(`msg_1.${atS}.${body}`).digest('base64')
  const headers = {
    [`${prefix}-id`]: 'msg_1',
    [`${prefix}-timestamp`]: String(atS),
    [`${prefix}-signature`]: `v1,${signature}`,
  }
  return { headers, body }
}
/** "<time>~", which the libraries read as far as it is a number. */
const hasOddTime = ({ headers }: Request, prefix: string) =>
  /^\d+\D/.test(headers[`${prefix}-timestamp`] ?? '')

const paddleLibrary = new Paddle('x')
const stripeLibrary = new Stripe('sk_test_x')
const keyOf = (isOwnKey: boolean) => (isOwnKey ? SECRET : 'another-secret')

const discordKey = generateKeyPairSync('ed25519')
const otherKey = generateKeyPairSync('ed25519')
const discordPublicKey = discordKey.publicKey
  .export({ format: 'der', type: 'spki' })
  .subarray(-32)
  .toString('hex')

const sendgridKey = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const otherEcKey = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const sendgridPublicKey = sendgridKey.publicKey
  .export({ format: 'der', type: 'spki' })
  .toString('base64')
const SG = 'x-twilio-email-event-webhook'

const comparisons: readonly Comparison[] = [
  {
    title: 'standardwebhooks',
    provider: standardWebhooks({ secret: WHSEC }),
    sign: standardHeaders('webhook'),
    library: ({ headers, body }) => new Webhook(WHSEC).verify(body, headers, { jsonParse: false }),
    differs: (request) => hasOddTime(request, 'webhook'),
  },
  {
    title: 'svix',
    provider: svix({ secret: WHSEC }),
    sign: standardHeaders('svix'),
    library: ({ headers, body }) => new SvixWebhook(WHSEC).verify(body, headers),
    // It parses what it has verified.
    differs: (request) => hasOddTime(request, 'svix') || !isJson(request.body),
  },
  {
    title: 'stripe',
    provider: stripe({ secret: SECRET }),
    sign: (body, atS, isOwnKey) => {
      const signature = hex(keyOf(isOwnKey), `${atS}.${body}`)
      return { headers: { 'stripe-signature': `t=${atS},v1=${signature}` }, body }
    },
    library: ({ headers, body }) =>
      stripeLibrary.webhooks.signature.verifyHeader(
        body,
        headers['stripe-signature'] ?? '',
        SECRET,
        300,
      ),
    differs: (_request, { away }) => away > 0,
  },
  {
    title: '@octokit/webhooks-methods',
    provider: github({ secret: SECRET }),
    sign: (body, _atS, isOwnKey) => ({
      headers: { 'x-hub-signature-256': `sha256=${hex(keyOf(isOwnKey), body)}` },
      body,
    }),
    library: ({ headers, body }) =>
      verifyGithub(SECRET, body, headers['x-hub-signature-256'] ?? ''),
    // Ours reads hexadecimal in any case: no other signature is meant by it.
    differs: (_request, { header }) => header === 'upper case',
  },
  {
    title: '@paddle/paddle-node-sdk',
    provider: paddle({ secret: SECRET, tolerance: '5s' }),
    sign: (body, atS, isOwnKey) => {
      const signature = hex(keyOf(isOwnKey), `${atS}:${body}`)
      return { headers: { 'paddle-signature': `ts=${atS};h1=${signature}` }, body }
    },
    library: ({ headers, body }) =>
      paddleLibrary.webhooks.isSignatureValid(body, SECRET, headers['paddle-signature'] ?? ''),
    differs: (request, { away }) =>
      away > 0 || /ts=\d+[^\d;]/.test(request.headers['paddle-signature'] ?? ''),
  },
  {
    title: '@linear/sdk',
    provider: linear({ secret: SECRET }),
    sign: (body, atS, isOwnKey) => {
      const text = body.replace('{', `{"webhookTimestamp":${atS * 1_000},`)
      return { headers: { 'linear-signature': hex(keyOf(isOwnKey), text) }, body: text }
    },
    library: ({ headers, body }) =>
      new LinearWebhookClient(SECRET).verify(Buffer.from(body), headers['linear-signature'] ?? ''),
    differs: (_request, { header }) => header === 'upper case',
  },
  {
    title: 'discord-interactions',
    provider: discord({ publicKey: discordPublicKey, tolerance: '365d' }),
    sign: (body, atS, isOwnKey) => {
      const { privateKey } = isOwnKey ? discordKey : otherKey
      const signature = signWithKey(null, Buffer.from(`${atS}${body}`), privateKey).toString('hex')
      const headers = { 'x-signature-ed25519': signature, 'x-signature-timestamp': String(atS) }
      return { headers, body }
    },
    library: ({ headers, body }) =>
      verifyKey(
        body,
        headers['x-signature-ed25519'] ?? '',
        headers['x-signature-timestamp'] ?? '',
        discordPublicKey,
      ),
    // It takes what is no number for a zero, which may be what stood there.
    differs: ({ headers }) => /[^\da-f]/i.test(headers['x-signature-ed25519'] ?? ''),
  },
  {
    title: '@sendgrid/eventwebhook',
    provider: sendgrid({ publicKey: sendgridPublicKey }),
    sign: (body, atS, isOwnKey) => {
      const { privateKey } = isOwnKey ? sendgridKey : otherEcKey
      const signature = signWithKey('sha256', Buffer.from(`${atS}${body}`), privateKey)
      return {
        headers: {
          [`${SG}-signature`]: signature.toString('base64'),
          [`${SG}-timestamp`]: String(atS),
        },
        body,
      }
    },
    library: ({ headers, body }) => {
      const library = new EventWebhook()
      const key = library.convertPublicKeyToECDSA(sendgridPublicKey)
      const signature = headers[`${SG}-signature`] ?? ''
      return library.verifySignature(key, body, signature, headers[`${SG}-timestamp`] ?? '')
    },
    // It passes over what is no base64, and needs no padding.
    differs: ({ headers }) => {
      const signature = headers[`${SG}-signature`] ?? ''
      return signature.length % 4 !== 0 || signature.includes('~')
    },
    runs: 60,
  },
]

function isJson(text: string): boolean {
  try {
    return JSON.parse(text) !== undefined
  } catch {
    return false
  }
}

for (const { title, provider, sign, library, differs, runs } of comparisons) {
  t.test(`we answer like ${title}`, async (t) => {
    const told = { genuine: 0, refused: 0 }
    const property = fc.asyncProperty(json, tampering, async (body, how) => {
      const request = tamper(sign(body, nowS() + how.away, how.isOwnKey), how)
      if (differs?.(request, how)) return
      const expected = await holds(() => library(request))
      told[expected ? 'genuine' : 'refused']++
      const answered = await isGenuine(provider, request)
      if (answered !== expected) {
        throw new Error(`${title} says ${expected}: ${JSON.stringify({ request, how })}`)
      }
    })
    await fc.assert(property, { ...RUNS, ...(runs && { numRuns: runs }) })
    t.ok(told.genuine > 5 && told.refused > 5, `${told.genuine} genuine, ${told.refused} not`)
  })
}

t.test('we answer like sns-payload-validator, to messages of one topic', async (t) => {
  const ARN = 'arn:aws:sns:eu-central-1:123456789012:orders'
  const { fetch } = certificateHost({ [SNS_CERT]: certificates.sns.certificate })
  const provider = awsSns({ topicArn: ARN, fetch })
  const library = new SnsValidator()
  const get = https.get
  t.teardown(() => {
    https.get = get
  })
  // It can be given no other way of fetching.
  https.get = ((_url: string, _options: object, answer: (response: PassThrough) => void) => {
    const response = new PassThrough()
    answer(response)
    response.end(certificates.sns.certificate)
    return response
  }) as unknown as typeof get
  const told = { genuine: 0, refused: 0 }
  const names = [
    'Message',
    'MessageId',
    'Subject',
    'Timestamp',
    'Type',
    'Signature',
    'SignatureVersion',
    'UnsubscribeURL',
  ]
  const change = fc.option(fc.record({ name: fc.constantFrom(...names), value: fc.string() }))
  const property = fc.asyncProperty(
    fc.string(),
    fc.option(fc.string(), { nil: undefined }),
    fc.constantFrom('1', '2'),
    change,
    async (Message, Subject, version, changed) => {
      const of = {
        Type: 'Notification',
        MessageId: 'm-1',
        Message,
        ...(Subject !== undefined && { Subject }),
      }
      const message = JSON.parse(snsBody(ARN, of, version))
      if (changed !== null) message[changed.name] = changed.value
      const expected = await holds(() => library.validate({ ...message }))
      told[expected ? 'genuine' : 'refused']++
      const answered = await isGenuine(provider, { headers: {}, body: JSON.stringify(message) })
      if (answered !== expected) throw new Error(`it says ${expected}: ${JSON.stringify(message)}`)
    },
  )
  await fc.assert(property, RUNS)
  t.ok(told.genuine > 5 && told.refused > 5)
})

// The differences that the table names, each with a request that shows it.

t.test('a time in the future is refused, unlike by stripe and Paddle', async (t) => {
  for (const { title, provider, sign, library } of comparisons) {
    if (title !== 'stripe' && title !== '@paddle/paddle-node-sdk') continue
    const request = sign('{}', nowS() + 3_600, true)
    t.ok(await holds(() => library(request)), `${title} takes it`)
    t.match(await verify(provider, request.headers, request.body), { reason: 'from_future' })
  }
})

t.test('"<time>junk" is no time, unlike to standardwebhooks and svix', async (t) => {
  for (const { title, provider, sign, library } of comparisons.slice(0, 2)) {
    const request = sign('{}', nowS(), true)
    const name = Object.keys(request.headers)[1] as string
    const odd = {
      ...request,
      headers: { ...request.headers, [name]: `${request.headers[name]}junk` },
    }
    t.ok(await holds(() => library(odd)), `${title} takes it`)
    t.match(await verify(provider, odd.headers, odd.body), { reason: 'malformed' })
  }
})

t.test('bytes are signed, not what they decode to, unlike with standardwebhooks', async (t) => {
  const { headers } = standardHeaders('webhook')('"\ufffd"', nowS(), true)
  const bytes = Buffer.from([0x22, 0xff, 0x22])
  t.ok(await holds(() => new Webhook(WHSEC).verify(bytes, headers)), 'it takes them')
  t.match(await verify(standardWebhooks({ secret: WHSEC }), headers, bytes), { reason: 'no_match' })
})

t.test('one good signature of several is enough for Paddle, unlike to its library', async (t) => {
  const good = comparisons[4] as Comparison
  const { headers, body } = good.sign('{}', nowS(), true)
  const both = { 'paddle-signature': `${headers['paddle-signature']};h1=${'0'.repeat(64)}` }
  t.ok(await holds(() => good.library({ headers, body })))
  t.notOk(await holds(() => good.library({ headers: both, body })))
  t.equal((await verify(good.provider, both, body)).kind, 'verified')
})

t.test('a signature that is not written as one is refused, unlike by two libraries', async (t) => {
  const of = (wanted: string) => comparisons.find(({ title }) => title === wanted) as Comparison
  const discords = of('discord-interactions')
  let atS = nowS()
  let request = discords.sign('{}', atS, true)
  const zero = /^(?:..)*?(?=00)/
  const SIGNATURE = 'x-signature-ed25519'
  while (!zero.test(request.headers[SIGNATURE] as string)) {
    atS -= 1
    request = discords.sign('{}', atS, true)
  }
  const signature = request.headers[SIGNATURE] as string
  const at = zero.exec(signature)?.[0].length as number
  const odd = `${signature.slice(0, at)}~${signature.slice(at + 1)}`
  const headers = { ...request.headers, [SIGNATURE]: odd }
  t.ok(await holds(() => discords.library({ headers, body: '{}' })), 'a zero that is none')
  t.match(await verify(discords.provider, headers, '{}'), { kind: 'refused' })
  t.equal((await verify(discords.provider, request.headers, '{}')).kind, 'verified')

  const sendgrids = of('@sendgrid/eventwebhook')
  let padded = sendgrids.sign('{}', nowS(), true)
  const PADDED = `${SG}-signature`
  while (!padded.headers[PADDED]?.endsWith('=')) padded = sendgrids.sign('{}', nowS(), true)
  const bare = { ...padded.headers, [PADDED]: padded.headers[PADDED].replace(/=+$/, '') }
  t.ok(await holds(() => sendgrids.library({ headers: bare, body: '{}' })), 'without its padding')
  t.match(await verify(sendgrids.provider, bare, '{}'), { kind: 'refused' })
})

t.test("somebody else's topic is refused, unlike by sns-payload-validator", async (t) => {
  const { fetch } = certificateHost({ [SNS_CERT]: certificates.sns.certificate })
  const provider = awsSns({ topicArn: 'arn:aws:sns:eu-central-1:123456789012:orders', fetch })
  const body = snsBody('arn:aws:sns:eu-central-1:999999999999:x', {
    Type: 'Notification',
    MessageId: 'm',
    Message: '',
  })
  t.match(await verify(provider, {}, body), { reason: 'no_match' })
})
