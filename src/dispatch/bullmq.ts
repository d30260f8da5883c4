// The package's entry `fastify-idempotency/bullmq`, and the only file that needs BullMQ.
import { type ConnectionOptions, Queue, type Job as QueuedJob, WaitingError, Worker } from 'bullmq'
import { type Check, check, defined, isDuration, isInteger, toMs } from '../checks.js'
import type { Duration } from '../core/duration.js'
import { failureOf, type Report } from '../events.js'
import { within } from '../within.js'
import type { Dispatch, Job, JobName, Work } from './dispatch.js'
import { createLooks } from './looks.js'

export interface BullmqOptions {
  /**
   * The application's ioredis client. It is not used itself but duplicated: the copies go on trying
   * when Redis is away, whatever the client does, and only they are closed with the server.
   */
  connection: RedisClientLike
  /**
   * What the name of every key begins with. Default `'idempotency'`, after the `keyPrefix` of the
   * client.
   */
  prefix?: string
  /**
   * The queue's name. Default `'webhooks'`. Processes that share it must share the database and
   * serve the same webhooks; give others a queue of their own.
   */
  queue?: string
  /** How many events a process runs at once. Default 10. */
  concurrency?: number
  /** How often to look in the database for what is due and not in the queue. Default `'10s'`. */
  sweepEvery?: Duration
}

/** The part of an ioredis client that is used. */
export interface RedisClientLike {
  readonly options: object
  duplicate(override?: object): object
}

/** The part of a duplicate that is used. */
interface OwnClient {
  readonly status: string
  on(event: 'ready' | 'error', listener: (error: Error) => void): unknown
  ping(): Promise<unknown>
  disconnect(): void
}

const isName: Check = (value) =>
  typeof value === 'string' && value !== '' && !value.includes(':')
    ? undefined
    : "must be a name without a colon, such as 'webhooks'"

const CHECKS: Record<keyof BullmqOptions, Check> = {
  connection: (value) => {
    const { duplicate, defineCommand, isCluster } = Object(value)
    if (isCluster === true) return 'must be a client of one Redis, and not of a cluster'
    return typeof duplicate === 'function' && typeof defineCommand === 'function'
      ? undefined
      : 'must be an ioredis client, such as new Redis(process.env.REDIS_URL)'
  },
  prefix: (value) =>
    typeof value === 'string' && value !== ''
      ? undefined
      : "must be what names of keys begin with, such as 'idempotency'",
  queue: isName,
  concurrency: isInteger(1, 10_000),
  sweepEvery: isDuration(10, '10s'),
}

const DEFAULTS = { queue: 'webhooks', concurrency: 10, sweepEvery: '10s' } as const

/** So many events are looked up at once; when there were as many, the next ones once they are run. */
const SWEEP = 250
/** So many jobs travel to Redis at once, and so many wait for that. Others are left to the sweep. */
const BATCH = 100
const MOST_WAITING = 5_000
/** Redis that takes longer for one answer is one that does not answer. */
const PATIENCE_MS = 5_000
/** How long a process that closes waits until Redis knows which jobs are over. */
const FAREWELL_MS = 1_000
/** What could not run when its turn came is looked for again after this: its lane may be free. */
const HELD_MS = 50
/**
 * A job whose process died is taken off the queue after one to two of these. Whether its event runs
 * again is for the event's lease to say, so this may well be shorter than a run.
 */
const JOB_LOCK_MS = 10_000
/** How BullMQ begins what it says when the lock of a job is gone. */
const RENEWAL_FAILED = 'could not renew lock'

/**
 * Runs events on the workers of a BullMQ queue, for applications of many processes: Redis says at
 * once who is next, and the database is asked only for what Redis has lost. The queue holds nothing
 * but names; an event is claimed, retried and remembered by the inbox alone, and Redis may be
 * stopped, emptied or replaced at any time. While it is away, events are recorded and acknowledged,
 * and run when it is back.
 */
