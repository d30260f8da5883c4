import t from 'tap'
import {
  createStatementLimit,
  createStatementLimits,
  defaultMaxConnections,
} from '../../src/store/statement-limit.js'

const turn = () => new Promise(setImmediate)

function latches() {
  const started: { n: number; end(error?: Error): void }[] = []
  const start = (n: number) => () =>
    new Promise<number>((resolve, reject) => {
      started.push({ n, end: (error) => (error ? reject(error) : resolve(n)) })
    })
  return { started, start, names: () => started.map(({ n }) => n) }
}

t.test('no more run at once than may, in the order in which they came', async (t) => {
  const limit = createStatementLimit(2, 60_000)
  const { started, start, names } = latches()
  const results = [1, 2, 3, 4].map((n) => limit(start(n)))
  t.strictSame(names(), [1, 2])
  started[1]?.end(new Error('failed'))
  await t.rejects(results[1] as Promise<number>, { message: 'failed' })
  await turn()
  t.strictSame(names(), [1, 2, 3])
  for (const n of [0, 2]) started[n]?.end()
  await turn()
  started[3]?.end()
  t.strictSame(await Promise.all([results[0], results[2], results[3]]), [1, 3, 4])
})

t.test('what finds no room in time is rejected and never starts', async (t) => {
  const limit = createStatementLimit(1, 20)
  const { started, start, names } = latches()
  const stalled = limit(start(1))
  await t.rejects(limit(start(2)), { code: 'ETIMEDOUT' })
  started[0]?.end()
  t.equal(await stalled, 1)
  await turn()
  t.strictSame(names(), [1])
})

t.test('statements that are not answered keep their places, but for one of them', async (t) => {
  const limit = createStatementLimit(3, 5)
  const { started, start, names } = latches()
  for (const n of [1, 2, 3]) void limit(start(n))
  const askMore = async () => {
    limit(start(4)).catch(() => {})
    // It has started by then, or given up.
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  while (started.length < 4) await askMore()
  // Long enough for each of them to have been without an answer for ten timeouts.
  for (let n = 0; n < 20; n += 1) await askMore()
  t.strictSame(names(), [1, 2, 3, 4])
  for (const { end } of started) end()
  await turn()
  for (const n of [5, 6, 7, 8]) limit(start(n)).catch(() => {})
  t.strictSame(names(), [1, 2, 3, 4, 5, 6, 7], 'as many as before')
  for (const { end } of started) end()
})

t.test('a start that throws is one that rejects, and gives its place up', async (t) => {
  const limit = createStatementLimit(1, 60_000)
  await t.rejects(
    limit(() => {
      throw new Error('at once')
    }),
    { message: 'at once' },
  )
  t.equal(await limit(async () => 2), 2)
})

t.test('running attempts and new requests have connections of their own', async (t) => {
  t.equal(defaultMaxConnections(), 7)
  t.equal(defaultMaxConnections(1), 2)
  t.equal(defaultMaxConnections(100), 70)
  const { begin, hold } = createStatementLimits(2, 60_000)
  const { started, start, names } = latches()
  const results = [begin(start(1)), begin(start(2)), hold(start(3))]
  t.strictSame(names(), [1, 3], 'what runs does not queue behind what wants to begin')
  for (const n of [0, 1]) started[n]?.end()
  await turn()
  started[2]?.end()
  t.strictSame(await Promise.all(results), [1, 2, 3])
})

t.test('webhooks, locks and reservations leave a place of each kind to the keys', async (t) => {
  const { begin, hold, besideKeys } = createStatementLimits(4, 60_000)
  const { started, start, names } = latches()
  const results = [besideKeys.begin(start(1)), besideKeys.begin(start(2)), begin(start(3))]
  results.push(besideKeys.hold(start(4)), besideKeys.hold(start(5)), hold(start(6)))
  t.strictSame(names(), [1, 3, 4, 6])
  for (const n of [0, 1, 2, 3]) started[n]?.end()
  await turn()
  for (const n of [4, 5]) started[n]?.end()
  t.strictSame(await Promise.all(results), [1, 2, 3, 4, 5, 6])
  const small = createStatementLimits(2, 60_000)
  t.equal(await small.besideKeys.begin(async () => 7), 7, 'with one place they have that')
})

t.test('transactions that begin leave a place to the keys', async (t) => {
  const { begin, transaction } = createStatementLimits(6, 60_000)
  const { started, start, names } = latches()
  const results = [1, 2, 3].map((n) => transaction(start(n)))
  results.push(begin(start(4)))
  t.strictSame(names(), [1, 2, 4])
  for (const n of [0, 1, 2]) started[n]?.end()
  await turn()
  started[3]?.end()
  t.strictSame(await Promise.all(results), [1, 2, 3, 4])
})

t.test('large responses leave a place to renewals', async (t) => {
  const { largeResponses, hold } = createStatementLimits(6, 60_000)
  const { started, start, names } = latches()
  const results = [1, 2, 3].map((n) => largeResponses(start(n)))
  results.push(hold(start(4)))
  t.strictSame(names(), [1, 2, 4])
  for (const n of [0, 1, 2]) started[n]?.end()
  await turn()
  started[3]?.end()
  t.strictSame(await Promise.all(results), [1, 2, 3, 4])
  const small = createStatementLimits(2, 60_000)
  t.equal(await small.largeResponses(async () => 5), 5, 'with one place they have that')
})
