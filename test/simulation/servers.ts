import type { ServerContext } from './answers.js'
import { LEASE_MS } from './plan.js'
import { Server } from './server.js'

/** Where a transaction has written the record, and has not ended. */
const RECORDED: readonly string[] = ['transaction:recorded', 'atomic:recorded']

/** The processes of the application, and what becomes of them. */
export class Servers {
  readonly #context: ServerContext
  readonly #all: Server[] = []
  #standstills: number

  constructor(context: ServerContext) {
    this.#context = context
    this.#standstills = context.plan.standstills
  }

  get open(): readonly Server[] {
    return this.#all.filter(({ isDead, isClosing }) => !isDead && !isClosing)
  }

  /** Starts the processes, and plans what happens to them. */
  begin(): void {
    const { plan, network } = this.#context
    for (let n = 0; n < plan.servers; n += 1) this.#start()
    const { world, counts } = network
    const { random } = world
    const times = (count: number, fault: () => void) => {
      for (let n = 0; n < count; n += 1) world.in(random.between(0, plan.stormMs), undefined, fault)
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
    times(plan.tableLocks, () => {
      counts['table locked'] += 1
      network.lockedUntil = world.now + random.between(LEASE_MS / 5, plan.tableLockMs)
      world.tell(() => `the table is locked for ${network.lockedUntil - world.now}`)
    })
    for (const at of plan.prunesAt) {
      const prune = one((server) => void server.store.prune(10).catch(() => {}))
      world.in(at, undefined, () => world.in(0, this.open[0], prune))
    }
    if (plan.keys.some(({ kind }) => kind.startsWith('recoverable'))) {
      times(
        3,
        one((server) => world.in(0, server, () => void server.recover().catch(() => {}))),
      )
    }
    // In the healed world somebody is there who answers.
    world.in(plan.stormMs, undefined, () => {
      for (const server of this.#all) server.pointsToLive = Number.POSITIVE_INFINITY
      this.#start()
    })
  }

  /** No process looks for events any more. */
  stopWorking(): void {
    for (const server of this.open) {
      this.#context.network.world.in(0, server, () => server.stopWorking())
    }
  }

  /** A process comes to a named point; perhaps it dies there. */
  at(point: string): void {
    const server = this.#context.network.world.owner
    if (!(server instanceof Server) || server.isDead) return
    if (RECORDED.includes(point)) this.#standStill(server)
    server.pointsToLive -= 1
    if (server.pointsToLive > 0) return
    this.#context.network.counts['crash at a named point'] += 1
    server.crash(`at ${point}`)
    this.#restart()
  }

  /** Its transaction has written the record, and does not end. */
  #standStill(server: Server): void {
    const { world, counts, stormUntil } = this.#context.network
    if (this.#standstills === 0 || world.now > stormUntil || !world.random.chance(0.3)) return
    this.#standstills -= 1
    counts['stood still in a transaction'] += 1
    server.pausedUntil = world.now + world.random.between(LEASE_MS / 2, 4 * LEASE_MS)
    world.tell(() => `${server.name} stands still for ${server.pausedUntil - world.now}`)
  }

  #restart(): void {
    const { world } = this.#context.network
    world.in(world.random.between(0, LEASE_MS), undefined, () => this.#start())
  }

  #start(): void {
    this.#all.push(new Server(`server ${this.#all.length + 1}`, this.#context))
  }
}
