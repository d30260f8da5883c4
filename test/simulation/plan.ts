import type { Random } from './random.js'

/** All times are in leases of this length: only their proportions matter. */
export const LEASE_MS = 1_000

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
  /** A request to an atomic route. */
  | 'atomic request'

export interface KeyPlan {
  readonly key: string
  readonly kind: KeyKind
  readonly clients: number
  /** In which time all of them have begun to ask. */
  readonly withinMs: number
  /** How long after the first of them the others begin. */
  readonly othersAfterMs: number
  /** How many different bodies are sent with it. */
  readonly bodies: number
  readonly waitMs: number
  /** How probable it is that an operator ends an attempt that runs when a request finds it busy. */
  readonly forced: number
  /** What of it the database refuses by its data: all requests of one client, or some responses. */
  readonly poisoned: 'nothing' | 'request' | 'responses'
  /** Whether its responses are so large that their size is suspected when they cannot be stored. */
  readonly isLarge: boolean
  /** How probable it is that a new key is one too many. */
  readonly refusal: number
  /** What is to go wrong in a handler, as probabilities. */
  readonly handler: HandlerPlan
}

/** A webhook event, and how it is delivered and handled. */
export interface EventPlan {
  readonly eventId: string
  /** Whether its provider gives it no id and signs each delivery anew: then it comes under several names. */
  readonly isNamedAnew: boolean
  readonly mode: 'inline' | 'deferred'
  /** Those that are about the same object are run one at a time. */
  readonly object: string | undefined
  /** How many deliver it at once, and in which time all of them have begun to. */
  readonly deliveries: number
  readonly withinMs: number
  /** How often it is delivered without success before the provider gives up; never, if at all. */
  readonly givesUpAfter: number
  readonly handler: HandlerPlan
  readonly defers: number
  /** How probable it is that a handler that defers its event acknowledges it as well. */
  readonly acknowledges: number
  /** Whether the transaction of its handler makes it processed. */
  readonly isFinal: boolean
}

export interface HandlerPlan {
  readonly throws: number
  readonly isSlow: number
  readonly slowMs: number
  /** How long its transaction may take. */
  readonly transactionMs: number
  readonly notKept: number
  readonly triesAgain: number
  readonly notAwaited: number
  readonly sideBySide: number
}

