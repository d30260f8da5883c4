// One process after the other on one database, each started when the one before it was killed.
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import type { CrashPoint } from '../../src/crash-points.js'
import type { CrashOrder, CrashState, Logged } from '../fixtures/crash-terms.js'
import { type ServerProcess, serverProcess } from '../fixtures/processes.js'
import { databaseName } from '../fixtures/run.js'

/** Where a process finds its database: on a server, or in a folder. */
export interface DatabaseEnvironment {
  readonly DATABASE_URL: string
  readonly DATA_DIR?: string
}

export interface CrashProcesses {
  readonly url: string
  readonly pid: number
  /** The process dies when it gets there. */
  arm(point: CrashPoint): Promise<void>
  state(operation: string): Promise<CrashState>
  /** Waits for the process to die; tells of what. */
  death(): Promise<string>
  start(): Promise<void>
  /** Everything that happened outside the database so far, in all processes. */
  log(): Logged[]
}

const PATIENCE_MS = 20_000

export async function crashProcesses(
  t: Pick<Test, 'teardown'>,
  database: DatabaseEnvironment,
  WORKER: 'yes' | 'no',
): Promise<CrashProcesses> {
  const folder = mkdtempSync(join(tmpdir(), databaseName()))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const LOG = join(folder, 'log')
  const start = () => serverProcess(t, './crash-process.ts', { ...database, WORKER, LOG })
  let running: ServerProcess = await start()

  async function ask(order: CrashOrder): Promise<Record<string, unknown>> {
    const answer = running.said(order.kind)
    running.child.send(order)
    return answer
  }

  return {
    get url() {
      return running.url
    },
    get pid() {
      return running.child.pid as number
    },
    async arm(point) {
      await ask({ kind: 'arm', point })
    },
    async state(operation) {
      return (await ask({ kind: 'state', operation })) as unknown as CrashState
    },
    async death() {
      const { child } = running
      if (child.signalCode === null && child.exitCode === null) {
        const patience = AbortSignal.timeout(PATIENCE_MS)
        await once(child, 'exit', { signal: patience }).catch(() => {})
      }
      return child.signalCode ?? (child.exitCode === null ? 'nothing' : `exit ${child.exitCode}`)
    },
    async start() {
      running = await start()
    },
    log: () =>
      readFileSync(LOG, 'utf8')
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => JSON.parse(line) as Logged),
  }
}
