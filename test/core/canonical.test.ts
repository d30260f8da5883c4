import { createHash } from 'node:crypto'
import vm from 'node:vm'
import fc from 'fast-check'
import t from 'tap'
import { hashCanonical, hashCanonicalInTurns } from '../../src/core/canonical.js'

function hashed(value: unknown) {
  const hash = createHash('sha256')
  const result = hashCanonical(hash, value)
  return { ...result, digest: hash.digest('hex') }
}

const canonical = (value: unknown) => hashed(value).digest

class Money {
  readonly amount = 1
}

t.test('values of different types or contents never have one canonical form', async (t) => {
  const bytes = Uint8Array.of(49, 50)
  const map = new Map([['a', 1]])
  const different: unknown[] = [
    ...[undefined, null, true, false, '', 'true', 'null', 'undefined', '0', '1', '12', 'a', 'a\0'],
    ...[0, -0, 1, -1, 12, 255, 256, -256, 2 ** 31, 2 ** 31 - 1, -(2 ** 31), 2 ** 32, 2 ** 53],
    ...[0.1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 5e-324],
    ...[0n, 1n, -1n, 12n, 0x12n, 2n ** 53n + 1n],
    ...['é', 'e\u0301', '\ud800', '\udfff', '\ufffd', '€', '𝒳', '\ud835', 'x'.repeat(49)],
    ...[`${'x'.repeat(48)}\ud800`, `${'x'.repeat(48)}\udbff`, `${'x'.repeat(48)}\ufffd`],
    ...[
      [],
      [[]],
      [[[]]],
      [[], []],
      [undefined],
      [null],
      new Array(1),
      new Array(2),
      [1, 2],
      [2, 1],
    ],
    ...[['a', 1], ['a1'], ['a', '1'], [['a', 1]], [1, [2]], [[1], 2]],
    ...[{}, { a: undefined }, { a: null }, { a: 1 }, { a: '1' }, { b: 1 }, { a: { a: 1 } }],
    ...[{ 0: 1 }, { length: 0 }, { a: 1, b: 2 }, { a: 2, b: 1 }, { ab: 1 }, { '': 1 }],
    JSON.parse('{"__proto__":1}'),
    ...[new Date(0), new Date(1), new Date(Number.NaN), new Date(0).toISOString()],
    ...[map, new Map([['a', 2]]), new Map([[1, 'a']]), new Map(), new Map([['b', 2], ...map])],
    ...[new Map([...map, ['b', 2]]), new Set(), new Set(['a', 1]), new Set([1, 'a'])],
    ...[new Set([['a', 1]]), new Map([[{}, 1]]), new Map([[[], 1]])],
    ...[/a/, /a/g, /b/, /\//, new URL('https://a.example/'), new URL('https://a.example/?')],
    ...[new URLSearchParams('a=1'), new URLSearchParams('a=1&b=2'), new URLSearchParams('b=2&a=1')],
    ...[new URLSearchParams('a=1&a=1'), new URLSearchParams(), formOf({ a: '1' }), formOf({})],
    ...[bytes, bytes.buffer, new DataView(bytes.buffer), new Int8Array(bytes.buffer)],
    ...[new Uint8ClampedArray(bytes.buffer), new Uint16Array(bytes.buffer), new Uint8Array()],
    ...[new Float32Array(1), new Float64Array(1), new Int32Array(1), new Uint32Array(1)],
    ...[new BigInt64Array(1), new BigUint64Array(1), new Int16Array(1), new SharedArrayBuffer(1)],
    ...[new ArrayBuffer(0), new ArrayBuffer(1), Buffer.from('€'), Buffer.alloc(70_000)],
    ...[new Error('a'), new Error('b'), new TypeError('a'), new Error('a', { cause: 1 })],
    ...[new Error('a', { cause: undefined }), Object.assign(new Error('a'), { code: 1 })],
    ...[new AggregateError([1], 'a'), new AggregateError([2], 'a')],
    ...[Object(1), Object('1'), Object(true), Object(1n), Object(-0)],
  ]
  const seen = new Map<string, unknown>()
  for (const value of different) {
    const digest = canonical(value)
    t.notOk(seen.has(digest), `${String(seen.get(digest))} is not ${typeof value}`)
    seen.set(digest, value)
  }
})

t.test('the canonical form of each type never changes', async (t) => {
  const everything = [
    ...[
      undefined,
      null,
      true,
      false,
      -1,
      256,
      0.1,
      Number.NaN,
      10n,
      'é',
      'x'.repeat(300),
      '\ud800',
    ],
    ...[
      [],
      Object.assign(new Array(3), { 0: 1, 2: 2 }),
      { b: 1, a: 2 },
      new Date(0),
      new Map([[1, 2]]),
      new Set([1]),
      /a/g,
    ],
    ...[new URL('https://a.example'), new URLSearchParams('a=1'), formOf({ a: '1' }), Object(1)],
    ...[
      new TypeError('a', { cause: 1 }),
      Uint8Array.of(1).buffer,
      Buffer.from('a'),
      new Int8Array(1),
    ],
    ...[new DataView(new ArrayBuffer(1)), () => 1],
  ]
  // Pinned: a release that changes this makes every stored key a mismatch.
  t.equal(canonical(everything), '171d977960c840f3a4e9163303e5ccf4616ecb7d80b29bc2ad83e464d1393ec0')
})

t.test('what holds the same has one canonical form', async (t) => {
  const bytes = Buffer.from('xaby')
  const forms: readonly (readonly [unknown, unknown])[] = [
    [
      { a: 1, b: { c: 2, d: 3 } },
      { b: { d: 3, c: 2 }, a: 1 },
    ],
    [{ 10: 1, 9: 2, a: 3 }, JSON.parse('{"a":3,"9":2,"10":1}')],
    [{ a: 1 }, Object.assign(Object.create(null), { a: 1 })],
    [{ a: 1 }, Object.assign(Object.create(Object.create(null)), { a: 1 })],
    [1, 1.0],
    [Number.NaN, new Float64Array(Uint8Array.of(1, 0, 0, 0, 0, 0, 0xf8, 0xff).buffer)[0]],
    [Buffer.from('ab'), new Uint8Array([97, 98])],
    [bytes.subarray(1, 3), Buffer.from('ab')],
    [new URL('HTTPS://A.example'), new URL('https://a.example/')],
    [new Error('a'), Object.assign(new Error('a'), { stack: 'elsewhere' })],
    // What a test runner makes has other globals than what Node makes.
    [{ a: [1] }, vm.runInNewContext('({ a: [1] })')],
    [new Map([[1, new Date(7)]]), vm.runInNewContext('new Map([[1, new Date(7)]])')],
    [new Set([/a/g]), vm.runInNewContext('new Set([/a/g])')],
    [Uint8Array.of(1).buffer, vm.runInNewContext('Uint8Array.of(1).buffer')],
  ]
  for (const [one, other] of forms) t.equal(canonical(one), canonical(other))
  const shared = { a: 1 }
  t.equal(canonical([shared, shared]), canonical([{ a: 1 }, { a: 1 }]), 'shared or copied')
})

t.test('an instance of an unknown class is opaque, wherever it is', async (t) => {
  class Basket extends Map {}
  class Moment extends Date {}
  class PaymentFailed extends Error {}
  const opaque: readonly (readonly [unknown, string])[] = [
    [new Money(), 'an instance of Money'],
    [new Basket(), 'an instance of Basket'],
    [new Moment(), 'an instance of Moment'],
    [new PaymentFailed(), 'an instance of PaymentFailed'],
    [new (class extends URL {})('https://a.example'), 'an instance of a class'],
    [new WeakMap(), 'an instance of WeakMap'],
    [Promise.resolve(), 'an instance of Promise'],
    [new Blob(['x']), 'an instance of Blob'],
    [formOf({ file: new Blob(['x']) }), 'an instance of File'],
    [() => 1, 'a function'],
    [Symbol('x'), 'a symbol'],
    [Object(Symbol('x')), 'a symbol'],
    [Object.create({ constructor: { name: 'Fake' } }), 'an instance of a class'],
  ]
  for (const [value, what] of opaque) {
    for (const held of [value, [1, value], { a: { b: value } }, new Map([[value, 1]])]) {
      t.match(hashed(held), { kind: 'hashed', opaque: what })
    }
  }
  t.not(canonical([1, new Money()]), canonical([2, new Money()]), 'the rest is compared')
  t.not(canonical([new Money()]), canonical([null]))
})

t.test('a hole is no undefined, and the longest array of holes takes no time', async (t) => {
  const sparse = (length: number, items: Record<number, unknown>) =>
    Object.assign(new Array(length), items)
  const arrays = [
    sparse(3, {}),
    sparse(3, { 0: undefined }),
    sparse(3, { 1: undefined }),
    sparse(3, { 0: 1 }),
    sparse(3, { 1: 1 }),
    sparse(3, { 2: 1 }),
    sparse(3, { 0: 1, 2: 1 }),
    sparse(2 ** 32 - 1, {}),
    sparse(2 ** 32 - 1, { 4294967294: 1 }),
    sparse(2 ** 32 - 1, { 0: 1, 4294967293: 1 }),
    sparse(2 ** 32 - 2, {}),
  ]
  t.equal(new Set(arrays.map(canonical)).size, arrays.length)
  for (const array of arrays.slice(0, 7)) t.equal(canonical(array), canonical(array.slice()))
})

t.test('references to an own container are compared, and reported', async (t) => {
  const ring = (length: number, value: unknown, depth = 0) => {
    const first: unknown[] = [value]
    let last = first
    for (let n = 1; n < length; n += 1) {
      const next: unknown[] = [value]
      last.push(next)
      last = next
    }
    last.push(first)
    let whole: unknown = first
    for (let n = 0; n < depth; n += 1) whole = { whole }
    return whole
  }
  for (const length of [1, 2, 3, 31, 32, 33, 100, 1_000]) {
    for (const depth of [0, 1, 30, 31, 32, 33, 500]) {
      const result = hashed(ring(length, 'a', depth))
      t.match(result, { kind: 'hashed', isCyclic: true }, `${length} at ${depth}`)
      t.equal(result.digest, canonical(ring(length, 'a', depth)))
      t.not(result.digest, canonical(ring(length, 'b', depth)))
    }
  }
  t.not(canonical(ring(2, 'a')), canonical(ring(3, 'a')))
  const outer: unknown[] = [1]
  outer.push([2, outer])
  const inner: unknown[] = [2]
  inner.push(inner)
  t.not(canonical(outer), canonical([1, inner]), 'to which of them')
  const map = new Map<string, unknown>()
  map.set('self', { map })
  t.match(hashed(map), { kind: 'hashed', isCyclic: true })
  const error = new Error('itself')
  error.cause = error
  t.match(hashed(error), { kind: 'hashed', isCyclic: true })
  t.match(hashed([{}, { a: [] }]), { isCyclic: false })
})

t.test('endless repetitions of a value are found out before long', async (t) => {
  const repeat = (value: unknown, levels: number) => {
    let whole = value
    for (let level = 0; level < levels; level += 1) whole = [whole, { whole }]
    return whole
  }
  for (const value of [1, 'x', {}, new Map([[1, 2]]), 'x'.repeat(1_000), Buffer.alloc(1_000)]) {
    t.match(hashed(repeat(value, 200)), { kind: 'repetitive' })
    t.match(hashed(repeat(value, 10)), { kind: 'hashed' })
  }
  const long = 'x'.repeat(1024 * 1024)
  for (const value of [long, Buffer.from(long), { [long]: 1 }, { a: long }]) {
    t.match(hashed(Array(10_000).fill(value)), { kind: 'repetitive' })
    t.match(hashed(Array(10).fill(value)), { kind: 'hashed' })
  }
  // A network in which each container has many, and all refer to each other.
  const nodes: unknown[][] = Array.from({ length: 1_000 }, () => [])
  for (const node of nodes) node.push(...nodes)
  t.match(hashed(nodes[0]), { kind: 'repetitive' })
})

t.test('bytes that were transferred to another thread are no bytes any more', async (t) => {
  const buffer = Uint8Array.of(1, 2).buffer
  const view = new Uint8Array(buffer, 1)
  structuredClone(buffer, { transfer: [buffer] })
  t.equal(canonical(view), canonical(new Uint8Array()))
  t.equal(canonical(buffer), canonical(new ArrayBuffer(0)))
})

t.test('an object may have a million keys', async (t) => {
  const wide: Record<string, number> = {}
  for (let n = 0; n < 1_000_000; n += 1) wide[`key ${(n * 7_919) % 1_000_000}`] = n
  const { digest } = hashed(wide)
  wide['key 7'] = -1
  t.not(canonical(wide), digest)
})

t.test('no size and no depth is too much', async (t) => {
  const nested = (wrap: (value: unknown) => unknown) => {
    let value: unknown = 1
    for (let depth = 0; depth < 200_000; depth += 1) value = wrap(value)
    return value
  }
  const list = Array.from({ length: 200_000 }, (_, n) => n)
  const large: Record<string, [unknown, unknown]> = {
    items: [list, [...list.slice(0, -1), -1]],
    entries: [new Map(list.map((n) => [n, n])), new Map(list.map((n) => [n, n && -n]))],
    arrays: [nested((value) => [value]), nested((value) => [value, 1])],
    objects: [nested((a) => ({ a })), nested((b) => ({ b }))],
    maps: [nested((value) => new Map([[1, value]])), nested((value) => new Map([[2, value]]))],
    text: ['x'.repeat(2 ** 24), `${'x'.repeat(2 ** 24 - 1)}y`],
    bytes: [Buffer.alloc(2 ** 24), Buffer.alloc(2 ** 24, 1)],
    bigint: [1n << 4_000_000n, (1n << 4_000_000n) + 1n],
  }
  for (const [name, [one, other]] of Object.entries(large)) {
    const result = hashed(one)
    t.match(result, { kind: 'hashed', opaque: undefined, isCyclic: false }, name)
    t.not(result.digest, canonical(other), name)
  }
})

const anything = fc.anything({
  withBigInt: true,
  withBoxedValues: true,
  withDate: true,
  withMap: true,
  withNullPrototype: true,
  withSet: true,
  withSparseArray: true,
  withTypedArray: true,
  withUnicodeString: true,
})

t.test('whatever a value holds, it has a canonical form', async () => {
  fc.assert(
    fc.property(anything, (value) => {
      const { kind, opaque, isCyclic } = hashed(value) as ReturnType<typeof hashed> & {
        opaque: unknown
        isCyclic: unknown
      }
      return kind === 'hashed' && opaque === undefined && isCyclic === false
    }),
    { numRuns: 2_000 },
  )
})

t.test('two values have one canonical form exactly when they hold the same', async () => {
  // Of few leaves and short lists, so that two of them are often the same.
  const { few } = fc.letrec((tie) => {
    const leaf = fc.constantFrom<unknown>(
      0,
      -0,
      1,
      '0',
      '',
      'a',
      null,
      undefined,
      false,
      1n,
      Number.NaN,
    )
    const one = tie('few')
    return {
      few: fc.oneof(
        { depthSize: 'small', withCrossShrink: true },
        leaf,
        fc.array(one, { maxLength: 2 }),
        fc.dictionary(fc.constantFrom('a', 'b', '0'), one, { maxKeys: 2 }),
        fc.array(fc.tuple(one, one), { maxLength: 1 }).map((pairs) => new Map(pairs)),
        fc.array(one, { maxLength: 1 }).map((items) => new Set(items)),
        fc.constantFrom(0, 1).map((time) => new Date(time)),
        fc.uint8Array({ max: 1, maxLength: 1 }),
        leaf.map((value) => (typeof value === 'object' ? value : Object(value))),
      ),
    }
  })
  fc.assert(
    fc.property(few, few, (one, other) => {
      return (canonical(one) === canonical(other)) === holdSame(one, other)
    }),
    { numRuns: 20_000 },
  )
  fc.assert(
    fc.property(anything, anything, (one, other) => {
      return (canonical(one) === canonical(other)) === holdSame(one, other)
    }),
  )
})

t.test('a copy with its keys in another order has the same canonical form', async () => {
  fc.assert(
    fc.property(anything, (value) => canonical(value) === canonical(reordered(value))),
    { numRuns: 1_000 },
  )
})

t.test('the order of keys does not count, however many there are', async () => {
  const many = fc.dictionary(fc.string(), fc.nat(), { minKeys: 10, maxKeys: 40, size: 'max' })
  fc.assert(fc.property(many, (value) => canonical(value) === canonical(reordered(value))))
})

t.test('any change of a JSON document changes its canonical form', async () => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.nat(), fc.jsonValue(), (value, at, replacement) => {
      const text = JSON.stringify(value)
      let values = 0
      JSON.parse(text, () => {
        values += 1
      })
      let count = 0
      const changed = JSON.parse(text, (_, leaf) => (count++ === at % values ? replacement : leaf))
      return (
        (canonical(JSON.parse(text)) === canonical(changed)) === holdSame(JSON.parse(text), changed)
      )
    }),
    { numRuns: 2_000 },
  )
})