export function bullmq(options: BullmqOptions): Dispatch {
  check(' of bullmq()', CHECKS, options, ['connection'])
  const { connection, queue: name, concurrency, ...given } = { ...DEFAULTS, ...defined(options) }
  const prefix = given.prefix ?? `${Reflect.get(connection.options, 'keyPrefix') ?? ''}idempotency`
  const looks = createLooks(toMs(given.sweepEvery), sweep)

  let work: Work | undefined
  let isRunning = false
  let isClosed = false
  /** There may be more events due than the last sweep took. */
  let hasMore = false
  /** Said once, until something succeeds: an outage is one event, not one for each delivery. */
  let isFailing = false
  let toldAt = Number.NEGATIVE_INFINITY

  let producer: { queue: Queue; client: OwnClient } | undefined
  let opened: { worker: Worker; client: OwnClient } | undefined
  const waiting: Job[] = []
  let sending: Promise<void> | undefined
  /** What lets go of each job that runs here. */
  const running = new Map<string, () => void>()
  /** Those, and the ones that are over here, of which Redis has yet to be told. */
  const untold = new Set<string>()
  let onQuiet: (() => void) | undefined

  function failed(report: Report, error: unknown): void {
    const now = performance.now()
    // One of several connections may still fail when another one is back.
    if (isFailing || isClosed || now - toldAt < PATIENCE_MS) return
    isFailing = true
    toldAt = now
    const hint = 'Redis does not answer; events wait in the inbox until it does'
    report({ kind: 'dispatch_failed', failure: { ...failureOf(error), hint } })
  }

  function ownClient(override: object, onError: (error: Error) => void): OwnClient {
    const client = connection.duplicate({
      // BullMQ has prefixes of its own, and waits for a connection that is on its way.
      keyPrefix: '',
      lazyConnect: false,
      retryStrategy: (times: number) => Math.min(times * 100, 2_000),
      ...override,
    }) as OwnClient
    client.on('error', onError)
    return client
  }

  function openProducer(report: Report): Queue {
    if (producer !== undefined) return producer.queue
    const onError = (error: Error) => failed(report, error)
    // What cannot be sent now fails now: kept for later, it would fill the memory.
    const override = { enableOfflineQueue: false, maxRetriesPerRequest: 0 }
    const client = ownClient({ ...override, commandTimeout: PATIENCE_MS }, onError)
    const queue = new Queue(name, {
      connection: client as ConnectionOptions,
      prefix,
      // Asked on a connection that has just broken, it would leave the queue broken for good.
      skipVersionCheck: true,
      // Nobody reads them.
      streams: { events: { maxLen: 10 } },
    })
    queue.on('error', onError)
    client.on('ready', () => {
      isFailing = false
      if (work !== undefined) looks.now()
    })
    producer = { queue, client }
    return queue
  }

  function openWorker(given: Work): void {
    const onError = (error: Error) => failed(given.report, error)
    // A worker waits on its connections, for as long as it takes.
    const override = { enableOfflineQueue: true, maxRetriesPerRequest: null }
    const timeouts = { commandTimeout: undefined, socketTimeout: undefined }
    const client = ownClient({ ...override, ...timeouts }, onError)
    const worker = new Worker(name, (job, token) => process(given, job, token), {
      connection: client as ConnectionOptions,
      prefix,
      concurrency,
      lockDuration: JOB_LOCK_MS,
      stalledInterval: JOB_LOCK_MS,
      runRetryDelay: 1_000,
    })
    worker.on('error', (error) => {
      if (!isOfLostJob(error)) onError(error)
      else for (const id of untold) if (!running.has(id)) told(id)
    })
    worker.on('completed', ({ id }) => told(id))
    worker.on('failed', (job) => told(job?.id))
    worker.on('drained', () => {
      if (hasMore) looks.now()
    })
    opened = { worker, client }
  }

  async function process(given: Work, job: QueuedJob<JobName>, token?: string): Promise<void> {
    const { id, fence } = job.data
    const jobId = job.id as string
    if (!isRunning) {
      // Fetched while the worker was being stopped: for another one.
      untold.add(jobId)
      await job.moveToWait(token).finally(() => told(jobId))
      throw new WaitingError()
    }
    const letGo = new Promise<void>((resolve) => running.set(jobId, resolve))
    untold.add(jobId)
    const run = given.run({ id, fence }).then(
      (outcome) => {
        if (outcome === 'held') looks.in(HELD_MS)
      },
      (error: unknown) => given.report({ kind: 'dispatch_failed', failure: failureOf(error) }),
    )
    await Promise.race([run, letGo])
    running.delete(jobId)
  }

  function told(jobId: string | undefined): void {
    if (jobId !== undefined) untold.delete(jobId)
    if (untold.size === 0) onQuiet?.()
  }

  function enqueue(job: Job, report: Report): void {
    if (isClosed) return
    if (waiting.length >= MOST_WAITING) return
    waiting.push(job)
    sending ??= send(openProducer(report), report).finally(() => {
      sending = undefined
    })
  }

  async function send(queue: Queue, report: Report): Promise<void> {
    while (waiting.length > 0 && !isClosed) {
      try {
        // BullMQ waits for its first connection, however long that takes.
        await within(queue.addBulk(waiting.splice(0, BATCH).map(queued)), PATIENCE_MS)
        isFailing = false
      } catch (error) {
        failed(report, error)
        // The sweep finds them when Redis is back; one after the other, they would all fail first.
        waiting.length = 0
      }
    }
  }

  async function sweep(): Promise<void> {
    if (work === undefined) return
    const { report } = work
    try {
      const due = await work.listDue(SWEEP)
      hasMore = due.length === SWEEP
      for (const { id, fence } of due) enqueue({ id, fence, inMs: 0 }, report)
      await sending
    } catch (error) {
      report({ kind: 'dispatch_failed', failure: failureOf(error) })
    }
  }

  return {
    start(given) {
      if (work !== undefined || isClosed) return
      work = given
      isRunning = true
      openProducer(given.report)
      openWorker(given)
      looks.now()
    },
    enqueue,
    lookAgain() {
      if (work !== undefined) looks.now()
    },
    async stop() {
      isRunning = false
      const stopped = Promise.all([looks.stop(), opened && stopFetching(opened)])
      // What Redis does not answer to is not waited for: the events' own leases decide.
      await within(stopped, FAREWELL_MS).catch(() => {})
    },
    async close() {
      if (isClosed) return
      isRunning = false
      for (const letGo of running.values()) letGo()
      await within(farewell(), FAREWELL_MS).catch(() => {})
      isClosed = true
      await opened?.worker.close(true)
      opened?.client.disconnect()
      await producer?.queue.close()
      producer?.client.disconnect()
    },
  }

  /**
   * A worker that is paused would still take the next job off the queue, and nobody else would get
   * it before its lock has run out.
   */
  async function stopFetching({ worker, client }: NonNullable<typeof opened>): Promise<void> {
    await worker.pause(true)
    if (client.status !== 'ready') return
    await worker.getBackend().disconnectBlocking(true)
    // Answers come in their order: what was fetched before is here now, and on its way back.
    await client.ping()
    await new Promise((resolve) => setImmediate(resolve))
  }

  /** Until Redis has been told what is to be run elsewhere, and what is over here. */
  async function farewell(): Promise<void> {
    if (producer?.client.status === 'ready') await sending
    if (opened?.client.status !== 'ready' || untold.size === 0) return
    await new Promise<void>((resolve) => {
      onQuiet = resolve
    })
  }
}

/**
 * One job for each time that an event may run, and another one for each pause before it: an event
 * that is due earlier than it was said to be must not be taken for the job that waits.
 */
function queued({ id, fence, inMs }: Job) {
  const isDue = inMs <= 0
  return {
    name: 'run',
    data: { id, fence },
    opts: {
      jobId: `${id}-${fence}${isDue ? '' : '-later'}`,
      ...(!isDue && { delay: Math.ceil(inMs) }),
      // The inbox decides what is tried again.
      attempts: 1,
      removeOnComplete: true,
      removeOnFail: true,
    },
  }
}

/** Redis was emptied, or too slow: a job is no longer there, or no longer this worker's. So be it. */
function isOfLostJob(error: Error): boolean {
  return typeof Reflect.get(error, 'code') === 'number' || error.message.startsWith(RENEWAL_FAILED)
}