export const NO_MISHAPS: HandlerPlan = {
  ...{ throws: 0, isSlow: 0, slowMs: 0, transactionMs: 5 * LEASE_MS, notKept: 0 },
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

/** No weather at all. */
export const CALM: Weather = {
  ...{ latencyMs: 2, requestLost: 0, replyLost: 0 },
  ...{ late: 0, conflict: 0, silent: 0 },
}

export interface Plan {
  /** Nothing is wrong with the database, and so nobody waits long for an answer of it. */
  readonly isHealthy: boolean
  readonly way: 'statements' | 'prisma'
  readonly servers: number
  /** How many connections each server has. */
  readonly connections: number
  readonly keys: readonly KeyPlan[]
  readonly events: readonly EventPlan[]
  readonly weather: Weather
  /** When faults end: then the world heals, and everybody must get an answer. */
  readonly stormMs: number
  readonly storeTimeoutMs: number
  readonly maxRunMs: number
  readonly retentionMs: number
  /** When what is expired is deleted. */
  readonly prunesAt: readonly number[]
  readonly crashes: number
  readonly crashPoints: number
  readonly pauses: number
  readonly stops: number
  readonly outages: number
  /** How often the table is locked, and for how long at most. */
  readonly tableLocks: number
  readonly tableLockMs: number
  /** How often a process stands still between the last statement of a transaction and its COMMIT. */
  readonly standstills: number
}

const KINDS: readonly KeyKind[] = [
  ...(['request', 'request', 'request', 'uncertain'] as const),
  ...(['recoverable request', 'run', 'recoverable run', 'atomic request'] as const),
]

/** Whether this request goes to an atomic route. Of a key with several bodies, every other one does. */
export function isAtomic({ kind, bodies }: KeyPlan, body: string): boolean {
  return kind === 'atomic request' && (bodies === 1 || Number(body.at(-1)) % 2 === 0)
}

/**
 * What one schedule is made of. Each kind of fault is left out of most schedules, so that those
 * that have it go far enough to meet it in every state.
 */
export function drawPlan(random: Random): Plan {
  const draw = random.next()
  if (draw < 0.03) return burst(random)
  if (draw < 0.06) return forgetful(random)
  if (draw < 0.1) return aging(random)
  if (draw < 0.13) return healthy(random)
  if (draw < 0.14) return contested(random)
  if (draw < 0.24) return webhooks(random)
  if (draw < 0.25) return large(random)
  if (draw >= 0.98) return namedAnew(random)
  return usual(random)
}

/** All sorts of things, a little of each. */
function usual(random: Random): Plan {
  const { sometimes, count } = chances(random)
  const isLong = random.chance(0.1)
  const maxRunMs = LEASE_MS * random.integer(2, 5)
  return {
    isHealthy: false,
    way: random.chance(0.5) ? 'statements' : 'prisma',
    servers: random.integer(2, 3),
    connections: random.pick([20, 10, 4]),
    keys: keysOf(random, random.chance(0.3) ? 2 : 1, () => ({})),
    events: [],
    weather: {
      latencyMs: random.pick([2, 20, 200, 200, 700]),
      requestLost: sometimes(0.15),
      replyLost: sometimes(0.2),
      late: sometimes(0.3),
      conflict: sometimes(0.3),
      silent: random.pick([0, 0.5, 1]),
    },
    stormMs: 6 * LEASE_MS,
    storeTimeoutMs: LEASE_MS * random.pick([0.2, 0.6, 1.5, 1.5]),
    maxRunMs,
    retentionMs: isLong
      ? 40 * LEASE_MS
      : random.pick([maxRunMs + LEASE_MS, 10_000 * LEASE_MS, 10_000 * LEASE_MS]),
    prunesAt: isLong ? [35, 41, 44, 46].map((leases) => leases * LEASE_MS) : [],
    crashes: count(3),
    crashPoints: count(3),
    pauses: count(3),
    stops: count(1),
    outages: count(2),
    tableLocks: count(1),
    tableLockMs: 1.5 * LEASE_MS,
    standstills: count(1),
  }
}

/** Many at once on one process: what they ask travels together. */
function burst(random: Random): Plan {
  const { count } = chances(random)
  const plain = usual(random)
  return {
    ...plain,
    // With nothing else in the way, leases are renewed until the tables are locked.
    weather: random.chance(0.5) ? CALM : plain.weather,
    way: random.chance(0.9) ? 'statements' : 'prisma',
    servers: 1,
    keys: keysOf(random, random.integer(4, 12), (plain) => ({
      clients: random.integer(1, 4),
      withinMs: LEASE_MS * random.pick([0.01, 0.1]),
      bodies: random.pick([1, 1, 2, 4]),
      handler: { ...plain.handler, isSlow: 0.7 },
    })),
    stormMs: 4 * LEASE_MS,
    // A renewal and the next one wait, and nobody's lease runs out.
    tableLocks: random.integer(1, 3),
    tableLockMs: 0.9 * LEASE_MS,
    crashes: count(1),
    crashPoints: count(1),
  }
}

/** Keys that are given back and used for something else, while what was said before is on its way. */
function forgetful(random: Random): Plan {
  const plain = usual(random)
  return {
    ...plain,
    keys: keysOf(random, 1, ({ handler }) => ({
      ...{ clients: 4, bodies: 3, refusal: 0.3 },
      handler: { ...handler, throws: 0.8 },
    })),
    weather: { ...plain.weather, latencyMs: 20, late: 0.4 },
    storeTimeoutMs: LEASE_MS * 0.2,
  }
}

/** Responses that are large, on connections that fail: sometimes it is stored that they are not kept. */
function large(random: Random): Plan {
  const plain = usual(random)
  return {
    ...plain,
    keys: keysOf(random, 1, () => ({
      ...{ key: 'key0', kind: 'request', clients: 2, withinMs: LEASE_MS / 10, isLarge: true },
      handler: NO_MISHAPS,
    })),
    weather: { ...CALM, latencyMs: 20, requestLost: 0.1, replyLost: 0.25 },
    storeTimeoutMs: LEASE_MS,
    maxRunMs: 5 * LEASE_MS,
    ...{ retentionMs: 10_000 * LEASE_MS, prunesAt: [] },
    ...{ crashes: 0, crashPoints: 0, pauses: 0, stops: 0, outages: 0, tableLocks: 0 },
  }
}

/** Keys that expire, are deleted and used again, while attempts at what they named before still run. */
function aging(random: Random): Plan {
  const plain = usual(random)
  const stormMs = 12 * LEASE_MS
  return {
    ...plain,
    keys: keysOf(random, 1, ({ handler }) => ({
      ...{ clients: 6, bodies: random.pick([2, 6]), withinMs: stormMs },
      forced: random.pick([0, 0.5]),
      handler: { ...handler, isSlow: 0.6, slowMs: 6 * LEASE_MS },
    })),
    stormMs,
    maxRunMs: LEASE_MS,
    retentionMs: 2 * LEASE_MS,
    prunesAt: Array.from({ length: 20 }, () => random.between(0, stormMs)),
  }
}

/** A database that is well, requests that it refuses, and records that stay locked for long. */
function healthy(random: Random): Plan {
  const maxRunMs = 5 * LEASE_MS
  const way = random.chance(0.8) ? 'statements' : 'prisma'
  return {
    isHealthy: true,
    way,
    servers: 2,
    connections: 12,
    keys: keysOf(random, random.integer(2, 8), ({ handler }) => ({
      clients: random.integer(1, 5),
      // Mostly so close together that they travel in lists.
      withinMs: LEASE_MS * random.pick([0.002, 0.01, 1]),
      ...{ waitMs: 0, forced: 0, bodies: random.pick([1, 1, 2]) },
      poisoned: random.pick(['nothing', 'nothing', 'nothing', 'request', 'responses']),
      handler: { ...handler, isSlow: 0.3, slowMs: LEASE_MS / 2 },
    })),
    events: [],
    weather: { ...CALM, latencyMs: 10 },
    stormMs: 4 * LEASE_MS,
    // Longer than a statement waits for a lock.
    storeTimeoutMs: 2 * LEASE_MS,
    maxRunMs,
    retentionMs: 10_000 * LEASE_MS,
    prunesAt: [],
    ...{ crashes: 0, crashPoints: 0, pauses: 0, stops: 0, outages: 0 },
    ...{ tableLocks: 0, tableLockMs: 0 },
    // With Prisma's calls alone, a takeover waits for a row that is locked.
    standstills: way === 'prisma' ? 0 : random.integer(0, 2),
  }
}

/**
 * Many requests at once while a transaction stands still that has inserted the key of one or two of them:
 * these wait for it, and no other may.
 */
function contested(random: Random): Plan {
  return {
    ...healthy(random),
    way: 'statements',
    keys: keysOf(random, 8, ({ key }) => ({
      key: key.replace('run\t', ''),
      // The others of the atomic key go to a route that is not atomic.
      kind: key.endsWith('0') ? 'atomic request' : 'request',
      ...{ clients: random.integer(2, 4), bodies: 2, othersAfterMs: LEASE_MS / 5 },
      ...{ withinMs: LEASE_MS / 500, waitMs: 0, forced: 0, refusal: 0 },
      handler: NO_MISHAPS,
    })),
    standstills: 2,
  }
}

/** Events that providers deliver, some of them many at once. */
function webhooks(random: Random): Plan {
  const { sometimes } = chances(random)
  const plain = usual(random)
  const isBurst = random.chance(0.15)
  const count = isBurst ? random.integer(8, 14) : random.integer(1, 3)
  return {
    ...plain,
    servers: isBurst ? 1 : plain.servers,
    keys: [],
    events: Array.from({ length: count }, (_, n) => ({
      ...{ eventId: `event ${n}`, isNamedAnew: false, acknowledges: 0 },
      mode: random.chance(0.5) ? 'inline' : 'deferred',
      object: random.chance(isBurst ? 0.1 : 0.4) ? random.pick(['a', 'b']) : undefined,
      deliveries: random.integer(1, 3),
      withinMs: LEASE_MS * random.pick([0.01, 0.1, 2]),
      givesUpAfter: random.chance(0.2) ? random.integer(1, 4) : 1_000,
      handler: { ...keyOf(random, n).handler, ...(isBurst && { isSlow: 0.7 }) },
      defers: sometimes(0.5),
      isFinal: random.chance(0.3),
    })),
    retentionMs: 10_000 * LEASE_MS,
    prunesAt: [],
    // As in a burst of requests.
    ...(isBurst && random.chance(0.5) && { weather: CALM }),
    ...(isBurst && { tableLocks: random.integer(1, 3), tableLockMs: 0.9 * LEASE_MS }),
  }
}

/** Events without ids, most of which only their providers repeat. */
function namedAnew(random: Random): Plan {
  const plain = webhooks(random)
  return {
    ...plain,
    events: plain.events.map((event) => ({
      ...event,
      isNamedAnew: true,
      mode: random.chance(0.8) ? 'inline' : 'deferred',
      givesUpAfter: random.pick([1, 4, 1_000]),
      handler: { ...event.handler, throws: 0.3 },
      ...{ defers: 0.3, acknowledges: 0.5 },
    })),
  }
}

function keysOf(random: Random, count: number, change: (plain: KeyPlan) => Partial<KeyPlan>) {
  return Array.from({ length: count }, (_, n) => {
    const plain = keyOf(random, n)
    return { ...plain, ...change(plain) }
  })
}

function keyOf(random: Random, n: number): KeyPlan {
  const { sometimes } = chances(random)
  const kind = random.pick(KINDS)
  return {
    key: kind.endsWith('run') ? `run\tkey${n}` : `key${n}`,
    kind,
    clients: random.integer(1, 3),
    withinMs: LEASE_MS * random.pick([0.1, 2]),
    othersAfterMs: 0,
    bodies: random.chance(0.1) ? 2 : 1,
    waitMs: random.pick([0, 0, LEASE_MS / 2]),
    poisoned: 'nothing',
    isLarge: false,
    forced: random.chance(0.1) ? 0.3 : 0,
    refusal: random.chance(0.1) ? 0.3 : 0,
    handler: {
      throws: sometimes(0.5),
      isSlow: sometimes(0.5),
      slowMs: 2.5 * LEASE_MS,
      transactionMs: LEASE_MS * random.pick([1, 5]),
      notKept: sometimes(0.4),
      triesAgain: sometimes(1),
      // What a handler in a step does not wait for, its step would not wait for.
      notAwaited: kind === 'recoverable request' ? 0 : sometimes(0.3),
      sideBySide: sometimes(1),
    },
  }
}

function chances(random: Random) {
  return {
    sometimes: (most: number) => (random.chance(0.35) ? random.between(0, most) : 0),
    count: (most: number) => (random.chance(0.4) ? random.integer(1, most) : 0),
  }
}
