// Providers that send a JSON Web Token, and the keys that it is verified with.
import { createHmac } from 'node:crypto'
import t, { type Test } from 'tap'
import { type Fetch, googlePubsub, plaid } from '../../../src/webhooks/providers/index.js'
import { ask, NOW } from '../../contracts/provider.js'
import {
  certificateHost,
  GOOGLE_KEYS,
  googleKey,
  PUBSUB_AUDIENCE,
  plaidApi,
  plaidKeys,
  plaidToken,
  publishedKey,
  pubsubClaims,
  token,
} from './cases.js'

const EMAIL = 'push@one.example'
const BODY = Buffer.from('{"subscription":"s","message":{"messageId":"1"}}')
const CLAIMS = pubsubClaims(EMAIL, NOW)
const published = (...keys: { jwk: object }[]) =>
  JSON.stringify({ keys: keys.map(({ jwk }) => jwk) })

function pubsub(page = published(googleKey)) {
  const host = certificateHost({ [GOOGLE_KEYS]: page })
  const provider = googlePubsub({
    serviceAccount: EMAIL,
    audience: PUBSUB_AUDIENCE,
    fetch: host.fetch,
  })
  const send = (jwt: string, at = NOW) =>
    ask(provider, { headers: { authorization: `Bearer ${jwt}` }, body: BODY }, { at })
  return { ...host, provider, send }
}

/** Moves the clock that keys grow old by. */
function movableClock(t: Test): (ms: number) => void {
  const now = performance.now
  let aheadMs = 0
  performance.now = () => now.call(performance) + aheadMs
  t.teardown(() => {
    performance.now = now
  })
  return (ms) => {
    aheadMs += ms
  }
}

t.test('a token counts only as its issuer, its audience and its sender say', async (t) => {
  const { send } = pubsub()
  t.equal((await send(token(googleKey, CLAIMS))).kind, 'verified')
  for (const iss of ['accounts.google.com', 'https://accounts.google.com']) {
    t.equal((await send(token(googleKey, { ...CLAIMS, iss }))).kind, 'verified', iss)
  }
  for (const over of [
    { iss: 'https://accounts.google.com.evil.example' },
    { iss: undefined },
    { aud: 'https://example.com/webhooks/other' },
    { aud: undefined },
    { email: 'push@evil.example' },
    { email: undefined },
    { email: [EMAIL] },
    { email_verified: false },
    { email_verified: 'true' },
    { iat: undefined },
  ]) {
    const result = await send(token(googleKey, { ...CLAIMS, ...over }))
    t.match(result, { kind: 'refused', reason: 'no_match' }, JSON.stringify(over))
  }
})

t.test('a token is valid between its times', async (t) => {
  const { send } = pubsub()
  const s = NOW / 1_000
  const kindOf = (over: object) => send(token(googleKey, { ...CLAIMS, ...over }))
  t.match(await kindOf({ exp: s - 59 }), { kind: 'verified' }, 'clocks differ')
  t.match(await kindOf({ exp: s - 61 }), { reason: 'too_old' })
  t.match(await kindOf({ nbf: s + 59 }), { kind: 'verified' })
  t.match(await kindOf({ nbf: s + 61 }), { reason: 'from_future' })
  t.match(await kindOf({ iat: s - 3_601 }), { reason: 'too_old' })
})

t.test('a token without a signature is refused, as is one signed in another way', async (t) => {
  const { send, visited } = pubsub()
  const [head, claims, signature] = token(googleKey, CLAIMS).split('.') as [string, string, string]
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const none = part({ alg: 'none', kid: googleKey.kid })
  const hs = `${part({ alg: 'HS256', kid: googleKey.kid })}.${claims}`
  const shared = createHmac('sha256', JSON.stringify(googleKey.jwk)).update(hs).digest('base64url')
  for (const jwt of [
    `${none}.${claims}.`,
    `${none}.${claims}.${signature}`,
    `${hs}.${shared}`,
    `${head}.${claims}.`,
    `${head}.${claims}`,
    `${head}.${part({ ...CLAIMS, email: EMAIL, sub: 'x' })}.${signature}`,
    `${part({ alg: 'RS256', kid: googleKey.kid, crit: ['x'], x: 1 })}.${claims}.${signature}`,
    token({ ...publishedKey('rsa', googleKey.kid) }, CLAIMS),
    token({ ...publishedKey('ec', googleKey.kid) }, CLAIMS),
  ]) {
    t.equal((await send(jwt)).kind, 'refused', jwt)
  }
  t.ok(visited.every((url) => url === GOOGLE_KEYS))
})

t.test('a key that has no name, or an odd one, is not looked for', async (t) => {
  const { send, visited } = pubsub()
  for (const kid of [undefined, '', 7, {}, '../certs', 'a'.repeat(129), 'a b']) {
    const result = await send(token(googleKey, CLAIMS, { kid }))
    t.equal(result.kind, 'refused', String(kid))
  }
  t.same(visited, [])
})

