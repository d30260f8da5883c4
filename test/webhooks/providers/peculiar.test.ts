// What single providers do that nobody else does.
import { createHash, createHmac, generateKeyPairSync, sign as signWithKey } from 'node:crypto'
import t from 'tap'
import {
  adyen,
  discord,
  flutterwave,
  github,
  gitlab,
  linear,
  mailgun,
  meta,
  paystack,
  shopify,
  slack,
  standardWebhooks,
  svix,
  twilio,
  twitch,
  zendesk,
  zoom,
} from '../../../src/webhooks/providers/index.js'
import { verify } from '../../../src/webhooks/verify.js'
import { ask, NOW, type Sent } from '../../contracts/provider.js'
import { adyenItem, cases, TWILIO_URL } from './cases.js'

const caseOf = (name: string) => {
  const found = cases.find((of) => of.name === name)
  if (found === undefined) throw new Error(`no case is called ${name}`)
  return found
}

const FORM = { 'content-type': 'application/x-www-form-urlencoded' }
const KEY = '44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056'
const mac = (hash: string, key: string, text: string) => createHmac(hash, key).update(text)

const adyenBody = (...items: unknown[]): Sent => ({
  headers: {},
  body: Buffer.from(
    JSON.stringify({ notificationItems: items.map((item) => ({ NotificationRequestItem: item })) }),
  ),
})

t.test('one forged item makes all of an Adyen batch forged', async (t) => {
  const provider = adyen({ hmacKey: KEY })
  const [good, other] = [adyenItem(KEY), adyenItem(KEY, { eventCode: 'REFUND' })]
  t.match(await ask(provider, adyenBody(good, other)), { kind: 'verified', events: { length: 2 } })
  const forged = { ...other, amount: { value: 1, currency: 'EUR' } }
  for (const items of [
    [good, forged],
    [forged, good],
    [good, { ...other, additionalData: {} }],
  ]) {
    t.equal((await ask(provider, adyenBody(...items))).kind, 'refused')
  }
  t.match(await ask(provider, adyenBody()), { kind: 'refused', reason: 'malformed' })
  t.match(await ask(provider, adyenBody(good, null)), { kind: 'refused', reason: 'malformed' })
})

t.test('fields of an Adyen item that are no plain values are refused', async (t) => {
  const provider = adyen({ hmacKey: KEY })
  // Joined, ["order-SIGNED"] is the text that was signed.
  const item = { ...adyenItem(KEY), merchantReference: ['order-SIGNED'] }
  t.match(await ask(provider, adyenBody(item)), { kind: 'refused', reason: 'malformed' })
})

t.test('a stored item of Adyen can be verified again', async (t) => {
  const provider = adyen({ hmacKey: KEY })
  const result = await ask(provider, adyenBody(adyenItem(KEY), adyenItem(KEY)))
  if (result.kind !== 'verified') return t.fail('it is genuine')
  for (const { rawBody, eventId } of result.events) {
    t.match(await verify(provider, {}, rawBody), { kind: 'verified', events: [{ eventId }] })
  }
})

t.test('Adyen reads [accepted], in whatever way its webhook was set up', async (t) => {
  const { answers } = adyen({ hmacKey: KEY })
  for (const outcome of ['processed', 'duplicate', 'accepted', 'ignored', 'dead'] as const) {
    t.match(answers?.[outcome], { status: 200, body: '[accepted]' })
  }
  t.equal(answers?.failed, undefined)
})

t.test('a dead event is answered so that it does not come again', async (t) => {
  t.same(slack({ secret: 's' }).answers?.dead, {
    status: 200,
    headers: { 'x-slack-no-retry': '1' },
    body: '',
  })
  t.same(mailgun({ signingKey: 's' }).answers?.dead, { status: 406 })
  t.equal(discord({ publicKey: '00'.repeat(32) }).answers?.dead?.status, 204)
})

