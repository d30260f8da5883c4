import t from 'tap'
import { type BatcherLimits, createBatcher } from '../../src/store/batcher.js'

/** Two items of one `row` are about the same row; without one, each item is its own. */
interface Item {
  readonly n: number
  readonly row?: string
}

const identify = ({ n, row }: Item) => row ?? String(n)
const limits: BatcherLimits = {
  ...{ maxConcurrent: 1, maxItems: 10, maxBytes: 0, slowMs: 60_000, timeoutMs: 60_000 },
  limit: (start) => Promise.resolve(start()),
}

/** A verb whose calls end when the test says so. */
function latchedVerb() {
  const calls: { items: number[]; end(error?: unknown): void }[] = []
  const verb = (items: readonly Item[]) =>
    new Promise<number[]>((resolve, reject) => {
      calls.push({
        items: items.map(({ n }) => n),
        end: (error) => (error ? reject(error) : resolve(items.map(({ n }) => n * 10))),
      })
    })
  return { verb, calls, sent: () => calls.map(({ items }) => items) }
}

const turn = () => new Promise(setImmediate)
const dataError = () => Object.assign(new Error('refused'), { code: '22021' })

t.test('a few go at once, the overflow travels together when one ends', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(verb, { identify }, { ...limits, maxConcurrent: 2, maxItems: 3 })
  const results = [1, 2, 3, 4, 5, 6, 7].map((n) => call({ n }))
  t.strictSame(sent(), [[1], [2]])
  calls[0]?.end()
  t.equal(await results[0], 10)
  t.strictSame(sent()[2], [3, 4, 5], 'no more than the maximum')
  calls[1]?.end()
  calls[2]?.end()
  t.strictSame(await Promise.all(results.slice(1, 5)), [20, 30, 40, 50])
  t.strictSame(sent()[3], [6, 7])
  calls[3]?.end()
  t.strictSame(await Promise.all(results), [10, 20, 30, 40, 50, 60, 70])
})

t.test(
  'under load one call at a time carries all; under little, each item goes alone',
  async (t) => {
    const { verb, calls, sent } = latchedVerb()
    const call = createBatcher(verb, { identify }, { ...limits, maxConcurrent: 2 })
    const results = [1, 2, 3, 4, 5].map((n) => call({ n }))
    calls[0]?.end()
    await results[0]
    t.strictSame(sent()[2], [3, 4, 5], 'more than may go alone')
    results.push(call({ n: 6 }))
    calls[1]?.end()
    await results[1]
    t.equal(calls.length, 3, 'nothing goes beside it')
    calls[2]?.end()
    await results[2]
    t.strictSame(sent()[3], [6])
    results.push(call({ n: 7 }))
    t.strictSame(sent()[4], [7], 'little load again')
    calls[3]?.end()
    calls[4]?.end()
    t.strictSame(await Promise.all(results), [10, 20, 30, 40, 50, 60, 70])
  },
)

t.test('a call that takes long keeps no other one waiting', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(verb, { identify }, { ...limits, slowMs: 1 })
  const stalled = call({ n: 1 })
  const others = [2, 3].map((n) => call({ n }))
  while (calls.length < 2) await turn()
  t.strictSame(sent(), [[1], [2, 3]])
  const last = call({ n: 4 })
  calls[1]?.end()
  t.strictSame(await Promise.all(others), [20, 30])
  while (calls.length < 3) await turn()
  calls[2]?.end()
  t.equal(await last, 40)
  calls[0]?.end()
  t.equal(await stalled, 10)
  const after = call({ n: 5 })
  t.strictSame(sent()[3], [5], 'the late answer is counted once')
  calls[3]?.end()
  t.equal(await after, 50)
})

t.test('calls that wait for room keep what comes later together', async (t) => {
  const { verb, sent } = latchedVerb()
  const started: (() => void)[] = []
  const limit: BatcherLimits['limit'] = (start) =>
    new Promise((resolve, reject) => {
      started.push(() => void start().then(resolve, reject))
    })
  const call = createBatcher(verb, { identify }, { ...limits, slowMs: 1, limit })
  for (const n of [1, 2, 3, 4]) void call({ n })
  await new Promise((resolve) => setTimeout(resolve, 5))
  t.equal(started.length, 1)
  started[0]?.()
  while (started.length < 2) await turn()
  started[1]?.()
  t.strictSame(sent(), [[1], [2, 3, 4]])
})

