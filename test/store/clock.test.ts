import t from 'tap'
import { databaseClock } from '../../src/store/clock.js'

const SLOW_MS = 200

/** A database whose clock is `aheadMs` off, and whose answers take their time on each way. */
function slowDatabase(aheadMs: number) {
  const pause = () => new Promise((resolve) => setTimeout(resolve, SLOW_MS))
  const now = () => performance.timeOrigin + performance.now() + aheadMs
  const $queryRawUnsafe = async <T>() => {
    await pause()
    const rows = [{ now: now() }]
    await pause()
    return rows as T
  }
  return { now, client: { $queryRawUnsafe } }
}

t.test('the time of the database lies between both estimates, however slow it is', async (t) => {
  const { now, client } = slowDatabase(3_600_000)
  const clock = databaseClock(client, 'postgresql')
  const asked = await clock.ask()
  t.ok(asked.getTime() <= now() - SLOW_MS + 5, 'what was asked for is as old as the way back')
  for (let look = 0; look < 3; look += 1) {
    const before = Math.floor(now())
    const ahead = (await clock.estimate()).getTime()
    const passed = (await clock.estimatePassed()).getTime()
    t.ok(ahead >= before + SLOW_MS - 5, 'ahead by the way there')
    t.ok(passed <= now() - SLOW_MS + 5, 'behind by the way back')
    t.ok(passed > before - 2 * SLOW_MS, 'and not further')
  }
})
