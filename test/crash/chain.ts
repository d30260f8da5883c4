// One column of the matrix on one database: a process is killed at each point that it comes by, and
// the next one finds what it left.
import type { Test } from 'tap'
import { CRASH_POINTS, type CrashPoint } from '../../src/crash-points.js'
import { type CrashState, LEASE_MS, type Logged } from '../fixtures/crash-terms.js'
import { type Answer, textPoster } from '../fixtures/processes.js'
import type { Column, Send } from './columns.js'
import { type CrashProcesses, crashProcesses, type DatabaseEnvironment } from './process.js'

/** What a retry finds. */
export type Found =
  | 'runs as new'
  | 'runs again'
  | 'goes on behind the transaction'
  | 'goes on behind the step'
  | 'is over'
  | 'nothing is there'

export interface Cell {
  readonly column: string
  readonly point: CrashPoint
  /** `undefined`: the operation never comes by this point. */
  readonly found: Found | undefined
  /** Whether the other side was called twice, under the same key. */
  readonly wasCalledAgain: boolean
  /** From the death of the process to the answer, the start of the next process included. */
  readonly tookMs: number
  /** What is not as it must be. */
  readonly problems: readonly string[]
}

/** A process that starts while others do, on a machine that stands still now and then. */
const PATIENCE_MS = 30_000

/** How often who was told to come back does. */
const PAUSE_MS = 50

/** Calls back with every cell as it is there. */
export async function crashChain(
  t: Pick<Test, 'teardown'>,
  column: Column,
  database: DatabaseEnvironment,
  onCell: (cell: Cell) => void,
): Promise<void> {
  const processes = await crashProcesses(t, database, column.hasWorker ? 'yes' : 'no')
  const send = column.send(textPoster(t, 1))
  const onPath = await pointsOf(column, processes, send)
  for (const point of CRASH_POINTS) {
    onCell(
      onPath.has(point)
        ? await crash(column, point, processes, send)
        : {
            ...{ column: column.name, point, found: undefined },
            ...{ wasCalledAgain: false, tookMs: 0, problems: [] },
          },
    )
  }
}

/** Where an operation that nothing happens to comes by. */
async function pointsOf(
  column: Column,
  processes: CrashProcesses,
  send: Send,
): Promise<Set<CrashPoint>> {
  const { answer } = await untilAnswered(column, processes, send, 'undisturbed')
  if (!column.isAnswer(answer)) {
    const failures = processes.log().filter(({ what }) => what === 'failed')
    const why = JSON.stringify(failures.slice(-10))
    throw new Error(`${column.name} was answered ${answer.status} ${answer.body}: ${why}`)
  }
  await untilDone(column, processes, 'undisturbed')
  return new Set(processes.log().flatMap((line) => (line.what === 'point' ? [line.point] : [])))
}

async function crash(
  column: Column,
  point: CrashPoint,
  processes: CrashProcesses,
  send: Send,
): Promise<Cell> {
  const problems: string[] = []
  const check = (isSo: boolean, otherwise: string) => {
    if (!isSo) problems.push(otherwise)
  }
  const operation = `killed-at-${point}`
  await processes.arm(point)
  const first = await untilAnswered(column, processes, send, operation).then(
    ({ answer }) => answer,
    () => undefined,
  )
  check((await processes.death()) === 'SIGKILL', 'it did not die')
  const diedAt = performance.now()
  const deaths = processes.log().filter((line) => line.what === 'killed')
  check(deaths.at(-1)?.point === point, `it died at ${deaths.at(-1)?.point}`)
  check(first === undefined || column.isAcknowledgedFirst, 'it was answered before it was done')

  await processes.start()
  const wasTold = first !== undefined
  const isLeft = column.comesBack || wasTold || (await wasRecorded(processes, operation))
  const { answer, toldToComeBackAt } = column.comesBack
    ? await untilAnswered(column, processes, send, operation)
    : { answer: first, toldToComeBackAt: diedAt }
  if (isLeft) await untilDone(column, processes, operation)
  const tookMs = performance.now() - diedAt
  // However slow the machine is: who asks when the lease is over is not told to come back.
  const blockedMs = toldToComeBackAt - diedAt
  check(blockedMs <= LEASE_MS, `it was still blocked after ${Math.round(blockedMs)} ms`)
  check(tookMs < PATIENCE_MS, `it took ${Math.round(tookMs)} ms`)

  const state = await processes.state(operation)
  const { ran, calls, keys, names } = historyOf(processes.log(), operation)
  const wasCalledAgain = calls > 1
  if (isLeft) {
    check(state.payments.length === 1, `${state.payments.length} effects`)
    const once = column.callsOut ? 1 : 0
    check(calls === once || (calls === 2 && point === 'step:done'), `called ${calls} times`)
    check(keys === once, `called with ${keys} different keys`)
    check(names <= 1, `its handler knew it by ${names} different keys`)
    checkAnswer(column, state, answer, check)
    if (column.comesBack) {
      const again = await send(processes.url, operation)
      checkRepetition(column, answer, again, check)
    }
    const later = historyOf(processes.log(), operation)
    check(later.ran === ran && later.calls === calls, 'a further retry ran')
  } else check(state.payments.length + calls + ran === 0, 'something ran that nobody knows of')
  check(state.locked === 0, 'a lock stayed')
  const found = isLeft ? foundBy(processes, operation) : 'nothing is there'
  return { column: column.name, point, found, wasCalledAgain, tookMs, problems }
}

