// Senders that an application describes itself, by hmac(), sharedSecret() and basicAuth().
import { createHmac } from 'node:crypto'
import t from 'tap'
import { readWebhookOptions } from '../../../src/webhooks/check-options.js'
import type { Provider } from '../../../src/webhooks/provider.js'
import * as providers from '../../../src/webhooks/providers/index.js'
import { ask, NOW } from '../../contracts/provider.js'

const code = 'IDEMPOTENCY_OPTION_INVALID'
const SECRET = 'secret-of-the-bank'
const BODY = '{"id":"e-1"}'
const TIME = String(NOW / 1_000)

const OWN: providers.HmacOptions = {
  name: 'my-bank',
  secret: SECRET,
  header: 'X-Signature',
  eventId: (payload) => payload.id,
}
const PAIRS: providers.HmacOptions = {
  ...OWN,
  separator: ',',
  prefix: 'v1=',
  timestampPrefix: 't=',
}
const mac = (text: string) => createHmac('sha256', SECRET).update(text).digest('hex')
const send = (headers: Record<string, string>, body = BODY) => ({
  headers,
  body: Buffer.from(body),
})

const contradictions: readonly [title: string, over: object, message: RegExp][] = [
  [
    'a unit of no time',
    { timestampUnit: 'ms' },
    /"timestampUnit" of my-bank must be left out, or timestampHeader or timestampPrefix must say/,
  ],
  [
    'a tolerance of no time',
    { tolerance: '5m' },
    /"tolerance" of my-bank must be left out, or timestampHeader or timestampPrefix must say/,
  ],
  [
    'a time in two places',
    { ...PAIRS, timestampHeader: 'x-time' },
    /"timestampPrefix" of my-bank must be left out: timestampHeader/,
  ],
  [
    'a time with nothing after it',
    { prefix: 'v1=', timestampPrefix: 't=' },
    /"separator" of my-bank must say what stands between the time and the signature, such as ','/,
  ],
  [
    'a signature that cannot be told from the time',
    { separator: ',', timestampPrefix: 't=' },
    /"prefix" of my-bank must say what stands before the signature, such as 'v1='/,
  ],
  [
    'a prefix that begins like that of the time',
    { ...PAIRS, prefix: 't=1' },
    /"prefix" of my-bank/,
  ],
  ['a prefix that that of the time begins with', { ...PAIRS, prefix: 't' }, /"prefix" of my-bank/],
  ['an empty prefix of the time', { ...PAIRS, timestampPrefix: '' }, /at least one character/],
  ['a handshake that is no function', { handshake: true }, /"handshake" of my-bank must be a func/],
]

for (const [title, over, message] of contradictions) {
  t.test(`hmac: ${title} is refused, and the error says what to write`, async (t) => {
    t.throws(() => providers.hmac({ ...OWN, ...over }), { code, message })
  })
}

t.test('hmac: a time and signatures in one header are read as they are signed', async (t) => {
  const provider = providers.hmac(PAIRS)
  const signature = mac(`${TIME}.${BODY}`)
  const kindOf = async (header: string, of: Provider = provider) =>
    (await ask(of, send({ 'x-signature': header }))).kind
  t.equal(await kindOf(`t=${TIME},v1=${signature}`), 'verified')
  t.equal(await kindOf(`v1=${'0'.repeat(64)}, v1=${signature} , v0=x, t=${TIME}`), 'verified')
  for (const header of [
    `v1=${signature}`,
    `t=${TIME}`,
    `t=,v1=${signature}`,
    `t=${TIME}junk,v1=${signature}`,
    `t=${TIME},t=${TIME},v1=${signature}`,
    `T=${TIME},v1=${signature}`,
  ]) {
    const result = await ask(provider, send({ 'x-signature': header }))
    t.match(result, { kind: 'refused', reason: 'malformed' }, header)
  }
  const late = await ask(provider, send({ 'x-signature': `t=${TIME},v1=${signature}` }), {
    at: NOW + 300_001,
  })
  t.match(late, { reason: 'too_old' }, 'the time counts')
  const other = providers.hmac({
    ...PAIRS,
    signed: ({ timestamp, body }) => [timestamp, ':', body],
  })
  t.equal(await kindOf(`t=${TIME},v1=${mac(`${TIME}:${BODY}`)}`, other), 'verified')
})

