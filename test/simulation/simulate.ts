import { onCrashPoint } from '../../src/crash-points.js'
import { startClient, startProvider } from './clients.js'
import { type Counts, noCounts } from './counts.js'
import { EventInvariants } from './event-invariants.js'
import { resetIds } from './handler.js'
import { Invariants } from './invariants.js'
import { ModelDatabase } from './model-database.js'
import { eventNameOf, nameOf } from './model-rows.js'
import { operationOfRow } from './operation-names.js'
import { drawPlan, LEASE_MS } from './plan.js'
import type { Network } from './question.js'
import { Servers } from './servers.js'
import { DATABASE_TIME_MS, World } from './world.js'

/** By then, each event has been delivered as often as it will be, and run when no delivery of it comes. */
const EVENTS_DONE_MS = 200 * LEASE_MS

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
  const invariants = new Invariants({
    ...{ world, databaseNow, counts },
    uncertainKeys: new Set(uncertain),
    operationOf: operationOfRow(plan),
  })
  const check = invariants.check.bind(invariants)
  const events = new EventInvariants({ world, databaseNow, counts, check })
  const database = new ModelDatabase(databaseNow, {
    committed(commit, database) {
      invariants.committed(commit, database)
      events.committed(commit, (id) => database.events.see(eventNameOf({ id })))
    },
    listed: (rows) => invariants.listed(rows),
    unlocked: (afterMs) => invariants.unlocked(afterMs),
  })
  const network: Network = {
    ...{ world, database, weather: plan.weather, counts },
    ...{ stormUntil: world.now + plan.stormMs, downUntil: 0, lockedUntil: 0 },
    connections: plan.connections,
  }
  resetIds()
  const servers = new Servers({ network, invariants, events, plan })
  const recordOf = (key: string) => database.records.see(nameOf({ tenantId: '', key }))
  const clients = { world, invariants, servers: () => servers.open, recordOf }

  /** Deliveries that are neither acknowledged nor given up. */
  let delivering = 0
  /** Workers look for events for as long as there may be some. */
  const stopWhenDone = () => {
    const isDone =
      delivering === 0 &&
      [...database.events.rows].every(
        ({ status, awaitsDelivery, dueAt }) =>
          status === 'processed' || (awaitsDelivery && dueAt === null),
      )
    const isLate = world.now > plan.stormMs + EVENTS_DONE_MS
    if (isLate || (isDone && world.now > 2 * plan.stormMs + 20 * LEASE_MS)) servers.stopWorking()
    else world.in(10 * LEASE_MS, undefined, stopWhenDone)
  }

  const onUnhandled = (error: unknown) => invariants.check(false, () => `nobody handled ${error}`)
  process.on('unhandledRejection', onUnhandled)
  onCrashPoint((point) => servers.at(point))
  try {
    await world.run(() => {
      servers.begin()
      for (const key of plan.keys) {
        for (let n = 0; n < key.clients; n += 1) {
          const afterMs = n === 0 ? 0 : key.othersAfterMs
          const startsIn = afterMs + world.random.between(0, key.withinMs)
          const isPoison = n === 0 && key.clients > 1 && key.poisoned === 'request'
          const body = isPoison ? 'poison \0' : `body ${n % key.bodies}`
          startClient(`client ${n + 1}`, startsIn, key, body, clients)
        }
        if (plan.prunesAt.length > 0) startClient('late', 45 * LEASE_MS, key, 'body 0', clients)
      }
      for (const event of plan.events) {
        for (let n = 0; n < event.deliveries; n += 1) {
          const startsIn = world.random.between(0, event.withinMs)
          delivering += 1
          startProvider(`provider ${n + 1}`, startsIn, event, clients, () => {
            delivering -= 1
          })
        }
      }
      if (plan.events.length > 0) stopWhenDone()
    })
    for (const name of events.delivered) {
      events.ended(
        name,
        [...database.events.rows].find((row) => row.eventId === name),
      )
    }
    await world.run(() => {
      // What was renewed last runs out.
      const later = 2 * LEASE_MS
      world.in(later, undefined, () => {
        for (const row of database.records.rows) invariants.ended(row)
        world.tell(() => 'everybody asks once more')
      })
      for (const key of plan.keys) startClient('last', later, key, 'body 0', clients)
    })
    if (world.isRestless) invariants.check(false, () => 'it does not come to rest')
    else for (const row of database.records.rows) invariants.ended(row)
  } finally {
    process.off('unhandledRejection', onUnhandled)
    onCrashPoint(undefined)
  }
  const { steps, trace = [] } = world
  return { seed, violations: invariants.violations, counts, steps, trace }
}
