import { readFile } from 'node:fs/promises'
import t from 'tap'
import { CRASH_POINTS } from '../../src/crash-points.js'
import { missing } from '../fixtures/services.js'
import { size } from '../fixtures/size.js'
import { COLUMNS } from './columns.js'
import { CHAINS, columnsOf, crashMatrix, tableIn, tableOf, textOf } from './matrix.js'

// In full, beside others on two slow cores, it takes ten minutes.
t.setTimeout(1_800_000)

/** What `npm test` has time for. The other columns go the same ways, with somebody else's retry. */
const QUICK = ['request', 'atomic request', 'inline event']

const noPostgres = await missing('postgres')
const isFull = process.env.FULL === 'true'
const documented = tableIn(
  await readFile(new URL('../../docs/crashes.md', import.meta.url), 'utf8'),
)

for (const database of isFull ? (['PostgreSQL', 'PGlite'] as const) : (['PostgreSQL'] as const)) {
  const chains = CHAINS.filter(
    (chain) => chain.database === database && (isFull || QUICK.includes(chain.column.name)),
  )
  t.test(
    `${database}: killed anywhere, each takes effect once, and docs/crashes.md tells how`,
    { skip: database === 'PostgreSQL' && noPostgres },
    async (t) => {
      const cells = await crashMatrix(t, chains, size({ full: 2, quick: 3 }), (cell) => {
        const { column, point, problems } = cell
        t.strictSame(problems, [], `${column}, ${point}: ${textOf(cell)}`)
      })
      const names = chains.map(({ column }) => column.name)
      t.equal(tableOf(cells), columnsOf(documented, names))
    },
  )
}

t.test('docs/crashes.md has every column, and each point is on the way of one of them', (t) => {
  const [head, , ...rows] = documented.split('\n')
  const names = [...new Set(COLUMNS.map(({ name }) => name))]
  t.equal(head, `| killed at | ${names.join(' | ')} |`)
  t.strictSame(
    rows.map((row) => row.split('|')[1]?.trim()),
    CRASH_POINTS.map((point) => `\`${point}\``),
  )
  for (const row of rows) t.match(row, /runs|goes on|is over/, row.split('|')[1]?.trim() ?? '')
  t.end()
})
