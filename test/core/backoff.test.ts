import fc from 'fast-check'
import t from 'tap'
import { backoff } from '../../src/core/backoff.js'

t.test('doubles from the first pause up to the longest', async (t) => {
  const limits = { firstMs: 25, mostMs: 1_000 }
  const pauses = [0, 1, 2, 3, 4, 5, 6, 7].map((attempt) => backoff(limits, attempt, 1))
  t.strictSame(pauses, [25, 50, 100, 200, 400, 800, 1_000, 1_000])
})

t.test('stays between half of the pause and all of it, for any attempt', async () => {
  fc.assert(
    fc.property(fc.nat(), fc.double({ min: 0, max: 1, noNaN: true }), (attempt, random) => {
      const pause = backoff({ firstMs: 10, mostMs: 5_000 }, attempt, random)
      const most = backoff({ firstMs: 10, mostMs: 5_000 }, attempt, 1)
      return pause >= most / 2 && pause <= most && most <= 5_000
    }),
  )
})