t.test('published keys are fetched once, also for requests that come together', async (t) => {
  const { send, visited } = pubsub()
  const results = await Promise.all(
    Array.from({ length: 20 }, () => send(token(googleKey, CLAIMS))),
  )
  t.ok(results.every(({ kind }) => kind === 'verified'))
  t.equal((await send(token(googleKey, CLAIMS))).kind, 'verified')
  t.same(visited, [GOOGLE_KEYS])
})

t.test(
  'a key that is published later is found, without asking for every made-up one',
  async (t) => {
    const advance = movableClock(t)
    const next = publishedKey('rsa', 'google-2')
    const visited: string[] = []
    let page = published(googleKey)
    const fetch: Fetch = async (url) => {
      visited.push(url)
      return { ok: true, status: 200, text: async () => page }
    }
    const provider = googlePubsub({ serviceAccount: EMAIL, audience: PUBSUB_AUDIENCE, fetch })
    const kindOf = async (key: typeof next) => {
      const authorization = `Bearer ${token(key, CLAIMS)}`
      return (await ask(provider, { headers: { authorization }, body: BODY })).kind
    }
    t.equal(await kindOf(googleKey), 'verified')
    for (let n = 0; n < 20; n += 1) t.equal(await kindOf({ ...next, kid: `k-${n}` }), 'refused')
    t.equal(visited.length, 1)
    page = published(googleKey, next)
    t.equal(await kindOf(next), 'refused')
    advance(31_000)
    t.equal(await kindOf(next), 'verified')
    t.equal(visited.length, 2)
    page = published(next)
    t.equal(await kindOf(googleKey), 'verified')
    advance(3_600_000)
    t.equal(await kindOf(googleKey), 'refused', 'one that is published no longer is not believed')
    t.equal(await kindOf(next), 'verified')
  },
)

t.test('keys that cannot be had are no reason to refuse a request', async (t) => {
  const jwt = token(googleKey, CLAIMS)
  for (const page of ['', 'junk', '{}', '{"keys":7}', '{"keys":[null]}']) {
    await t.rejects(pubsub(page).send(jwt), { name: 'CertificateUnreachable' }, page)
  }
  let status = 404
  const fetch: Fetch = async (_url, options) => {
    t.match(options, { redirect: 'error', signal: AbortSignal })
    if (status === 0) throw new TypeError('fetch failed')
    return { ok: status === 200, status, text: async () => published(googleKey) }
  }
  const provider = googlePubsub({ serviceAccount: EMAIL, audience: PUBSUB_AUDIENCE, fetch })
  const sent = { headers: { authorization: `Bearer ${jwt}` }, body: BODY }
  for (status of [404, 429, 500, 0]) {
    await t.rejects(ask(provider, sent), { name: 'CertificateUnreachable' }, String(status))
  }
  status = 200
  t.equal((await ask(provider, sent)).kind, 'verified', 'the failure is not remembered')
})

t.test('an audience or an account that is none is refused where it is written', async (t) => {
  const code = 'IDEMPOTENCY_OPTION_INVALID'
  for (const audience of [undefined, '', [], [''], 7]) {
    t.throws(() => googlePubsub({ serviceAccount: EMAIL, audience: audience as string }), {
      code,
      message: /"audience" of google-pubsub must be the push subscription's audience, such as/,
    })
  }
  t.throws(() => googlePubsub({ serviceAccount: 'push', audience: PUBSUB_AUDIENCE }), {
    code,
    message: /"serviceAccount" of google-pubsub must be the service account's e-mail, such as/,
  })
})

const [{ secret: FIRST, ...firstKey }, { secret: SECOND }] = plaidKeys as [
  (typeof plaidKeys)[number],
  (typeof plaidKeys)[number],
]
const ITEM = '{"webhook_type":"ITEM","webhook_code":"ERROR","item_id":"i-1"}'

/** Answers as Plaid does, or in another way. */
function plaidHost(answer: (body: Record<string, string>) => object | undefined = () => undefined) {
  const asked: { url: string; body: Record<string, string> }[] = []
  const fetch: Fetch = async (url, options) => {
    const body = JSON.parse(options.body ?? '')
    asked.push({ url, body })
    t.match(options, { method: 'POST', redirect: 'error', signal: AbortSignal })
    const other = answer(body)
    if (other === undefined) return plaidApi(url, options)
    return {
      ok: 'key' in other,
      status: 'key' in other ? 200 : 400,
      text: async () => JSON.stringify(other),
    }
  }
  return { fetch, asked }
}

const fromPlaid = (secret: string, body = ITEM, signed = body) => ({
  headers: { 'plaid-verification': plaidToken(secret, signed, NOW) },
  body: Buffer.from(body),
})

t.test('plaid: a key is asked for once, where its environment is', async (t) => {
  for (const environment of ['production', 'sandbox'] as const) {
    const { fetch, asked } = plaidHost()
    const provider = plaid({ clientId: 'c-1', secret: FIRST, environment, fetch })
    for (let n = 0; n < 3; n += 1) {
      t.equal((await ask(provider, fromPlaid(FIRST))).kind, 'verified')
    }
    const url = `https://${environment}.plaid.com/webhook_verification_key/get`
    const body = { client_id: 'c-1', secret: FIRST, key_id: firstKey.kid }
    t.same(asked, [{ url, body }])
  }
  t.throws(() => plaid({ clientId: 'c-1', secret: FIRST, environment: 'development' as never }), {
    message: /"environment" of plaid must be 'production' or 'sandbox'/,
  })
})

