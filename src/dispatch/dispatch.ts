import type { Report } from '../events.js'

/** What a dispatch may ask of the inbox. */
export interface Work {
  /**
   * Claims at most `limit` events that are due and starts to run them. Each promise is fulfilled
   * when that run has ended, however it ended; none is rejected.
   *
   * @throws what the store throws.
   */
  startDue(limit: number): Promise<Promise<void>[]>
  /**
   * Claims this event, if it may run now, and runs it to its end. Running it twice is harmless.
   *
   * @throws what the store throws.
   */
  run(id: string): Promise<void>
  /** Lists events that are due, for a dispatch that has to be told of what a crash left out. */
  listDue(limit: number): Promise<{ id: string; fence: number }[]>
  readonly report: Report
}

/** An event that is durable and wants to be run. */
export interface Job {
  readonly id: string
  /** How often it was run: tells this job from earlier ones of the same event. */
  readonly fence: number
  readonly inMs: number
}

/**
 * Decides which process runs a durable event, and when. It only saves time: whatever it loses is
 * found by looking at what is due, and whatever it does twice is refused by the event's claim.
 */
export interface Dispatch {
  /** Begins to run events; called once, when the application listens or has its first event. */
  start(work: Work): void
  /** Says that an event wants to be run. Never throws; may be called before `start`. */
  enqueue(job: Job): void
  /** Says that other events may have become due: what they waited for is over. Never throws. */
  lookAgain(): void
  /** Begins no further events. Those that run are the inbox's to wait for. */
  stop(): Promise<void>
}
