// Providers that deliver an event again, at once and out of order, and others that only say so.
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { WebhookSecrets } from '../../examples/payments/webhooks.js'
import { pay, type Stats, stats } from './api.js'
import { type Delivery, deliveries, withOneByteChanged, withoutSignature } from './signed.js'
import { type Play, playAll, type Step } from './steps.js'
import { type Counts, count, type Row, type Tally } from './table.js'

const DUPLICATES = 50
const TEN_MINUTES = 600
/** For a worker, to have run what was only accepted. */
const PATIENCE_MS = 10_000
/** Providers wait longer. */
const AGAIN_MS = 200

/** The scenario. All ids are new in each run: a database that stays would remember the last ones. */
function scenario(url: string, secrets: WebhookSecrets): Step<Delivery>[] {
  const { stripe, github, bank } = deliveries(secrets)
  const paid = { id: `evt_${randomUUID()}`, payment: randomUUID() }
  const early = { id: `evt_${randomUUID()}`, payment: randomUUID() }
  const push = github({ id: randomUUID() })
  const transfers = Array.from({ length: 4 }, () => ({ id: randomUUID(), payment: randomUUID() }))

  /** `paidFirst`: payments that are made before anything of the step is sent. */
  const step = (
    name: string,
    sent: Delivery[],
    expected: Tally,
    paidFirst: string[] = [],
  ): Step<Delivery> => ({
    name,
    before: () => Promise.all(paidFirst.map((id) => pay(url, { id, key: `demo-${id}` }))),
    sent,
    expected: {
      deliveries: sent.length,
      ...{ 'handler runs': 0, 'effects stored': 0, acknowledged: 0, 'come back': {}, refused: {} },
      why: '',
      ...expected,
    },
  })
  const times = <T>(n: number, one: T) => new Array<T>(n).fill(one)
  const runs = (n: number) => ({ 'handler runs': n, 'effects stored': n })
  const refused = (why: string) => ({ refused: { 401: 1 }, why })

  return [
    step(
      `Stripe: ${DUPLICATES} deliveries of one event at once`,
      times(DUPLICATES, stripe(paid)),
      { ...runs(1), acknowledged: DUPLICATES },
      [paid.payment],
    ),
    step('Stripe: the event once more', [stripe(paid)], { acknowledged: 1 }),
    step('Stripe: one byte changed', [withOneByteChanged(stripe(paid))], refused('no_match')),
    step(
      'Stripe: signed with another secret',
      [stripe(paid, { secret: 'guessed' })],
      refused('no_match'),
    ),
    step('Stripe: not signed', [withoutSignature(stripe(paid))], refused('missing_header')),
    step(
      'Stripe: signed ten minutes ago',
      [stripe(paid, { signedIn: -TEN_MINUTES })],
      refused('too_old'),
    ),
    step(
      'Stripe: signed in ten minutes',
      [stripe(paid, { signedIn: TEN_MINUTES })],
      refused('from_future'),
    ),
    step('Stripe: an event before its payment', [stripe(early)], {
      'handler runs': 1,
      'come back': { 503: 1 },
    }),
    step('Stripe: it again, after its payment', [stripe(early)], { ...runs(1), acknowledged: 1 }, [
      early.payment,
    ]),
    step(`GitHub: ${DUPLICATES} deliveries of one push at once`, times(DUPLICATES, push), {
      ...runs(1),
      acknowledged: DUPLICATES,
    }),
    step('GitHub: one byte changed', [withOneByteChanged(push)], refused('no_match')),
    step(
      'bank: three transfers in one request',
      [bank(transfers.slice(0, 3))],
      { ...runs(3), acknowledged: 1 },
      transfers.map(({ payment }) => payment),
    ),
    step('bank: the three again, and a fourth', [bank(transfers)], { ...runs(1), acknowledged: 1 }),
  ]
}

export async function playWebhooks(url: string, secrets: WebhookSecrets): Promise<Row[]> {
  const play: Play<Delivery> = async ({ sent, expected }, answered) => {
    const before = await stats(url)
    const answers = { acknowledged: 0, 'come back': {} as Counts, refused: {} as Counts, why: '' }
    await Promise.all(
      sent.map(async (delivery) => {
        const { status, reason } = await deliver(url, delivery)
        answered()
        if (status < 300) answers.acknowledged += 1
        else if (status === 503) count(answers['come back'], status)
        else {
          count(answers.refused, status)
          answers.why = reason ?? ''
        }
      }),
    )
    const tally = (after: Stats) => ({
      deliveries: sent.length,
      'handler runs': after.eventRuns - before.eventRuns,
      'effects stored': effectsOf(after) - effectsOf(before),
      ...answers,
    })
    const giveUpAt = performance.now() + (answers.acknowledged > 0 ? PATIENCE_MS : 0)
    for (;;) {
      const now = tally(await stats(url))
      const isThere = now['effects stored'] >= Number(expected['effects stored'])
      if (isThere || performance.now() > giveUpAt) return now
      await sleep(AGAIN_MS)
    }
  }
  return playAll(scenario(url, secrets), play)
}

/** Delivers as providers do: again, and not for ever, when the event is being processed. */
async function deliver(url: string, { path, headers, body }: Delivery) {
  const giveUpAt = performance.now() + PATIENCE_MS
  for (;;) {
    const response = await fetch(`${url}${path}`, { method: 'POST', headers, body })
    const { outcome, reason } = (await response.json()) as { outcome?: string; reason?: string }
    if (outcome !== 'running' || performance.now() > giveUpAt) {
      return { status: response.status, reason }
    }
    await sleep(AGAIN_MS)
  }
}

function effectsOf({ confirmationsStored, pushesStored }: Stats): number {
  return confirmationsStored + pushesStored
}