t.test('plaid: the token names the body, and no other', async (t) => {
  const provider = plaid({ clientId: 'c-1', secret: FIRST, fetch: plaidApi })
  const other = ITEM.replace('i-1', 'i-2')
  t.match(await ask(provider, fromPlaid(FIRST, other, ITEM)), { reason: 'no_match' })
  const headers = { 'plaid-verification': token(firstKey, { iat: NOW / 1_000 }) }
  t.match(await ask(provider, { headers, body: Buffer.from(ITEM) }), { reason: 'no_match' })
})

t.test('plaid: a key that was withdrawn is not believed', async (t) => {
  const advance = movableClock(t)
  let expired_at: number | null = null
  const { fetch } = plaidHost(() => ({ key: { ...firstKey.jwk, expired_at } }))
  const provider = plaid({ clientId: 'c-1', secret: FIRST, fetch })
  t.equal((await ask(provider, fromPlaid(FIRST))).kind, 'verified')
  expired_at = NOW / 1_000
  advance(3_600_000)
  t.match(await ask(provider, fromPlaid(FIRST)), { reason: 'no_match' })
})

t.test('plaid: credentials that it does not know say nothing of the request', async (t) => {
  const { fetch } = plaidHost(({ secret }) =>
    secret === 'revoked' ? { error_code: 'INVALID_API_KEYS' } : undefined,
  )
  const one = plaid({ clientId: 'c-1', secret: 'revoked', fetch })
  await t.rejects(ask(one, fromPlaid(FIRST)), {
    name: 'CertificateUnreachable',
    message: 'Plaid does not say what the key is: INVALID_API_KEYS',
    code: 'INVALID_API_KEYS',
  })
  const both = plaid({ clientId: 'c-1', secret: ['revoked', FIRST], fetch })
  t.equal((await ask(both, fromPlaid(FIRST))).kind, 'verified', 'another secret that it knows does')
  await t.rejects(ask(both, fromPlaid(SECOND)), { name: 'CertificateUnreachable' })
  for (const answer of [{}, { key: null }, { key: { kty: 'oct', k: 'AAAA' } }]) {
    const host = plaidHost(() => answer)
    const provider = plaid({ clientId: 'c-1', secret: FIRST, fetch: host.fetch })
    await t.rejects(ask(provider, fromPlaid(FIRST)), { name: 'CertificateUnreachable' })
  }
})

t.test('plaid: a request without a token in the right form costs no look-up', async (t) => {
  const { fetch, asked } = plaidHost()
  let lookups = 0
  const secret = () => {
    lookups += 1
    return FIRST
  }
  const provider = plaid({ clientId: 'c-1', secret, fetch })
  const rsa = token(publishedKey('rsa', firstKey.kid), { iat: NOW / 1_000 })
  for (const jwt of ['junk', 'a.b.c', rsa]) {
    const sent = { headers: { 'plaid-verification': jwt }, body: Buffer.from(ITEM) }
    t.equal((await ask(provider, sent)).kind, 'refused')
  }
  t.same([asked.length, lookups], [0, 0])
})

t.test('keys that do not exist are not asked for without end; known keys go on', async (t) => {
  const advance = movableClock(t)
  const { fetch, asked } = plaidHost()
  const provider = plaid({ clientId: 'c-1', secret: FIRST, fetch })
  t.equal((await ask(provider, fromPlaid(FIRST))).kind, 'verified')
  const invented = (n: number) => {
    const jwt = token({ ...publishedKey('ec', `invented-${n}`) }, { iat: NOW / 1_000 })
    return ask(provider, { headers: { 'plaid-verification': jwt }, body: Buffer.from(ITEM) })
  }
  for (let n = 0; n < 30; n += 1) t.equal((await invented(n)).kind, 'refused')
  await t.rejects(invented(30), { name: 'CertificateUnreachable' })
  t.equal(asked.length, 31)
  t.equal((await ask(provider, fromPlaid(FIRST))).kind, 'verified')
  advance(60_001)
  t.equal((await invented(31)).kind, 'refused', 'a minute later')
})

t.test('a key that was there before is asked for again, however many are invented', async (t) => {
  const advance = movableClock(t)
  const { fetch, asked } = plaidHost()
  const provider = plaid({ clientId: 'c-1', secret: FIRST, fetch })
  t.equal((await ask(provider, fromPlaid(FIRST))).kind, 'verified')
  advance(3_600_001)
  for (let n = 0; n < 30; n += 1) {
    const jwt = token({ ...publishedKey('ec', `invented-${n}`) }, { iat: NOW / 1_000 })
    await ask(provider, { headers: { 'plaid-verification': jwt }, body: Buffer.from(ITEM) })
  }
  t.equal((await ask(provider, fromPlaid(FIRST))).kind, 'verified')
  t.equal(asked.length, 32)
})
