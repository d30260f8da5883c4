// Kills servers for some minutes while clients insist, then audits what they have left:
//   npm run soak                       three minutes
//   npm run soak -- --minutes 30       longer
//   npm run soak -- --seed 7           the same operations and moments as another run
// Uses DATABASE_URL, or a PostgreSQL that it finds or starts, and a database of its own in it.
import { parseArgs } from 'node:util'
import type { Test } from 'tap'
import { findService } from '../test/fixtures/services.js'
import { type SoakCounts, soak } from '../test/soak/soak.js'

const { values } = parseArgs({
  options: { minutes: { type: 'string', default: '3' }, seed: { type: 'string' } },
})
const minutes = Number(values.minutes)
const seed = values.seed === undefined ? Math.trunc(Math.random() * 1e6) : Number(values.seed)
if (!(minutes > 0) || !Number.isInteger(seed)) {
  console.error('Usage: npm run soak -- [--minutes 3] [--seed 7]')
  process.exit(1)
}
const postgres = await findService('postgres')
if (postgres instanceof Error) {
  console.error(`The soak needs PostgreSQL. ${postgres.message}`)
  process.exit(1)
}

const ends: (() => unknown)[] = []
const lifetime = { teardown: (end: () => unknown) => void ends.unshift(end) } as unknown as Test
const number = (n: number) => n.toLocaleString('en')
const line = ({ operations, requests, kills, pauses }: SoakCounts) =>
  `${number(operations)} operations, ${number(requests)} requests, ${kills} kills, ${pauses} pauses`

console.log(`Two servers for ${minutes} minutes on ${postgres.source}, seed ${seed}`)
let isFaultless = false
try {
  const { counts, audit, ways } = await soak(lifetime, {
    seconds: minutes * 60,
    seed,
    onProgress(state) {
      const text = `${String(state.secondsLeft).padStart(5)} s left: ${line(state)}`
      if (process.stdout.isTTY) process.stdout.write(`\r\x1b[K${text}`)
      else if (state.secondsLeft % 15 === 0) console.log(text)
    },
  })
  if (process.stdout.isTTY) process.stdout.write('\r\x1b[K')
  const rows: [string, number, string][] = [
    ['operations', counts.operations, 'each asked for until it was answered'],
    ['requests', counts.requests, `${number(counts.duplicates)} clients asked for what others did`],
    ['broken off', counts.broken, 'the server died, or stood still'],
    ['told to come back', counts.busy, 'it ran elsewhere, or failed'],
    ['replayed', counts.replayed, 'the same to the byte'],
    ['killed', counts.kills, 'servers, by SIGKILL'],
    ['paused', counts.pauses, 'servers, most of them past their leases'],
    ['taken over', audit.takenOver, 'operations that ran more than once'],
    ['entries', audit.entries, 'in the ledger'],
  ]
  for (const [name, count, what] of rows) {
    console.log(`${name.padEnd(18)} ${number(count).padStart(9)}   ${what}`)
  }
  console.log('\nwhich way')
  const most = Math.max(...Object.values(ways))
  for (const [path, count] of Object.entries(ways)) {
    const bar = '█'.repeat(Math.round((count / most) * 30))
    console.log(`${path.padEnd(18)} ${number(count).padStart(9)}   ${bar}`)
  }
  console.log('\naccount              ledger   expected')
  for (const [account, { ledger, expected }] of Object.entries(audit.balances)) {
    console.log(
      `${account.padEnd(16)} ${number(ledger).padStart(10)} ${number(expected).padStart(10)}`,
    )
  }
  isFaultless = audit.faults.length === 0
  console.log(
    isFaultless
      ? '\nEvery operation is in the ledger once, and every account is right.'
      : `\n${audit.faults.length} faults (seed ${seed}):\n${audit.faults.slice(0, 50).join('\n')}`,
  )
} finally {
  for (const end of ends) await end()
  await postgres.stop()
}
process.exit(isFaultless ? 0 : 1)
