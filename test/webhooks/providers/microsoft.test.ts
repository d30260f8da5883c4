// Microsoft Graph and Azure Event Grid: what they ask before they deliver, and how they are recognised.
import t from 'tap'
import { azureEventGrid, microsoftGraph } from '../../../src/webhooks/providers/index.js'
import { ask, NOW } from '../../contracts/provider.js'
import { certificateHost, ENTRA, ENTRA_KEYS, entraClaims, entraKey, token } from './cases.js'

const code = 'IDEMPOTENCY_OPTION_INVALID'
const SECRET = 'secret-client-state'
const post = (value: unknown, rest: object = {}) => ({
  headers: {},
  body: Buffer.from(JSON.stringify(value)),
  ...rest,
})

t.test('graph: the validation token is answered as it was before it was encoded', async (t) => {
  const provider = microsoftGraph({ clientState: SECRET })
  const headers = { 'content-type': 'text/plain', 'x-content-type-options': 'nosniff' }
  const encoded = 'Validation%3a+Testing+client%20Request-Id%3a+%3cb%3e'
  const sent = { headers: {}, body: Buffer.alloc(0), url: `/graph?a=1&validationToken=${encoded}` }
  const body = 'Validation: Testing client Request-Id: <b>'
  t.same(await ask(provider, sent), { kind: 'handshake', answer: { status: 200, headers, body } })
  t.equal((await ask(provider, { ...sent, url: '/graph' })).kind, 'refused')
})

t.test('graph: each notification must carry the secret', async (t) => {
  const provider = microsoftGraph({ clientState: SECRET })
  const good = { clientState: SECRET, changeType: 'updated', resource: 'r' }
  t.equal((await ask(provider, post({ value: [good, good] }))).kind, 'verified')
  for (const clientState of [undefined, null, '', 'other', `${SECRET} `, 7, [SECRET], {}]) {
    const result = await ask(provider, post({ value: [good, { ...good, clientState }] }))
    t.match(result, { kind: 'refused', reason: 'no_match' }, JSON.stringify(clientState))
  }
  for (const junk of [{}, [], null, { value: [] }, { value: {} }, { value: good }]) {
    const result = await ask(provider, post(junk))
    t.match(result, { kind: 'refused', reason: 'malformed' }, JSON.stringify(junk))
  }
  t.match(await ask(provider, post({ value: [null] })), { kind: 'refused', reason: 'no_match' })
})

t.test('graph: the secret is not kept', async (t) => {
  const provider = microsoftGraph({ clientState: SECRET })
  const item = {
    clientState: SECRET,
    changeType: 'updated',
    resource: 'r',
    resourceData: { id: 1 },
  }
  const result = await ask(provider, post({ value: [item] }))
  if (result.kind !== 'verified') return t.fail(result.kind)
  const [event] = result.events
  t.same(event?.payload, { changeType: 'updated', resource: 'r', resourceData: { id: 1 } })
  t.notMatch(event?.rawBody.toString(), SECRET)
})

const KEY = 'key-of-the-subscription'
const EVENTS = [{ id: '1', topic: 't', eventType: 'A.B', subject: 's' }]

function grid(over: object = {}) {
  const host = certificateHost({ [ENTRA_KEYS]: JSON.stringify({ keys: [entraKey.jwk] }) })
  const provider = azureEventGrid({
    audience: 'api://hooks',
    directory: ENTRA,
    fetch: host.fetch,
    ...over,
  })
  const send = (claims: object) => {
    const authorization = `Bearer ${token(entraKey, { ...entraClaims('api://hooks', NOW), ...claims })}`
    return ask(provider, post(EVENTS, { headers: { authorization } }))
  }
  return { ...host, send }
}

t.test(
  'event grid: a token is one of this tenant, for this application, to Event Grid',
  async (t) => {
    const { send, visited } = grid()
    t.equal((await send({})).kind, 'verified')
    const version2 = {
      iss: `https://login.microsoftonline.com/${ENTRA}/v2.0`,
      azp: entraClaims('', NOW).appid,
      appid: undefined,
    }
    t.equal((await send(version2)).kind, 'verified')
    const stranger = '99999999-2222-4333-8444-555555555555'
    for (const claims of [
      { iss: `https://sts.windows.net/${stranger}/` },
      { iss: `https://sts.windows.net/${ENTRA}` },
      { aud: 'api://other' },
      { aud: ['api://hooks', 'api://other'] },
      { aud: undefined },
      { appid: stranger },
      { appid: undefined },
      { ...version2, azp: stranger },
      { appid: stranger, azp: entraClaims('', NOW).appid },
      { exp: undefined },
    ]) {
      const result = await send(claims)
      t.match(result, { kind: 'refused', reason: 'no_match' }, JSON.stringify(claims))
    }
    t.match(await send({ exp: NOW / 1_000 - 61 }), { reason: 'too_old' })
    t.match(await send({ nbf: NOW / 1_000 + 61 }), { reason: 'from_future' })
    t.same([...new Set(visited)], [ENTRA_KEYS])
  },
)

