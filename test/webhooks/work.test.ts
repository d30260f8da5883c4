// What a request can make us do before it is believed: little, and the same for every provider.
import crypto, { generateKeyPairSync } from 'node:crypto'
import { syncBuiltinESMExports } from 'node:module'
import t, { type Test } from 'tap'
import { parseForm } from '../../src/webhooks/payload.js'
import { hmac, mailgun, twilio } from '../../src/webhooks/providers/index.js'
import {
  CertificateUnreachable,
  checkSignature,
  type Incoming,
  type Read,
  type Scheme,
  type Signed,
} from '../../src/webhooks/signature.js'
import { verify } from '../../src/webhooks/verify.js'
import { ask, NOW, type Sent } from '../contracts/provider.js'
import { cases } from './providers/cases.js'

const caseOf = (name: string) => {
  const found = cases.find((of) => of.name === name)
  if (found === undefined) throw new Error(`no case is called ${name}`)
  return found
}

/** Counts what is computed from here on, and not by whoever signs. */
function counted(t: Test) {
  const { createHmac, verify } = crypto
  const counts = { digests: 0, verifications: 0 }
  Object.assign(crypto, {
    createHmac: (...args: Parameters<typeof createHmac>) => {
      counts.digests += 1
      return createHmac(...args)
    },
    verify: (...args: Parameters<typeof verify>) => {
      counts.verifications += 1
      return verify(...args)
    },
  })
  syncBuiltinESMExports()
  t.teardown(() => {
    Object.assign(crypto, { createHmac, verify })
    syncBuiltinESMExports()
  })
  return counts
}

/** A header with so many signatures, all of them wrong, for those whose headers list them. */
const lists: Record<string, (how: number, one: Buffer) => Record<string, string>> = {
  stripe: (how, one) => ({
    'stripe-signature': ['t=1800014400', ...Array(how).fill(`v1=${one.toString('hex')}`)].join(','),
  }),
  paddle: (how, one) => ({
    'paddle-signature': ['ts=1800014400', ...Array(how).fill(`h1=${one.toString('hex')}`)].join(
      ';',
    ),
  }),
  standardWebhooks: (how, one) => ({
    'webhook-id': 'x',
    'webhook-timestamp': '1800014400',
    'webhook-signature': Array(how)
      .fill(`v1,${one.toString('base64')}`)
      .join(' '),
  }),
}

for (const [name, headersOf] of Object.entries(lists)) {
  const { make, parties } = caseOf(name)
  const provider = make(parties.map(({ secret }) => secret))
  const body = Buffer.alloc(1024, 'x')

  t.test(
    `${name}: a body is hashed once for each key, however many signatures it has`,
    async (t) => {
      const counts = counted(t)
      const send = (how: number, one: Buffer) =>
        ask(provider, { headers: headersOf(how, one), body })
      t.match(await send(16, Buffer.alloc(32)), { kind: 'refused', reason: 'no_match' })
      t.equal(counts.digests, 2)
      // What has another length is none, and nothing has to be hashed for it.
      t.match(await send(16, Buffer.alloc(1)), { kind: 'refused', reason: 'no_match' })
      t.equal(counts.digests, 2)
      for (const how of [17, 2_600]) {
        for (const length of [1, 32]) {
          const result = await send(how, Buffer.alloc(length))
          t.match(result, { kind: 'refused', reason: 'malformed' })
        }
      }
      t.equal(counts.digests, 2)
    },
  )
}

t.test('the sixteenth of sixteen signatures is found', async (t) => {
  const { make, parties, body } = caseOf('stripe')
  const sent = parties[0].sign(body, NOW)
  const [time, , , good] = (sent.headers['stripe-signature'] ?? '').split(',')
  const others = Array(15).fill(`v1=${'0'.repeat(64)}`)
  const headers = { 'stripe-signature': [time, ...others, good].join(',') }
  t.equal((await ask(make(parties[0].secret), { ...sent, headers })).kind, 'verified')
})

t.test('no provider computes more than once for each key, whoever signed', async (t) => {
  const requests: { sent: Sent; of: (typeof cases)[number] }[] = cases.flatMap((of) =>
    of.parties.flatMap((party) =>
      [of.body, of.batch?.body ?? of.body].map((body) => ({ sent: party.sign(body, NOW), of })),
    ),
  )
  const counts = counted(t)
  for (const { sent, of } of requests) {
    // Only the second of two keys may be good: both are tried for each item of a batch.
    const provider = of.make(of.parties.map(({ secret }) => secret))
    Object.assign(counts, { digests: 0, verifications: 0 })
    t.equal((await ask(provider, sent)).kind, 'verified', of.name)
    const items = of.name === 'adyen' ? (of.batch?.events.length ?? 1) : 1
    t.ok(counts.digests + counts.verifications <= 2 * items, of.name)
  }
})

