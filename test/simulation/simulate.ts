import { onCrashPoint } from '../../src/crash-points.js'
import { startClient } from './clients.js'
import { type Counts, noCounts } from './counts.js'
import { resetIds } from './handler.js'
import { Invariants } from './invariants.js'
import type { Network } from './link.js'
import { ModelDatabase } from './model-database.js'
import { drawPlan, LEASE_MS, STORM_MS } from './plan.js'
import { Server } from './server.js'
import { DATABASE_TIME_MS, World } from './world.js'

/** What one schedule showed. */
export interface Run {
  readonly seed: number
  readonly violations: readonly string[]
  readonly counts: Counts
  readonly steps: number
  /** What happened, line by line, if that was asked for. */
  readonly trace: readonly string[]
}

/** Runs the schedule that a seed stands for: the same every time. */
export async function simulate(seed: number, { isTraced = false } = {}): Promise<Run> {
  const world = new World(seed, isTraced)
  const plan = drawPlan(world.random)
  world.tell(() => JSON.stringify(plan))
  const counts = noCounts()
  const databaseNow = () => DATABASE_TIME_MS + world.now
  const uncertain = plan.keys.filter(({ kind }) => kind === 'uncertain').map(({ key }) => key)
  const invariants = new Invariants(world, databaseNow, counts, new Set(uncertain))
  const database = new ModelDatabase(databaseNow, invariants)
  const network: Network = {
    ...{ world, database, weather: plan.weather, counts },
    ...{ stormUntil: world.now + STORM_MS, downUntil: 0 },
  }
  resetIds()
  const servers = new Servers({ network, invariants, plan })
  const clients = { world, invariants, servers: () => servers.open }

  const onUnhandled = (error: unknown) => invariants.check(false, () => `nobody handled ${error}`)
  process.on('unhandledRejection', onUnhandled)
  onCrashPoint((point) => servers.at(point))
  try {
    servers.planFaults()
    for (const key of plan.keys) {
      for (let n = 0; n < key.clients; n += 1) {
        const startsIn = world.random.between(0, LEASE_MS * world.random.pick([0.1, 2]))
        const fingerprint = key.isReused && n % 2 === 0 ? 'another' : 'same'
        startClient(`client ${n + 1}`, startsIn, key, fingerprint, clients)
      }
      if (plan.prunes) startClient('late', 45 * LEASE_MS, key, 'same', clients)
    }
    await world.run()
    // What was renewed last runs out.
    const later = 2 * LEASE_MS
    world.in(later, undefined, () => {
      for (const row of database.rows) invariants.ended(row)
      world.tell(() => 'everybody asks once more')
    })
    for (const key of plan.keys) startClient('last', later, key, 'same', clients)
    await world.run()
    if (world.isRestless) invariants.check(false, () => 'it does not come to rest')
    else for (const row of database.rows) invariants.ended(row)
  } finally {
    process.off('unhandledRejection', onUnhandled)
    onCrashPoint(undefined)
  }
  const { steps, trace = [] } = world
  return { seed, violations: invariants.violations, counts, steps, trace }
}

/** The processes of the application, and what becomes of them. */
class Servers {
  readonly #context: ConstructorParameters<typeof Server>[1]
  readonly #all: Server[] = []

  constructor(context: ConstructorParameters<typeof Server>[1]) {
    this.#context = context
    for (let n = 0; n < context.plan.servers; n += 1) this.#start()
  }

  get open(): readonly Server[] {
    return this.#all.filter(({ isDead, isClosing }) => !isDead && !isClosing)
  }

  planFaults(): void {
    const { plan, network } = this.#context
    const { world, counts } = network
    const { random } = world
    const times = (count: number, fault: () => void) => {
      for (let n = 0; n < count; n += 1) world.in(random.between(0, STORM_MS), undefined, fault)
    }
    const one = (act: (server: Server) => void) => () => {
      if (this.open.length > 0) act(random.pick(this.open))
    }
    times(
      plan.crashes,
      one((server) => {
        counts.crash += 1
        server.crash('of a fault')
        this.#restart()
      }),
    )
    times(
      plan.crashPoints,
      one((server) => {
        server.pointsToLive = random.integer(1, 12)
      }),
    )
    times(
      plan.pauses,
      one((server) => {
        counts.pause += 1
        const until = world.now + random.between(LEASE_MS / 10, 3 * LEASE_MS)
        server.pausedUntil = Math.max(server.pausedUntil, until)
        world.tell(() => `${server.name} stands still for ${server.pausedUntil - world.now}`)
      }),
    )
    times(
      plan.stops,
      one((server) => {
        counts['orderly stop'] += 1
        world.in(0, server, () => void server.stop())
        this.#restart()
      }),
    )
    times(plan.outages, () => {
      counts['database outage'] += 1
      network.downUntil = world.now + random.between(LEASE_MS / 20, 2 * LEASE_MS)
      world.tell(() => `the database is down for ${network.downUntil - world.now}`)
      network.database.restart()
    })
    if (plan.prunes) {
      for (const at of [35, 41, 44, 46]) {
        const prune = one((server) => void server.store.prune(10).catch(() => {}))
        world.in(at * LEASE_MS, undefined, () => world.in(0, this.open[0], prune))
      }
    }
    if (plan.keys.some(({ kind }) => kind.startsWith('recoverable'))) {
      times(
        3,
        one((server) => world.in(0, server, () => void server.recover().catch(() => {}))),
      )
    }
    // In the healed world somebody is there who answers.
    world.in(STORM_MS, undefined, () => {
      for (const server of this.#all) server.pointsToLive = Number.POSITIVE_INFINITY
      this.#start()
    })
  }

  /** A process comes to a named point; perhaps it dies there. */
  at(point: string): void {
    const server = this.#context.network.world.owner
    if (!(server instanceof Server) || server.isDead) return
    server.pointsToLive -= 1
    if (server.pointsToLive > 0) return
    this.#context.network.counts['crash at a named point'] += 1
    server.crash(`at ${point}`)
    this.#restart()
  }

  #restart(): void {
    const { world } = this.#context.network
    world.in(world.random.between(0, LEASE_MS), undefined, () => this.#start())
  }

  #start(): void {
    this.#all.push(new Server(`server ${this.#all.length + 1}`, this.#context))
  }
}
