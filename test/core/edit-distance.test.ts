import { test } from 'tap'
import { editDistance } from '../../src/core/edit-distance.js'

test('counts letters that are added, left out, changed or swapped', (t) => {
  for (const [one, other, distance] of [
    ['', '', 0],
    ['', 'abc', 3],
    ['tenant', 'tenant', 0],
    ['tenent', 'tenant', 1],
    ['tenants', 'tenant', 1],
    ['tennt', 'tenant', 1],
    ['wiat', 'wait', 1],
    ['laese', 'lease', 1],
    ['wait', 'lease', 4],
    ['kitten', 'sitting', 3],
  ] as const) {
    t.equal(editDistance(one, other), distance, `${one}, ${other}`)
    t.equal(editDistance(other, one), distance, `${other}, ${one}`)
  }
  t.end()
})
