import t from 'tap'
import { parseDuration } from '../../src/core/duration.js'

t.test('reads milliseconds, and numbers with a unit', async (t) => {
  for (const [value, ms] of [
    [0, 0],
    [1500, 1500],
    ['500ms', 500],
    ['30s', 30_000],
    ['1.5s', 1500],
    ['15m', 900_000],
    ['24h', 86_400_000],
    ['7d', 604_800_000],
  ] as const) {
    t.equal(parseDuration(value), ms, String(value))
  }
})

t.test('refuses everything else', async (t) => {
  for (const value of [
    '',
    '30',
    '30 s',
    's',
    '-1s',
    -1,
    Number.NaN,
    Infinity,
    '1w',
    null,
    {},
    true,
  ]) {
    t.equal(parseDuration(value), undefined, String(value))
  }
})
