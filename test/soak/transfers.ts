// What both sides of the soak agree on.

/** Short, so that a key that a killed process held is free soon. */
export const LEASE_MS = 1_500

export const WEBHOOK_SECRET = 'whsec_of_the_soak'

/** One operation: money from one account to another. */
export interface Transfer {
  readonly operation: string
  readonly from: string
  readonly to: string
  readonly amount: number
}

/** The ways in which an operation reaches the ledger, with the answer that says that it has. */
export const WAYS = [
  { path: '/transaction', done: 201, hasKey: true },
  { path: '/steps', done: 201, hasKey: true },
  { path: '/recoverable', done: 201, hasKey: true },
  { path: '/atomic', done: 201, hasKey: true },
  { path: '/job', done: 201, hasKey: false },
  { path: '/webhooks/inline', done: 200, hasKey: false },
  { path: '/webhooks/deferred', done: 200, hasKey: false },
] as const

export type TransferWay = (typeof WAYS)[number]

export const ACCOUNTS = ['cash', 'fees', 'stock', 'bank', 'wages'] as const
