import fc from 'fast-check'
import t from 'tap'
import { parseKey } from '../../src/core/key.js'

const key = (header: string | string[]) => {
  const parsed = parseKey(header)
  return parsed.kind === 'key' ? parsed.key : null
}
const reason = (header: string | string[]) => {
  const parsed = parseKey(header)
  return parsed.kind === 'malformed' ? parsed.reason : null
}

t.test('a quoted string and the raw token name the same key', async (t) => {
  t.equal(key('abc-123'), 'abc-123')
  t.equal(key('"abc-123"'), 'abc-123')
  t.equal(key('  "abc-123"  '), 'abc-123')
  t.equal(key('8e03978e-40d5-43dd-bc93-6894a57f9324'), '8e03978e-40d5-43dd-bc93-6894a57f9324')
})

t.test('only the quote and the backslash are escaped in a quoted string', async (t) => {
  t.equal(key('"a\\"b\\\\c"'), 'a"b\\c')
  t.equal(key('"a\\bc"'), null)
  t.equal(key('"a b, c; d"'), 'a b, c; d')
})

t.test('1 to 255 characters are accepted', async (t) => {
  t.equal(key('k'.repeat(255)), 'k'.repeat(255))
  t.equal(key(`"${'k'.repeat(255)}"`), 'k'.repeat(255))
  t.match(reason('k'.repeat(256)), /more than 255 characters/)
  t.match(reason(`"${'k'.repeat(256)}"`), /more than 255 characters/)
  for (const empty of ['', '   ', '""']) t.equal(reason(empty), 'it is empty')
})

t.test('what is no key says why, without repeating it', async (t) => {
  t.match(reason('"abc'), /closing quote/)
  t.match(reason('"abc\\"'), /closing quote/)
  t.match(reason('ab\u0001c'), /printable ASCII/)
  t.match(reason('"ab\u007fc"'), /printable ASCII/)
  t.match(reason('clé'), /printable ASCII/)
  t.match(reason('a, b'), /more than once/)
  t.match(reason('"a", "b"'), /more than once/)
  t.match(reason(['a', 'b']), /more than once/)
  t.match(reason('a b'), /quoted string/)
  t.match(reason('a"b'), /quoted string/)
  t.match(reason('"a";p=1'), /quoted string/)
  t.notMatch(reason('secret clé'), /secret/)
})

t.test('every printable string survives quoting', async () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme-ascii', minLength: 1, maxLength: 255 }), (value) => {
      const quoted = `"${value.replace(/["\\]/g, '\\$&')}"`
      return key(quoted) === value
    }),
  )
})

t.test('any header gives a key or a reason, never an exception', async () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 300 }), (value) => {
      const parsed = parseKey(value)
      return parsed.kind === 'key' ? /^[ -~]{1,255}$/.test(parsed.key) : parsed.reason.length > 0
    }),
    { numRuns: 2_000 },
  )
})

t.test('a header of any length is read in linear time', async (t) => {
  // A quadratic scan takes a minute for each of these, a linear one less than a millisecond.
  const length = 200_000
  const hostile = [
    `a${' '.repeat(length)}a`,
    `a${'\t'.repeat(length)}a`,
    ' '.repeat(length),
    '"'.repeat(length),
    `"${'\\"'.repeat(length / 2)}`,
    `"${'\\'.repeat(length)}`,
    `"${' '.repeat(length)}"x`,
    `${'"\\\t'.repeat(length / 3)}`,
    `"${'a, '.repeat(length / 3)}`,
    'é'.repeat(length),
  ]
  for (const header of hostile) {
    const startedAt = performance.now()
    t.equal(parseKey(header).kind, 'malformed')
    t.ok(performance.now() - startedAt < 1_000, header.slice(0, 4))
  }
  t.equal(key(`${' '.repeat(length)}abc${' '.repeat(length)}`), 'abc')
})

t.test(
  'a key of 255 characters may be quoted, escaped and surrounded by white space',
  async (t) => {
    t.equal(key(` "${'\\"'.repeat(255)}"\t`), '"'.repeat(255))
    t.match(reason(`"${'\\"'.repeat(256)}"`), /more than 255 characters/)
    t.match(reason('k'.repeat(1_000)), /more than 255 characters/)
  },
)
