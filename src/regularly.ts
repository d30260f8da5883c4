import type { FastifyInstance } from 'fastify'
import { within } from './within.js'

export interface Regular {
  readonly everyMs: number
  /** How long a closing application waits for a turn that is under way. */
  readonly patienceMs: number
}

/**
 * Does something again and again, from when the application listens (a test that only injects gets no
 * timer) to its end. A turn says itself what failed; one that takes long is not joined by the next.
 */
export function regularly(
  app: FastifyInstance,
  turn: (isWanted: () => boolean) => Promise<unknown>,
  { everyMs, patienceMs }: Regular,
): void {
  let timer: NodeJS.Timeout | undefined
  let underWay: Promise<unknown> = Promise.resolve()
  let isOpen = true

  function schedule(): void {
    if (!isOpen) return
    // Drawn anew each time, so that processes that started together do not stay together.
    timer = setTimeout(run, everyMs * (0.75 + Math.random() / 2))
  }

  function run(): void {
    underWay = turn(() => isOpen).finally(schedule)
  }

  app.addHook('onListen', async () => schedule())
  app.addHook('onClose', async () => {
    isOpen = false
    clearTimeout(timer)
    // A database that does not answer must not keep a server from closing.
    await within(underWay, patienceMs).catch(() => {})
  })
}
