// What a hostile client can put into a request: each is answered 2xx, 4xx or with a typed error, blocks the event loop
// for hardly longer than the same route does unprotected, and costs the other tenants nothing.
import t from 'tap'
import { begin, buildApp, newKey } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

interface Hostile {
  readonly name: string
  readonly body?: string
  readonly key?: string
  readonly path?: string
  readonly headers?: Record<string, string>
}

const MIB = 1024 * 1024
const repeat = (text: string, bytes: number) => text.repeat(Math.floor(bytes / text.length))
const nested = (open: string, inner: string, close: string, bytes: number) => {
  const depth = Math.floor(bytes / (open.length + close.length))
  return open.repeat(depth) + inner + close.repeat(depth)
}
const wide = (count: number) => {
  const names = Array.from({ length: count }, (_, n) => ((n * 7_919) % count).toString(36))
  return `{${names.map((name) => `"k${name}":1`).join(',')}}`
}

const sideBySide = (value: string) => `[${repeat(`${value},`, MIB - 16).slice(0, -1)}]`

const HOSTILE: readonly Hostile[] = [
  { name: 'a body of nested lists', body: nested('[', '', ']', MIB - 16) },
  { name: 'a body of nested objects', body: nested('{"a":', '1', '}', MIB - 16) },
  ...[200, 1_000, 3_000, 20_000].flatMap((depth) => [
    {
      name: `a body of lists nested ${depth} deep, side by side`,
      body: sideBySide(nested('[', '', ']', 2 * depth)),
    },
    {
      name: `a body of objects nested ${depth} deep, side by side`,
      body: sideBySide(nested('{"a":', '1', '}', 6 * depth)),
    },
  ]),
  { name: 'a body of 100,000 unsorted properties', body: wide(100_000) },
  { name: 'a body that is one long text', body: JSON.stringify(repeat('x', MIB - 64)) },
  { name: 'a body of many small lists', body: `[${repeat('[],', MIB - 16).slice(0, -1)}]` },
  { name: 'numbers that overflow', body: '{"a":1e999,"b":-1e999,"c":9007199254740993}' },
  { name: 'a NUL in the body', body: '{"a":"\\u0000"}' },
  { name: 'lone surrogates in the body', body: '{"\\ud800":"\\udc00"}' },
  { name: '__proto__ in the body', body: '{"__proto__":{"admin":true}}' },
  { name: 'constructor in the body', body: '{"constructor":{"prototype":{"admin":true}}}' },
  { name: 'a key of 15,000 spaces', key: `a${' '.repeat(15_000)}a` },
  { name: 'a key of 15,000 tabs', key: `${'\t'.repeat(15_000)}a` },
  { name: 'a key of 7,000 escapes', key: `"${'\\"'.repeat(7_000)}` },
  { name: 'a key of 15,000 quotes', key: '"'.repeat(15_000) },
  { name: 'a key of __proto__', key: '__proto__' },
  { name: 'a NUL in the query', path: '/open?q=%00' },
  { name: 'a surrogate in the query', path: '/open?q=%ED%A0%80' },
  { name: '5,000 parameters in the query', path: `/open?${repeat('a=1&', 20_000)}` },
  { name: 'a NUL in the tenant', headers: { 'x-tenant': 'a%00b' } },
  { name: 'a lone surrogate in the tenant', headers: { 'x-tenant': 'surrogate' } },
  { name: 'a tenant of 10,000 characters', headers: { 'x-tenant': 'x'.repeat(10_000) } },
  { name: 'a lone surrogate in the principal', headers: { 'x-principal': 'surrogate' } },
]

const text = (header: unknown) =>
  header === 'surrogate' ? 'a\ud800' : decodeURIComponent(String(header ?? 'acme'))

const app = await buildApp(t, database, {
  plugin: {
    tenant: (request) => text(request.headers['x-tenant']),
    principal: (request) => text(request.headers['x-principal']),
  },
  server: { routerOptions: { maxParamLength: 20_000 } } as object,
  routes(app) {
    app.post('/protected', () => 'done')
    app.post('/open', () => 'done')
    app.post('/bare', { config: { idempotency: false } }, () => 'done')
  },
})

/**
 * How much processor time one turn of the event loop took, at most, in milliseconds. The time on the clock
 * would include what the machine does beside it.
 */
async function blockedMs(call: () => Promise<unknown>): Promise<number> {
  let longest = 0
  let before = process.cpuUsage()
  let turn: NodeJS.Immediate
  const end = () => {
    const { user, system } = process.cpuUsage(before)
    longest = Math.max(longest, (user + system) / 1_000)
    before = process.cpuUsage()
  }
  const next = () => {
    end()
    turn = setImmediate(next)
  }
  turn = setImmediate(next)
  await call()
  clearImmediate(turn)
  end()
  return longest
}

for (const { name, body = '{}', key, path, headers } of HOSTILE) {
  t.test(`${name} is answered, alone and at once`, async (t) => {
    const post = (url: string) =>
      begin(app, url, {
        key: key ?? newKey(),
        payload: body,
        headers: { 'content-type': 'application/json', ...headers },
      })
    const strangers = Array.from({ length: 10 }, (_, n) =>
      begin(app, '/protected', { key: newKey(), headers: { 'x-tenant': `other-${n}` } }),
    )
    const answers = await Promise.all([post(path ?? '/protected'), post(path ?? '/protected')])
    for (const { statusCode, body } of answers) {
      // The tenant and the principal are the application's functions: what they return is its own.
      const isTyped = body.includes('"code":"IDEMPOTENCY_')
      t.ok(statusCode < 500 || isTyped, `${statusCode} ${body.slice(0, 200)}`)
    }
    for (const { statusCode } of await Promise.all(strangers)) t.equal(statusCode, 200)

    // The best of several each: what the machine does beside it is not the point.
    let bareMs = Number.POSITIVE_INFINITY
    let protectedMs = Number.POSITIVE_INFINITY
    const bare = (path ?? '/protected').replace(/^\/\w+/, '/bare')
    for (let round = 0; round < 3 || (round < 10 && protectedMs - bareMs >= 50); round += 1) {
      bareMs = Math.min(bareMs, await blockedMs(() => post(bare)))
      protectedMs = Math.min(protectedMs, await blockedMs(() => post(path ?? '/protected')))
    }
    const extraMs = protectedMs - bareMs
    t.comment(`${Math.round(bareMs)} ms bare, ${Math.round(protectedMs)} ms protected`)
    t.ok(extraMs < 50, `${Math.round(extraMs)} ms more than the same route unprotected`)
  })
}
