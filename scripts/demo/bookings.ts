// What wants the same thing at the same time, or comes in the wrong order.
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { WebhookSecrets } from '../../examples/payments/webhooks.js'
import { book, hold, pay, paymentOf, stats } from './api.js'
import { type Delivery, deliveries } from './signed.js'
import { type Play, playAll, type Step } from './steps.js'
import { type Counts, count, type Row, type Tally } from './table.js'

const GUESTS = 200
/** Long enough for the next guest to come in time, however slow the machine is. */
const HOLD_S = 3
/** How long a guest asks for what is to be free by then, and how often. */
const PATIENCE_MS = 20_000
const PAUSE_MS = 250

const SATURDAY = '2030-12-28'
const SUNDAY = '2030-12-29'

/** What a payment goes through, in the order in which it happens. */
const STORY = ['processing', 'amount_capturable_updated', 'succeeded']

/** Sends something, and tells what came of it. */
type Sent = () => Promise<string>

/** The scenario. All names are new in each run: a database that stays would remember the last ones. */
function scenario(url: string, secrets: WebhookSecrets): Step<Sent>[] {
  const { stripe } = deliveries(secrets)
  const venue = randomUUID()
  const step = (
    name: string,
    sent: Sent[],
    expected: Tally,
    before?: () => Promise<unknown>,
  ): Step<Sent> => ({
    name,
    ...(before && { before }),
    sent,
    expected: {
      requests: sent.length,
      ...{ answers: {}, 'statuses changed': 0, 'bookings stored': 0 },
      ...expected,
    },
  })

  /** Everything that Stripe has to say of one payment, twice, in this order. */
  const told = (payment: string, order: readonly number[]): Sent => {
    const now = Math.trunc(Date.now() / 1_000)
    const events = order.map((place) => {
      const type = `payment_intent.${STORY[place]}`
      return stripe({ id: `evt_${randomUUID()}`, payment, type, created: now + place })
    })
    return async () => {
      for (const event of [...events, ...events]) await deliver(url, event)
      return `ends ${(await paymentOf(url, payment)).status}`
    }
  }
  const payments = ORDERS.map((order) => ({ order, id: randomUUID() }))
  const payAll = () => Promise.all(payments.map(({ id }) => pay(url, { id, key: `demo-${id}` })))
  /** Who has which evening. */
  const holders = new Map<string, string>()
  const wants = async (guest: string, evening: string, seconds?: number): Promise<string> => {
    const answer = meant(await hold(url, { venue, evening, guest, ...(seconds && { seconds }) }))
    if (answer === 'got it') holders.set(evening, guest)
    return answer
  }
  /** Asks again, as a guest does, until the evening is free: the database counts the seconds. */
  const wantsInTheEnd = async (guest: string, evening: string): Promise<string> => {
    const deadline = performance.now() + PATIENCE_MS
    for (;;) {
      const answer = await wants(guest, evening)
      if (answer !== 'told no' || performance.now() > deadline) return answer
      await sleep(PAUSE_MS)
    }
  }
  const books = async (guest: string | undefined, evening: string): Promise<string> =>
    meant(await book(url, { venue, evening, guest: guest ?? 'nobody' }))

  return [
    step(
      `the three events of a payment, twice, in each of ${ORDERS.length} orders`,
      payments.map(({ id, order }) => told(id, order)),
      { answers: { 'ends succeeded': ORDERS.length }, 'statuses changed': CHANGES },
      payAll,
    ),
    step(
      `${GUESTS} guests want the same evening`,
      Array.from({ length: GUESTS }, (_, n) => () => wants(`guest ${n}`, SATURDAY)),
      { answers: { 'got it': 1, 'told no': GUESTS - 1 } },
    ),
    step(
      'the one who got it books it, five times',
      Array.from({ length: 5 }, () => () => books(holders.get(SATURDAY), SATURDAY)),
      { answers: { 'got it': 1, 'has it': 4 }, 'bookings stored': 1 },
    ),
    step(
      `an evening that somebody else holds for ${HOLD_S} seconds`,
      [() => wants('Bob', SUNDAY)],
      { answers: { 'told no': 1 } },
      () => wants('Alice', SUNDAY, HOLD_S),
    ),
    step('the same evening, asked for until it is free', [() => wantsInTheEnd('Bob', SUNDAY)], {
      answers: { 'got it': 1 },
    }),
    step('the first one books, too late', [() => books('Alice', SUNDAY)], {
      answers: { 'told no': 1 },
    }),
  ]
}

const ORDERS = [
  [0, 1, 2],
  [0, 2, 1],
  [1, 0, 2],
  [1, 2, 0],
  [2, 0, 1],
  [2, 1, 0],
] as const

/** A status is entered when it is higher than all before it. */
const CHANGES = ORDERS.map(
  (order) => order.filter((place, n) => order.slice(0, n).every((before) => before < place)).length,
).reduce((sum, changes) => sum + changes)

export function playBookings(url: string, secrets: WebhookSecrets): Promise<Row[]> {
  const play: Play<Sent> = async ({ sent }, answered) => {
    const before = await stats(url)
    const answers: Counts = {}
    await Promise.all(
      sent.map(async (send) => {
        const answer = await send()
        answered()
        count(answers, answer)
      }),
    )
    const after = await stats(url)
    return {
      requests: sent.length,
      answers,
      'statuses changed': after.statusChanges - before.statusChanges,
      'bookings stored': after.bookingsStored - before.bookingsStored,
    }
  }
  return playAll(scenario(url, secrets), play)
}

/** What a guest learns. */
function meant({ status }: Response): string {
  return { 201: 'got it', 200: 'has it', 409: 'told no' }[status] ?? String(status)
}

async function deliver(url: string, { path, headers, body }: Delivery): Promise<void> {
  const response = await fetch(`${url}${path}`, { method: 'POST', headers, body })
  await response.arrayBuffer()
}
