import t from 'tap'
import { SortInParts } from '../../src/core/sort-in-parts.js'

function sorted(texts: readonly string[]): { result: readonly string[]; parts: number } {
  const sorting = new SortInParts(texts)
  for (let parts = 1; ; parts += 1) {
    const result = sorting.advance()
    if (result !== undefined) return { result, parts }
  }
}

/** Neither sorted nor without repetitions, and of all kinds of characters. */
const textsOf = (count: number) =>
  Array.from({ length: count }, (_, n) => {
    const code = (n * 104_729) % 0xffff
    return `${String.fromCharCode(code)}${(n * 7_919) % 1_009}`
  })

t.test('any number of texts are sorted as sort() does it', async (t) => {
  for (const count of [0, 1, 2, 4_999, 5_000, 5_001, 10_000, 10_001, 47_500, 100_000]) {
    const texts = textsOf(count)
    const expected = texts.slice().sort()
    const { result } = sorted(texts)
    t.equal(result.length, count)
    t.ok(
      expected.every((text, n) => text === result[n]),
      `${count} texts`,
    )
    t.strictSame(texts, textsOf(count), 'the list that was given is as it was')
  }
})

t.test('no part grows with the number of texts', async (t) => {
  // Of each part so many texts, and each text as often as lists are halved.
  const { parts } = sorted(textsOf(200_000))
  t.ok(parts > 40 + 6 * 10, `${parts} parts`)
})
