/** Looks at what is due: regularly, at wanted times, and when somebody asks; never twice at a time. */
export interface Looks {
  /** Looks now; while a look is under way, once more after it. */
  now(): void
  /** Looks then, too. */
  in(ms: number): void
  /** Looks no more, and waits for the look that is under way. */
  stop(): Promise<void>
}

/** Wanted times that are so close together are one look. */
const GRAIN_MS = 10
/** So many wanted times are remembered. What is due at later ones is found by the regular look. */
const MOST_WANTED = 1_000

/** `look` must not reject. */
export function createLooks(everyMs: number, look: () => Promise<void>): Looks {
  let isOpen = true
  let isWantedAgain = false
  let looking: Promise<void> | undefined
  let timer: NodeJS.Timeout | undefined
  let regularAt = Number.POSITIVE_INFINITY
  /** In units of the grain, the earliest first. */
  const wanted: number[] = []

  function now(): void {
    if (!isOpen) return
    if (looking !== undefined) {
      isWantedAgain = true
      return
    }
    clearTimeout(timer)
    const at = performance.now()
    while (wanted[0] !== undefined && wanted[0] * GRAIN_MS <= at) wanted.shift()
    // Drawn anew each time, so that processes that started together do not stay together.
    regularAt = at + everyMs * (0.75 + Math.random() / 2)
    looking = look().then(() => {
      looking = undefined
      if (!isWantedAgain) return wait()
      isWantedAgain = false
      now()
    })
  }

  function wait(): void {
    clearTimeout(timer)
    if (!isOpen) return
    const at = Math.min(regularAt, (wanted[0] ?? Number.POSITIVE_INFINITY) * GRAIN_MS)
    // A timer cuts its time off to whole milliseconds, and would come too early.
    if (at < Number.POSITIVE_INFINITY) timer = setTimeout(now, Math.ceil(at - performance.now()))
  }

  return {
    now,
    in(ms) {
      if (!isOpen) return
      const at = Math.ceil((performance.now() + ms) / GRAIN_MS)
      const after = wanted.findIndex((other) => other >= at)
      const place = after === -1 ? wanted.length : after
      if (wanted[place] === at || place >= MOST_WANTED) return
      wanted.splice(place, 0, at)
      if (wanted.length > MOST_WANTED) wanted.pop()
      if (place === 0 && looking === undefined) wait()
    },
    async stop() {
      isOpen = false
      clearTimeout(timer)
      await looking
    },
  }
}