t.test('who never repeats a failed delivery is known', async (t) => {
  const made = cases.map((of) => [of.name, of.make(of.parties[0].secret).redelivers] as const)
  const never = made.filter(([, redelivers]) => redelivers === false).map(([name]) => name)
  t.same(
    new Set(never.map((name) => name.split(/[ ,]/)[0])),
    new Set(['github', 'gitlab', 'twilio', 'flutterwave', 'zendesk', 'woocommerce', 'vercel']),
  )
})

t.test('a form of Slack is a command, or JSON in a field', async (t) => {
  const { make, parties } = caseOf('slack')
  const provider = make(parties[0].secret)
  const send = (form: Record<string, string>) => {
    const sent = parties[0].sign(new URLSearchParams(form).toString(), NOW)
    return ask(provider, { ...sent, headers: { ...sent.headers, ...FORM } })
  }
  t.match(await send({ command: '/deploy', text: 'a b', channel_id: 'C1', trigger_id: 'T1' }), {
    kind: 'verified',
    events: [{ eventId: /^bytes:/, type: '/deploy', object: 'C1', payload: { text: 'a b' } }],
  })
  const payload = JSON.stringify({ type: 'block_actions', trigger_id: 'T1' })
  t.match(await send({ payload }), {
    kind: 'verified',
    events: [{ eventId: /^bytes:/, type: 'block_actions', payload: { trigger_id: 'T1' } }],
  })
  t.equal((await send({ payload: '{' })).kind, 'unreadable')
  t.same(await send({ ssl_check: '1', token: 'x' }), { kind: 'handshake', answer: { status: 200 } })
})

t.test('a form of GitHub carries its JSON in a field', async (t) => {
  const body = new URLSearchParams({ payload: '{"action":"opened"}' }).toString()
  const headers = {
    'content-type': 'application/x-www-form-urlencoded; charset=utf-8',
    'x-github-event': 'issues',
    'x-hub-signature-256': `sha256=${mac('sha256', 's', body).digest('hex')}`,
  }
  t.match(await verify(github({ secret: 's' }), headers, body), {
    kind: 'verified',
    events: [{ type: 'issues.opened', payload: { action: 'opened' } }],
  })
})

const twilioSign = (text: string) => mac('sha1', 's', text).digest('base64')

t.test('a body that Twilio has not signed is not taken for one that it has', async (t) => {
  const provider = twilio({ authToken: 's', url: TWILIO_URL })
  const send = (query: string, type: string, body: string, signed: string) =>
    verify(provider, { 'content-type': type, 'x-twilio-signature': twilioSign(signed) }, body, {
      url: `/x${query}`,
    })
  // The address alone is genuine, which is all that a GET request signs.
  for (const [type, body] of [
    ['application/json', '{"amount":1}'],
    ['text/plain', 'a=b'],
    ['', '&&'],
  ] as const) {
    const result = await send('?a=1', type, body, `${TWILIO_URL}?a=1`)
    t.match(result, { kind: 'refused', reason: 'malformed' }, type)
  }
  const hash = createHash('sha256').update('{"amount":1}').digest('hex')
  const query = `?bodySHA256=${hash}`
  const json = 'application/json'
  t.equal((await send(query, json, '{"amount":1}', TWILIO_URL + query)).kind, 'verified')
  t.equal((await send(query, json, '{"amount":2}', TWILIO_URL + query)).kind, 'refused')
  // Of two hashes, one is somebody else's.
  const twice = `?bodySHA256=${'0'.repeat(64)}&bodySHA256=${hash}`
  t.equal((await send(twice, json, '{"amount":1}', TWILIO_URL + twice)).kind, 'refused')
})

t.test('the fields of a form are signed by Twilio in the order of their names', async (t) => {
  const provider = twilio({ authToken: 's', url: TWILIO_URL })
  const send = (body: string | Buffer, fields: string) =>
    verify(provider, { ...FORM, 'x-twilio-signature': twilioSign(TWILIO_URL + fields) }, body, {
      url: '/',
    })
  t.equal((await send('b=2&B=1&a=3', 'B1a3b2')).kind, 'verified')
  t.equal((await send('a=2&a=1&a=2', 'a1a2')).kind, 'verified', 'each value once')
  t.equal((await send('a=%C3%A9+%26', 'aé &')).kind, 'verified', 'decoded')
  t.match(await send(Buffer.from('a=\xff', 'latin1'), 'a'), {
    kind: 'refused',
    reason: 'malformed',
  })
})