t.test('hmac: base64 keeps its padding beside a time in the same header', async (t) => {
  const provider = providers.hmac({ ...PAIRS, encoding: 'base64', timestampUnit: 'ms' })
  const signature = createHmac('sha256', SECRET).update(`${NOW}.${BODY}`).digest('base64')
  t.match(signature, /=$/)
  const sent = send({ 'x-signature': `t=${NOW},v1=${signature}` })
  t.equal((await ask(provider, sent)).kind, 'verified')
})

t.test('a handshake is answered once its signature holds', async (t) => {
  const handshake: providers.HmacOptions['handshake'] = (payload) =>
    payload.challenge && { status: 200, body: { challenge: payload.challenge } }
  const answer = { status: 200, body: { challenge: 'c-1' } }
  const body = '{"challenge":"c-1"}'
  const { header: _header, ...rest } = OWN
  for (const [provider, headers] of [
    [providers.hmac({ ...OWN, handshake }), { 'x-signature': mac(body) }],
    [providers.sharedSecret({ ...OWN, handshake }), { 'x-signature': SECRET }],
    [
      providers.basicAuth({ ...rest, secret: 'a:b', handshake }),
      { authorization: `Basic ${Buffer.from('a:b').toString('base64')}` },
    ],
  ] as const) {
    t.same(await ask(provider, send(headers, body)), { kind: 'handshake', answer })
    t.match(await ask(provider, send({}, body)), { kind: 'refused', reason: 'missing_header' })
  }
})

t.test('sharedSecret: the header with the secret is never kept', async (t) => {
  const keptHeaders = ['X-Delivery', 'X-SIGNATURE']
  const message = /"keptHeaders" of my-bank must not contain 'X-SIGNATURE': it would be stored/
  t.throws(() => providers.sharedSecret({ ...OWN, keptHeaders }), { code, message })
  const provider = providers.sharedSecret({ ...OWN, keptHeaders: ['X-Delivery'] })
  t.same(provider.keptHeaders, ['x-delivery'])
  t.throws(() => readWebhookOptions('/', { provider, headers: ['x-signature'] }), {
    code,
    message: /"headers" of webhook \/ must not contain 'x-signature'/,
  })
  t.throws(() => providers.basicAuth({ ...OWN, header: 'x-signature' } as never), {
    code,
    message: /"header" of my-bank is not known/,
  })
})

t.test('sharedSecret: what stands before the secret is no part of it', async (t) => {
  const provider = providers.sharedSecret({ ...OWN, header: 'Authorization', prefix: 'Bearer ' })
  const kindOf = async (authorization: string) =>
    (await ask(provider, send({ authorization }))).kind
  t.equal(await kindOf(`Bearer ${SECRET}`), 'verified')
  t.equal(await kindOf(`bearer ${SECRET}`), 'verified')
  for (const header of [
    SECRET,
    `Bearer  ${SECRET}`,
    `Bearer ${SECRET} `,
    `bearer ${SECRET.toUpperCase()}`,
  ]) {
    t.equal(await kindOf(header), 'refused', header)
  }
})

t.test('basicAuth: a user and a password are one secret', async (t) => {
  const { header: _header, ...rest } = OWN
  for (const secret of ['password', 'user']) {
    t.throws(() => providers.basicAuth({ ...rest, secret }), {
      code,
      message: /"secret" of my-bank must be 'user:password'/,
    })
  }
  const provider = providers.basicAuth({ ...rest, secret: 'user:pässword:with:colons' })
  const credentials = Buffer.from('user:pässword:with:colons').toString('base64')
  const kindOf = async (authorization: string) =>
    (await ask(provider, send({ authorization }))).kind
  for (const scheme of ['Basic', 'basic', 'BASIC']) {
    t.equal(await kindOf(`${scheme} ${credentials}`), 'verified')
  }
  for (const header of [
    credentials,
    `Bearer ${credentials}`,
    'Basic ',
    `Basic ${credentials} x`,
    `Basic ${Buffer.from('user:').toString('base64')}`,
    `Basic ${Buffer.from('other:pässword:with:colons').toString('base64')}`,
  ]) {
    t.equal(await kindOf(header), 'refused', header)
  }
})

t.test('woocommerce: its ping is answered, and nothing else that is not signed', async (t) => {
  const provider = providers.woocommerce({ secret: SECRET })
  const form = { 'content-type': 'application/x-www-form-urlencoded' }
  t.same(await ask(provider, send(form, 'webhook_id=12')), {
    kind: 'handshake',
    answer: { status: 200 },
  })
  t.equal((await ask(provider, send(form, 'webhook_id=12&id=1'))).kind, 'refused')
  t.equal((await ask(provider, send(form, 'id=1&webhook_id=12'))).kind, 'refused')
  t.equal((await ask(provider, send({}, 'webhook_id=12'))).kind, 'refused')
})

