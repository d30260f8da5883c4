import type { Random } from './random.js'

/** All times are in leases of this length: only their proportions matter. */
export const LEASE_MS = 1_000
/** When faults end: then the world heals, and everybody must get an answer. */
export const STORM_MS = 6 * LEASE_MS

export type KeyKind =
  /** A request to a protected route. */
  | 'request'
  /** A request whose route says `onLeaseExpired: 'uncertain'`, with an operator. */
  | 'uncertain'
  /** A request whose handler is finished by `recover()` if need be. */
  | 'recoverable request'
  /** `run(key, fn)` */
  | 'run'
  /** `run(key, handler)`, finished by `recover()` if need be. */
  | 'recoverable run'

export interface KeyPlan {
  readonly key: string
  readonly kind: KeyKind
  readonly clients: number
  /** Whether somebody uses the key for something else. */
  readonly isReused: boolean
  readonly waitMs: number
  /** How probable it is that a new key is one too many. */
  readonly refusal: number
  /** What is to go wrong in a handler, as probabilities. */
  readonly handler: HandlerPlan
}

export interface HandlerPlan {
  readonly throws: number
  readonly isSlow: number
  readonly notKept: number
  readonly triesAgain: number
  readonly notAwaited: number
  readonly sideBySide: number
}

export const NO_MISHAPS: HandlerPlan = {
  ...{ throws: 0, isSlow: 0, notKept: 0 },
  ...{ triesAgain: 0, notAwaited: 0, sideBySide: 0 },
}

/** What may happen to what is said to the database, as probabilities. */
export interface Weather {
  readonly latencyMs: number
  readonly requestLost: number
  readonly replyLost: number
  /** Arrives, or is answered, when whoever sent it may have given up. */
  readonly late: number
  /** The database rolls back and says so: a serialization failure or a deadlock. */
  readonly conflict: number
  /** How many of the lost are lost without a sign. */
  readonly silent: number
}

export interface Plan {
  readonly way: 'statements' | 'prisma'
  readonly servers: number
  readonly keys: readonly KeyPlan[]
  readonly weather: Weather
  readonly storeTimeoutMs: number
  readonly maxRunMs: number
  readonly retentionMs: number
  readonly prunes: boolean
  readonly crashes: number
  readonly crashPoints: number
  readonly pauses: number
  readonly stops: number
  readonly outages: number
}

const KINDS: readonly KeyKind[] = [
  ...(['request', 'request', 'request', 'uncertain'] as const),
  ...(['recoverable request', 'run', 'recoverable run'] as const),
]

/**
 * What one schedule is made of. Each kind of fault is left out of most schedules, so that those
 * that have it go far enough to meet it in every state.
 */
export function drawPlan(random: Random): Plan {
  const sometimes = (most: number) => (random.chance(0.35) ? random.between(0, most) : 0)
  const count = (most: number) => (random.chance(0.4) ? random.integer(1, most) : 0)
  const prunes = random.chance(0.1)
  // Many at once on few processes: what they ask travels together.
  const isBurst = random.chance(0.03)
  // Keys that are given back and used for something else, while what was said before is on its way.
  const isForgetful = random.chance(0.03)
  const maxRunMs = LEASE_MS * random.integer(2, 5)
  return {
    way: random.chance(0.5) ? 'statements' : 'prisma',
    servers: isBurst ? 1 : random.integer(2, 3),
    keys: Array.from({ length: isBurst || random.chance(0.3) ? 2 : 1 }, (_, n) => {
      const kind = random.pick(KINDS)
      return {
        key: kind.endsWith('run') ? `run\tkey${n}` : `key${n}`,
        kind,
        clients: isBurst ? 7 : isForgetful ? 4 : random.integer(1, 3),
        isReused: isForgetful || random.chance(0.1),
        waitMs: random.pick([0, 0, LEASE_MS / 2]),
        refusal: isForgetful || random.chance(0.1) ? 0.3 : 0,
        handler: {
          throws: isForgetful ? 0.8 : sometimes(0.5),
          isSlow: sometimes(0.5),
          notKept: sometimes(0.4),
          triesAgain: sometimes(1),
          // What a handler in a step does not wait for, its step would not wait for.
          notAwaited: kind === 'recoverable request' ? 0 : sometimes(0.3),
          sideBySide: sometimes(1),
        },
      }
    }),
    weather: {
      latencyMs: isForgetful ? 20 : random.pick([2, 20, 200, 200, 700]),
      requestLost: sometimes(0.15),
      replyLost: sometimes(0.2),
      late: isForgetful ? 0.4 : sometimes(0.3),
      conflict: sometimes(0.3),
      silent: random.pick([0, 0.5, 1]),
    },
    storeTimeoutMs: LEASE_MS * (isForgetful ? 0.2 : random.pick([0.2, 0.6, 1.5, 1.5])),
    maxRunMs,
    // A record may be pruned when it is expired, and its fence begins again: no attempt may live
    // that long. Where nothing is pruned, a key can expire while attempts at it are still about.
    retentionMs: prunes
      ? 40 * LEASE_MS
      : random.pick([maxRunMs + LEASE_MS, 10_000 * LEASE_MS, 10_000 * LEASE_MS]),
    prunes,
    crashes: count(3),
    crashPoints: count(3),
    pauses: count(3),
    stops: count(1),
    outages: count(2),
  }
}
