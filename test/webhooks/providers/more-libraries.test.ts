// Our answer and that of the library which the provider publishes, for the same request: further
// libraries, compared as in libraries.test.ts.
//
// | provider | compared with    | where they differ, and why                                              |
// | -------- | ---------------- | ----------------------------------------------------------------------- |
// | Razorpay | razorpay         | it reads the signature as it is written, and we in any case             |
// | WorkOS   | @workos-inc/node | it takes any time in the future, and a time as far as it is a number;   |
// |          |                  | it reads no names before "="; it signs what JSON.stringify makes of the |
// |          |                  | parsed body                                                             |
//
// Too large: jira.js (55 MB), google-auth-library. Lemon Squeezy's library does not verify. WooCommerce,
// Vercel, Calendly, Bitbucket, Telegram, Postmark, Plaid, Microsoft Graph and Azure Event Grid publish
// none for Node that does.
import { createHmac } from 'node:crypto'
import { WorkOS } from '@workos-inc/node'
import fc from 'fast-check'
import Razorpay from 'razorpay'
import t from 'tap'
import type { Provider } from '../../../src/webhooks/provider.js'
import { razorpay, workos } from '../../../src/webhooks/providers/index.js'
import { verify } from '../../../src/webhooks/verify.js'

const RUNS = { seed: 20_261_130, numRuns: 400 }
const SECRET = 'a-secret-of-some-length'
const sign = (key: string, text: string) => createHmac('sha256', key).update(text).digest('hex')

interface Comparison {
  readonly title: string
  readonly provider: Provider
  readonly header: string
  readonly sign: (body: string, atMs: number, key: string) => string
  readonly library: (body: string, header: string) => unknown
  readonly differs: (header: string, aheadMs: number) => boolean
}

const { webhooks } = new WorkOS('sk_test_x')

const comparisons: readonly Comparison[] = [
  {
    title: 'razorpay',
    provider: razorpay({ secret: SECRET }),
    header: 'x-razorpay-signature',
    sign: (body, _atMs, key) => sign(key, body),
    library: (body, header) => Razorpay.validateWebhookSignature(body, header, SECRET),
    differs: (header) => /[A-F]/.test(header),
  },
  {
    title: '@workos-inc/node',
    provider: workos({ secret: SECRET }),
    header: 'workos-signature',
    sign: (body, atMs, key) => `t=${atMs}, v1=${sign(key, `${atMs}.${body}`)}`,
    library: (body, header) =>
      webhooks.verifyHeader({ payload: JSON.parse(body), sigHeader: header, secret: SECRET }),
    differs: (header, aheadMs) => aheadMs > 0 || /[A-F]|~.*=/.test(header),
  },
]

/** What happens to a genuine request on its way. */
const journey = fc.record({
  body: fc.jsonValue({ maxDepth: 2 }).map((data) => JSON.stringify({ id: 'e-1', data })),
  isOwnKey: fc.oneof({ weight: 5, arbitrary: fc.constant(true) }, fc.constant(false)),
  // Not so near to the edge of the window that two clocks differ.
  aheadMs: fc.oneof(
    { weight: 3, arbitrary: fc.integer({ min: -3_000, max: 0 }) },
    fc.constantFrom(-170_000, -190_000, -90_000_000, 170_000, 190_000),
  ),
  change: fc.constantFrom('none', 'none', 'body', 'cut', 'character', 'upper case', 'empty'),
  place: fc.nat(120),
})

function changed(header: string, how: string, place: number): string {
  const at = place % header.length
  const ways: Record<string, string> = {
    cut: header.slice(0, at),
    character: `${header.slice(0, at)}~${header.slice(at + 1)}`,
    'upper case': header.toUpperCase(),
    empty: '',
  }
  return ways[how] ?? header
}

const holds = async (call: () => unknown) => {
  try {
    return (await call()) !== false
  } catch {
    return false
  }
}

for (const { title, provider, header, library, differs, ...of } of comparisons) {
  t.test(`we answer like ${title}`, async (t) => {
    const told = { genuine: 0, refused: 0 }
    const property = fc.asyncProperty(journey, async (how) => {
      const key = how.isOwnKey ? SECRET : 'another-secret'
      const signed = of.sign(how.body, Date.now() + how.aheadMs, key)
      const sent = changed(signed, how.change, how.place)
      if (differs(sent, how.aheadMs)) return
      const body = how.change === 'body' ? how.body.replace('e-1', 'e-2') : how.body
      const expected = await holds(() => library(body, sent))
      told[expected ? 'genuine' : 'refused']++
      const { kind } = await verify(provider, { [header]: sent }, body)
      if ((kind === 'verified') !== expected) {
        throw new Error(`${title} says ${expected}: ${JSON.stringify({ sent, body, how })}`)
      }
    })
    await fc.assert(property, RUNS)
    t.ok(told.genuine > 5 && told.refused > 5, `${told.genuine} genuine, ${told.refused} not`)
  })
}

t.test('a time in the future is refused, unlike by WorkOS', async (t) => {
  const { library, provider, header, sign: signAt } = comparisons[1] as Comparison
  const sent = signAt('{}', Date.now() + 3_600_000, SECRET)
  t.ok(await holds(() => library('{}', sent)))
  t.match(await verify(provider, { [header]: sent }, '{}'), { reason: 'from_future' })
})

t.test('the bytes that were sent are signed, unlike by this version of WorkOS', async (t) => {
  const { library, provider, header, sign: signAt } = comparisons[1] as Comparison
  const sent = signAt('{"id":1}', Date.now(), SECRET)
  t.ok(await holds(() => library('{ "id": 1 }', sent)))
  t.match(await verify(provider, { [header]: sent }, '{ "id": 1 }'), { reason: 'no_match' })
})