t.test("a webhook rule of Twilio's chooses the hash and the key", async (t) => {
  const provider = twilio({ authToken: ['the auth token', 'the shared key'], url: TWILIO_URL })
  const send = (key: string, hash: string, settings?: string) =>
    verify(
      provider,
      {
        ...FORM,
        'x-twilio-signature': mac(hash, key, `${TWILIO_URL}a1`).digest('base64'),
        ...(settings !== undefined && { 'x-twilio-webhooks-signature-settings': settings }),
      },
      'a=1',
      { url: '/' },
    )
  const named = 'key=WK1,algorithm=HMAC_SHA256'
  t.equal((await send('the auth token', 'sha1')).kind, 'verified')
  t.equal((await send('the shared key', 'sha256', named)).kind, 'verified')
  t.equal((await send('the shared key', 'sha1', 'algorithm=HMAC_SHA1,key=WK1')).kind, 'verified')
  t.match(await send('the shared key', 'sha1', named), { reason: 'no_match' })
  t.match(await send('the shared key', 'sha256'), { reason: 'no_match' })
  t.match(await send('another', 'sha256', named), { reason: 'no_match' })
  for (const settings of ['key=WK1', 'algorithm=NONE', 'algorithm=constructor', 'algorithm=']) {
    const result = await send('the shared key', 'sha256', settings)
    t.match(result, { kind: 'refused', reason: 'malformed' }, settings)
  }
})

t.test(
  'an address of Twilio is signed with its port or without, and not with another',
  async (t) => {
    const body = 'a=1'
    const send = (url: string, signed: string) =>
      verify(
        twilio({ authToken: 's', url }),
        { ...FORM, 'x-twilio-signature': twilioSign(`${signed}?b=2a1`) },
        body,
        { url: '/?b=2' },
      )
    for (const [url, signed, kind] of [
      ['https://example.com/x', 'https://example.com:443/x', 'verified'],
      ['https://example.com:443/x', 'https://example.com/x', 'verified'],
      ['https://user:pass@example.com/x', 'https://user:pass@example.com:443/x', 'verified'],
      ['https://example.com/x', 'https://example.com:80/x', 'refused'],
      ['https://example.com/x', 'http://example.com/x', 'refused'],
      ['https://example.com:8443/x', 'https://example.com:443/x', 'refused'],
      ['https://example.com/x', 'https://example.org/x', 'refused'],
    ] as const) {
      t.equal((await send(url, signed)).kind, kind, `${url} and ${signed}`)
    }
  },
)

t.test('an event of Shopify has headers of its own', async (t) => {
  const provider = shopify({ secret: 's' })
  const body = JSON.stringify({ topic: 'Product', action: 'update' })
  const signature = mac('sha256', 's', body).digest('base64')
  const named = {
    'shopify-webhook-id': 'of the event',
    'x-shopify-webhook-id': 'of the webhook',
    'x-shopify-topic': 'products/update',
  }
  const send = (headers: Record<string, string>) => verify(provider, headers, body)
  t.match(await send({ ...named, 'shopify-hmac-sha256': signature }), {
    events: [{ eventId: 'of the event', type: 'Product/update' }],
  })
  t.match(await send({ ...named, 'x-shopify-hmac-sha256': signature }), {
    events: [{ eventId: 'of the webhook', type: 'products/update' }],
  })
  // A signature under one name does not help a wrong one under the other.
  for (const [wrong, right] of [
    ['shopify-hmac-sha256', 'x-shopify-hmac-sha256'],
    ['shopify-hmac-sha256', 'shopify-signature'],
  ] as const) {
    const other = mac('sha256', 'another', body).digest('base64')
    t.match(await send({ [right]: signature, [wrong]: other }), { reason: 'no_match' })
  }
  t.match(await send({}), { reason: 'missing_header' })
})

