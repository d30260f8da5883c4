// Clients that retry, or are mistaken.
import { randomUUID } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import { type Payment, pay, stats, TENANTS } from './api.js'
import { type Play, playAll, type Step } from './steps.js'
import { count, type Row, type Tally } from './table.js'

const DUPLICATES = 50

interface Answer {
  status: number
  isReplay: boolean
  /** Everything of it that a replay repeats. */
  content: { status: number; type: string | null; location: string | null; body: string }
}

/** The scenario. The key is new in each run: a database that stays would remember the last one. */
function scenario(): Step<Payment>[] {
  const first: Payment = { key: `demo-${randomUUID()}` }
  const step = (name: string, sent: Payment[], expected: Tally): Step<Payment> => ({
    name,
    sent,
    expected: {
      requests: sent.length,
      ...{ 'handler runs': 0, 'payments stored': 0, replays: 0, conflicts: {}, other: {} },
      ...expected,
    },
  })
  return [
    step(`${DUPLICATES} identical payments at once`, new Array<Payment>(DUPLICATES).fill(first), {
      'handler runs': 1,
      'payments stored': 1,
      replays: DUPLICATES - 1,
    }),
    step('the same key, another amount', [{ ...first, amount: 9900 }], { conflicts: { 422: 1 } }),
    step('the same key, another route', [{ ...first, path: '/refunds' }], {
      conflicts: { 422: 1 },
    }),
    step('the same key, another tenant', [{ ...first, token: TENANTS.globex }], {
      'handler runs': 1,
      'payments stored': 1,
    }),
    step('the same key, an unknown tenant', [{ ...first, token: 'no-such-token' }], {
      other: { 401: 1 },
    }),
    step('no key', [{ ...first, key: undefined }], { other: { 400: 1 } }),
    step('the first payment once more', [first], { replays: 1 }),
  ]
}

export function playPayments(url: string): Promise<Row[]> {
  let original: Answer | undefined
  const play: Play<Payment> = async ({ sent }, answered) => {
    const before = await stats(url)
    const answers = await Promise.all(
      sent.map(async (payment) => {
        const answer = await read(await pay(url, payment))
        answered()
        return answer
      }),
    )
    const after = await stats(url)
    original ??= answers.find(({ isReplay }) => !isReplay)
    return {
      requests: answers.length,
      'handler runs': after.handlerRuns - before.handlerRuns,
      'payments stored': after.paymentsStored - before.paymentsStored,
      ...sort(answers, original),
    }
  }
  return playAll(scenario(), play)
}

async function read(response: Response): Promise<Answer> {
  const { status, headers } = response
  return {
    status,
    isReplay: headers.get('idempotent-replayed') === 'true',
    content: {
      status,
      type: headers.get('content-type'),
      location: headers.get('location'),
      // As hex, because text would hide a byte that is no UTF-8.
      body: Buffer.from(await response.arrayBuffer()).toString('hex'),
    },
  }
}

/** Puts every answer that did not come from the handler where it belongs. */
function sort(answers: Answer[], original: Answer | undefined) {
  const sorted = { replays: 0, conflicts: {}, other: {} }
  for (const { status, isReplay, content } of answers) {
    if (isReplay) {
      if (isDeepStrictEqual(content, original?.content)) sorted.replays += 1
      else count(sorted.other, 'different replay')
    } else if (status === 409 || status === 422) count(sorted.conflicts, status)
    else if (status !== 201) count(sorted.other, status)
  }
  return sorted
}
