/** What happened in schedules: without all of it, they prove nothing. */
export const HAPPENINGS = [
  'crash',
  'crash at a named point',
  'pause',
  'stood still in a transaction',
  'orderly stop',
  'database outage',
  'table locked',
  'request lost',
  'reply lost',
  'commit whose reply is lost',
  'late arrival',
  'conflict, rolled back',
  'handler run',
  'handler run in a transaction',
  'response committed by an atomic route',
  'atomic route undone',
  'transaction refused: another was faster',
  'transaction ended by the server',
  'effect committed',
  'effect rolled back',
  'step stored',
  'takeover of a lost lease',
  'takeover after a release',
  'takeover of an expired key',
  'late grant given back',
  'response stored',
  'response stored without its body',
  'replay without a response',
  'response given out, stored later or never',
  'attempt refused: lease lost',
  'replay',
  'busy',
  'mismatch',
  'uncertain',
  'resolved by an operator',
  'released by force',
  'key refused',
  'store unavailable',
  'request that the database refuses',
  'response that the database refuses',
  'finished by recover()',
  'event recorded',
  'handler of an event run',
  'effect of an event committed',
  'run of an event taken over',
  'event deferred',
  'event left to its provider',
  'event acknowledged by its handler',
  'event replayed',
  'event processed',
  'delivery acknowledged',
  'delivery of a processed event',
  'not awaited',
  'record pruned',
  'statement that waited for a row',
  'statement that waited for the table',
  'lock timeout',
  'statement canceled',
  'statement for several',
  'statement for eight or more',
  'row locked for longer than a lease',
] as const

export type Happening = (typeof HAPPENINGS)[number]

export type Counts = Record<Happening, number>

export function noCounts(): Counts {
  return Object.fromEntries(HAPPENINGS.map((name) => [name, 0])) as Counts
}

export function addCounts(sum: Counts, more: Counts): void {
  for (const name of HAPPENINGS) sum[name] += more[name]
}
