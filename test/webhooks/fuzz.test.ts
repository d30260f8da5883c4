// Requests that nobody would send, to every provider. Run one again with FUZZ_SEED=<number>.
import t from 'tap'
import { keysOf, type Provider, verifyIncoming } from '../../src/webhooks/provider.js'
import type { Incoming, Key } from '../../src/webhooks/signature.js'
import { NOW, type ProviderCase, type Sent } from '../contracts/provider.js'
import { cases } from './providers/cases.js'

const RUNS = 100_000
const seed = Number(process.env.FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 32))

/** mulberry32: small, and the same everywhere. */
function randomOf(start: number): () => number {
  let state = start >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

const random = randomOf(seed)
const below = (limit: number) => Math.floor(random() * limit)
const oneOf = <T>(list: readonly T[]): T => list[below(list.length)] as T
const bytes = (most: number) => Buffer.from(Array.from({ length: below(most) }, () => below(256)))

const TEXTS = [
  '',
  '{}',
  '[]',
  'null',
  '0',
  '"x"',
  '[[]]',
  '[null]',
  '{"__proto__":{"type":"x"}}',
  '{"entry":[null,{"changes":[null]},7]}',
  '{"notificationItems":[null]}',
  '{"notificationItems":[{"NotificationRequestItem":{"additionalData":{"hmacSignature":"AAAA"}}}]}',
  '{"signature":{"timestamp":1,"token":"t","signature":"ab"}}',
  '{"signature":null,"timestamp":"1","token":{}}',
  '{"webhookTimestamp":1e999}',
  '{"Type":"SubscriptionConfirmation","SignatureVersion":"constructor","Signature":"AAAA"}',
  '{"event":"endpoint.url_validation","payload":{"plainToken":"x"}}',
  '{"type":1}',
  'payload=%',
  'a=1&a=2&__proto__=3&constructor=4',
  '%ff%fe=%00',
  '['.repeat(5_000),
  `${'{"a":'.repeat(2_000)}1${'}'.repeat(2_000)}`,
  '\ud800',
]
const VALUES = [
  '',
  ' ',
  ',',
  ';',
  '=',
  'v1,',
  'v1,=',
  'sha256=',
  'sha256=00',
  'v0=',
  't=,v1=',
  't=1,t=2,v1=ab',
  'ts=9e99;h1=00',
  '1800014400',
  '9'.repeat(400),
  '-1',
  'NaN',
  '2027-01-15T12:00:00Z',
  'https://api.paypal.com/v1/notifications/certs/CERT-0',
  'application/x-www-form-urlencoded',
  'constructor',
  '__proto__',
  'é\u0000\n',
  'AAAA',
  'ab'.repeat(64),
]

function changedBody(body: Buffer): Buffer {
  const at = below(body.length + 1)
  switch (below(7)) {
    case 0: {
      const copy = Buffer.from(body)
      if (at < copy.length) copy[at] = (copy[at] ?? 0) ^ (1 << below(8))
      return copy
    }
    case 1:
      return body.subarray(0, at)
    case 2:
      return Buffer.concat([body.subarray(0, at), bytes(20), body.subarray(at)])
    case 3:
      return Buffer.concat([body, body.subarray(at)])
    case 4:
      return Buffer.from(oneOf(TEXTS))
    case 5:
      return bytes(200)
    default:
      return body
  }
}

type Headers = Record<string, string | readonly string[] | undefined>

function changedHeaders(headers: Sent['headers'], { keptHeaders }: Provider): Headers {
  const copy: Headers = { ...headers }
  const names = [...Object.keys(headers), ...keptHeaders, 'content-type']
  for (let left = below(4); left > 0; left--) {
    const name = oneOf(names)
    const value = copy[name]
    const text = typeof value === 'string' ? value : ''
    const at = below(text.length + 1)
    switch (below(7)) {
      case 0:
        delete copy[name]
        break
      case 1:
        copy[name] = oneOf(VALUES)
        break
      case 2:
        copy[name] = [text, oneOf(VALUES)]
        break
      case 3:
        copy[name] = bytes(60).toString('latin1')
        break
      case 4:
        copy[name] = text.slice(0, at)
        break
      case 5:
        copy[name] = text.slice(0, at) + String.fromCharCode(below(256)) + text.slice(at + 1)
        break
      default:
        copy[name] = headers[oneOf(names)]
    }
  }
  return copy
}

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
  const bodies = [of.body, of.batch?.body ?? of.body, '{"SIGNED":', ...TEXTS.slice(0, 10)]
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
      kind = (await verifyIncoming(target.provider, target.keys, incoming, NOW)).kind
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
