import { CannotStart } from '../../examples/payments/cannot-start.js'

/** The example's tenants, with their tokens. */
export const TENANTS = { acme: 'acme-demo-token', globex: 'globex-demo-token' }

/** What the API counts. */
export interface Stats {
  handlerRuns: number
  paymentsStored: number
  eventRuns: number
  confirmationsStored: number
  pushesStored: number
  statusChanges: number
  bookingsStored: number
}

/** What the API says of itself, for both tenants together. */
export async function stats(url: string): Promise<Stats> {
  const all = await Promise.all(Object.values(TENANTS).map((token) => statsOf(url, token)))
  const sum = (name: keyof Stats) => all.reduce((total, stats) => total + stats[name], 0)
  return {
    handlerRuns: sum('handlerRuns'),
    paymentsStored: sum('paymentsStored'),
    eventRuns: sum('eventRuns'),
    confirmationsStored: sum('confirmationsStored'),
    pushesStored: sum('pushesStored'),
    statusChanges: sum('statusChanges'),
    bookingsStored: sum('bookingsStored'),
  }
}

async function statsOf(url: string, token: string): Promise<Stats> {
  const headers = { authorization: `Bearer ${token}` }
  const response = await fetch(`${url}/stats`, { headers })
  if (!response.ok) throw new CannotStart(`${url} is not the example API: no /stats there`)
  return (await response.json()) as Stats
}

export interface Payment {
  path?: string
  token?: string
  key?: string | undefined
  id?: string
  amount?: number
}

export function pay(
  url: string,
  { path = '/payments', token = TENANTS.acme, key, id, amount = 4900 }: Payment,
): Promise<Response> {
  return fetch(`${url}${path}`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${token}`,
      'content-type': 'application/json',
      ...(key !== undefined && { 'idempotency-key': key }),
    },
    body: JSON.stringify({ ...(id !== undefined && { id }), amount, currency: 'EUR' }),
  })
}

/** A payment as the API shows it. */
export async function paymentOf(url: string, id: string): Promise<{ status: string }> {
  const headers = { authorization: `Bearer ${TENANTS.acme}` }
  return (await (await fetch(`${url}/payments/${id}`, { headers })).json()) as { status: string }
}

export interface Evening {
  venue: string
  evening: string
  guest: string
  seconds?: number
}

/** Holds an evening for a guest. */
export function hold(url: string, { venue, evening, ...guest }: Evening): Promise<Response> {
  return postJson(`${url}/venues/${venue}/${evening}/hold`, guest)
}

/** Books an evening that is held for the guest. */
export function book(url: string, { venue, evening, ...guest }: Evening): Promise<Response> {
  return postJson(`${url}/venues/${venue}/${evening}/booking`, guest)
}

function postJson(url: string, body: object): Promise<Response> {
  return fetch(url, {
    method: 'POST',
    headers: { authorization: `Bearer ${TENANTS.acme}`, 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
}
