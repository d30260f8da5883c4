import { inspect, isDeepStrictEqual } from 'node:util'
import t from 'tap'
import { copyInTurns } from '../../src/core/copy.js'

const noTurn = () => {
  throw new Error('a turn for so little')
}

/** Of parsers that give their objects no prototype but an empty one of their own. */
function Bare() {}
Bare.prototype = Object.create(null)

const bare = (values: object) => Object.assign(Object.create(Bare.prototype), values)

/** As deep as it goes, the body of a hostile client. */
function nest(depth: number, wrap: (inner: unknown) => unknown, innermost: unknown = 1): unknown {
  let value = innermost
  for (let n = 0; n < depth; n += 1) value = wrap(value)
  return value
}

t.test('what is changed in a copy is not changed in the original', async (t) => {
  const make = () => ({
    nothing: [undefined, null],
    text: 'a',
    symbol: Symbol.iterator,
    number: [0, -0, Number.NaN, 5n, true],
    // biome-ignore lint/suspicious/noSparseArray: it has a hole
    list: [1, , [2, { three: 3 }]],
    at: new Date(0),
    bytes: [Buffer.from('a'), new Uint8Array(2)],
    map: new Map<unknown, unknown>([
      ['a', new Map([[{ b: 1 }, new Set([{ c: 2 }])]])],
      [[], {}],
    ]),
    search: new URLSearchParams('a=1&a=2'),
    bare: [bare({ a: { b: 1 } }), Object.assign(Object.create(null), { a: 1 })],
    own: JSON.parse('{"__proto__":{"admin":true},"a":[]}'),
  })
  const original = make()
  const shown = (value: unknown) => inspect(value, { depth: 9, showHidden: true })
  const copy = (await copyInTurns(original, noTurn)) ?? make()
  t.not(copy, original)
  t.equal(shown(copy), shown(make()))
  t.notOk(1 in copy.list, 'a hole is one')
  copy.list.fill(5)
  copy.bytes.map((bytes) => bytes.fill(1))
  copy.at.setTime(5)
  copy.search.set('a', '5')
  for (const [key, items] of copy.map.get('a') as Map<{ b: number }, Set<{ c: number }>>) {
    key.b = 5
    for (const item of items) item.c = 5
    items.clear()
  }
  copy.map.clear()
  for (const one of copy.bare) Object.assign(one, { a: 5, more: 5 })
  Object.assign(copy.own, { a: 5 })
  t.equal(shown(original), shown(make()))
})

t.test('what is no value is copied as it is', async (t) => {
  for (const value of ['a', 5, null, undefined, true]) {
    t.equal(await copyInTurns(value, noTurn), value)
  }
})

t.test('no depth and no size is too much', async (t) => {
  const rest = async () => {}
  for (const wrap of [
    (inner: unknown) => [inner],
    (inner: unknown) => ({ a: inner, b: 1 }),
    (inner: unknown) => [1, inner, 2],
    (inner: unknown) => new Map([[inner, 1]]),
  ]) {
    let copied = await copyInTurns(nest(100_000, wrap), rest)
    let depth = 0
    while (typeof copied === 'object') {
      depth += 1
      if (copied instanceof Map) copied = copied.keys().next().value
      else if (Array.isArray(copied)) copied = copied.at(copied.length >> 1)
      else copied = Reflect.get(Object(copied), 'a')
    }
    t.equal(depth, 100_000)
  }
  const wide = Array.from({ length: 1_100_000 }, (_, n) => [n])
  t.ok(isDeepStrictEqual(await copyInTurns(wide, rest), wide))
})

t.test('a large value is copied in many turns', async (t) => {
  const count = 100_000
  const values = Array.from({ length: count }, (_, n) => n)
  for (const [value, turns] of [
    [values, 5],
    [values.map(() => []), 5],
    // To list its keys takes a turn, too.
    [Object.fromEntries(values.map((n) => [`k${n}`, n])), 6],
    // Their entries are taken, copied and put into the copy.
    [new Set(values), 15],
    [new Map(values.map((n) => [n, n])), 20],
    [values.slice(80_002), 0],
  ] as const) {
    let taken = 0
    const copy = await copyInTurns<unknown>(value, async () => {
      taken += 1
    })
    t.ok(isDeepStrictEqual(copy, value))
    t.equal(taken, turns)
  }
})

t.test('a map that becomes smaller while it is copied comes to an end', async (t) => {
  const map = new Map(Array.from({ length: 50_000 }, (_, n) => [n, n]))
  const copy = await copyInTurns(map, async () => map.clear())
  t.equal(copy?.get(99), 99)
})

t.test('a list that becomes shorter while it is copied comes to an end', async (t) => {
  const list = Array.from({ length: 50_000 }, (_, n) => n)
  const copy = await copyInTurns(list, async () => void list.splice(100))
  t.equal(copy?.[99], 99)
})

t.test('what is no plain data is not copied', async (t) => {
  class Order {}
  class Orders extends Array {}
  for (const value of [
    () => 5,
    new Order(),
    new Orders(),
    new (class extends Map {})(),
    /a/,
    {
      get broken() {
        throw new Error('of a getter')
      },
    },
  ]) {
    t.equal(await copyInTurns({ a: [{ b: value }] }, noTurn), undefined, inspect(value))
  }
})

t.test('a circle is not copied, wherever it is and however long', async (t) => {
  const ways: ((inner: unknown) => object)[] = [
    (inner) => [inner],
    (inner) => ({ a: inner }),
    (inner) => [1, inner, inner, 2],
    (inner) => new Map([[inner, inner]]),
    (inner) => new Set([inner]),
  ]
  for (const before of [0, 1, 2, 31, 100]) {
    for (const length of [1, 2, 3, 7, 64]) {
      for (const wrap of ways) {
        const circle: unknown[] = []
        circle.push(nest(length - 1, wrap, circle))
        const value = nest(before, (inner) => [inner], circle)
        t.equal(await copyInTurns(value, noTurn), undefined, `${before} ${length} ${wrap}`)
      }
    }
  }
})

t.test('endless repetitions of one value are not copied', async (t) => {
  const bomb = nest(64, (inner) => [inner, inner])
  let turns = 0
  const copy = await copyInTurns(bomb, async () => {
    turns += 1
  })
  t.equal(copy, undefined)
  t.equal(turns, 60)
})