t.test('a call never carries one row twice, and the items of a row keep their order', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(verb, { identify }, limits)
  const items: Item[] = [
    { n: 0 },
    ...[1, 2].map((n) => ({ n, row: 'a' })),
    ...[3, 4].map((n) => ({ n, row: 'b' })),
    { n: 5, row: 'a' },
    { n: 6 },
  ]
  const results = items.map(call)
  for (let n = 0; n < 4; n += 1) {
    calls[n]?.end()
    await turn()
  }
  t.strictSame(sent(), [[0], [1, 3, 6], [2, 4], [5]])
  t.strictSame(await Promise.all(results), [0, 10, 20, 30, 40, 50, 60])
})

t.test('an item joins a queued one of its row, and not one that was sent', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(
    verb,
    { identify, join: (first, result, joined) => first.n * 1_000 + result + joined.n },
    limits,
  )
  const row = 'a'
  const results = [call({ n: 1, row }), call({ n: 2, row }), call({ n: 3, row }), call({ n: 4 })]
  t.strictSame(sent(), [[1]])
  calls[0]?.end()
  t.equal(await results[0], 10)
  t.strictSame(sent()[1], [2, 4])
  calls[1]?.end()
  t.strictSame(await Promise.all(results), [10, 20, 2_023, 40])
  const failing = [call({ n: 5 }), call({ n: 6, row }), call({ n: 7, row })]
  calls[2]?.end()
  await failing[0]
  calls[3]?.end(new Error('gone'))
  await t.rejects(failing[1] as Promise<number>, { message: 'gone' })
  await t.rejects(failing[2] as Promise<number>, { message: 'gone' }, 'it shares the failure, too')
})

t.test('an item that the database refuses fails alone', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(verb, { identify }, { ...limits, maxConcurrent: 2 })
  const results = [1, 2, 3, 4, 5].map((n) => call({ n }))
  calls[0]?.end()
  calls[1]?.end()
  await Promise.all(results.slice(0, 2))
  t.strictSame(sent()[2], [3, 4, 5])
  calls[2]?.end(dataError())
  await turn()
  t.strictSame(sent().slice(3), [[3], [4]], 'each alone, no more at once than under little load')
  calls[3]?.end()
  calls[4]?.end(dataError())
  await t.rejects(results[3] as Promise<number>, { message: 'refused' })
  calls[5]?.end()
  t.strictSame(await Promise.all([results[2], results[4]]), [30, 50])
})

t.test('an item that the database refuses does not fail those that joined it', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const join = (_first: Item, result: number, joined: Item) => result + joined.n
  const call = createBatcher(verb, { identify, join }, limits)
  const row = 'a'
  const results = [call({ n: 1 }), ...[2, 3, 4].map((n) => call({ n, row })), call({ n: 5 })]
  calls[0]?.end()
  await results[0]
  t.strictSame(sent()[1], [2, 5])
  calls[1]?.end(dataError())
  await turn()
  t.strictSame(sent()[2], [2], 'alone')
  calls[2]?.end(dataError())
  await t.rejects(results[1] as Promise<number>, { message: 'refused' })
  t.strictSame(sent()[3], [3], 'the next takes its place')
  calls[3]?.end()
  t.strictSame(await Promise.all([results[2], results[3]]), [30, 34])
  calls[4]?.end()
  t.equal(await results[4], 50)
})

