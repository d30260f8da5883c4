import t from 'tap'
import { combine } from '../../src/store/combine.js'

/** A verb whose calls end when the test says so. */
function latchedVerb() {
  const calls: { items: readonly number[]; end(error?: Error): void }[] = []
  const verb = (items: readonly number[]) =>
    new Promise<number[]>((resolve, reject) => {
      calls.push({
        items,
        end: (error) => (error ? reject(error) : resolve(items.map((item) => item * 10))),
      })
    })
  return { verb, calls }
}

t.test('a few go at once, the overflow travels together when one ends', async (t) => {
  const { verb, calls } = latchedVerb()
  const call = combine(verb, { free: 2, most: 3, patienceMs: 60_000 })
  const results = [1, 2, 3, 4, 5, 6, 7].map(call)
  t.strictSame(
    calls.map(({ items }) => items),
    [[1], [2]],
  )
  calls[0]?.end()
  t.equal(await results[0], 10)
  t.strictSame(calls[2]?.items, [3, 4, 5], 'no more than the most')
  calls[1]?.end()
  calls[2]?.end()
  t.strictSame(await Promise.all(results.slice(1, 5)), [20, 30, 40, 50])
  t.strictSame(calls[3]?.items, [6, 7])
  calls[3]?.end()
  t.strictSame(await Promise.all(results), [10, 20, 30, 40, 50, 60, 70])
})

t.test('a failure reaches all that travelled together, and nobody else', async (t) => {
  const { verb, calls } = latchedVerb()
  const call = combine(verb, { free: 1, most: 10, patienceMs: 60_000 })
  const results = [1, 2, 3].map(call)
  calls[0]?.end()
  t.equal(await results[0], 10)
  calls[1]?.end(new Error('gone'))
  await t.rejects(results[1] as Promise<number>, { message: 'gone' })
  await t.rejects(results[2] as Promise<number>, { message: 'gone' })
  const later = call(4)
  calls[2]?.end()
  t.equal(await later, 40, 'the next one goes on')
})

t.test(
  'while many ask, one call at a time carries all; when few ask, each goes alone',
  async (t) => {
    const { verb, calls } = latchedVerb()
    const call = combine(verb, { free: 2, most: 10, patienceMs: 60_000 })
    const results = [1, 2, 3, 4, 5].map(call)
    calls[0]?.end()
    await results[0]
    t.strictSame(calls[2]?.items, [3, 4, 5], 'more than may go alone')
    results.push(call(6))
    calls[1]?.end()
    await results[1]
    t.equal(calls.length, 3, 'nothing goes beside it')
    calls[2]?.end()
    await results[2]
    t.strictSame(calls[3]?.items, [6])
    results.push(call(7))
    t.strictSame(calls[4]?.items, [7], 'few ask again')
    calls[3]?.end()
    calls[4]?.end()
    t.strictSame(await Promise.all(results), [10, 20, 30, 40, 50, 60, 70])
  },
)

t.test('nothing hangs behind a call that never ends', async (t) => {
  const { verb, calls } = latchedVerb()
  const call = combine(verb, { free: 1, most: 10, patienceMs: 20 })
  call(1)
  const second = call(2)
  while (calls.length < 2) await new Promise(setImmediate)
  calls[1]?.end()
  t.equal(await second, 20)
  const third = call(3)
  calls[0]?.end()
  calls[2]?.end()
  t.equal(await third, 30, 'its late end is not counted twice')
})

t.test('a verb that throws is one that rejects', async (t) => {
  let throws = false
  const call = combine<number, number>(async (items) => [...items], {
    free: 1,
    most: 10,
    patienceMs: 60_000,
  })
  const throwing = combine<number, number>(
    (items) => {
      if (throws) throw new Error('at once')
      return Promise.resolve([...items])
    },
    { free: 1, most: 10, patienceMs: 60_000 },
  )
  const first = throwing(1)
  throws = true
  const second = throwing(2)
  t.equal(await first, 1)
  await t.rejects(second, { message: 'at once' })
  t.equal(await call(3), 3)
})

t.test('a call carries no more weight than it may, but never less than one item', async (t) => {
  const { verb, calls } = latchedVerb()
  const call = combine(verb, {
    free: 1,
    most: 10,
    weigh: (item) => item,
    mostWeight: 10,
    patienceMs: 60_000,
  })
  const results = [1, 4, 6, 1, 50, 2].map(call)
  for (let n = 0; n < 5; n += 1) {
    calls[n]?.end()
    await new Promise(setImmediate)
  }
  t.strictSame(
    calls.map(({ items }) => items),
    [[1], [4, 6], [1], [50], [2]],
  )
  await Promise.all(results)
})
