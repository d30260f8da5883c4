// Requests that nobody would send, to every provider. Run one again with FUZZ_SEED=<number>.
import t from 'tap'
import type { Provider } from '../../src/webhooks/provider.js'
import { keysOf } from '../../src/webhooks/secrets.js'
import type { Incoming, Key } from '../../src/webhooks/signature.js'
import { verifyIncoming } from '../../src/webhooks/verify.js'
import { NOW, type ProviderCase, type Sent } from '../contracts/provider.js'
import { createOddRequests, ODD_TEXTS } from '../fixtures/odd-requests.js'
import { cases } from './providers/cases.js'

const RUNS = 100_000
const seed = Number(process.env.FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 32))

const { random, oneOf, changedBody, changedHeaders } = createOddRequests(seed)

interface Target {
  readonly of: ProviderCase
  readonly provider: Provider
  readonly keys: readonly Key[]
  /** By whoever has the secret, and by somebody who has another. */
  readonly genuine: readonly Sent[]
  readonly forged: readonly Sent[]
}

async function targetOf(of: ProviderCase): Promise<Target> {
  const [first, second] = of.parties
  const provider = of.make(first.secret)
  const bodies = [of.body, of.batch?.body ?? of.body, '{"SIGNED":', ...ODD_TEXTS.slice(0, 10)]
  const all = [...bodies, ...(of.handshakes ?? []).map(({ body }) => body)]
  const [genuine, forged] = [first, second].map((party) => all.map((body) => party.sign(body, NOW)))
  return {
    of,
    provider,
    keys: await keysOf(provider, ''),
    genuine: genuine ?? [],
    forged: forged ?? [],
  }
}

/** Whether every byte of the body is signed as it is. */
const signsBytes = ({ of }: Target) =>
  !of.readsBody && !of.leavesBodyUnsigned && of.name !== 'twilio'

t.test(`${RUNS} odd requests cause no exception and are not believed`, async (t) => {
  const targets = await Promise.all(cases.map(targetOf))
  const kinds: Record<string, number> = {}
  for (let run = 0; run < RUNS; run++) {
    const target = targets[run % targets.length] as Target
    const isForged = random() < 0.7
    const sent = oneOf(isForged ? target.forged : target.genuine)
    const incoming: Incoming = {
      method: sent.method ?? 'POST',
      url:
        random() < 0.9 ? (sent.url ?? '/') : oneOf(['', '?', '/?bodySHA256=', '/%', '//x?a=%ff']),
      headers: changedHeaders(sent.headers, target.provider),
      body: changedBody(sent.body),
    }
    const where = () =>
      `FUZZ_SEED=${seed}, run ${run}, ${target.of.name}: ${JSON.stringify(incoming)}`
    let kind: string
    try {
      kind = (await verifyIncoming(target.provider, async () => target.keys, incoming, NOW)).kind
    } catch (error) {
      return t.fail(`${String(error)}; ${where()}`)
    }
    kinds[kind] = (kinds[kind] ?? 0) + 1
    const isChanged = !incoming.body.equals(sent.body)
    if (kind !== 'refused' && (isForged || (isChanged && signsBytes(target)))) {
      return t.fail(`${kind}; ${where()}`)
    }
  }
  // Else it would only have tried what is refused at once.
  for (const kind of ['refused', 'verified', 'unreadable', 'handshake']) {
    const times = kinds[kind] ?? 0
    t.ok(times >= 10, `${times} were ${kind}`)
  }
})