t.test('Standard Webhooks can be signed with a private key', async (t) => {
  const pair = generateKeyPairSync('ed25519')
  const written = (key: typeof pair.publicKey) =>
    `whpk_${key.export({ format: 'der', type: 'spki' }).subarray(-32).toString('base64')}`
  const publicKey = written(pair.publicKey)
  const time = String(NOW / 1_000)
  const content = Buffer.from(`msg_1.${time}.{}`)
  const asymmetric = `v1a,${signWithKey(null, content, pair.privateKey).toString('base64')}`
  const WHSEC = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'
  const symmetric = `v1,${createHmac('sha256', Buffer.from(WHSEC.slice(6), 'base64'))
    .update(content)
    .digest('base64')}`
  const send = (secret: string | string[], signature: string, id = 'msg_1') => {
    const headers = { 'webhook-id': id, 'webhook-timestamp': time, 'webhook-signature': signature }
    return verify(standardWebhooks({ secret }), headers, '{}', { at: NOW })
  }
  t.match(await send(publicKey, asymmetric), { events: [{ eventId: 'msg_1' }] })
  t.equal((await send(publicKey, `${symmetric} ${asymmetric}`)).kind, 'verified')
  t.equal((await send(WHSEC, `${symmetric} ${asymmetric}`)).kind, 'verified')
  for (const signature of [symmetric, asymmetric]) {
    t.equal((await send([WHSEC, publicKey], signature)).kind, 'verified', 'both kinds of secrets')
  }
  t.match(await send(publicKey, asymmetric, 'msg_2'), { reason: 'no_match' })
  t.match(await send(publicKey, symmetric), { reason: 'no_match' })
  t.match(await send(WHSEC, asymmetric), { reason: 'no_match' })
  const stranger = written(generateKeyPairSync('ed25519').publicKey)
  t.match(await send(stranger, asymmetric), { reason: 'no_match' })
  const many = Array(17).fill(asymmetric).join(' ')
  t.match(await send(publicKey, `${symmetric} ${many}`), { reason: 'malformed' })
  const old = { 'svix-id': 'm', 'svix-timestamp': time, 'svix-signature': asymmetric }
  const late = await verify(svix({ secret: publicKey }), old, '{}', { at: NOW })
  t.match(late, { kind: 'refused', reason: 'no_match' }, 'another id')
  for (const secret of ['whpk_', 'whpk_AAAA', `${publicKey}AAAA`]) {
    t.throws(() => standardWebhooks({ secret }), { code: 'IDEMPOTENCY_OPTION_INVALID' })
  }
  // A public key is no secret to sign with.
  const forged = createHmac('sha256', Buffer.from(publicKey.slice(5), 'base64'))
    .update(content)
    .digest('base64')
  t.match(await send(publicKey, `v1,${forged}`), { reason: 'no_match' })
})

t.test('GitLab is asked for one of its two tokens', async (t) => {
  for (const options of [{}, { secret: 'a', signingToken: 'whsec_AAAA' }]) {
    t.throws(() => gitlab(options), { message: /"secret" or option "signingToken", and not both/ })
  }
  t.throws(() => gitlab({ signingToken: 'plain text' }), {
    message: /"signingToken" of gitlab must be 'whsec_'/,
  })
})

t.test("an id beside the signed one is not taken for Standard Webhooks' own", async (t) => {
  const { parties, body } = caseOf('svix')
  const sent = parties[0].sign(body, NOW)
  const headers = { ...sent.headers, 'webhook-id': 'chosen-by-somebody-else' }
  t.match(await ask(standardWebhooks({ secret: parties[0].secret }), { ...sent, headers }), {
    kind: 'verified',
    events: [{ eventId: 'msg_1' }],
  })
})

