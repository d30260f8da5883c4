import { sign } from 'node:crypto'
import t from 'tap'
import { awsSns, type Fetch, paypal } from '../../../src/webhooks/providers/index.js'
import { ask, NOW } from '../../contracts/provider.js'
import {
  certificateHost,
  certificates,
  PAYPAL_CERT,
  paypalHeaders,
  SNS_CERT,
  SUBSCRIBE,
  snsBody,
} from './cases.js'

const ID = '0EH40505U7160970P'
const ARN = 'arn:aws:sns:eu-central-1:123456789012:orders'
const BODY = '{"id":"WH-1"}'

/** Asks with a certificate at an address, both of which may be wrong. */
function ofPaypal(
  pem: string,
  { url = PAYPAL_CERT, key = certificates.paypal.key, at = NOW } = {},
) {
  const host = certificateHost({ [url]: pem })
  const headers = { ...paypalHeaders(ID, BODY, { key, at }), 'paypal-cert-url': url }
  const provider = paypal({ webhookId: ID, fetch: host.fetch })
  return { ...host, result: ask(provider, { headers, body: Buffer.from(BODY) }, { at }) }
}

const GOOD = certificates.paypal.certificate

t.test('a certificate is only fetched from PayPal', async (t) => {
  const path = '/v1/notifications/certs/CERT-1'
  for (const host of ['api.paypal.com', 'api.sandbox.paypal.com', 'api-m.paypal.com']) {
    const url = `https://${host}${path}`
    t.equal((await ofPaypal(GOOD, { url }).result).kind, 'verified', url)
  }
  for (const url of [
    `http://api.paypal.com${path}`,
    `https://api.paypal.com.evil.example${path}`,
    `https://evil-api.paypal.com${path}`,
    `https://evilpaypal.com${path}`,
    `https://paypal.com${path}`,
    `https://evil.example/https://api.paypal.com${path}`,
    `https://evil.example#api.paypal.com${path}`,
    `https://evil.example\\@api.paypal.com${path}`,
    `https://api.paypal.com@evil.example${path}`,
    `https://user@api.paypal.com${path}`,
    `https://api.paypal.com:8443${path}`,
    `https://api.paypal.com${path}?next=https://evil.example`,
    `https://api.paypal.com${path}#x`,
    `https://api.paypal.com${path}/../../../../redirect`,
    'https://api.paypal.com/v1/notifications/certs/',
    'https://api.paypal.com/redirect?to=https://evil.example',
    `//api.paypal.com${path}`,
    'file:///etc/passwd',
    'data:text/plain,x',
    'junk',
  ]) {
    const { result, visited } = ofPaypal(GOOD, { url })
    t.match(await result, { kind: 'refused', reason: 'no_match' }, url)
    t.same(visited, [], 'and nobody was asked')
  }
})

t.test(
  'a certificate must be valid, for signing, and issued by those that come with it',
  async (t) => {
    const { ca, otherCa, stranger, suffix, paypal: own } = certificates
    const kind = async (asked: { result: ReturnType<typeof ask> }) => (await asked.result).kind
    t.equal(await kind(ofPaypal(`${GOOD}\n${ca}`)), 'verified')
    t.equal(await kind(ofPaypal(`${GOOD}\n${otherCa}`)), 'refused', 'issued by another')
    t.equal(await kind(ofPaypal(`${GOOD}\n${stranger.certificate}`)), 'refused', 'issued by none')
    t.equal(await kind(ofPaypal(`${ca}\n${GOOD}`)), 'refused', 'the wrong way round')
    t.equal(await kind(ofPaypal(stranger.certificate, { key: stranger.key })), 'refused')
    t.equal(await kind(ofPaypal(suffix.certificate, { key: suffix.key })), 'refused')
    t.equal(await kind(ofPaypal(own.certificate, { key: stranger.key })), 'refused')
    t.equal(await kind(ofPaypal(GOOD, { at: Date.UTC(2019, 0) })), 'refused', 'not yet')
    t.equal(await kind(ofPaypal(GOOD, { at: Date.UTC(2121, 0) })), 'refused', 'no longer')
    for (const junk of [
      '',
      'junk',
      '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----',
    ]) {
      t.equal(await kind(ofPaypal(junk)), 'refused')
    }
  },
)

const SENT = { headers: paypalHeaders(ID, BODY), body: Buffer.from(BODY) }

