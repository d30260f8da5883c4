import type { AttemptToken } from '../../src/core/record.js'
import type { Answer } from './answers.js'
import type { Acknowledgement } from './event-endpoint.js'
import type { Owner } from './event-queue.js'
import type { Invariants } from './invariants.js'
import { type EventPlan, type KeyPlan, LEASE_MS } from './plan.js'
import type { Server } from './server.js'
import type { World } from './world.js'

export interface ClientContext {
  readonly world: World
  readonly invariants: Invariants
  /** Those that take requests now. */
  readonly servers: () => readonly Server[]
  /** The record of a key, for operators, who can look at the table. */
  readonly recordOf: (key: string) => AttemptToken | undefined
}

/** In a healed world nobody asks so often. */
const MOST_TRIES = 60

const FINAL = new Set<Answer['kind']>(['done', 'mismatch', 'unusable', 'not replayable'])

/** Somebody outside: nothing of his stops with a process. */
class Person implements Owner {
  readonly isDead = false
  readonly pausedUntil = 0

  constructor(readonly name: string) {}
}

/** Sends the same request until it gets an answer. */
export function startClient(
  name: string,
  startsInMs: number,
  key: KeyPlan,
  body: string,
  context: ClientContext,
): void {
  const { world, invariants } = context
  const { random } = world
  world.in(startsInMs, new Person(name), async () => {
    for (let tries = 0; tries < MOST_TRIES; tries += 1) {
      const answer = await ask(key, body, context)
      world.tell(() => `${name} asks for ${key.key} and gets ${JSON.stringify(answer)}`)
      if (FINAL.has(answer.kind)) return
      if (answer.kind === 'uncertain') callOperator(key.key, answer, context)
      const isBusy = answer.kind === 'again' && answer.why === 'busy'
      if (isBusy && random.chance(key.forced)) forceRelease(key.key, context)
      await world.sleep(random.between(LEASE_MS / 50, LEASE_MS))
    }
    invariants.check(false, () => `${name} never got an answer for ${key.key}`)
  })
}

/** Delivers an event until it is acknowledged, or the provider gives up. */
export function startProvider(
  name: string,
  startsInMs: number,
  event: EventPlan,
  context: ClientContext,
  onEnd: () => void,
): void {
  const { world, invariants } = context
  const { random } = world
  const deliver = async () => {
    const signedFirst = event.isNamedAnew ? `${event.eventId}, signed by ${name}` : event.eventId
    let sent = signedFirst
    for (let tries = 1; tries <= MOST_TRIES; tries += 1) {
      const answer = await call(context, (server) => server.deliver(event, sent), NOT_ACKNOWLEDGED)
      world.tell(() => `${name} delivers ${sent} and gets ${JSON.stringify(answer)}`)
      if (answer.kind === 'acknowledged') return
      if (tries === event.givesUpAfter) {
        return event.isNamedAnew ? replayLater(event, sent, context) : undefined
      }
      // Mostly signed anew; what stands between the two may send the same bytes once more.
      if (event.isNamedAnew && random.chance(0.7)) sent = `${signedFirst}, again ${tries}`
      await world.sleep(random.between(LEASE_MS / 50, LEASE_MS))
    }
    invariants.check(false, () => `${name} was never acknowledged for ${event.eventId}`)
  }
  world.in(startsInMs, new Person(name), async () => {
    await deliver()
    onEnd()
  })
}

/** An operator sees what its provider has given up. */
function replayLater(event: EventPlan, sent: string, { world, servers }: ClientContext): void {
  const { random } = world
  world.in(random.between(0, LEASE_MS), new Person('operator'), () => {
    const found = servers()
    if (found.length === 0) return
    const server = random.pick(found)
    world.in(random.between(0, LEASE_MS / 2), server, () => server.replay(event, sent))
  })
}

const NOT_ACKNOWLEDGED: Acknowledgement = { kind: 'again', why: 'no answer' }

/** One request over a network that is no better than the one behind the servers. */
function call<T>(
  { world, servers }: ClientContext,
  serve: (server: Server) => Promise<T>,
  noAnswer: T,
  onGone?: () => void,
): Promise<T> {
  const { random, owner: client } = world
  const found = servers()
  if (found.length === 0) return Promise.resolve(noAnswer)
  const server = random.pick(found)
  const latencyMs = () => random.between(0.1, LEASE_MS / 100)
  return new Promise((resolve) => {
    let isAnswered = false
    world.in(random.between(1.5, 4) * LEASE_MS, client, () => {
      if (isAnswered) return
      if (onGone !== undefined) world.in(latencyMs(), server, onGone)
      resolve(noAnswer)
    })
    world.in(latencyMs(), server, async () => {
      const answer = await serve(server)
      world.in(latencyMs(), client, () => {
        isAnswered = true
        resolve(answer)
      })
    })
  })
}

function ask(key: KeyPlan, body: string, context: ClientContext): Promise<Answer> {
  const gone = key.waitMs > 0 ? new AbortController() : undefined
  const serve = (server: Server) => server.serve(key, body, gone?.signal)
  return call(context, serve, { kind: 'again', why: 'no answer' }, gone && (() => gone.abort()))
}

/** A person looks whether it took effect, and decides; the client asks again. */
function callOperator(
  key: string,
  { operationId, attempt }: AttemptToken,
  { world, servers, invariants }: ClientContext,
): void {
  const operator = new Person('operator')
  const { random } = world
  world.in(random.between(0, LEASE_MS / 2), operator, () => {
    const effect = invariants.effectOf(key)
    const found = servers()
    if (found.length === 0) return
    const server = random.pick(found)
    world.in(random.between(0, LEASE_MS / 2), server, () => {
      // What he gets is of no use to anybody else: the record tells.
      const found = effect && { body: effect.body, effect: { id: effect.id } }
      void server.resolve(key, { operationId, attempt }, found).catch((error) => {
        world.tell(() => `an operator is told ${error}`)
        invariants.check(!(error instanceof TypeError), () => `resolve: ${error}`)
      })
    })
  })
}

/** A person has enough of an attempt that does not end: whatever it does from now on is not kept. */
function forceRelease(key: string, { world, servers, invariants, recordOf }: ClientContext): void {
  const { random } = world
  world.in(random.between(0, LEASE_MS / 2), new Person('operator'), () => {
    const record = recordOf(key)
    const found = servers()
    if (found.length === 0 || record === undefined) return
    const { operationId, attempt } = record
    const server = random.pick(found)
    world.in(random.between(0, LEASE_MS / 2), server, () => {
      void server.forceRelease(key, { operationId, attempt }).catch((error) => {
        world.tell(() => `an operator is told ${error}`)
        invariants.check(!(error instanceof TypeError), () => `resolve: ${error}`)
      })
    })
  })
}