t.test('an id that GitLab has not signed is not believed', async (t) => {
  const { make, parties, body } = caseOf('gitlab with a signing token')
  const { headers, body: bytes } = parties[0].sign(body, NOW)
  const renamed = Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name.replace('webhook-', 'svix-'), value]),
  )
  const provider = make(parties[0].secret)
  for (const beside of [{}, { 'webhook-id': 'chosen' }, { 'idempotency-key': 'chosen' }]) {
    const result = await ask(provider, { headers: { ...renamed, ...beside }, body: bytes })
    t.match(result, { kind: 'refused', reason: 'missing_header' })
  }
  const both = { ...headers, 'svix-id': 'chosen', 'idempotency-key': 'chosen' }
  t.match(await ask(provider, { headers: both, body: bytes }), { events: [{ eventId: 'msg_1' }] })
})

t.test('of headers under both names, those beside the signature count', async (t) => {
  const { parties, body } = caseOf('standardWebhooks')
  const { headers, body: bytes } = parties[0].sign(body, NOW)
  const provider = standardWebhooks({ secret: parties[0].secret })
  const { 'webhook-id': id = '', 'webhook-signature': signature = '', ...time } = headers
  const send = (more: Record<string, string>) =>
    ask(provider, { headers: { ...time, ...more }, body: bytes })
  for (const more of [
    { 'svix-id': id, 'webhook-signature': signature },
    { 'webhook-id': id, 'svix-signature': signature },
    { 'svix-id': id, 'webhook-id': 'chosen', 'webhook-signature': signature },
    { 'webhook-id': id, 'svix-id': 'chosen', 'svix-signature': signature },
  ]) {
    t.equal((await send(more)).kind, 'refused', JSON.stringify(more))
  }
  const whole = { 'webhook-id': id, 'webhook-signature': signature }
  const others = { 'svix-id': 'chosen', 'svix-timestamp': '1', 'svix-signature': 'v1,AAAA' }
  t.match(await send({ ...whole, ...others }), { events: [{ eventId: 'msg_1' }] })
})

t.test('a signature of Flutterwave cannot be avoided with the older header', async (t) => {
  const headers = { 'flutterwave-signature': 'AAAA', 'verif-hash': 's' }
  t.equal((await verify(flutterwave({ secret: 's' }), headers, '{}')).kind, 'refused')
})

t.test('a subscription that Twitch ended is told from an event', async (t) => {
  const { parties } = caseOf('twitch')
  const body = JSON.stringify({ subscription: { type: 'stream.online', status: 'user_removed' } })
  t.match(await ask(twitch({ secret: parties[0].secret }), parties[0].sign(body, NOW)), {
    kind: 'verified',
    events: [{ type: 'revocation' }],
  })
})

t.test('a trigger of Zendesk is named by its invocation', async (t) => {
  const { parties } = caseOf('zendesk')
  const sent = parties[0].sign('{"id":"35436","type":"ticket"}', NOW)
  const headers = { ...sent.headers, 'x-zendesk-webhook-invocation-id': '8350205582' }
  t.match(await ask(zendesk({ secret: parties[0].secret }), { ...sent, headers }), {
    kind: 'verified',
    events: [{ eventId: '8350205582', type: null, object: null }],
  })
})

t.test('two events of Zoom that differ in their time are two', async (t) => {
  const { parties } = caseOf('zoom')
  const provider = zoom({ secret: parties[0].secret })
  const idOf = async (eventTs: number) => {
    const body = JSON.stringify({ event: 'meeting.started', event_ts: eventTs })
    const result = await ask(provider, parties[0].sign(body, NOW))
    return result.kind === 'verified' ? result.events[0]?.eventId : undefined
  }
  t.equal(await idOf(1), await idOf(1))
  t.not(await idOf(1), await idOf(2))
})

t.test('an object is no event: several events of it have several ids', async (t) => {
  const idOf = async (event: string) => {
    const body = JSON.stringify({ event, data: { id: 1 } })
    const headers = { 'x-paystack-signature': mac('sha512', 's', body).digest('hex') }
    const result = await verify(paystack({ secret: 's' }), headers, body)
    return result.kind === 'verified' ? result.events[0]?.eventId : undefined
  }
  t.not(await idOf('transfer.failed'), await idOf('transfer.success'))
})