function formOf(fields: Record<string, string | number | Blob>): FormData {
  const form = new FormData()
  for (const [name, value] of Object.entries(fields)) form.append(name, value as string)
  return form
}

/** The definition, written down a second time: recursive, slow and short. */
t.test('a large value is hashed in many turns, to the same', async (t) => {
  const count = 30_000
  const wide = Object.fromEntries(
    Array.from({ length: count }, (_, n) => [`k${(n * 7_919) % count}`, n]),
  )
  for (const [value, atLeast] of [
    [{ a: [1, { b: 2 }] }, 0],
    // Its keys are sorted in lists of 5,000, which are then merged.
    [wide, 14],
    [[wide, { ...wide, more: wide }], 44],
    [Array.from({ length: count }, () => []), 1],
    // Their entries are taken first.
    [new Map(Object.entries(wide)), 4],
    [new Set(Object.keys(wide)), 3],
    [new URLSearchParams(Object.keys(wide).join('&')), 4],
    [formOf(wide), 4],
    [Object.fromEntries(Array.from({ length: 1_000_000 }, (_, n) => [`k${n}`, n])), 687],
  ] as const) {
    let taken = 0
    const hash = createHash('sha256')
    const result = await hashCanonicalInTurns(hash, [value], async () => {
      taken += 1
    })
    t.strictSame({ ...result, digest: hash.digest('hex') }, hashed([value]))
    t.ok(taken === atLeast || taken === atLeast + 1, `${taken} turns in between`)
  }
})

