import t from 'tap'
import { type SlotHold, soonest, standing } from '../../src/core/reservation.js'

const NOW = new Date('2027-06-05T18:00:00Z')
const later = (minutes: number) => new Date(NOW.getTime() + minutes * 60_000)
const hold = (slot: string, holder: string, heldUntil: Date | null): SlotHold => {
  return { id: `${slot} of ${holder}`, slot, holder, heldUntil }
}

t.test('what the row of a slot means to ann', async (t) => {
  for (const [row, expected] of [
    [undefined, { kind: 'free', unheld: ['a'], lapsed: [], until: null }],
    [hold('a', 'ann', null), { kind: 'his', until: null }],
    [hold('a', 'bob', null), { kind: 'taken', slots: ['a'] }],
    [hold('a', 'ann', later(1)), { kind: 'his', until: later(1) }],
    [hold('a', 'bob', later(1)), { kind: 'taken', slots: ['a'] }],
    [hold('a', 'ann', NOW), { kind: 'free', unheld: [], until: null }],
    [hold('a', 'bob', NOW), { kind: 'free', unheld: [], until: null }],
  ] as const) {
    const seen = standing(['a'], row ? [row] : [], 'ann', NOW)
    t.match(seen, expected, JSON.stringify(row))
    if (seen.kind === 'free' && row) t.strictSame(seen.lapsed, [row])
  }
})

t.test('one slot that is taken decides over all', async (t) => {
  const rows = [
    hold('c', 'bob', null),
    hold('a', 'ann', later(1)),
    hold('b', 'bob', later(1)),
    hold('d', 'bob', later(-1)),
  ]
  const seen = standing(['a', 'b', 'c', 'd', 'e'], rows, 'ann', NOW)
  t.strictSame(seen, { kind: 'taken', slots: ['b', 'c'] })
})

t.test('what is his already stays as it is beside the rest', async (t) => {
  const ranOut = hold('c', 'ann', later(-1))
  const rows = [hold('a', 'ann', null), hold('b', 'ann', later(1)), ranOut]
  t.strictSame(standing(['a', 'b', 'c', 'd'], rows, 'ann', NOW), {
    kind: 'free',
    unheld: ['d'],
    lapsed: [ranOut],
    kept: [hold('a', 'ann', null), hold('b', 'ann', later(1))],
    until: later(1),
  })
})

t.test('the soonest of times that may never come', async (t) => {
  t.equal(soonest([]), null)
  t.equal(soonest([null, null]), null)
  t.strictSame(soonest([null, later(2), later(1), null, later(3)]), later(1))
})
