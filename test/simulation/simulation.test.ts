import t from 'tap'
import { HAPPENINGS } from './counts.js'
import { simulate } from './simulate.js'
import { runSchedules } from './workers.js'

const SCHEDULES = 5_000

t.test(`${SCHEDULES} schedules keep every promise`, async (t) => {
  const { schedules, counts, failures } = await runSchedules({
    ...{ from: 1, count: SCHEDULES, processes: 1, share: SCHEDULES },
  })
  t.equal(schedules, SCHEDULES)
  for (const { seed, violations } of failures.slice(0, 1)) {
    const { trace } = await simulate(seed, { isTraced: true })
    t.fail(`seed ${seed}: ${violations.slice(0, 3).join('; ')}`, {
      again: `SEED=${seed} npm run simulate`,
      trace: trace.slice(-200),
    })
  }
  // A simulation in which nothing happens would prove nothing.
  for (const name of HAPPENINGS) {
    t.ok(counts[name] >= SCHEDULES / 1_000, `${counts[name]} times: ${name}`)
  }
})

t.test('a seed is one schedule, to the last line, whatever ran before it', async (t) => {
  const traced = (seed: number) => simulate(seed, { isTraced: true })
  for (const seed of [1, 2, 3, 500, 77_777, 2 ** 40]) {
    const first = await traced(seed)
    await simulate(seed + 1)
    t.strictSame(await traced(seed), first)
    t.ok(first.trace.length > 10)
  }
  t.notSame((await traced(1)).trace, (await traced(2)).trace)
})

t.test('a schedule leaves the clock, the timers and the dice as they were', async (t) => {
  const real = () => [setTimeout, clearTimeout, Math.random, Date.now, Error.stackTraceLimit]
  const before = real()
  const startedAt = performance.now()
  await simulate(1)
  for (const [n, one] of real().entries()) t.equal(one, before[n])
  const tookMs = performance.now() - startedAt
  t.ok(tookMs > 0 && tookMs < 60_000)
})