async function wasRecorded(processes: CrashProcesses, operation: string): Promise<boolean> {
  const { event, record } = await processes.state(operation)
  return event !== null || record !== null
}

/**
 * Sends it until it is answered. A machine that stands still for a second makes an attempt lose its
 * lease, and fail: that is repeated as well. Rejects when the process dies.
 */
async function untilAnswered(
  { isAnswer, isBusy }: Column,
  processes: CrashProcesses,
  send: Send,
  operation: string,
): Promise<{ answer: Answer; toldToComeBackAt: number }> {
  const deadline = performance.now() + PATIENCE_MS
  for (let toldToComeBackAt = 0; ; ) {
    const sentAt = performance.now()
    const answer = await send(processes.url, operation)
    const isToRepeat = answer.status === 409 || answer.status >= 500
    if (isAnswer(answer) || !isToRepeat || sentAt > deadline) return { answer, toldToComeBackAt }
    // Once it has run here, it is not the dead process that blocks it.
    if (isBusy(answer) && foundBy(processes, operation) === 'is over') toldToComeBackAt = sentAt
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
  }
}

/** Until what was answered, or acknowledged, is done; gives up after a while. */
async function untilDone(
  { isEvent }: Column,
  processes: CrashProcesses,
  operation: string,
): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS
  while (performance.now() < deadline) {
    const { event, record } = await processes.state(operation)
    if (isEvent ? event === 'processed' : record === 'completed') return
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
  }
}

/** What the handler did for the operation, by what it left outside of the database. */
function historyOf(log: readonly Logged[], operation: string) {
  const calls = log.flatMap((line) =>
    line.what === 'called' && line.operation === operation ? [line.key] : [],
  )
  const ran = log.flatMap((line) =>
    line.what === 'ran' && line.operation === operation ? [line.key] : [],
  )
  const [keys, names] = [new Set(calls).size, new Set(ran).size]
  return { ran: ran.length, calls: calls.length, keys, names }
}

/** What the process that lives has done for it. */
function foundBy({ log, pid }: CrashProcesses, operation: string): Found {
  const done = log().filter(
    (line) => line.pid === pid && 'operation' in line && line.operation === operation,
  )
  const run = done.find((line) => line.what === 'ran')
  if (run === undefined) return 'is over'
  if (run.attempt === 1) return 'runs as new'
  if (done.some(({ what }) => what === 'transacted')) return 'runs again'
  if (done.some(({ what }) => what === 'called')) return 'goes on behind the transaction'
  return 'goes on behind the step'
}

type Check = (isSo: boolean, otherwise: string) => void

function checkAnswer(
  { isEvent, isAnswer }: Column,
  { payments, record, event, locked: _ }: CrashState,
  answer: Answer | undefined,
  check: Check,
): void {
  if (answer !== undefined) {
    check(isAnswer(answer), `answered ${answer.status} ${answer.body}`)
    if (!isEvent) {
      const body = JSON.parse(answer.body.toString())
      check(body.payment === payments[0], 'the answer is of another payment')
    }
  }
  if (isEvent) check(event === 'processed', `the event is ${event}`)
  else check(record === 'completed', `the record is ${record}`)
}

function checkRepetition(
  { isEvent }: Column,
  first: Answer | undefined,
  again: Answer,
  check: Check,
): void {
  if (isEvent) {
    const outcome = JSON.parse(again.body.toString()).outcome
    check(again.status === 200 && outcome === 'duplicate', `a further delivery is ${outcome}`)
    return
  }
  check(again.headers['idempotent-replayed'] === 'true', 'a further retry is no replay')
  const isSame =
    first !== undefined &&
    again.status === first.status &&
    again.headers['content-type'] === first.headers['content-type'] &&
    again.body.equals(first.body)
  check(isSame, 'a further retry gets something else')
}