t.test('a form from a route of Mailgun is verified as well', async (t) => {
  const { parties } = caseOf('mailgun')
  const timestamp = String(NOW / 1_000)
  const signature = mac('sha256', parties[0].secret, `${timestamp}token`).digest('hex')
  const form = { timestamp, token: 'token', signature, subject: 'Hello' }
  const sent = { headers: FORM, body: Buffer.from(new URLSearchParams(form).toString()) }
  t.match(await ask(mailgun({ signingKey: parties[0].secret }), sent), {
    kind: 'verified',
    events: [{ eventId: /^bytes:/, payload: { subject: 'Hello' } }],
  })
})

t.test('a body of Mailgun that breaks what it is made into is malformed', async (t) => {
  const provider = mailgun({ signingKey: 's' })
  const good = { timestamp: String(NOW / 1_000), token: 'token', signature: 'ab' }
  const hostile = { toString: 1, valueOf: 1 }
  for (const signature of [
    { ...good, timestamp: hostile },
    { ...good, signature: hostile },
    { ...good, timestamp: [good.timestamp] },
    { ...good, signature: ['ab'] },
    { ...good, token: hostile },
  ]) {
    const body = Buffer.from(JSON.stringify({ signature }))
    const result = await ask(provider, { headers: {}, body })
    t.match(result, { kind: 'refused', reason: 'malformed' }, body.toString())
  }
  const inTime = { ...good, timestamp: NOW / 1_000 }
  const signature = mac('sha256', 's', `${inTime.timestamp}token`).digest('hex')
  const body = Buffer.from(JSON.stringify({ signature: { ...inTime, signature } }))
  t.equal((await ask(provider, { headers: {}, body })).kind, 'verified', 'a number is a time')
})

t.test('a type that cannot be written as text is none', async (t) => {
  const hostile = { toString: 1, valueOf: 1 }
  const zendeskCase = caseOf('zendesk')
  const ofZendesk = zendeskCase.parties[0].sign(JSON.stringify({ type: hostile }), NOW)
  const asked = ask(zendesk({ secret: zendeskCase.parties[0].secret }), ofZendesk)
  t.match(await asked, { kind: 'verified', events: [{ type: null }] })
  const body = JSON.stringify({ object: hostile, entry: [{ changes: [{ field: 'feed' }] }] })
  const headers = { 'x-hub-signature-256': `sha256=${mac('sha256', 's', body).digest('hex')}` }
  const ofMeta = verify(meta({ secret: 's', verifyToken: 'x' }), headers, body)
  t.match(await ofMeta, { kind: 'verified', events: [{ type: null }] })
})

t.test("a subaccount's event is recognised by the key of Mailgun's parent account", async (t) => {
  const sign = (key: string) => mac('sha256', key, `${NOW / 1_000}token`).digest('hex')
  const signature = {
    timestamp: String(NOW / 1_000),
    token: 'token',
    signature: sign('of the subaccount'),
    'parent-signature': sign('of the parent'),
  }
  const sent = { headers: {}, body: Buffer.from(JSON.stringify({ signature })) }
  for (const signingKey of ['of the parent', 'of the subaccount']) {
    t.equal((await ask(mailgun({ signingKey }), sent)).kind, 'verified')
  }
  t.equal((await ask(mailgun({ signingKey: 'of nobody' }), sent)).kind, 'refused')
})