t.test(
  'a forged request of Twilio costs two digests for each key: with the port and without',
  async (t) => {
    const { make, parties, body } = caseOf('twilio')
    const provider = make(parties.map(({ secret }) => secret))
    const sent = parties[0].sign(body, NOW)
    const headers = { ...sent.headers, 'x-twilio-signature': Buffer.alloc(20).toString('base64') }
    const counts = counted(t)
    t.match(await ask(provider, { ...sent, headers }), { kind: 'refused', reason: 'no_match' })
    t.equal(counts.digests, 4)
  },
)

t.test(
  'a batch that is signed per item is hashed per item, up to the first forged one',
  async (t) => {
    const { make, parties } = caseOf('adyen')
    const [own, other] = parties
    const items = JSON.stringify({ items: Array(500).fill({}) })
    const [genuine, forged] = [own.sign(items, NOW), other.sign(items, NOW)]
    const counts = counted(t)
    t.equal((await ask(make([own.secret]), genuine)).kind, 'verified')
    t.equal(counts.digests, 500)
    t.equal((await ask(make([own.secret]), forged)).kind, 'refused')
    t.equal(counts.digests, 501)
  },
)

const INCOMING: Incoming = { method: 'POST', url: '/', headers: {}, body: Buffer.from('{}') }
const reading = (read: () => Read | Promise<Read>, more: Partial<Scheme> = {}): Scheme => ({
  algorithm: { kind: 'public-key', hash: null },
  read: async () => read(),
  ...more,
})

t.test('public keys verify at most sixteen times for each key', async (t) => {
  const keys = [0, 1, 2].map(() => generateKeyPairSync('ed25519').publicKey)
  const signed = (how: number, more: Partial<Signed> = {}): Signed => ({
    content: ['x'],
    signatures: Array(how).fill(Buffer.alloc(64)),
    ...more,
  })
  const counts = counted(t)
  const check = (of: Signed) =>
    checkSignature(
      reading(() => of),
      async () => keys,
      INCOMING,
      NOW,
    )
  t.equal(await check(signed(16)), 'no_match')
  t.equal(counts.verifications, 48)
  t.equal(await check(signed(17)), 'malformed')
  t.equal(await check({ ...signed(17), key: keys[0] as never }), 'malformed')
  t.equal(counts.verifications, 48)
  // The certificate that a request names is one, however many topics there are.
  const [key] = keys
  t.equal(await check(signed(1, { ...(key && { key }) })), 'no_match')
  t.equal(counts.verifications, 49)
})

t.test(
  'what a request makes reading stumble over is malformed, and all else is thrown',
  async (t) => {
    for (const error of [new TypeError('x'), new RangeError('x'), new SyntaxError('x')]) {
      for (const read of [
        () => Promise.reject(error),
        () => {
          throw error
        },
      ]) {
        t.equal(await checkSignature(reading(read), async () => [], INCOMING, NOW), 'malformed')
      }
    }
    const unreachable = new CertificateUnreachable('x', { cause: new TypeError('fetch failed') })
    for (const error of [unreachable, new Error('of the vault')]) {
      const checked = checkSignature(
        reading(() => Promise.reject(error)),
        async () => [],
        INCOMING,
        NOW,
      )
      await t.rejects(checked, error)
    }
    const own = hmac({
      name: 'own',
      secret: 's',
      header: 'x-signature',
      signed: ({ header }) => [(header('x-missing') as string).toLowerCase()],
      eventId: () => null,
    })
    const result = await verify(own, { 'x-signature': '00'.repeat(32) }, '{}')
    t.match(result, { kind: 'refused', reason: 'malformed' })
  },
)

t.test('a form of very many fields is not read', async (t) => {
  const fields = (how: number) => Buffer.from(Array.from({ length: how }, (_, n) => n).join('=&'))
  t.equal(Object.keys(parseForm(fields(1_000))).length, 1_000)
  t.throws(() => parseForm(fields(1_001)), RangeError)
  const form = 'application/x-www-form-urlencoded'
  const body = fields(140_000)
  t.ok(body.length > 1_000_000)
  const headers = { 'content-type': form, 'x-twilio-signature': `${'A'.repeat(27)}=` }
  const ofTwilio = twilio({ authToken: ['a', 'b'], url: 'https://example.com/hooks' })
  const ofMailgun = mailgun({ signingKey: 's' })
  const lists: { sort: () => unknown } = Array.prototype
  const sort = t.capture(lists, 'sort', lists.sort)
  for (const provider of [ofTwilio, ofMailgun]) {
    const result = await verify(provider, headers, body)
    t.match(result, { kind: 'refused', reason: 'malformed' })
  }
  t.equal(sort().length, 0)
  const read = parseForm(Buffer.from('a=1&b=2&a=3&__proto__=4'))
  t.same(Object.entries(read), [
    ['a', ['1', '3']],
    ['b', '2'],
    ['__proto__', '4'],
  ])
})