t.test('event grid: a managed identity can be the sender', async (t) => {
  const sender = 'AAAAAAAA-2222-4333-8444-555555555555'
  const { send } = grid({ sender, directory: ENTRA.toUpperCase() })
  t.equal((await send({ appid: sender.toLowerCase() })).kind, 'verified')
  t.equal((await send({})).kind, 'refused', 'and Event Grid is not any longer')
})

t.test('event grid: a key comes where it was said to come', async (t) => {
  const inAddress = azureEventGrid({ key: KEY })
  const inHeader = azureEventGrid({ key: KEY, header: 'X-Key' })
  const url = `/hooks?a=1&code=${KEY}`
  t.equal((await ask(inAddress, post(EVENTS, { url }))).kind, 'verified')
  t.match(await ask(inHeader, post(EVENTS, { url })), { reason: 'missing_header' })
  for (const other of ['/hooks', '/hooks?code=', `/hooks?key=${KEY}`]) {
    t.match(await ask(inAddress, post(EVENTS, { url: other })), { reason: 'missing_header' }, other)
  }
  t.match(await ask(inAddress, post(EVENTS, { url: `/hooks?code=${KEY}x` })), {
    reason: 'no_match',
  })
  t.same(inHeader.secretHeaders, ['x-key'])
})

t.test('event grid: only a question that comes alone is answered', async (t) => {
  const provider = azureEventGrid({ key: KEY })
  const question = {
    eventType: 'Microsoft.EventGrid.SubscriptionValidationEvent',
    data: { validationCode: 'c-1' },
  }
  const kindOf = async (events: unknown) =>
    (await ask(provider, post(events, { url: `/hooks?code=${KEY}` }))).kind
  t.equal(await kindOf([question]), 'handshake')
  t.equal(await kindOf([question, ...EVENTS]), 'verified', 'and no event is lost with it')
  t.equal(await kindOf([{ ...question, data: {} }]), 'verified')
  t.equal((await ask(provider, post([question]))).kind, 'refused', 'and it is not signed')
})

t.test('event grid: the question of CloudEvents is answered for its own origin', async (t) => {
  const provider = azureEventGrid({ key: KEY })
  const origin = 'eventgrid.azure.net'
  const options = (from: string, method = 'OPTIONS') =>
    ask(provider, {
      method,
      headers: { 'webhook-request-origin': from },
      body: Buffer.alloc(0),
    })
  t.match(await options(origin), {
    kind: 'handshake',
    answer: { status: 200, headers: { 'webhook-allowed-origin': origin } },
  })
  t.equal((await options('evil.example')).kind, 'refused')
  t.equal((await options(origin, 'POST')).kind, 'refused')
})

const wrong: readonly [options: object, message: RegExp][] = [
  [{}, /needs option "key", or options "audience" and "directory", and not both/],
  [{ key: KEY, audience: 'a', directory: ENTRA }, /and not both/],
  [{ key: KEY, directory: ENTRA }, /"directory" of azure-event-grid must be left out without "aud/],
  [{ key: KEY, sender: ENTRA }, /"sender" of azure-event-grid must be left out without "audience"/],
  [{ key: KEY, fetch }, /"fetch" of azure-event-grid must be left out without "audience"/],
  [{ audience: 'a', directory: ENTRA, header: 'x-key' }, /"header" .* left out without "key"/],
  [
    { audience: 'a' },
    /"directory" of azure-event-grid must be the id of the Microsoft Entra tenan/,
  ],
  [{ audience: 'a', directory: 'common' }, /"directory" of azure-event-grid must be an id such as/],
  [{ audience: 'a', directory: `${ENTRA}/../x` }, /must be an id such as/],
]
for (const [options, message] of wrong) {
  t.test(`event grid: ${Object.keys(options).join(' and ') || 'nothing'} is refused`, async (t) => {
    t.throws(() => azureEventGrid(options), { code, message })
  })
}

t.test('the parts of a name of Event Grid cannot be confused', async (t) => {
  const provider = azureEventGrid({ key: 's', header: 'x-key' })
  const names: unknown[] = []
  for (const [source, id] of [
    ['a:b', 'c'],
    ['a', 'b:c'],
    ['a%3Ab', 'c'],
  ]) {
    const body = Buffer.from(JSON.stringify({ specversion: '1.0', source, id, type: 't' }))
    const result = await ask(provider, { headers: { 'x-key': 's' }, body })
    names.push(result.kind === 'verified' && result.events[0]?.eventId)
  }
  t.equal(new Set(names).size, 3)
})