t.test("Meta's question is answered to who knows the token", async (t) => {
  const query = (over: Record<string, string> = {}) =>
    new URLSearchParams({
      'hub.mode': 'subscribe',
      'hub.challenge': '1158201444',
      'hub.verify_token': 'meatyhamhock',
      ...over,
    })
  const one = meta({ secret: 's', verifyToken: 'meatyhamhock' })
  const answer = { status: 200, headers: { 'content-type': 'text/plain' }, body: '1158201444' }
  t.same(await one.greeting?.(query(), ''), answer)
  for (const over of [
    { 'hub.verify_token': 'meatyhamhocl' },
    { 'hub.verify_token': '' },
    { 'hub.mode': 'no' },
  ]) {
    t.equal(await one.greeting?.(query(over), ''), undefined)
  }
  t.equal(await one.greeting?.(new URLSearchParams(), ''), undefined)
  const several = meta({ secret: 's', verifyToken: ['older', 'meatyhamhock'] })
  t.same(await several.greeting?.(query(), ''), answer)
  const verifyToken = async (tenantId: string) => (tenantId === 'acme' ? 'meatyhamhock' : 'other')
  const byTenant = meta({ secret: 's', verifyToken })
  t.same(await byTenant.greeting?.(query(), 'acme'), answer)
  t.equal(await byTenant.greeting?.(query(), 'globex'), undefined)
  t.throws(() => meta({ secret: 's', verifyToken: '' }), {
    message: /option "verifyToken" of meta is missing/,
  })
})

t.test('an id that a change of Meta has can be found by whoever knows it', async (t) => {
  const provider = meta({
    secret: 's',
    verifyToken: 'x',
    eventId: (payload) => payload.entry[0].changes?.[0].value.messages?.[0].id,
  })
  const changes = ['wamid.1', 'wamid.2'].map((id) => ({
    field: 'messages',
    value: { messages: [{ id }] },
  }))
  const body = JSON.stringify({
    object: 'whatsapp_business_account',
    entry: [{ id: 'a-1', changes }],
  })
  const headers = { 'x-hub-signature-256': `sha256=${mac('sha256', 's', body).digest('hex')}` }
  t.match(await verify(provider, headers, body), {
    kind: 'verified',
    events: [
      {
        eventId: 'wamid.1',
        payload: {
          entry: [{ id: 'a-1', changes: [{ value: { messages: [{ id: 'wamid.1' }] } }] }],
        },
      },
      { eventId: 'wamid.2' },
    ],
  })
})

t.test('a body of Linear is read once its signature was found genuine', async (t) => {
  const parse = t.capture(JSON, 'parse', JSON.parse)
  const headers = { 'linear-signature': '00'.repeat(32) }
  const sent = { headers, body: Buffer.from('{"webhookTimestamp":1}') }
  const forged = await ask(linear({ secret: 's' }), sent)
  t.match(forged, { kind: 'refused', reason: 'no_match' })
  t.equal(parse().length, 0)
})

t.test('a body of Linear without a time is refused, and none is made up', async (t) => {
  const { make, parties } = caseOf('linear')
  for (const time of ['', '"webhookTimestamp":"1800014400000"', '"webhookTimestamp":null']) {
    const sent = parties[0].sign(`{${time}}`, NOW)
    const result = await ask(make(parties[0].secret), sent)
    t.match(result, { kind: 'refused', reason: 'malformed' }, time)
  }
})

t.test('only signatures of version 1 count in Standard Webhooks', async (t) => {
  const { make, parties, body } = caseOf('standardWebhooks')
  const sent = parties[0].sign(body, NOW)
  const given = sent.headers['webhook-signature']?.split('v1,')[1]
  for (const version of ['v2', 'v1a', 'v0', '']) {
    const headers = { ...sent.headers, 'webhook-signature': `${version},${given}` }
    const result = await ask(make(parties[0].secret), { ...sent, headers })
    t.match(result, { kind: 'refused', reason: 'malformed' }, version)
  }
})

t.test('of two times in a header, none is taken', async (t) => {
  for (const [name, header, time] of [
    ['stripe', 'stripe-signature', 't=1,'],
    ['paddle', 'paddle-signature', 'ts=1;'],
  ] as const) {
    const { make, parties, body } = caseOf(name)
    const sent = parties[0].sign(body, NOW)
    const separator = time.slice(-1)
    for (const value of [
      `${time}${sent.headers[header]}`,
      `${sent.headers[header]}${separator}${time}`,
    ]) {
      const result = await ask(make(parties[0].secret), { ...sent, headers: { [header]: value } })
      t.match(result, { kind: 'refused', reason: 'malformed' })
    }
  }
})
