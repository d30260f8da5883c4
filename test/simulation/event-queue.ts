/** Something that happens at a virtual time. */
export interface Event {
  at: number
  /** Which of two at the same time comes first: the one that was planned first. */
  readonly place: number
  readonly happen: () => void
  readonly owner: Owner | undefined
  readonly isTimer: boolean
  isCancelled: boolean
}

/** Whoever runs code: what he has planned stops with him. The database is nobody's. */
export interface Owner {
  readonly name: string
  readonly isDead: boolean
  /** A process that was stopped does nothing until then; its answers wait for it. */
  readonly pausedUntil: number
}

/** A binary heap: the next event first. */
export class EventQueue {
  readonly #events: Event[] = []

  push(event: Event): void {
    const events = this.#events
    let at = events.length
    events.push(event)
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!isBefore(event, events[parent] as Event)) break
      events[at] = events[parent] as Event
      at = parent
    }
    events[at] = event
  }

  pop(): Event | undefined {
    const events = this.#events
    const first = events[0]
    const last = events.pop()
    if (last === undefined || events.length === 0) return first
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= events.length) break
      if (child + 1 < events.length && isBefore(events[child + 1] as Event, events[child] as Event))
        child += 1
      if (!isBefore(events[child] as Event, last)) break
      events[at] = events[child] as Event
      at = child
    }
    events[at] = last
    return first
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.at < b.at || (a.at === b.at && a.place < b.place)
}
