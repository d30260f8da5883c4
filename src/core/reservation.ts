/** Who has a slot, or had it last. */
export interface SlotHold {
  readonly id: string
  readonly slot: string
  readonly holder: string
  /** Free from this time on; `null` when it is confirmed. */
  readonly heldUntil: Date | null
}

/** What stands in the way of somebody who wants slots. */
export type Standing =
  | { readonly kind: 'taken'; readonly slots: readonly string[] }
  /** All are his already. `until`: the first of them ends; `null` when all are confirmed. */
  | { readonly kind: 'his'; readonly until: Date | null }
  | Free

/** What is not his yet is free: nobody has it, or whoever had it has let his time run out. */
export interface Free {
  readonly kind: 'free'
  readonly unheld: readonly string[]
  readonly lapsed: readonly SlotHold[]
  /** Those that are his already. */
  readonly kept: readonly SlotHold[]
  /** When the first of those ends that are his already. */
  readonly until: Date | null
}

export function hasLapsed({ heldUntil }: Pick<SlotHold, 'heldUntil'>, now: Date): boolean {
  return heldUntil !== null && heldUntil <= now
}

/**
 * What the rows of these slots mean to a holder.
 *
 *                    | his own | somebody else's
 *   -----------------+---------+----------------
 *   confirmed        | his     | taken
 *   its time runs    | his     | taken
 *   its time ran out | free    | free             (his own, too: a hold is not prolonged by asking)
 *   no row           |       free
 */
export function standing(
  slots: readonly string[],
  holds: readonly SlotHold[],
  holder: string,
  now: Date,
): Standing {
  const lapsed = holds.filter((hold) => hasLapsed(hold, now))
  const kept = holds.filter((hold) => !hasLapsed(hold, now))
  const taken = kept.filter((hold) => hold.holder !== holder)
  if (taken.length > 0) return { kind: 'taken', slots: taken.map(({ slot }) => slot).sort() }
  const until = soonest(kept.map(({ heldUntil }) => heldUntil))
  const known = new Set(holds.map(({ slot }) => slot))
  const unheld = slots.filter((slot) => !known.has(slot))
  if (unheld.length === 0 && lapsed.length === 0) return { kind: 'his', until }
  return { kind: 'free', unheld, lapsed, kept, until }
}

/** The first of these times; `null` when there is none, as none of them ends. */
export function soonest(times: readonly (Date | null)[]): Date | null {
  return times.reduce((a, b) => (a === null || (b !== null && b < a) ? b : a), null)
}