t.test('woocommerce: two events of one second are two', async (t) => {
  const provider = providers.woocommerce({ secret: SECRET })
  const idOf = async (body: string) => {
    const signature = createHmac('sha256', SECRET).update(body).digest('base64')
    const headers = { 'x-wc-webhook-signature': signature, 'x-wc-webhook-delivery-id': 'd-1' }
    const result = await ask(provider, send(headers, body))
    return result.kind === 'verified' ? result.events[0]?.eventId : result
  }
  t.not(await idOf('{"id":1}'), await idOf('{"id":2}'))
  t.equal(await idOf('{"id":1}'), await idOf('{"id":1}'))
})

t.test('telegram: what an update is about is found in each kind', async (t) => {
  const provider = providers.telegram({ secretToken: SECRET })
  for (const [update, type, object] of [
    [{ message: { chat: { id: 7 }, from: { id: 8 } } }, 'message', '7'],
    [{ callback_query: { from: { id: 8 }, message: { chat: { id: 7 } } } }, 'callback_query', '7'],
    [{ inline_query: { from: { id: 8 } } }, 'inline_query', '8'],
    [{ poll: { id: 'p-1' } }, 'poll', null],
    [{}, null, null],
  ] as const) {
    const body = JSON.stringify({ update_id: 1, ...update })
    const sent = send({ 'x-telegram-bot-api-secret-token': SECRET }, body)
    t.match(await ask(provider, sent), { events: [{ eventId: '1', type, object }] })
  }
})

t.test('postmark: only what happens once has a name', (t) => {
  const provider = providers.postmark({ secret: 'a:b' })
  t.equal(provider.bodyLimit, 50 * 1024 * 1024)
  const noHeader = () => undefined
  for (const [payload, eventId, type] of [
    [{ RecordType: 'Bounce', ID: 42, MessageID: 'm' }, 'Bounce:42', 'Bounce'],
    [{ RecordType: 'SpamComplaint', ID: 43 }, 'SpamComplaint:43', 'SpamComplaint'],
    [{ RecordType: 'Delivery', MessageID: 'm', Recipient: 'r@x' }, 'Delivery:m:r@x', 'Delivery'],
    [{ MessageID: 'm', FromFull: { Email: 's@x' } }, 'Inbound:m', 'Inbound'],
    [{ ID: 42, Type: 'HardBounce', MessageID: 'm' }, null, null],
    [{ RecordType: 'Open', MessageID: 'm', Recipient: 'r@x' }, null, 'Open'],
    [{ RecordType: 'SubscriptionChange', MessageID: 'm' }, null, 'SubscriptionChange'],
  ] as const) {
    t.equal(provider.eventId(payload, noHeader) ?? null, eventId)
    t.equal(provider.type?.(payload, noHeader) ?? null, type)
  }
  t.end()
})

t.test('a function "signed" that leaves the time out is refused at start', (t) => {
  for (const timed of [{ timestampHeader: 'x-time' }, PAIRS]) {
    const unsigned = { ...OWN, ...timed, signed: ({ body }: { body: Buffer }) => [body] }
    t.throws(() => providers.hmac(unsigned), {
      code,
      message:
        /option "signed" of my-bank must return "timestamp" \(not the header that it was read from\)/,
    })
  }
  for (const signed of [({ body }: { body: Buffer }) => body, () => 'text']) {
    t.throws(() => providers.hmac({ ...OWN, signed: signed as never }), {
      code,
      message: /option "signed" of my-bank must return a list of pieces/,
    })
  }
  // What it does with a request of the sender's is not known before there is one.
  const failing = () => {
    throw new TypeError('there is no request')
  }
  t.ok(providers.hmac({ ...OWN, timestampHeader: 'x-time', signed: failing }))
  t.ok(providers.hmac({ ...OWN, signed: ({ body }) => [body] }))
  t.end()
})

t.test(
  'a function "signed" that is async accepts nothing, and its rejection is ignored',
  async (t) => {
    for (const signed of [async () => [], () => Promise.reject(new Error('late'))]) {
      const provider = providers.hmac({
        ...{ name: 'async', secret: 's', header: 'x-signature', eventId: () => null },
        signed: signed as never,
      })
      const result = await ask(provider, send({ 'x-signature': 'ab'.repeat(32) }, '{}'))
      t.strictSame(result, { kind: 'refused', reason: 'malformed' })
    }
  },
)