t.test('what comes for a row that stays locked keeps nothing else waiting', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const join = (_first: Item, result: number, joined: Item) => result + joined.n
  const call = createBatcher(verb, { identify, join }, { ...limits, maxConcurrent: 2 })
  const locked = () => Object.assign(new Error('locked'), { code: '55P03' })
  const row = 'locked'
  const [one, two, hot, other] = [{ n: 1 }, { n: 2 }, { n: 3, row }, { n: 4 }].map(call)
  calls[0]?.end()
  await one
  t.strictSame(sent()[2], [3, 4])
  calls[2]?.end(locked())
  await turn()
  t.strictSame(sent()[3], [3], 'one alone')
  const joined = call({ n: 5, row })
  calls[1]?.end()
  await two
  t.strictSame(sent()[4], [4])
  calls[4]?.end()
  t.equal(await other, 40)
  t.equal(calls.length, 5, 'the other one of its row has joined it')
  calls[3]?.end(locked())
  await t.rejects(hot as Promise<number>, { message: 'locked' })
  await t.rejects(joined, { message: 'locked' })

  const later = [{ n: 6, row }, { n: 7 }, { n: 8 }, { n: 9, row }, { n: 10 }].map(call)
  t.strictSame(sent().slice(5), [[6], [7]], 'alone at once')
  calls[6]?.end()
  await later[1]
  t.strictSame(sent()[7], [8, 10], 'without those of the locked row')
  calls[5]?.end()
  calls[7]?.end()
  t.strictSame(await Promise.all(later), [60, 70, 80, 69, 100])
  const [again, beside] = [call({ n: 11, row }), call({ n: 12 })]
  t.strictSame(sent().slice(8), [[11], [12]])
  calls[8]?.end()
  calls[9]?.end()
  await Promise.all([again, beside])
})

t.test('items of one row travel together where the verb answers each of them', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(
    verb,
    { identify, mayRepeatRows: true },
    { ...limits, maxConcurrent: 2 },
  )
  const locked = () => Object.assign(new Error('locked'), { code: '55P03' })
  const row = 'a'
  const first = [{ n: 1, row }, { n: 2, row }, { n: 3, row }, { n: 4 }, { n: 5 }].map(call)
  t.strictSame(sent(), [[1], [4]], 'none beside another one of its row')
  calls[0]?.end()
  await first[0]
  t.strictSame(sent()[2], [2, 3, 5])
  calls[2]?.end(locked())
  await turn()
  calls[1]?.end()
  await first[3]
  t.strictSame(sent().slice(3), [[2], [5]], 'alone, one at a time')
  const later = call({ n: 6, row })
  calls[4]?.end()
  t.equal(await first[4], 50)
  t.equal(calls.length, 5, 'the others of the row wait for the one that is alone')
  calls[3]?.end(locked())
  for (const failed of [first[1], first[2], later]) await t.rejects(failed as Promise<number>)
  t.equal(calls.length, 5, 'and share what it has waited for')
})

t.test('a row that stays locked takes one call, however many items name it', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(
    verb,
    { identify, mayRepeatRows: true },
    { ...limits, maxConcurrent: 4 },
  )
  const first = [1, 2, 3].map((n) => call({ n, row: 'a' }))
  const other = call({ n: 4 })
  t.strictSame(sent(), [[1], [4]])
  calls[0]?.end(Object.assign(new Error('locked'), { code: '55P03' }))
  for (const failed of first) await t.rejects(failed, { message: 'locked' })
  calls[1]?.end()
  t.equal(await other, 40)
  t.equal(calls.length, 2)
})

t.test('a call that is never answered does not keep its row for good', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(
    verb,
    { identify, mayRepeatRows: true },
    { ...limits, slowMs: 5, timeoutMs: 20 },
  )
  const row = 'a'
  const silent = call({ n: 1, row })
  // Each gives up when its time is over; what comes after the time of the first is sent.
  let later: Promise<number> = Promise.reject(new Error('none yet'))
  for (let n = 2; calls.length < 2; n += 1) {
    await later.catch(() => {})
    later = call({ n, row })
    await Promise.race([later.catch(() => {}), new Promise((resolve) => setTimeout(resolve, 5))])
  }
  t.equal(sent()[1]?.length, 1)
  calls[1]?.end()
  t.equal(await later, (sent()[1]?.[0] as number) * 10)
  calls[0]?.end()
  t.equal(await silent, 10)
})

t.test('those that joined an item whose row stayed locked do not wait once more', async (t) => {
  for (const code of ['55P03', '57014']) {
    const { verb, calls, sent } = latchedVerb()
    const call = createBatcher(verb, { identify, join: (_, result) => result }, limits)
    const results = [call({ n: 1 }), ...[2, 3].map((n) => call({ n, row: 'a' }))]
    calls[0]?.end()
    await results[0]
    calls[1]?.end(Object.assign(new Error('locked'), { code }))
    await t.rejects(results[1] as Promise<number>, { message: 'locked' })
    await t.rejects(results[2] as Promise<number>, { message: 'locked' })
    t.strictSame(sent(), [[1], [2]])
  }
})