t.test('a map that becomes smaller while it is hashed comes to an end', async (t) => {
  const map = new Map(Array.from({ length: 50_000 }, (_, n) => [n, n]))
  const hash = createHash('sha256')
  const clear = async () => map.clear()
  t.match(await hashCanonicalInTurns(hash, [map], clear), { kind: 'hashed' })
})

t.test('a list that becomes shorter while it is hashed comes to an end', async (t) => {
  const list: unknown[] = Array.from({ length: 50_000 }, () => 1)
  const hash = createHash('sha256')
  const shorten = async () => void list.splice(100)
  t.match(await hashCanonicalInTurns(hash, [list], shorten), { kind: 'hashed' })
})

function holdSame(one: unknown, other: unknown): boolean {
  if (typeof one !== 'object' || typeof other !== 'object' || one === null || other === null) {
    return Object.is(one, other)
  }
  const kind = (value: object) => Object.prototype.toString.call(value)
  if (kind(one) !== kind(other)) return false
  const parts = (value: object): [unknown, unknown][] => {
    if (value instanceof Map) return [...[...value].flat().entries()]
    if (value instanceof Set) return [...[...value].entries()]
    if (value instanceof Date) return [['time', value.getTime()]]
    if (/Number|String|Boolean|BigInt/.test(kind(value)) && !ArrayBuffer.isView(value)) {
      return [['primitive', value.valueOf()]]
    }
    const entries: [unknown, unknown][] = Object.entries(value)
    if (Array.isArray(value) || ArrayBuffer.isView(value)) {
      entries.push(['length', (value as unknown[]).length])
    }
    return entries
  }
  const left = parts(one)
  const right = new Map(parts(other))
  return (
    left.length === right.size &&
    left.every(([name, part]) => right.has(name) && holdSame(part, right.get(name)))
  )
}

function reordered(value: unknown): unknown {
  if (Array.isArray(value)) {
    const copy = new Array(value.length)
    for (const at of Object.keys(value).reverse()) copy[Number(at)] = reordered(value[Number(at)])
    return copy
  }
  if (value instanceof Map)
    return new Map([...value].map(([key, held]) => [reordered(key), reordered(held)]))
  if (value instanceof Set) return new Set([...value].map(reordered))
  if (Object.prototype.toString.call(value) !== '[object Object]') return value
  const entries = Object.entries(value as object).reverse()
  return Object.fromEntries(entries.map(([key, held]) => [key, reordered(held)]))
}
