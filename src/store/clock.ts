import type { PrismaClientLike, Provider } from './client.js'

const NOW: Record<Provider, string> = {
  postgresql: `SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS now`,
  // Not UNIX_TIMESTAMP: it reads a local time, and one hour of the year has that twice.
  mysql: `SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) / 1000 AS now`,
  sqlite: `SELECT (julianday('now') - 2440587.5) * 86400000.0 AS now`,
}

/** A sample is used for so long: a monotonic clock drifts a few milliseconds in that time. */
const FRESH_FOR_MS = 60_000
/** Both clocks of this process may differ by so much before a sample counts as old. */
const TOLERATED_MS = 1_000

/**
 * The database's clock, for a store that can only compare a column with a value. Both estimates
 * come from a recent sample and the monotonic clock of this process, without a round trip: the time
 * of the database lies between them.
 */
export interface DatabaseClock {
  /** Not behind the database: for what must not end early. */
  estimate(): Promise<Date>
  /** Not ahead of the database: for what is to be due at once. */
  estimatePassed(): Promise<Date>
  /** The time as the database says it, asked for now. At most one round trip old. */
  ask(): Promise<Date>
  /** The same clock, asked through the client of an open transaction: no other connection is needed. */
  through(client: Pick<PrismaClientLike, '$queryRawUnsafe'>): DatabaseClock
}

/**
 * The application's own clock is never read: a host that is an hour off takes nothing over early.
 * `ask` never runs ahead of the database, because the answer is older than its arrival.
 */
export function databaseClock(
  client: Pick<PrismaClientLike, '$queryRawUnsafe'>,
  provider: Provider,
): DatabaseClock {
  let sample: { now: number; at: number; answeredAt: number; hostAt: number } | undefined

  async function askThrough(client: Pick<PrismaClientLike, '$queryRawUnsafe'>): Promise<Date> {
    const at = performance.now()
    const hostAt = Date.now()
    const [row] = await client.$queryRawUnsafe<{ now: unknown }[]>(NOW[provider])
    const now = Number(row?.now ?? Number.NaN)
    if (!Number.isFinite(now)) throw new TypeError('the database did not tell the time')
    sample = { now, at, answeredAt: performance.now(), hostAt }
    return new Date(now)
  }

  /** `since`: the sample is younger than its question, and older than its answer. */
  async function estimateFrom(since: 'at' | 'answeredAt', ask: () => Promise<Date>): Promise<Date> {
    if (sample === undefined) return ask()
    const at = performance.now()
    const elapsed = at - sample.at
    // The monotonic clock stands still while a machine is suspended, and the host's does not. It
    // only tells that something happened: the time itself is asked for.
    const isSuspect = Math.abs(Date.now() - sample.hostAt - elapsed) > TOLERATED_MS
    if (isSuspect || elapsed > FRESH_FOR_MS) return ask()
    return new Date(sample.now + at - sample[since])
  }

  function through(client: Pick<PrismaClientLike, '$queryRawUnsafe'>): DatabaseClock {
    const ask = () => askThrough(client)
    return {
      ask,
      estimate: () => estimateFrom('at', ask),
      estimatePassed: () => estimateFrom('answeredAt', ask),
      through,
    }
  }

  return through(client)
}
