import type { Hash } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import { ByteWriter } from '../../src/core/byte-writer.js'

type Call = (writer: ByteWriter) => void

const tag =
  (value: number): Call =>
  (writer) =>
    writer.tag(value)
const size =
  (value: number): Call =>
  (writer) =>
    writer.size(value)
const number =
  (value: number): Call =>
  (writer) =>
    writer.number(value)
const text =
  (value: string): Call =>
  (writer) =>
    writer.text(value)
const bytes =
  (value: Uint8Array): Call =>
  (writer) =>
    writer.bytes(value)

/** What arrives at the hash, in one piece. */
function written(...calls: Call[]): Buffer {
  const pieces: Buffer[] = []
  const update = (piece: string | Uint8Array, encoding?: 'utf8') =>
    pieces.push(typeof piece === 'string' ? Buffer.from(piece, encoding) : Buffer.from(piece))
  const writer = new ByteWriter({ update } as unknown as Hash)
  for (const call of calls) call(writer)
  writer.end()
  return Buffer.concat(pieces)
}

const CHUNK_SIZE = 64 * 1024

const samples: Call[] = [
  tag(255),
  ...[0, 254, 255, 2 ** 32 - 1].map(size),
  ...[0, -0, 255, 256, -1, 2 ** 31, 0.1, Number.NaN, Number.NEGATIVE_INFINITY].map(number),
  ...['', 'a', 'é€𝒳\ud800', 'x'.repeat(48), '€'.repeat(48), 'x'.repeat(49), '€'.repeat(49)].map(
    text,
  ),
  ...[`${'x'.repeat(49)}\ud800`, '€'.repeat(CHUNK_SIZE / 3), '€'.repeat(CHUNK_SIZE / 3 + 1)].map(
    text,
  ),
  ...['\udfff'.repeat(CHUNK_SIZE), 'x'.repeat(3 * CHUNK_SIZE)].map(text),
  ...[0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1].map((n) => bytes(Buffer.alloc(n, 1))),
]

t.test('what is written does not depend on where a chunk ends', async (t) => {
  for (const [n, sample] of samples.entries()) {
    const alone = written(sample)
    // From where the longest short text has room to where nothing has. Five bytes are the length.
    for (let left = 0; left < 160; left += 1) {
      const pad = bytes(Buffer.alloc(CHUNK_SIZE - left - 5, 7))
      const expected = Buffer.concat([written(pad), alone, alone])
      if (!written(pad, sample, sample).equals(expected)) t.fail(`sample ${n}, ${left} left`)
    }
  }
})

t.test('no two sequences of calls write the same', async () => {
  const call = fc.oneof(
    fc
      .double()
      .map((value) => ({ call: number(value), name: Object.is(value, -0) ? '-0' : value })),
    fc
      .integer()
      .map((value) => ({ call: number(value), name: Object.is(value, -0) ? '-0' : value })),
    fc
      .string({ unit: 'binary', minLength: 0, maxLength: 60 })
      .map((value) => ({ call: text(value), name: JSON.stringify(value) })),
    fc
      .uint8Array({ maxLength: 4 })
      .map((value) => ({ call: bytes(value), name: `bytes ${value}` })),
  )
  fc.assert(
    fc.property(
      fc.array(call, { maxLength: 4 }),
      fc.array(call, { maxLength: 4 }),
      (one, other) => {
        // The kinds of the calls are the same, as tags make sure of; what is left are their values.
        const isSame = one.map(({ name }) => name).join() === other.map(({ name }) => name).join()
        const left = written(...one.map(({ call }) => call))
        const right = written(...other.map(({ call }) => call))
        return isSame === left.equals(right)
      },
    ),
  )
})

t.test('a text is told from every other, wherever its characters stand', async () => {
  const unit = fc.constantFrom(
    'a',
    '\x7f',
    '\x80',
    'é',
    '\u07ff',
    '\u0800',
    '€',
    '\ud800',
    '\udbff',
    '\udc00',
  )
  const any = fc.array(unit, { maxLength: 3 }).map((units) => units.join(''))
  fc.assert(
    fc.property(any, any, fc.constantFrom(0, 46, 49), (one, other, before) => {
      const prefix = 'x'.repeat(before)
      return written(text(prefix + one)).equals(written(text(prefix + other))) === (one === other)
    }),
    { numRuns: 5_000 },
  )
})

t.test('one writer may begin while another is at work', async (t) => {
  const outer = (writer: ByteWriter) => {
    writer.text('outer')
    t.same(written(text('inner')), written(text('inner')))
    writer.text('outer')
  }
  t.same(written(outer), written(text('outer'), text('outer')))
})

t.test('a text of any length is told from another one by every character of it', async (t) => {
  for (const before of [21_844, 21_845, 21_846, 65_535]) {
    for (const filling of ['x', '€']) {
      const one = `${filling.repeat(before)}\u{1f600}${filling}`
      const other = `${filling.repeat(before)}\u{1f601}${filling}`
      t.notOk(written(text(one)).equals(written(text(other))), `${before} ${filling}`)
    }
  }
})
