import t, { test } from 'tap'
import {
  buildApp,
  exchangeBytes,
  listen,
  newKey,
  postText,
  recordOf,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)

/** An application whose one route tells its key and counts its runs. */
async function keyEcho(t: Parameters<typeof buildApp>[0], plugin = {}) {
  const counted = { runs: 0 }
  const app = await buildApp(t, database, {
    plugin,
    routes: (app) =>
      app.post('/things', (request) => ({ run: ++counted.runs, key: request.idempotency.key })),
  })
  return { app, counted }
}

test('a header that is sent twice is refused, also with the same value', async (t) => {
  const pool = new WatchedPool(database)
  const { app, counted } = await keyEcho(t, { pool })
  const port = await listen(app)
  const key = newKey()
  for (const second of [key, newKey()]) {
    for (const quote of ['', '"']) {
      const lines = [key, second].map((value) => `idempotency-key: ${quote}${value}${quote}`)
      const answer = await exchangeBytes(t, port, postText('/things', lines))
      t.equal(answer.statusCode, 400)
      t.equal(JSON.parse(answer.body.toString()).code, 'IDEMPOTENCY_KEY_MALFORMED')
      t.match(answer.body.toString(), 'more than once')
    }
  }
  t.equal(counted.runs, 0)
  t.same(pool.asked, [])
})

test('two halves of a quoted string in two header lines are no key', async (t) => {
  const { app, counted } = await keyEcho(t)
  const port = await listen(app)
  const lines = ['idempotency-key: "half', 'idempotency-key: other"']
  const answer = await exchangeBytes(t, port, postText('/things', lines))
  t.equal(answer.statusCode, 400)
  t.equal(counted.runs, 0)
})

test('an empty key is refused, quoted or not, also where none is required', async (t) => {
  const { app, counted } = await keyEcho(t)
  for (const key of ['', ' ', '""', ' "" ']) {
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 400, JSON.stringify(key))
    t.equal(answer.json().code, 'IDEMPOTENCY_KEY_MALFORMED')
    t.match(answer.json().detail, 'empty')
  }
  t.equal(counted.runs, 0)
})

test('255 characters are a key, 256 are not', async (t) => {
  const { app, counted } = await keyEcho(t)
  const longest = newKey().padEnd(255, 'x')
  t.equal((await send(app, '/things', { key: longest })).statusCode, 200)
  t.equal(
    (await send(app, '/things', { key: `"${longest}"` })).headers['idempotent-replayed'],
    'true',
  )
  for (const key of [`${longest}x`, `"${longest}x"`]) {
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 400)
    t.match(answer.json().detail, 'more than 255 characters')
    t.notMatch(answer.body, longest, 'the key is not repeated')
  }
  t.equal(counted.runs, 1)
})

test('escapes do not count towards the length of a quoted key', async (t) => {
  const { app } = await keyEcho(t)
  const answer = await send(app, '/things', { key: `"${'\\\\'.repeat(255)}"` })
  t.equal(answer.statusCode, 200)
  t.equal(answer.json().key, '\\'.repeat(255))
})

test('control characters are refused', async (t) => {
  const { app, counted } = await keyEcho(t)
  const port = await listen(app)
  const codes = [...Array.from({ length: 32 }, (_, code) => code), 127]
  for (const code of codes) {
    const value = `a${String.fromCharCode(code)}b`
    for (const text of [value, `"${value}"`]) {
      const answer = await exchangeBytes(t, port, postText('/things', [`idempotency-key: ${text}`]))
      t.equal(answer.statusCode, 400, `character ${code}`)
    }
  }
  t.equal(counted.runs, 0)
})

test('control characters are refused at the ends of a key, too', async (t) => {
  const { app, counted } = await keyEcho(t)
  for (const code of [11, 12, 28, 31, 127]) {
    const character = String.fromCharCode(code)
    for (const key of [`${character}abc`, `abc${character}`, `"abc"${character}`]) {
      t.equal((await send(app, '/things', { key })).statusCode, 400, JSON.stringify(key))
    }
  }
  t.equal(counted.runs, 0)
})

test('an unterminated quote is refused', async (t) => {
  const { app, counted } = await keyEcho(t)
  for (const key of ['"', '"abc', '"abc\\"', 'abc"', '"a"b"']) {
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 400, key)
    t.equal(answer.json().code, 'IDEMPOTENCY_KEY_MALFORMED')
  }
  t.match((await send(app, '/things', { key: '"abc' })).json().detail, 'closing quote')
  t.equal(counted.runs, 0)
})