t.test('a failure of the store reaches all that travelled together, and no others', async (t) => {
  const { verb, calls } = latchedVerb()
  const call = createBatcher(verb, { identify }, limits)
  const results = [1, 2, 3].map((n) => call({ n }))
  calls[0]?.end()
  t.equal(await results[0], 10)
  calls[1]?.end(Object.assign(new Error('gone'), { code: 'ECONNRESET' }))
  await t.rejects(results[1] as Promise<number>, { message: 'gone' })
  await t.rejects(results[2] as Promise<number>, { message: 'gone' })
  const later = call({ n: 4 })
  calls[2]?.end()
  t.equal(await later, 40, 'the next one goes on')
})

t.test('what could not be sent in time is rejected and never sent', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(verb, { identify }, { ...limits, timeoutMs: 20 })
  const stalled = call({ n: 1 })
  await t.rejects(call({ n: 2 }), { code: 'ETIMEDOUT' })
  const third = call({ n: 3 })
  calls[0]?.end()
  t.equal(await stalled, 10, 'a call that was sent is waited for')
  calls[1]?.end()
  t.equal(await third, 30)
  t.strictSame(sent(), [[1], [3]])
})

t.test('what failed in a list after its time is not sent alone', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(verb, { identify }, { ...limits, timeoutMs: 200 })
  const [first, second, third] = [1, 2, 3].map((n) => call({ n }))
  calls[0]?.end()
  await first
  await t.rejects(call({ n: 4 }), { code: 'ETIMEDOUT' })
  calls[1]?.end(dataError())
  await t.rejects(second as Promise<number>, { code: 'ETIMEDOUT' })
  await t.rejects(third as Promise<number>, { code: 'ETIMEDOUT' })
  t.strictSame(sent(), [[1], [2, 3]])
})

t.test('what gets its place after its time is not sent', async (t) => {
  const { verb, sent } = latchedVerb()
  let open = () => {}
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  const call = createBatcher(
    verb,
    { identify },
    { ...limits, timeoutMs: 200, limit: (start) => opened.then(start) },
  )
  const first = call({ n: 1 })
  await t.rejects(call({ n: 2 }), { code: 'ETIMEDOUT' })
  open()
  await t.rejects(first, { code: 'ETIMEDOUT' })
  t.strictSame(sent(), [])
})

t.test('a verb that throws is one that rejects', async (t) => {
  const call = createBatcher<Item, number>(
    ([item]) => {
      if (item?.n === 2) throw new Error('at once')
      return Promise.resolve([item?.n ?? 0])
    },
    { identify },
    limits,
  )
  const first = call({ n: 1 })
  const second = call({ n: 2 })
  const third = call({ n: 3 })
  t.equal(await first, 1)
  await t.rejects(second, { message: 'at once' })
  await t.rejects(third, { message: 'at once' })
})

t.test('a call carries no more bytes than it may, but never less than one item', async (t) => {
  const { verb, calls, sent } = latchedVerb()
  const call = createBatcher(
    verb,
    { identify: () => String(Math.random()), sizeOf: ({ n }) => n },
    { ...limits, maxBytes: 10 },
  )
  const results = [1, 4, 6, 1, 50, 2].map((n) => call({ n }))
  for (let n = 0; n < 6; n += 1) {
    calls[n]?.end()
    await turn()
  }
  t.strictSame(sent(), [[1], [4, 6], [1, 2], [50]])
  await Promise.all(results)
})

t.test('an item that is larger than a list may be has a limit of its own', async (t) => {
  const { verb, calls } = latchedVerb()
  const used: string[] = []
  const counting =
    (name: string): BatcherLimits['limit'] =>
    (start) => {
      used.push(name)
      return limits.limit(start)
    }
  const call = createBatcher(
    verb,
    { identify, sizeOf: ({ n }) => n },
    {
      ...limits,
      maxConcurrent: 2,
      maxBytes: 5,
      limit: counting('one'),
      largeLimit: counting('large'),
    },
  )
  const results = [call({ n: 5 }), call({ n: 6 })]
  t.strictSame(used, ['one', 'large'])
  for (const { end } of calls) end()
  t.strictSame(await Promise.all(results), [50, 60])
})
