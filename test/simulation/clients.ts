import type { Owner } from './event-queue.js'
import type { Invariants } from './invariants.js'
import { type KeyPlan, LEASE_MS } from './plan.js'
import type { Answer, Server } from './server.js'
import type { World } from './world.js'

export interface ClientContext {
  readonly world: World
  readonly invariants: Invariants
  /** Those that take requests now. */
  readonly servers: () => readonly Server[]
}

/** In a healed world nobody asks so often. */
const MOST_TRIES = 60

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
  fingerprint: string,
  context: ClientContext,
): void {
  const { world, invariants } = context
  const { random } = world
  world.in(startsInMs, new Person(name), async () => {
    for (let tries = 0; tries < MOST_TRIES; tries += 1) {
      const answer = await ask(key, fingerprint, context)
      world.tell(() => `${name} asks for ${key.key} and gets ${JSON.stringify(answer)}`)
      if (answer.kind === 'done' || answer.kind === 'mismatch') return
      if (answer.kind === 'uncertain') callOperator(key.key, answer.attempt, context)
      await world.sleep(random.between(LEASE_MS / 50, LEASE_MS))
    }
    invariants.check(false, () => `${name} never got an answer for ${key.key}`)
  })
}

/** One request over a network that is no better than the one behind the servers. */
async function ask(
  key: KeyPlan,
  fingerprint: string,
  { world, servers }: ClientContext,
): Promise<Answer> {
  const { random, owner: client } = world
  const found = servers()
  if (found.length === 0) return { kind: 'again', why: 'nobody listens' }
  const server = random.pick(found)
  const gone = key.waitMs > 0 ? new AbortController() : undefined
  const latencyMs = () => random.between(0.1, LEASE_MS / 100)
  return new Promise((resolve) => {
    let isAnswered = false
    world.in(random.between(1.5, 4) * LEASE_MS, client, () => {
      if (isAnswered) return
      if (gone !== undefined) world.in(latencyMs(), server, () => gone.abort())
      resolve({ kind: 'again', why: 'no answer' })
    })
    world.in(latencyMs(), server, async () => {
      const answer = await server.serve(key, fingerprint, gone?.signal)
      world.in(latencyMs(), client, () => {
        isAnswered = true
        resolve(answer)
      })
    })
  })
}

/** A person looks whether it took effect, and decides; the client asks again. */
function callOperator(
  key: string,
  attempt: number,
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
      const body = effect && { effect: { id: effect.id } }
      void server.resolve(key, attempt, body).catch((error) => {
        world.tell(() => `an operator is told ${error}`)
        invariants.check(!(error instanceof TypeError), () => `resolve: ${error}`)
      })
    })
  })
}
