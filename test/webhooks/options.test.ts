// What app.webhook accepts, and what it says to the rest.
import Fastify from 'fastify'
import t, { test } from 'tap'
import idempotency, { type PluginOptions } from '../../src/index.js'
import { WEBHOOK_DEFAULTS } from '../../src/webhooks/options.js'
import { github, gitlab, stripe } from '../../src/webhooks/providers/index.js'
import { verify } from '../../src/webhooks/verify.js'
import { buildApp, send } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { bank, postStripe, SECRET, signedByStripe, stripeEvent } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)
const { prisma } = database

const provider = stripe({ secret: SECRET })
const handler = () => {}

type Call = [url: unknown, options: unknown, handler?: unknown]

/** What is said to these calls of `app.webhook`, one after the other. */
async function errorOf(
  calls: readonly Call[],
  plugin: object = {},
): Promise<{ code?: string; message: string }> {
  const app = Fastify()
  try {
    await app.register(idempotency, { prisma, tenant: false, ...plugin } as PluginOptions)
    for (const call of calls) app.webhook(...(call as Parameters<typeof app.webhook>))
    await app.ready()
    return { message: 'it was accepted' }
  } catch (error) {
    return error as Error
  } finally {
    await app.close()
  }
}

const duration: { wrong: unknown[]; says: RegExp } = {
  wrong: ['', '5', 's', '1w', -1, Number.NaN, true, null, {}, [], 0, 999],
  says: /must be a duration of at least 1000 ms/,
}

