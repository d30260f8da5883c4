// The part of redlock 5.0.0-beta.2 that is used. Its own declarations are not found under
// `nodenext`, because its `exports` do not name them, and they want ioredis, which is optional here.
declare module 'redlock' {
  export interface ExecutionStats {
    readonly membershipSize: number
    readonly quorumSize: number
    readonly votesAgainst: ReadonlyMap<object, Error>
  }

  export class ExecutionError extends Error {
    readonly attempts: readonly Promise<ExecutionStats>[]
  }

  export class ResourceLockedError extends Error {}

  export class Lock {
    /** By the clock of this process: redlock extends nothing after it. */
    expiration: number
  }

  export default class Redlock {
    constructor(clients: Iterable<object>, settings: { retryCount: number })
    acquire(resources: string[], durationMs: number): Promise<Lock>
    extend(lock: Lock, durationMs: number): Promise<Lock>
    release(lock: Lock): Promise<unknown>
  }
}
