import type { Report } from '../events.js'

/** What a dispatch may ask of the inbox. */
export interface Work {
  /**
   * Claims at most `limit` events that are due and starts to run them. Each promise is fulfilled
   * when that run has ended, however it ended, or its lease is over; none is rejected.
   *
   * @throws what the store throws.
   */
  startDue(limit: number): Promise<Promise<void>[]>
  /**
   * Runs the event of this job to its end or the end of its lease, unless it was run since the job was
   * made. Asking for it twice is harmless.
   *
   * @throws what the store throws.
   */
  run(job: JobName): Promise<JobOutcome>
  /** Lists events that are due, for a dispatch that has to be told of what a crash left out. */
  listDue(limit: number): Promise<JobName[]>
  readonly report: Report
}

export interface JobName {
  readonly id: string
  /** How often the event was run: tells this job from earlier ones of the same event. */
  readonly fence: number
}

/**
 * What became of a job. `over`: nothing has to be done for it here. `held`: the event may not run
 * at this moment, because another one of its lane runs.
 */
export type JobOutcome = 'ran' | 'over' | 'held'

/** An event that is durable and wants to be run. */
export interface Job extends JobName {
  readonly inMs: number
}

/**
 * Decides which process runs a durable event, and when. It only saves time: whatever it loses is
 * found by looking at what is due, and whatever it does twice is refused by the event's claim.
 */
export interface Dispatch {
  /** Begins to run events; called once, when the application listens or has its first event. */
  start(work: Work): void
  /**
   * Says that an event wants to be run. Never throws, and nobody waits for it. May be called before
   * `start`, also in a process that never starts, and until `close`.
   */
  enqueue(job: Job, report: Report): void
  /** Says that other events may have become due: what they waited for is over. Never throws. */
  lookAgain(): void
  /** Begins no further events. Those that run are the inbox's to wait for. */
  stop(): Promise<void>
  /** Lets go of everything it holds: after `stop`, when no event runs any more. */
  close(): Promise<void>
}
