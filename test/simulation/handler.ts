import type { Operation } from '../../src/claims/operation.js'
import { LeaseLost, TransactionOpen } from '../../src/errors.js'
import type { Counts } from './counts.js'
import type { Invariants, Work } from './invariants.js'
import type { LedgerTransaction } from './model-prisma.js'
import { type HandlerPlan, LEASE_MS } from './plan.js'
import type { World } from './world.js'

/** What a handler of an application needs. */
export interface HandlerContext {
  readonly world: World
  readonly counts: Counts
  readonly invariants: Invariants
  readonly plan: HandlerPlan
  /** Whether it calls somebody outside the database, too. */
  readonly charges: boolean
}

/** What the application throws when something of its own goes wrong. */
export class HandlerFailed extends Error {}
/** Sent with a status that is no answer: the key is released. */
export class NotKept extends Error {}

let lastId = 0
export function resetIds(): void {
  lastId = 0
}

/**
 * A handler as applications write them: a row of its own in a transaction, a call to somebody else
 * as a step, and the mistakes and misfortunes that handlers have.
 */
export async function work(
  operation: Operation,
  key: string,
  { world, counts, invariants, plan, charges }: HandlerContext,
): Promise<Work> {
  const { random } = world
  const { attempt } = operation
  const mayFail = (chance: number) => {
    if (!random.chance(chance)) return
    world.tell(() => `${key}#${attempt} the handler throws`)
    throw new HandlerFailed('the handler failed')
  }
  const dawdle = async () => {
    const isSlow = random.chance(plan.isSlow)
    if (isSlow) await world.sleep(random.between(0, 2.5 * LEASE_MS))
    else if (random.chance(0.3)) await world.sleep(random.between(0, LEASE_MS / 10))
  }
  const transaction = async () => {
    const effect = await operation.transaction(async (client) => {
      // The application's client in the tests is another one.
      const tx = client as unknown as LedgerTransaction
      lastId += 1
      const id = `e${lastId}`
      await tx.ledger.create({ id, key, fence: attempt })
      await dawdle()
      if (random.chance(plan.throws / 2)) {
        counts['effect rolled back'] += 1
        mayFail(1)
      }
      return { id }
    })
    invariants.got(key, attempt, 'transaction', effect)
    return effect
  }
  const call = async (name: string) => {
    const result = await operation.step(name, async () => {
      invariants.ran(key, attempt, name)
      lastId += 1
      const id = `c${lastId}`
      world.tell(() => `${key}#${attempt} calls outside: ${id}`)
      await dawdle()
      mayFail(plan.throws / 2)
      return { id }
    })
    invariants.got(key, attempt, name, result)
    return result
  }
  const charge = () => call('charge')

  await dawdle()
  mayFail(plan.throws)
  if (random.chance(plan.notAwaited)) {
    counts['not awaited'] += 1
    world.tell(() => `${key}#${attempt} does not wait for its work`)
    if (random.chance(0.3)) {
      void world.sleep(random.between(0, LEASE_MS)).then(transaction).catch(ignored)
      return { effect: null, isToCome: true }
    }
    void transaction().catch(ignored)
    if (charges) void charge().catch(ignored)
    return { effect: null }
  }
  const triesAgain = random.chance(plan.triesAgain)
  if (!charges) return { effect: await persist(transaction, triesAgain) }
  if (random.chance(plan.sideBySide)) {
    const mailed = call('mail')
    mailed.catch(ignored)
    const charged = await persist(charge, triesAgain)
    if (random.chance(0.2)) {
      // It might wait for what is still in flight: then it is refused, and nothing is begun.
      const early = await transaction().catch(refused)
      if (early !== undefined) return { effect: early, charge: charged }
    }
    await mailed
    return { effect: await persist(transaction, triesAgain), charge: charged }
  }
  const isFirst = random.chance(0.5)
  const early = isFirst ? await persist(charge, triesAgain) : undefined
  const effect = await persist(transaction, triesAgain)
  mayFail(plan.throws)
  const late = early ?? (await persist(charge, triesAgain))
  await dawdle()
  if (random.chance(plan.notKept)) throw new NotKept('status 503')
  return { effect, charge: late }
}

const ignored = () => {}

function refused(error: unknown): undefined {
  if (!(error instanceof TransactionOpen)) throw error
}

/** An application that tries what failed again, whatever the error says. */
async function persist<T>(act: () => Promise<T>, triesAgain: boolean): Promise<T> {
  try {
    return await act()
  } catch (error) {
    if (!triesAgain || error instanceof LeaseLost) throw error
    return act()
  }
}