t.test('a certificate is fetched once, also for requests that come together', async (t) => {
  const { fetch, visited } = certificateHost({ [PAYPAL_CERT]: GOOD })
  const provider = paypal({ webhookId: ID, fetch })
  const results = await Promise.all(Array.from({ length: 20 }, () => ask(provider, SENT)))
  t.ok(results.every(({ kind }) => kind === 'verified'))
  t.equal((await ask(provider, SENT)).kind, 'verified')
  t.same(visited, [PAYPAL_CERT])
})

t.test('a certificate that cannot be fetched now is no reason to refuse a request', async (t) => {
  let isDown = true
  const provider = paypal({
    webhookId: ID,
    fetch: async (_url, options) => {
      t.match(options, { redirect: 'error', signal: AbortSignal })
      if (isDown) throw new TypeError('fetch failed')
      return { ok: true, status: 200, text: async () => GOOD }
    },
  })
  await t.rejects(ask(provider, SENT), {
    name: 'CertificateUnreachable',
    message: 'the certificate cannot be fetched now',
    cause: { message: 'fetch failed' },
  })
  isDown = false
  t.equal((await ask(provider, SENT)).kind, 'verified', 'the failure is not remembered')
  for (const status of [500, 503, 429]) {
    const busy: Fetch = async () => ({ ok: false, status, text: async () => '' })
    await t.rejects(ask(paypal({ webhookId: ID, fetch: busy }), SENT), {
      message: /cannot be fetched now/,
    })
  }
  const gone: Fetch = async () => ({ ok: false, status: 404, text: async () => GOOD })
  t.match(await ask(paypal({ webhookId: ID, fetch: gone }), SENT), { kind: 'refused' })
})

t.test('addresses that somebody makes up start few fetches at a time', async (t) => {
  let underWay = 0
  let most = 0
  const provider = paypal({
    webhookId: ID,
    fetch: async () => {
      most = Math.max(most, ++underWay)
      await new Promise((resolve) => setImmediate(resolve))
      underWay--
      return { ok: true, status: 200, text: async () => GOOD }
    },
  })
  const results = await Promise.allSettled(
    Array.from({ length: 100 }, (_, n) =>
      ask(provider, {
        ...SENT,
        headers: { ...SENT.headers, 'paypal-cert-url': `${PAYPAL_CERT}${n}` },
      }),
    ),
  )
  t.equal(most, 8)
  t.equal(results.filter(({ status }) => status === 'rejected').length, 92)
})

t.test('an address where nothing was is not asked again for a while', async (t) => {
  const now = performance.now
  let aheadMs = 0
  performance.now = () => now.call(performance) + aheadMs
  t.teardown(() => {
    performance.now = now
  })
  for (const page of [
    { ok: false, status: 404, text: async () => GOOD },
    { ok: true, status: 200, text: async () => 'junk' },
  ]) {
    const visited: string[] = []
    let isThere = false
    const fetch: Fetch = async (url) => {
      visited.push(url)
      return isThere ? { ok: true, status: 200, text: async () => GOOD } : page
    }
    const provider = paypal({ webhookId: ID, fetch })
    const from = (n: number | '') => {
      const headers = { ...SENT.headers, 'paypal-cert-url': `${PAYPAL_CERT}${n}` }
      return ask(provider, { ...SENT, headers })
    }
    for (let turn = 0; turn < 20; turn += 1) {
      t.match(await from(''), { kind: 'refused', reason: 'no_match' })
    }
    t.equal(visited.length, 1)
    isThere = true
    aheadMs += 29_000
    t.equal((await from('')).kind, 'refused')
    aheadMs += 2_000
    t.equal((await from('')).kind, 'verified', 'it may have been put there since')
    t.equal(visited.length, 2)
    // Invented addresses are asked for 30 times in a minute, with the first one.
    isThere = false
    for (let n = 1; n < 30; n += 1) t.equal((await from(n)).kind, 'refused')
    await t.rejects(from(30), { name: 'CertificateUnreachable' })
    t.equal(visited.length, 31)
    t.equal((await from(29)).kind, 'refused', 'the last is remembered')
    t.equal((await from('')).kind, 'verified', 'and so is the one that was there')
    aheadMs += 61_000
    t.equal((await from(30)).kind, 'refused')
    t.equal(visited.length, 32)
  }
})