test('characters beyond ASCII are refused', async (t) => {
  const { app, counted } = await keyEcho(t)
  const port = await listen(app)
  // As UTF-8 and as Latin-1; 0xA0 is a space to JavaScript and none to HTTP.
  const values = [
    'caf\u00c3\u00a9',
    '\u00e9',
    '\u00a0abc',
    'abc\u00a0',
    '"abc"\u00a0',
    '"\u00e9"',
    '\u00ff',
  ]
  for (const value of values) {
    const answer = await exchangeBytes(t, port, postText('/things', [`idempotency-key: ${value}`]))
    t.equal(answer.statusCode, 400, JSON.stringify(value))
    t.match(answer.body.toString(), 'printable ASCII')
  }
  t.equal(counted.runs, 0)
})

test('quoted and raw, a key is the same key', async (t) => {
  const { app, counted } = await keyEcho(t)
  const key = newKey()
  const first = await send(app, '/things', { key })
  for (const form of [`"${key}"`, ` ${key} `, `\t"${key}"  `]) {
    const again = await send(app, '/things', { key: form })
    t.equal(again.body, first.body, JSON.stringify(form))
    t.equal(again.headers['idempotent-replayed'], 'true')
  }
  t.equal(counted.runs, 1)
  t.ok(await recordOf(database, key))
})

test('the name of the header is read in any case', async (t) => {
  const { app, counted } = await keyEcho(t)
  const port = await listen(app)
  const key = newKey()
  for (const name of ['Idempotency-Key', 'IDEMPOTENCY-KEY', 'idempotency-key']) {
    const answer = await exchangeBytes(t, port, postText('/things', [`${name}: "${key}"`]))
    t.same(JSON.parse(answer.body.toString()), { run: 1, key })
  }
  t.equal(counted.runs, 1)
})

test('a quoted key may contain escaped quotes and backslashes, spaces and commas', async (t) => {
  const { app } = await keyEcho(t)
  for (const [form, key] of [
    ['"say \\"hi\\""', 'say "hi"'],
    ['"c:\\\\temp"', 'c:\\temp'],
    ['"a, b"', 'a, b'],
    ['" a "', ' a '],
  ] as const) {
    const answer = await send(app, '/things', { key: form })
    t.equal(answer.statusCode, 200, form)
    t.equal(answer.json().key, key)
  }
})

test('only a quote and a backslash can be escaped', async (t) => {
  const { app, counted } = await keyEcho(t)
  for (const key of ['"\\a"', '"\\n"', '"\\ "', '"\\']) {
    t.equal((await send(app, '/things', { key })).statusCode, 400, key)
  }
  t.equal(counted.runs, 0)
})

test('keys differ by case', async (t) => {
  const { app, counted } = await keyEcho(t)
  const key = newKey()
  await send(app, '/things', { key: `a${key}` })
  await send(app, '/things', { key: `A${key}` })
  t.equal(counted.runs, 2)
})

test('a malformed JSON body is answered 400 and leaves the key free', async (t) => {
  const pool = new WatchedPool(database)
  const { app, counted } = await keyEcho(t, { pool })
  const key = newKey()
  const headers = { 'content-type': 'application/json' }
  t.equal((await send(app, '/things', { key, headers, payload: '{"a":' })).statusCode, 400)
  t.same(pool.asked, [])
  t.same((await send(app, '/things', { key, headers, payload: '{"a":1}' })).json(), { run: 1, key })
  t.equal(counted.runs, 1)
})

test('a body that is too large is answered 413 and leaves the key free', async (t) => {
  const { app } = await keyEcho(t)
  const key = newKey()
  const payload = { a: 'x'.repeat(1024 * 1024) }
  t.equal((await send(app, '/things', { key, payload })).statusCode, 413)
  t.equal(await recordOf(database, key), null)
})

test('a body is compared however deeply it is nested', async (t) => {
  const { app, counted } = await keyEcho(t)
  const headers = { 'content-type': 'application/json' }
  for (const depth of [500, 10_000, 500_000]) {
    const key = newKey()
    const deep = (core: string) => `${'['.repeat(depth)}${core}${']'.repeat(depth)}`
    t.equal((await send(app, '/things', { key, headers, payload: deep('1') })).statusCode, 200)
    t.equal((await send(app, '/things', { key, headers, payload: deep('1') })).statusCode, 200)
    t.equal((await send(app, '/things', { key, headers, payload: deep('2') })).statusCode, 422)
  }
  t.equal(counted.runs, 3)
})
