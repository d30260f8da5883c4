import { isDeepStrictEqual } from 'node:util'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import { decode, encode } from '../../src/claims/codec.js'

const again = (value: unknown) => decode(encode('result', value))

const shared = { n: 1 }
const cyclic: Record<string, unknown> = { n: 1 }
cyclic.self = cyclic

const KEPT: Record<string, unknown> = {
  nothing: undefined,
  null: null,
  text: 'a\0\ud800<script>',
  numbers: [0, -0, Number.NaN, Number.POSITIVE_INFINITY, 10n ** 50n],
  'a date': new Date(5),
  'a map': new Map<unknown, unknown>([['k', new Set([1])]]),
  'a pattern': /a(b)/gi,
  'an address': new URL('https://example.com/?a=1#b'),
  parameters: new URLSearchParams('a=1&a=2'),
  'a boxed number': new Number(5),
  'a Buffer': Buffer.from('hello'),
  'an empty Buffer': Buffer.alloc(0),
  'Buffers within': { id: Buffer.from([0, 255]), list: [Buffer.from('a')] },
  bytes: new Uint8Array([1, 2]),
  'other views': [new Float32Array([1.5]), new BigInt64Array([-1n])],
  'memory itself': new Uint8Array([1, 2]).buffer,
  'a sparse list': Object.assign(new Array(5), { 1: 1, 3: 2 }),
  'an object without a prototype': Object.assign(Object.create(null), { a: 1 }),
  'one value twice': [shared, shared],
  'a reference to itself': cyclic,
}

for (const [name, value] of Object.entries(KEPT)) {
  t.test(`${name} comes back as it was`, async (t) => {
    t.ok(isDeepStrictEqual(again(value), value))
  })
}

t.test('a Buffer comes back as one, with its methods and its identity', async (t) => {
  const buffer = Buffer.from('hello')
  const [one, two] = again([buffer, buffer]) as [Buffer, Buffer]
  t.ok(Buffer.isBuffer(one))
  t.equal(one.toString('hex'), buffer.toString('hex'))
  t.equal(one, two)
})

t.test('of memory that is shared, nothing but the bytes of the value is stored', async (t) => {
  const memory = new Uint8Array(1_000).fill(7)
  const value = {
    bytes: memory.subarray(3, 5),
    words: new Uint16Array(memory.buffer, 4, 2),
    view: new DataView(memory.buffer, 8, 2),
    pooled: Buffer.from('hi'),
  }
  const text = encode('result', value)
  t.ok(text.length < 300, text)
  t.ok(isDeepStrictEqual(decode(text), value))
})

class Day extends Date {}
class List extends Array {}
class Table extends Map {}
class Group extends Set {}
class Bytes extends Uint8Array {}
class Address extends URL {}
class Text extends String {}

const REFUSED: Record<string, [unknown, RegExp]> = {
  'a subclass of Date': [new Day(), /: it is an instance of Day\./],
  'a subclass of Array': [{ rows: new List() }, /: `\.rows` is an instance of List\./],
  'a subclass of Map': [[new Table()], /: `\[0\]` is an instance of Table\./],
  'a subclass of Set': [new Group(), /: it is an instance of Group\./],
  'a subclass of Uint8Array': [new Bytes(2), /: it is an instance of Bytes\./],
  'a subclass of Buffer': [
    Object.setPrototypeOf(Buffer.from('a'), Object.create(Buffer.prototype)),
    /: it is an instance of/,
  ],
  'a subclass of URL': [new Address('https://example.com'), /: it is an instance of Address\./],
  'a subclass of String': [new Text('a'), /: it is an instance of Text\./],
  'a list with properties': [
    { found: Object.assign([1], { total: 'canary' }) },
    /: `\.found` has properties beside its values\./,
  ],
  'what a pattern found': ['canary'.match(/c/), /: it has properties beside its values\./],
  'a map with properties': [
    Object.assign(new Map(), { a: 1 }),
    /: it has properties beside its values\./,
  ],
  'a date with properties': [
    Object.assign(new Date(), { a: 1 }),
    /: it has properties beside its values\./,
  ],
  'arguments of a function': [
    (function (..._: unknown[]) {
      // biome-ignore lint/complexity/noArguments: it is what is tested
      return arguments
    })(1),
    /: it has properties beside its values\./,
  ],
  'a list without a prototype': [
    Object.setPrototypeOf([1], null),
    /: it has a prototype of its own\./,
  ],
  'an object whose class cannot be read': [
    Object.create({
      get constructor() {
        throw new Error('canary')
      },
    }),
    /: it cannot be read\./,
  ],
  'an instance of a class': [{ a: new (class Money {})() }, /: `\.a` is an instance of Money\./],
  'a Proxy of a date': [new Proxy(new Date(), {}), /: it is an instance of Date\./],
  'memory of several threads': [
    new Uint8Array(new SharedArrayBuffer(4), 1, 2),
    /is an instance of SharedArrayBuffer\./,
  ],
}

for (const [name, [value, message]] of Object.entries(REFUSED)) {
  t.test(`${name} would come back as something else, and is refused`, async (t) => {
    t.throws(() => encode('result of step "a"', value), {
      code: 'IDEMPOTENCY_STEP_NOT_STORABLE',
      message,
    })
  })
}

t.test('nothing is stored that is nested too deeply to be read again', async (t) => {
  const ways: ((inner: unknown) => unknown)[] = [
    (inner) => [inner],
    (inner) => ({ a: 1, b: inner }),
    (inner) => Object.assign(Object.create(null), { a: inner }),
    (inner) => new Map([[1, inner]]),
    (inner) => new Map([[inner, 1]]),
    (inner) => new Set([1, inner]),
  ]
  for (const wrap of ways) {
    let value: unknown = Buffer.from('a')
    for (let n = 1; n < 500; n += 1) value = wrap(value)
    t.ok(isDeepStrictEqual(again(value), value), String(wrap))
    t.throws(() => encode('result of step "a"', wrap(value)), {
      code: 'IDEMPOTENCY_STEP_NOT_STORABLE',
      message: /: it is nested in more than 500 levels\./,
    })
  }
  const wide = new Set(Array.from({ length: 1_000 }, (_, n) => [n]))
  t.ok(isDeepStrictEqual(again(wide), wide), 'what is side by side is no depth')
})

t.test('classes of another global are the same classes', async (t) => {
  const theirs: unknown = runInNewContext(
    '({ date: new Date(5), list: [1], map: new Map([[1, 2]]), set: new Set([1]), bytes: new Uint8Array([1, 2]) })',
  )
  t.strictSame(again(theirs), {
    date: new Date(5),
    list: [1],
    map: new Map([[1, 2]]),
    set: new Set([1]),
    bytes: new Uint8Array([1, 2]),
  })
})
