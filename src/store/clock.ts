import type { PrismaClientLike, Provider } from './client.js'

const NOW: Record<Provider, string> = {
  postgresql: `SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS now`,
  mysql: `SELECT UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS now`,
  sqlite: `SELECT (julianday('now') - 2440587.5) * 86400000.0 AS now`,
}

/** A sample is used for so long: a monotonic clock drifts a few milliseconds in that time. */
const FRESH_FOR_MS = 60_000

/** The database's clock, for a store that can only compare a column with a value. */
export interface DatabaseClock {
  /** The time now, from a recent sample and the monotonic clock of this process; no round trip. */
  estimate(): Promise<Date>
  /** The time as the database says it, asked for now. At most one round trip old. */
  ask(): Promise<Date>
}

/**
 * The application's own clock is never read: a host that is an hour off takes nothing over early.
 * `ask` never runs ahead of the database, because the answer is older than its arrival.
 */
export function databaseClock(
  client: Pick<PrismaClientLike, '$queryRawUnsafe'>,
  provider: Provider,
): DatabaseClock {
  let sample: { now: number; at: number } | undefined

  async function ask(): Promise<Date> {
    const at = performance.now()
    const [row] = await client.$queryRawUnsafe<{ now: unknown }[]>(NOW[provider])
    // `at` is from before the question: an estimate may run ahead by that round trip, at most.
    sample = { now: Number(row?.now), at }
    return new Date(sample.now)
  }

  return {
    ask,
    async estimate() {
      const elapsed =
        sample === undefined ? Number.POSITIVE_INFINITY : performance.now() - sample.at
      return sample === undefined || elapsed > FRESH_FOR_MS ? ask() : new Date(sample.now + elapsed)
    },
  }
}
