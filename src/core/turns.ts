/** So many values are worked on in one turn of the event loop: a few milliseconds. */
export const VALUES_PER_TURN = 20_000

/** Fulfilled in a later turn of the event loop. */
export type NextTurn = () => Promise<unknown>