t.test('few certificates are kept', async (t) => {
  const visited: string[] = []
  const fetch: Fetch = async (url) => {
    visited.push(url)
    return { ok: true, status: 200, text: async () => GOOD }
  }
  const provider = paypal({ webhookId: ID, fetch })
  const from = (n: number) => {
    const headers = { ...SENT.headers, 'paypal-cert-url': `${PAYPAL_CERT}${n}` }
    return ask(provider, { ...SENT, headers })
  }
  for (let n = 0; n <= 16; n++) await from(n)
  await from(16)
  t.equal(visited.length, 17, 'the newest is kept')
  await from(0)
  t.equal(visited.length, 18, 'the oldest is not')
})

t.test('messages of both versions of SNS are verified, and of no other', async (t) => {
  const { fetch } = certificateHost({ [SNS_CERT]: certificates.sns.certificate })
  const provider = awsSns({ topicArn: ARN, fetch })
  const message = { Type: 'Notification', MessageId: 'm-1', Message: 'hello', Subject: 'A subject' }
  const send = (text: string) => ask(provider, { headers: {}, body: Buffer.from(text) })
  t.equal((await send(snsBody(ARN, message, '1'))).kind, 'verified')
  t.equal((await send(snsBody(ARN, message, '2'))).kind, 'verified')
  // The version is not signed. A signature of one is none of the other.
  const raised = snsBody(ARN, message, '1').replace(
    '"SignatureVersion":"1"',
    '"SignatureVersion":"2"',
  )
  t.equal((await send(raised)).kind, 'refused')
  t.equal((await send(snsBody(ARN, message, '3'))).kind, 'refused')
  for (const name of ['Message', 'MessageId', 'Subject', 'Timestamp', 'TopicArn', 'Type']) {
    const changed = { ...JSON.parse(snsBody(ARN, message)), [name]: 'another' }
    t.equal((await send(JSON.stringify(changed))).kind, 'refused', name)
  }
})

/** What SNS signs, and the message with its signature. */
function signedBySns(message: Record<string, string>, names: readonly string[]): string {
  const text = names.map((name) => `${name}\n${message[name]}\n`).join('')
  const Signature = sign('sha256', Buffer.from(text), certificates.sns.key).toString('base64')
  return Signature
}

const NOTIFIED = ['Message', 'MessageId', 'Timestamp', 'TopicArn', 'Type']
const SIGNED_BESIDE = { SignatureVersion: '2', SigningCertURL: SNS_CERT }

t.test('what SNS signed for another topic cannot be cut into a message of this one', async (t) => {
  const { fetch, visited } = certificateHost({ [SNS_CERT]: certificates.sns.certificate })
  const provider = awsSns({ topicArn: ARN, fetch })
  const wanted = { Message: 'paid', MessageId: 'chosen', SubscribeURL: 'x', Timestamp: 't' }
  const theirs = {
    Message: `paid\nMessageId\nchosen\nSubscribeURL\nx\nTimestamp\nt\nToken\nk\nTopicArn\n${ARN}\nType\nNotification `,
    MessageId: 'm-1',
    Timestamp: '2027-01-15T12:00:00.000Z',
    TopicArn: 'arn:aws:sns:eu-central-1:999999999999:theirs',
    Type: 'Notification',
  }
  const rest = NOTIFIED.slice(1).map((name) => `\n${name}\n${theirs[name as 'Type']}`)
  const Signature = signedBySns(theirs, NOTIFIED)
  const forged = { ...wanted, Token: 'k', TopicArn: ARN, Type: `Notification ${rest.join('')}` }
  for (const Type of [
    forged.Type,
    'SubscriptionConfirmation\n',
    'notification',
    'Notification ',
    'constructor',
    '',
    ['Notification'],
  ]) {
    const body = Buffer.from(JSON.stringify({ ...forged, Type, Signature, ...SIGNED_BESIDE }))
    const result = await ask(provider, { headers: {}, body })
    t.match(result, { kind: 'refused', reason: 'malformed' }, String(Type))
  }
  t.same(visited, [], 'and nothing is fetched for it')
})

