/** What happened in schedules: without all of it, they prove nothing. */
export const HAPPENINGS = [
  'crash',
  'crash at a named point',
  'pause',
  'orderly stop',
  'database outage',
  'request lost',
  'reply lost',
  'commit whose reply is lost',
  'late arrival',
  'conflict, rolled back',
  'handler run',
  'effect committed',
  'effect rolled back',
  'step stored',
  'takeover of a lost lease',
  'takeover after a release',
  'takeover of an expired key',
  'late grant given back',
  'response stored',
  'response given out, stored later or never',
  'attempt refused: lease lost',
  'replay',
  'busy',
  'mismatch',
  'uncertain',
  'resolved by an operator',
  'key refused',
  'store unavailable',
  'finished by recover()',
  'not awaited',
  'record pruned',
  'statement that waited for a row',
  'statement for several',
] as const

export type Happening = (typeof HAPPENINGS)[number]

export type Counts = Record<Happening, number>

export function noCounts(): Counts {
  return Object.fromEntries(HAPPENINGS.map((name) => [name, 0])) as Counts
}

export function addCounts(sum: Counts, more: Counts): void {
  for (const name of HAPPENINGS) sum[name] += more[name]
}
