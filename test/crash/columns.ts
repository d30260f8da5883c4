// What is interrupted, and who repeats it.
import type { Answer, textPoster } from '../fixtures/processes.js'
import { signedByBank } from '../fixtures/webhooks.js'

export type Send = (url: string, operation: string) => Promise<Answer>

export interface Column {
  readonly name: string
  readonly send: (post: ReturnType<typeof textPoster>) => Send
  /** Whether what is behind this answer is done; otherwise whoever sent it comes back. */
  readonly isAnswer: (answer: Answer) => boolean
  /** Whether somebody is said to be running it. */
  readonly isBusy: (answer: Answer) => boolean
  /** Whether anybody sends it again. If not, a worker finds what was acknowledged or begun. */
  readonly comesBack: boolean
  /** Whether the processes run what nobody asks them for now. */
  readonly hasWorker: boolean
  /** Whether it is answered before it is done. */
  readonly isAcknowledgedFirst: boolean
  /** Whether its handler calls somebody outside, too. */
  readonly callsOut: boolean
  /** Whether a row in the inbox says how it ended. */
  readonly isEvent: boolean
}

const request = (path: string): Omit<Column, 'name'> => ({
  send: (post) => (url, operation) =>
    post(`${url}${path}`, '{}', {
      'content-type': 'application/json',
      'idempotency-key': operation,
    }),
  isAnswer: ({ status }) => status === 201,
  isBusy: ({ status }) => status === 409,
  comesBack: true,
  isAcknowledgedFirst: false,
  hasWorker: false,
  callsOut: true,
  isEvent: false,
})

const event = (mode: string, comesBack: boolean): Omit<Column, 'name'> => ({
  send: (post) => (url, operation) => {
    const text = JSON.stringify({ id: operation })
    return post(`${url}/webhooks/${mode}`, text, signedByBank(text))
  },
  isAnswer: ({ status }) => status === 200,
  isBusy: ({ status }) => status === 503,
  comesBack,
  isAcknowledgedFirst: mode === 'deferred',
  hasWorker: mode === 'deferred' || !comesBack,
  callsOut: true,
  isEvent: true,
})

/** What an application runs outside a request, told to do so by one: its own answer is not kept. */
const run = (path: string, comesBack: boolean): Omit<Column, 'name'> => ({
  ...request(path),
  comesBack,
  hasWorker: !comesBack,
})

export const COLUMNS: readonly Column[] = [
  { name: 'request', ...request('/payments') },
  { name: 'streamed request', ...request('/streamed-payments') },
  // Its client comes back while a worker looks for what was interrupted.
  { name: '`request.idempotency.run()`', ...request('/handled-payments'), hasWorker: true },
  { name: 'atomic request', ...request('/atomic-payments'), callsOut: false },
  { name: '`run()`', ...run('/runs', true) },
  { name: '`run()`, `recover()`', ...run('/handled-runs', false) },
  { name: 'inline event', ...event('inline', true) },
  { name: 'inline event, never again', ...event('inline', false) },
  { name: 'deferred event', ...event('deferred', true) },
  { name: 'deferred event, never again', ...event('deferred', false) },
]
