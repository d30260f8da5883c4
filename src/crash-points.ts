// Where a process may die, by name, so that tests can make it die there. Every place is one between
// two things that a crash could tear apart.

/** What stands on both sides of each: docs/crashes.md. */
export const CRASH_POINTS = [
  'claim:asking',
  'claim:held',
  'step:done',
  'step:stored',
  'transaction:inside',
  'transaction:recorded',
  'transaction:committed',
  'response:storing',
  'response:stored',
  'atomic:begun',
  'atomic:inside',
  'atomic:recorded',
  'atomic:committed',
  'event:recording',
  'event:recorded',
  'event:claimed',
  'event:ending',
  'event:ended',
  'lock:held',
  'lock:releasing',
  'lock:released',
] as const

export type CrashPoint = (typeof CRASH_POINTS)[number]

let listener: ((point: CrashPoint) => void) | undefined

/** Does nothing, unless a test listens. */
export function crashPoint(point: CrashPoint): void {
  listener?.(point)
}

/** For tests: calls `listen` at every crash point of this process. */
export function onCrashPoint(listen: typeof listener): void {
  listener = listen
}