const OPTIONS: Record<string, { wrong: unknown[]; right: unknown[]; says: RegExp }> = {
  provider: {
    wrong: [undefined, null, 'stripe', stripe, {}, { scheme: 'hmac' }],
    right: [provider, github({ secret: 's' }), bank()],
    says: /must be a provider such as stripe\(\{ secret \}\) or hmac\(/,
  },
  tenant: {
    wrong: ['', null, 5, true, {}, false, 'a\0', '\ud800', 'x'.repeat(256)],
    right: ['acme', () => 'acme'],
    says: /must be a name of at most 255 characters, .* or a function such as \(request\) => request\.params\.tenant/,
  },
  name: {
    wrong: ['', null, 5, 'x'.repeat(192), {}, 'a\0', '\ud800'],
    right: ['stripe', 'x'.repeat(191)],
    says: /must be text of 1 to 191 characters/,
  },
  mode: {
    wrong: ['', 'INLINE', 'async', null, true],
    right: ['inline', 'deferred'],
    says: /must be 'inline' or 'deferred'/,
  },
  types: {
    wrong: ['invoice.paid', [1], [''], ['a\0'], null, {}, []],
    right: [['invoice.paid']],
    says: /must be a list of event types, such as \['payment_intent\.succeeded'\]/,
  },
  serialize: {
    wrong: [false, 'order', null, {}],
    right: [true, () => 'x'],
    says: /must be a function/,
  },
  lease: { ...duration, right: ['1s', 1_000, '5m'] },
  maxRun: { ...duration, right: ['30s', '1h'] },
  retry: {
    wrong: [
      ...[null, [], 5, '1s', { attempts: 0 }, { attempts: 1.5 }, { attempts: 1_001 }],
      ...[{ first: 0 }, { first: '1x' }, { most: -1 }, { most: null }, { max: 5 }],
      ...[{ first: '13h' }, { most: 500 }, { first: '2s', most: '1s' }],
    ],
    right: [{}, { attempts: 1 }, { attempts: 3, first: '1s', most: '1h' }],
    says: /must be \{ attempts, first, most \}, with a "first" that is no longer than "most"/,
  },
  deferrals: {
    wrong: [-1, 1.5, '1', null],
    right: [0, 5],
    says: /must be a whole number from 0/,
  },
  retention: { ...duration, right: ['30d', '365d'] },
  headers: {
    wrong: [
      ...['x-a', ['x a'], [5], null, ['set-cookie'], ['x-a', 'Authorization'], ['cookie']],
      ...[['X-GitLab-Token'], ['x-a', 'verif-hash']],
    ],
    right: [[], ['x-a']],
    says: /must be a list of header names|must not contain '[\w-]+'/,
  },
  bodyLimit: {
    wrong: [0, -1, 1.5, '1mb', null, 64 * 1024 * 1024 + 1],
    right: [1, 64 * 1024 * 1024],
    says: /must be a whole number from 1 to 67108864/,
  },
  answers: {
    wrong: [
      ...[null, [], 'x', 5, { ok: { status: 200 } }, { dead: 200 }, { dead: null }],
      ...[{ dead: {} }, { dead: { status: 199 } }, { dead: { status: 600 } }],
      ...[{ dead: { status: '200' } }, { dead: undefined }],
      ...[{ dead: { status: 200, body: 1n } }, { dead: { status: 200, body: { n: 1n } } }],
    ],
    right: [{}, { dead: { status: 406 } }, { failed: { status: 599, body: 'x', headers: {} } }],
    says: /must give \{ status, headers, body \} by outcome.*the outcomes are processed, duplicate/,
  },
  clock: { wrong: [0, null, 'now', new Date()], right: [Date.now], says: /must be a function/ },
}

test('verify() says what it needs, and believes nothing without a time', async (t) => {
  const body = JSON.stringify({ id: 'evt_1', type: 'a' })
  const headers = signedByStripe(body, { at: 1_000_000_000 })
  const at = 1_000_000_000_000
  t.match(await verify(provider, headers, body, { at }), { kind: 'verified' })
  t.match(await verify(provider, headers, body), { kind: 'refused', reason: 'too_old' })
  const refused = { code: 'IDEMPOTENCY_OPTION_INVALID' }
  for (const at of [Number.NaN, Number.POSITIVE_INFINITY, new Date(Number.NaN), '2001' as never]) {
    await t.rejects(verify(provider, headers, body, { at }), refused, String(at))
  }
  for (const wrong of [undefined, null, 5, JSON.parse(body), []]) {
    await t.rejects(verify(provider, headers, wrong as never), {
      ...refused,
      message: /as it came/,
    })
  }
  for (const wrong of [undefined, null, 5, 'x', Object.entries(headers)]) {
    await t.rejects(verify(provider, wrong as never, body), { ...refused, message: /headers/ })
    await t.rejects(verify(wrong as never, headers, body), { ...refused, message: /provider/ })
  }
})

test('a clock that tells no time makes an endpoint believe nothing', async (t) => {
  const late = async () => {
    throw new Error('late')
  }
  for (const clock of [() => Number.NaN, () => undefined, () => 'now', async () => 5, late]) {
    const app = await buildApp(t, database, {
      routes: (app) =>
        app.webhook('/webhooks/stripe', { provider, clock: clock as never }, handler),
    })
    t.equal((await postStripe(app, stripeEvent())).statusCode, 503)
  }
})

test('a provider that was changed is checked as it is', async (t) => {
  for (const [change, says] of [
    [{ name: 'a\0' }, /"name" of the provider of webhook \/hooks must be 1 to 64 letters/],
    [{ name: 'a.b' }, /"name" of the provider of webhook \/hooks must be 1 to 64 letters/],
    [{ nam: 'a' }, /"nam" of the provider of webhook \/hooks is not known; did you mean "name"/],
    [
      { scheme: {} },
      /"scheme" of the provider of webhook \/hooks must be \{ algorithm, read, … \}/,
    ],
    [{ eventId: undefined }, /"eventId" of the provider of webhook \/hooks must be a function/],
    [{ answers: { done: { status: 200 } } }, /"answers" of the provider .* the outcomes are/],
    [{ keptHeaders: ['Cookie'] }, /must not contain 'Cookie'/],
    [{ redelivers: 'no' }, /must be true or false/],
    [{ scheme: { ...provider.scheme, toleranceMs: Number.NaN } }, /must be milliseconds above 0/],
  ] as const) {
    const changed = { ...provider, ...change } as never
    const error = await errorOf([['/hooks', { provider: changed }, handler]])
    t.equal((error as { code?: string }).code, 'IDEMPOTENCY_OPTION_INVALID')
    t.match(error.message, says)
  }
})

for (const [name, { wrong, right, says }] of Object.entries(OPTIONS)) {
  test(`option "${name}" is checked, and the message says what is allowed`, async (t) => {
    for (const value of wrong) {
      const error = await errorOf([['/hooks', { provider, [name]: value }, handler]])
      t.equal(error.code, 'IDEMPOTENCY_OPTION_INVALID', String(value))
      t.match(error.message, `option "${name}" of webhook /hooks `)
      t.match(error.message, says)
    }
    for (const value of right) {
      const error = await errorOf([['/hooks', { provider, [name]: value }, handler]])
      t.equal(error.message, 'it was accepted', String(value))
    }
  })
}

test('every option is checked', (t) => {
  t.ok(Object.keys(WEBHOOK_DEFAULTS).every((name) => name in OPTIONS))
  t.end()
})

test('an option that is undefined is the default', async (t) => {
  const options = Object.fromEntries(Object.keys(WEBHOOK_DEFAULTS).map((name) => [name, undefined]))
  t.equal(
    (await errorOf([['/hooks', { ...options, provider }, handler]])).message,
    'it was accepted',
  )
})

const { type: _type, ...untyped } = bank({ name: 'untyped' })
const withToken = { ...bank({ name: 'tokens' }), secretHeaders: ['x-own-token'] }

test('what cannot be is refused with a word on what to do', async (t) => {
  const refused: [Call, RegExp][] = [
    [['hooks', { provider }, handler], /needs a URL first, such as '\/webhooks\/stripe'/],
    [[{ url: '/hooks' }, { provider }, handler], /needs a URL first/],
    [['/hooks', undefined, handler], /the options of webhook \/hooks must be an object/],
    [['/hooks', handler], /must be an object|"provider"/],
    [['/hooks', { provider }], /needs a handler as its third argument: async \(event\) =>/],
    [['/hooks', { provider, handler: 1 }, handler], /"handler".* is not known; the options are/],
    [['/hooks', { provider, lease: '2m', maxRun: '1m' }, handler], /"maxRun".* not be shorter/],
    [
      ['/hooks', { provider: bank({ name: 'quiet' }), serialize: true }, handler],
      /"serialize".* must be a function: quiet does not say what an event is about/,
    ],
    [
      ['/hooks', { provider: untyped, types: ['message'] }, handler],
      /"types".* must be left out: untyped does not say what type an event has/,
    ],
    [
      ['/hooks', { provider: withToken, headers: ['x-a', 'X-Own-Token'] }, handler],
      /"headers".* must not contain 'X-Own-Token': it would be stored with every event/,
    ],
  ]
  for (const [call, says] of refused) {
    const error = await errorOf([call])
    t.equal(error.code, 'IDEMPOTENCY_OPTION_INVALID')
    t.match(error.message, says)
  }
})

test('a provider is checked where it is made', (t) => {
  for (const secret of ['', [], [''], undefined, null, 5, ['good', '']]) {
    t.throws(() => stripe({ secret: secret as string }), { code: 'IDEMPOTENCY_OPTION_INVALID' })
    t.throws(() => gitlab({ secret: secret as string } as never), {
      code: 'IDEMPOTENCY_OPTION_INVALID',
    })
  }
  t.end()
})

test('an application with tenants must say whose events an endpoint gets', async (t) => {
  const plugin = { tenant: () => 'acme' }
  const error = await errorOf([['/hooks', { provider }, handler]], plugin)
  t.equal(error.code, 'IDEMPOTENCY_OPTION_INVALID')
  t.match(error.message, /"tenant" of webhook \/hooks is needed.*request\.params\.tenant/)
})

test('two webhooks of one name are refused: their events would be run by either', async (t) => {
  const other = bank({ name: 'other' })
  const twice = (name: string | undefined, url = '/b') =>
    errorOf([
      ['/a', { provider, name: 'same' }, handler],
      [url, { provider: other, name }, handler],
    ])
  t.match((await twice('same')).message, /two webhooks are called same: give one of them another/)
  t.equal((await twice('other')).message, 'it was accepted')
  t.equal((await twice(undefined)).message, 'it was accepted')
  t.match((await twice(undefined, '/a')).message, /already declared/)
})

test("two webhooks whose events would be each other's duplicates are refused", async (t) => {
  const tenants = (one: unknown, two: unknown) =>
    errorOf([
      ['/a', { provider, tenant: one }, handler],
      ['/b', { provider: stripe({ secret: 'another' }), tenant: two }, handler],
    ])
  t.match((await tenants(undefined, undefined)).message, /share the provider name stripe/)
  t.match((await tenants('a', 'a')).message, /share the provider name stripe/)
  t.equal((await tenants('a', 'b')).message, 'it was accepted')
  const found = () => 'a'
  t.match((await tenants(found, 'b')).message, /share/, 'a function may find any tenant')
})

test('an application without webhooks works without their model', async (t) => {
  const client = new Proxy(prisma, {
    get: (target, name) => (name === 'webhookEvent' ? undefined : Reflect.get(target, name)),
    has: (target, name) => name !== 'webhookEvent' && Reflect.has(target, name),
  })
  const app = await buildApp(t, database, {
    plugin: { prisma: client },
    routes(app) {
      app.post('/things', () => 'ran')
      app.post('/record', (request) =>
        request.idempotency.recordEvent({ provider: 'x', eventId: 'y' }),
      )
      t.throws(() => app.webhook('/hooks', { provider }, handler), {
        code: 'IDEMPOTENCY_MODELS_MISSING',
        message: /lacks model WebhookEvent|WebhookEvent/,
      })
    },
  })
  t.equal((await send(app, '/things', { key: 'k-without-webhooks' })).body, 'ran')
  t.equal(await app.idempotency.prune(), 0)
  const record = await send(app, '/record')
  t.equal(record.json().code, 'IDEMPOTENCY_MODELS_MISSING')
})
