// Clients and providers that want to be answered, whatever happens to the servers.
import { createHmac } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Answer } from '../fixtures/processes.js'
import { type Transfer, type TransferWay, WEBHOOK_SECRET } from './transfers.js'

/** An operation, and what everybody who asked for it was told in the end. */
export interface Asked {
  readonly way: TransferWay
  readonly transfer: Transfer
  readonly answers: Answer[]
}

export interface Counts {
  operations: number
  requests: number
  duplicates: number
  /** Requests that broke off: their server died, or stood still. */
  broken: number
  /** Told to come back later. */
  busy: number
  replayed: number
}

export type Post = (url: string, text: string, headers: Record<string, string>) => Promise<Answer>

/** How long a client waits for an answer before it asks somebody else. */
const PATIENCE_MS = 4_000

/** Asks until it is answered: by whichever server, with one key. */
export async function insist(
  { way, transfer, answers }: Asked,
  servers: () => readonly string[],
  post: Post,
  counts: Counts,
  random: () => number,
): Promise<void> {
  const text = JSON.stringify(transfer)
  const headers: Record<string, string> = {
    'content-type': 'application/json',
    ...(way.hasKey
      ? { 'idempotency-key': transfer.operation }
      : { 'x-signature': createHmac('sha256', WEBHOOK_SECRET).update(text).digest('hex') }),
  }
  for (;;) {
    const urls = servers()
    const url = urls[Math.trunc(random() * urls.length)]
    const answer =
      url === undefined ? undefined : await inTime(post(`${url}${way.path}`, text, headers))
    counts.requests += 1
    if (answer?.status === way.done) {
      if (answer.headers['idempotent-replayed'] === 'true') counts.replayed += 1
      answers.push(answer)
      return
    }
    if (answer === undefined) counts.broken += 1
    else if ([409, 500, 503].includes(answer.status)) counts.busy += 1
    else throw new Error(`${way.path} answered ${answer.status}: ${answer.body}`)
    await sleep(20 + random() * 200)
  }
}

/** `undefined` for one that broke off, or does not come. */
async function inTime(answer: Promise<Answer>): Promise<Answer | undefined> {
  const tooLong = new AbortController()
  const late = sleep(PATIENCE_MS, undefined, { signal: tooLong.signal }).catch(() => undefined)
  try {
    return await Promise.race([answer.catch(() => undefined), late])
  } finally {
    tooLong.abort()
  }
}