t.test('a genuine message of the topic cannot be cut in another way', async (t) => {
  const { fetch } = certificateHost({ [SNS_CERT]: certificates.sns.certificate })
  const provider = awsSns({ topicArn: ARN, fetch })
  const send = (message: object, Signature: string) => {
    const body = Buffer.from(JSON.stringify({ ...message, Signature, ...SIGNED_BESIDE }))
    return ask(provider, { headers: {}, body })
  }
  const genuine = {
    Message: 'refund\nMessageId\nchosen\nSubject\nby a customer',
    MessageId: 'm-1',
    Timestamp: '2027-01-15T12:00:00.000Z',
    TopicArn: ARN,
    Type: 'Notification',
  }
  const Signature = signedBySns(genuine, NOTIFIED)
  t.equal((await send(genuine, Signature)).kind, 'verified', 'a message may have many lines')
  for (const cut of [
    { Message: 'refund', MessageId: 'chosen\nSubject\nby a customer\nMessageId\nm-1' },
    {
      Message: 'refund',
      MessageId: 'chosen',
      Subject: 'by a customer\nMessageId\nm-1',
    },
  ]) {
    const result = await send({ ...genuine, ...cut }, Signature)
    t.match(result, { kind: 'refused', reason: 'malformed' })
  }
  // What is no text would be left out of what was signed.
  for (const Subject of [{ amount: 1 }, ['x'], 7, true]) {
    t.equal((await send({ ...genuine, Subject }, Signature)).kind, 'refused')
  }
  t.equal((await send({ ...genuine, Subject: null }, Signature)).kind, 'verified')
  const without = { ...genuine, MessageId: '' }
  const ofNothing = signedBySns(without, NOTIFIED)
  for (const MessageId of [{}, null, undefined, 7]) {
    t.equal((await send({ ...without, MessageId }, ofNothing)).kind, 'refused')
  }
})

t.test("somebody else's topic is refused, though SNS signed it, and without a fetch", async (t) => {
  const { fetch, visited } = certificateHost({ [SNS_CERT]: certificates.sns.certificate })
  const theirs = snsBody('arn:aws:sns:eu-central-1:999999999999:theirs', {
    Type: 'Notification',
    MessageId: 'm-1',
    Message: '',
  })
  const result = await ask(awsSns({ topicArn: ARN, fetch }), {
    headers: {},
    body: Buffer.from(theirs),
  })
  t.match(result, { kind: 'refused', reason: 'no_match' })
  t.same(visited, [])
})

t.test('a certificate of SNS is only fetched from SNS', async (t) => {
  for (const url of [
    'http://sns.eu-central-1.amazonaws.com/a.pem',
    'https://sns.eu-central-1.amazonaws.com.evil.example/a.pem',
    'https://sns.eu-central-1.evil.amazonaws.com/a.pem',
    'https://sns.amazonaws.com/a.pem',
    'https://evil.sns.eu-central-1.amazonaws.com/a.pem',
    'https://sns.eu-central-1.amazonaws.com/a.pem?x=1',
    'https://sns.eu-central-1.amazonaws.com/?Action=Publish&Message=a.pem',
    'https://my-bucket.s3.amazonaws.com/a.pem',
  ]) {
    const { fetch, visited } = certificateHost({ [url]: certificates.sns.certificate })
    const text = snsBody(ARN, {
      Type: 'Notification',
      MessageId: 'm',
      Message: '',
      SigningCertURL: url,
    })
    const result = await ask(awsSns({ topicArn: ARN, fetch }), {
      headers: {},
      body: Buffer.from(text),
    })
    t.match(result, { kind: 'refused' }, url)
    t.same(visited, [])
  }
})

t.test('a subscription is confirmed at SNS, and nowhere else', async (t) => {
  const confirm = async (SubscribeURL: string, pages: Record<string, string>) => {
    const host = certificateHost({ [SNS_CERT]: certificates.sns.certificate, ...pages })
    const text = snsBody(ARN, {
      Type: 'SubscriptionConfirmation',
      MessageId: 'm',
      Message: '',
      Token: 't',
      SubscribeURL,
    })
    const result = await ask(awsSns({ topicArn: ARN, fetch: host.fetch }), {
      headers: {},
      body: Buffer.from(text),
    })
    return { result, visited: host.visited.filter((url) => url !== SNS_CERT) }
  }
  t.same(await confirm(SUBSCRIBE, { [SUBSCRIBE]: '' }), {
    result: { kind: 'handshake', answer: { status: 200 } },
    visited: [SUBSCRIBE],
  })
  t.match(await confirm(SUBSCRIBE, {}), { result: { answer: { status: 502 } } }, 'SNS asks again')
  for (const url of [
    SUBSCRIBE.replace('https', 'http'),
    SUBSCRIBE.replace('.com/', '.com.evil.example/'),
    SUBSCRIBE.replace('ConfirmSubscription', 'Publish'),
    SUBSCRIBE.replace('//', '//user:password@'),
    'http://169.254.169.254/latest/meta-data/?Action=ConfirmSubscription',
    'junk',
    '',
  ]) {
    const { result, visited } = await confirm(url, { [url]: '' })
    t.match(result, { kind: 'handshake', answer: { status: 400 } }, url)
    t.same(visited, [])
  }
})
