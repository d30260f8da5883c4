// The claim protocol as a simulation: docs/simulation.md.
//
//   npm run simulate                        1,000,000 schedules, on all cores
//   npm run simulate -- --schedules=50000   so many; --from=7 begins with another seed
//   SEED=7 npm run simulate                 one schedule, line by line
//   npm run simulate -- --mutations         each guard taken away, and the seed that shows it;
//                                           --only=text for those with that in their names
import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'
import { HAPPENINGS } from '../test/simulation/counts.js'
import { firstFailure, mutantOf } from '../test/simulation/mutants.js'
import { MUTATIONS } from '../test/simulation/mutations/all.js'
import { simulate } from '../test/simulation/simulate.js'
import { runSchedules, type Summary } from '../test/simulation/workers.js'

const { values } = parseArgs({
  options: {
    schedules: { type: 'string' },
    from: { type: 'string', default: '1' },
    processes: { type: 'string', default: String(availableParallelism()) },
    mutations: { type: 'boolean', default: false },
    only: { type: 'string', default: '' },
  },
})
const from = Number(values.from)
const seed = process.env.SEED

if (seed !== undefined) await showSchedule(Number(seed))
else if (values.mutations) await showMutations(Number(values.schedules ?? 1_000), values.only)
else await runAll(Number(values.schedules ?? 1_000_000), Number(values.processes))

async function showSchedule(seed: number): Promise<void> {
  const { trace, violations, steps } = await simulate(seed, { isTraced: true })
  for (const line of trace) console.log(line)
  console.log(`\nseed ${seed}, ${steps} steps`)
  for (const violation of violations) console.log(`VIOLATED  ${violation}`)
  if (violations.length === 0) console.log('every promise is kept')
  process.exitCode = violations.length === 0 ? 0 : 1
}

/** Each with the first seed that shows it: as listed, or found among so many. */
async function showMutations(schedules: number, only: string): Promise<void> {
  console.log('| without this, … | in | seed |\n|---|---|---|')
  for (const mutation of MUTATIONS.filter(({ name }) => name.includes(only))) {
    const { name, file, shownBy } = mutation
    const mutant = await mutantOf(mutation)
    const find = async () => {
      const listed = typeof shownBy === 'number' && (await firstFailure(mutant, shownBy, 1))
      return listed || firstFailure(mutant, 1, schedules)
    }
    const failure = await find().finally(mutant.dispose)
    const isAsListed = typeof shownBy === 'string' ? !failure : shownBy === failure?.seed
    const shown = failure ? `${failure.seed} | ${failure.violation}` : `none of ${schedules} |`
    console.log(`| ${name} | \`${file}\` | ${shown}${isAsListed ? '' : ' ← not as listed'}`)
    if (!isAsListed) process.exitCode = 1
  }
}

async function runAll(count: number, processes: number): Promise<void> {
  const startedAt = performance.now()
  const speed = ({ schedules }: Summary) =>
    Math.round(schedules / ((performance.now() - startedAt) / 1_000))
  let told = 0
  const summary = await runSchedules({
    ...{ from, count, processes, share: Math.min(1_000, Math.ceil(count / processes)) },
    onShare: (summary) => {
      for (const failure of summary.failures.slice(told)) showFailure(failure)
      told = summary.failures.length
      const line = `${summary.schedules} schedules, ${speed(summary)} a second`
      if (process.stdout.isTTY) process.stdout.write(`\r${line} `)
      else if (summary.schedules % 50_000 === 0) console.log(line)
    },
  })
  const { schedules, steps, counts, failures } = summary
  const seconds = Math.round((performance.now() - startedAt) / 1_000)
  const figure = (number: number) => number.toLocaleString('en-GB').padStart(14)
  console.log(`\r${figure(schedules)} schedules in ${seconds} s, ${speed(summary)} a second`)
  console.log(`${figure(steps)} steps`)
  for (const name of HAPPENINGS) console.log(`${figure(counts[name])} ${name}`)
  console.log(`\n${failures.length === 0 ? 'every promise is kept' : 'FAILED'}`)
  process.exitCode = failures.length === 0 ? 0 : 1
}

function showFailure({ seed, violations }: Summary['failures'][number]): void {
  console.log(`\rVIOLATED by seed ${seed}: ${violations.slice(0, 3).join('; ')}`)
  console.log(`  again, line by line: SEED=${seed} npm run simulate`)
}
