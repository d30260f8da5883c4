// The simulation has teeth: without any one of these guards it fails, and with all of them the same
// schedule is as it should be.
import { readFile } from 'node:fs/promises'
import t from 'tap'
import { firstFailure, mutantOf, mutatedTexts } from './mutants.js'
import { MUTATIONS } from './mutations/all.js'
import { simulate } from './simulate.js'

/**
 * When the code has changed, a seed may be another schedule: during development so many others are tried.
 * Continuous integration demands the listed one.
 */
const OTHERS = process.env.CI ? 0 : 5_000

t.test('docs/simulation.md lists every mutation with its seed, or why there is none', async (t) => {
  const text = await readFile(new URL('../../docs/simulation.md', import.meta.url), 'utf8')
  const listed = [...text.matchAll(/^\| (.+) \| `(.+\.ts)` \| (.+) \|$/gm)]
  const rows = listed.map(([, name, file, shownBy]) => [name, file, shownBy]).sort()
  const all = MUTATIONS.map(({ name, file, shownBy }) => [name, file, String(shownBy)])
  t.strictSame(rows, all.sort())
})

t.test('no two mutations have one name', async (t) => {
  t.equal(new Set(MUTATIONS.map(({ name }) => name)).size, MUTATIONS.length)
})

for (const mutation of MUTATIONS) {
  const { name, shownBy, isRare } = mutation
  if (typeof shownBy === 'string') {
    t.test(`not needed for what is promised: ${name}`, async (t) => {
      await mutatedTexts(mutation)
      t.ok(shownBy.length > 20, 'it says why')
    })
    continue
  }
  t.test(`seed ${shownBy}: ${name}`, async (t) => {
    const mutant = await mutantOf(mutation)
    t.teardown(mutant.dispose)
    const listed = await firstFailure(mutant, shownBy, 1)
    const failure = listed ?? (isRare ? undefined : await firstFailure(mutant, 1, OTHERS))
    if (listed === undefined) t.comment('list it anew: npm run simulate -- --mutations')
    t.ok(failure, failure?.violation ?? 'nothing shows it')
    t.strictSame((await simulate(failure?.seed ?? shownBy)).violations, [])
  })
}
