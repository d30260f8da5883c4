import type {
  AttemptToken,
  RecordKey,
  SeenRecord,
  StepResults,
  StoredResponse,
} from '../core/record.js'

/** Asks for a key: the first one to ask gets it. */
export interface Ask extends RecordKey {
  /** Names the operation that begins with it. */
  readonly operationId: string
  readonly fingerprint: string
  /** The process that asks, for operators. */
  readonly holder?: string
  readonly leaseMs: number
  readonly retentionMs: number
  readonly recovery?: Recovery | undefined
}

/** Who finishes an operation whose process died. */
export interface Recovery {
  readonly handler: string
  /** What it is given, as it is stored. */
  readonly input: string
}

/** Names a claim; every write after the first is guarded by all of it. */
export interface Hold extends RecordKey, AttemptToken {}

export interface TakeOver extends Ask {
  /** The attempt that is replaced. */
  readonly seen: AttemptToken
  /**
   * Whether it is the next attempt at the same operation, which keeps what earlier attempts have done
   * and its recovery; otherwise operation `operationId` begins with attempt 1, and nothing is kept.
   */
  readonly resumed: boolean
  /** Whether it is taken over although its lease runs. Only to be resumed. */
  readonly forced?: boolean
}

/** A body that was too large to be read along with its record. */
export interface UnreadBody extends Hold {
  readonly bytes: number
}

/** A claim that was taken over. */
export interface Taken {
  /** What earlier attempts have done, as it stood when they lost the right to add to it. */
  readonly steps: StepResults
}

export type Inserted = { kind: 'made' } | { kind: 'seen'; record: SeenRecord }

/** What a claim ends with: a response to replay, or `null` when the operation may run again. */
export interface Finish extends Hold {
  readonly response: StoredResponse | null
}

export interface Extend extends Hold {
  readonly leaseMs: number
}

/** All that the steps of an operation have returned so far, in place of what is stored. */
export interface KeepSteps extends Hold {
  readonly steps: StepResults
}

/**
 * Where records live. Verbs take lists, so that what concurrent requests ask for can travel in one
 * statement; each entry of a result belongs to the entry of the list at the same place. Two items of
 * a list of guarded writes never name the same row: a statement would update it once and answer one of
 * them.
 *
 * `false` or `undefined` means that the guard did not match: somebody else has the operation by now. A verb
 * rejects only when the store cannot answer, and nothing may be concluded from that: the write may
 * have happened.
 */
export interface Store {
  /** Whether a list travels as one statement. Otherwise combining would only tie fates together. */
  readonly combinesLists: boolean
  /** Inserts a record with attempt 1, or returns the one that is there. One atomic write decides. */
  insert(asks: readonly Ask[]): Promise<Inserted[]>
  /**
   * Takes over a record that is expired, released, or whose lease ran out, if it still is the attempt
   * that was seen. To be resumed it must have the same fingerprint and no response; not to be, it must be
   * expired. One that is forced takes a lease that runs as well, and no response that is stored.
   */
  takeOver(asks: readonly TakeOver[]): Promise<(Taken | undefined)[]>
  /** The bodies of completed records; `undefined` where the record is another one by now, or gone. */
  readBodies(bodies: readonly UnreadBody[]): Promise<(Uint8Array | undefined)[]>
  /**
   * Completes or releases a claim. Repeated (the first reply got lost), it is `true` again, and what was
   * stored first stays.
   */
  finish(finishes: readonly Finish[]): Promise<boolean[]>
  /** Renews a lease, counted from now. */
  extend(extends_: readonly Extend[]): Promise<boolean[]>
  /** Stores the results of steps while the claim is in progress. */
  keepSteps(list: readonly KeepSteps[]): Promise<boolean[]>
  /** Deletes the record of a claim, as if the key had never been used. */
  forget(holds: readonly Hold[]): Promise<boolean[]>
  /** Deletes at most `limit` expired records; returns how many. */
  prune(limit: number): Promise<number>
}
