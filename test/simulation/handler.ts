import type { Operation } from '../../src/claims/operation.js'
import { LeaseLost, TransactionOpen } from '../../src/errors.js'
import type { WebhookEvent } from '../../src/webhooks/event.js'
import type { Counts } from './counts.js'
import type { EventInvariants, EventRun } from './event-invariants.js'
import type { AttemptName, Invariants, Work } from './invariants.js'
import type { LedgerTransaction } from './model-prisma.js'
import { type HandlerPlan, LEASE_MS } from './plan.js'
import type { World } from './world.js'

/** What a handler of an application needs. */
export interface HandlerContext {
  readonly world: World
  readonly counts: Counts
  readonly invariants: Invariants
  readonly plan: HandlerPlan
  /** The attempt that it is. */
  readonly name: AttemptName
  readonly body: string
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
 * as a step, and the mistakes and misfortunes that handlers have. It does not look at its signal.
 */
export async function work(
  operation: Operation,
  { world, counts, invariants, plan, name, body, charges }: HandlerContext,
): Promise<Work> {
  const { random } = world
  const { key, attempt } = name
  const mayFail = (chance: number) => {
    if (!random.chance(chance)) return
    world.tell(() => `${key}#${attempt} the handler throws`)
    throw new HandlerFailed('the handler failed')
  }
  const dawdle = async () => {
    const isSlow = random.chance(plan.isSlow)
    if (isSlow) await world.sleep(random.between(0, plan.slowMs))
    else if (random.chance(0.3)) await world.sleep(random.between(0, LEASE_MS / 10))
  }
  const transaction = async () => {
    const effect = await operation.transaction(
      async (client) => {
        // The application's client in the tests is another one.
        const tx = client as unknown as LedgerTransaction
        lastId += 1
        const id = `e${lastId}`
        await tx.ledger.create({ id, body, ...name })
        await dawdle()
        if (random.chance(plan.throws / 2)) {
          counts['effect rolled back'] += 1
          mayFail(1)
        }
        return { id }
      },
      { timeout: plan.transactionMs },
    )
    invariants.got(name, 'transaction', effect)
    return effect
  }
  const call = async (step: string) => {
    const result = await operation.step(step, async () => {
      invariants.ran(name, step)
      lastId += 1
      const id = `c${lastId}`
      world.tell(() => `${key}#${attempt} calls outside: ${id}`)
      await dawdle()
      mayFail(plan.throws / 2)
      return { id }
    })
    invariants.got(name, step, result)
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
      return { body, effect: null, isToCome: true }
    }
    void transaction().catch(ignored)
    if (charges) void charge().catch(ignored)
    return { body, effect: null }
  }
  const triesAgain = random.chance(plan.triesAgain)
  if (!charges) return { body, effect: await persist(transaction, triesAgain) }
  if (random.chance(plan.sideBySide)) {
    const mailed = call('mail')
    mailed.catch(ignored)
    const charged = await persist(charge, triesAgain)
    if (random.chance(0.2)) {
      // It might wait for what is still in flight: then it is refused, and nothing is begun.
      const early = await transaction().catch(refused)
      if (early !== undefined) return { body, effect: early, charge: charged }
    }
    await mailed
    return { body, effect: await persist(transaction, triesAgain), charge: charged }
  }
  const isFirst = random.chance(0.5)
  const early = isFirst ? await persist(charge, triesAgain) : undefined
  const effect = await persist(transaction, triesAgain)
  mayFail(plan.throws)
  const late = early ?? (await persist(charge, triesAgain))
  await dawdle()
  if (random.chance(plan.notKept)) throw new NotKept('status 503')
  return { body, effect, charge: late }
}

/** The same in a transaction that holds all of it, and the response, too. */
export async function workAtomically(
  client: object,
  {
    world,
    counts,
    plan,
    name,
    body,
  }: Pick<HandlerContext, 'world' | 'counts' | 'plan' | 'name' | 'body'>,
): Promise<Work> {
  const { random } = world
  const tx = client as LedgerTransaction
  const dawdle = async () => {
    if (random.chance(plan.isSlow)) await world.sleep(random.between(0, plan.slowMs))
  }
  await dawdle()
  if (random.chance(plan.throws)) throw new HandlerFailed('the handler failed')
  lastId += 1
  const effect = { id: `e${lastId}` }
  const writing = tx.ledger.create({ ...effect, body, ...name, isAtomic: true })
  if (random.chance(plan.notAwaited)) {
    counts['not awaited'] += 1
    writing.catch(ignored)
    return { body, effect }
  }
  await writing
  await dawdle()
  if (random.chance(plan.notKept)) throw new NotKept('status 503')
  return { body, effect }
}

interface EventContext extends Pick<HandlerContext, 'world' | 'counts'> {
  readonly events: EventInvariants
  readonly run: EventRun
  readonly handler: HandlerPlan
  readonly defers: number
  readonly acknowledges: number
  readonly isFinal: boolean
}

/** A handler of webhook events, with the same mistakes and misfortunes. */
export async function workOnEvent(
  event: WebhookEvent,
  { world, counts, events, run, handler, defers, acknowledges, isFinal }: EventContext,
): Promise<void> {
  const { random } = world
  const { id, attempt, operation } = run
  const dawdle = async () => {
    if (random.chance(handler.isSlow)) await world.sleep(random.between(0, handler.slowMs))
  }
  const transaction = async () => {
    const effect = await event.transaction(
      async (client) => {
        const tx = client as unknown as LedgerTransaction
        lastId += 1
        const effectId = `e${lastId}`
        const named = { key: id, body: '', attempt, operation, isOfEvent: true } as const
        await tx.ledger.create({ id: effectId, ...named })
        await dawdle()
        if (random.chance(handler.throws / 2)) throw new HandlerFailed('the handler failed')
        return { id: effectId }
      },
      { final: isFinal, timeout: handler.transactionMs },
    )
    events.got(run, 'transaction', effect)
  }
  const charge = async () => {
    const charged = await event.step('charge', async () => {
      events.ran(run, 'charge')
      lastId += 1
      const chargeId = `c${lastId}`
      world.tell(() => `${event.eventId}#${attempt} calls outside: ${chargeId}`)
      await dawdle()
      return { id: chargeId }
    })
    events.got(run, 'charge', charged)
  }
  await dawdle()
  if (random.chance(handler.throws)) throw new HandlerFailed('the handler failed')
  if (random.chance(defers)) {
    counts['event deferred'] += 1
    if (random.chance(acknowledges)) {
      counts['event acknowledged by its handler'] += 1
      events.mayRun(event.eventId)
      event.respond({ status: 200 })
    }
    return event.defer({ after: random.between(1, LEASE_MS) })
  }
  const triesAgain = random.chance(handler.triesAgain)
  if (random.chance(handler.notAwaited)) {
    counts['not awaited'] += 1
    void transaction().catch(ignored)
    return
  }
  if (random.chance(0.7)) await persist(charge, triesAgain)
  await persist(transaction, triesAgain)
  await dawdle()
  if (random.chance(handler.notKept)) throw new HandlerFailed('the handler failed in the end')
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
