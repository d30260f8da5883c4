// What every webhook provider promises, run against each of them.
import type { Test } from 'tap'
import type { Answer, Provider } from '../../src/webhooks/provider.js'
import { keysOf, type Secrets } from '../../src/webhooks/secrets.js'
import { verifyIncoming } from '../../src/webhooks/verify.js'

/** A signed request, as the provider would send it. */
export interface Sent {
  readonly headers: Readonly<Record<string, string>>
  readonly body: Buffer
  readonly url?: string
  readonly method?: string
}

/** One side of a shared secret: what is configured here, and how the provider signs with it. */
export interface Party {
  readonly secret: string
  readonly sign: (body: string, atMs: number) => Sent
}

/** What an event is called. */
export interface Names {
  /** `null`: the provider gives it no id, and its bytes name it. */
  readonly eventId: string | null
  readonly type: string | null
  readonly object?: string | null
}

export interface ProviderCase {
  readonly name: string
  readonly make: (secret: Secrets, tolerance?: number) => Provider
  readonly parties: readonly [Party, Party]
  readonly body: string
  readonly event: Names
  /** The header with the signature; `null` where it is inside the body. */
  readonly header: string | null
  /** Whether the header may have several signatures, so that junk beside a good one does no harm. */
  readonly listsSignatures?: boolean
  /** How far the time of signing may be away; `null` where it does not count. */
  readonly windowMs: number | null
  /** The same event without its id: another body, or without some headers; or where it is signed. */
  readonly nameless:
    | {
        readonly body?: string
        readonly without?: readonly string[]
        /** Whether its fields, as they are signed, name it. */
        readonly isNamedByFields?: boolean
      }
    | { readonly signedHeader: string }
  /** Whether nothing of the body is signed (a token that is sent along). */
  readonly leavesBodyUnsigned?: boolean
  /** Whether the body must be read to find the signature, so that junk is refused. */
  readonly readsBody?: boolean
  readonly batch?: { readonly body: string; readonly events: readonly Names[] }
  readonly handshakes?: readonly {
    readonly body: string
    readonly answer: (party: Party) => Answer
  }[]
}

/** What `verify` says of it. */
function named({ eventId, ...names }: Names, { mergesUnnamed }: Provider) {
  if (eventId !== null) return { ...names, eventId, namedBy: 'provider' }
  if (mergesUnnamed === false) return { ...names, eventId, namedBy: 'nothing' }
  return { ...names, eventId: /^bytes:/, namedBy: /^(bytes|signed_bytes)$/ }
}

export const NOW = Date.UTC(2027, 0, 15, 12)

export function ask(
  provider: Provider,
  sent: Sent,
  { at = NOW, tenantId = '' }: { at?: number; tenantId?: string } = {},
): ReturnType<typeof verifyIncoming> {
  const { headers, body, url = '/', method = 'POST' } = sent
  const keys = () => keysOf(provider, tenantId)
  return verifyIncoming(provider, keys, { method, url, headers, body }, at)
}

function without(sent: Sent, names: readonly string[] = []): Sent {
  const kept = Object.entries(sent.headers).filter(([name]) => !names.includes(name))
  return { ...sent, headers: Object.fromEntries(kept) }
}

const withHeader = (sent: Sent, name: string, value: string): Sent => ({
  ...sent,
  headers: { ...sent.headers, [name]: value },
})

export async function providerContract(t: Test, of: ProviderCase): Promise<void> {
  const [first, second] = of.parties
  const provider = of.make(first.secret)
  const sent = first.sign(of.body, NOW)

  await t.test('what the provider signed is verified, and named as documented', async (t) => {
    const result = await ask(provider, sent)
    t.match(result, { kind: 'verified', events: [named(of.event, provider)] })
    if (result.kind === 'verified') t.equal(result.events.length, 1)
  })

  const { nameless } = of
  if ('signedHeader' in nameless) {
    const { signedHeader } = nameless
    await t.test('the id is signed', async (t) => {
      t.equal((await ask(provider, without(sent, [signedHeader]))).kind, 'refused')
      t.equal((await ask(provider, withHeader(sent, signedHeader, 'another'))).kind, 'refused')
    })
  } else if (provider.mergesUnnamed !== false) {
    await t.test('an event that was given no id is named after what was signed', async (t) => {
      const { body = of.body, without: names, isNamedByFields } = nameless
      const eventAt = async (atMs: number) => {
        const sent = without(first.sign(body, atMs), names)
        const result = await ask(provider, sent, { at: atMs })
        const eventId = isNamedByFields ? /^[\w-]{43}$/ : /^bytes:/
        t.match(result, { kind: 'verified', events: [{ eventId }] })
        return result.kind === 'verified' ? result.events[0] : undefined
      }
      const event = await eventAt(NOW)
      t.equal((await eventAt(NOW))?.eventId, event?.eventId, 'in each delivery')
      const isSame = (await eventAt(NOW - 1_000))?.eventId === event?.eventId
      t.equal(isSame, event?.namedBy !== 'signed_bytes', 'a time that is signed is a part of it')
    })
  }

  await t.test('nobody else can sign', async (t) => {
    t.match(await ask(provider, second.sign(of.body, NOW)), { kind: 'refused', reason: 'no_match' })
    t.match(await ask(of.make(second.secret), sent), { kind: 'refused', reason: 'no_match' })
  })

  if (of.header !== null) {
    const { header } = of
    await t.test(
      'a request without its signature, or with junk in its place, is refused',
      async (t) => {
        const missing = await ask(provider, without(sent, [header]))
        t.match(missing, { kind: 'refused', reason: 'missing_header' })
        const given = sent.headers[header] as string
        const beside = of.listsSignatures ? [] : [`${given}\0`, `${given}, ${given}`]
        for (const junk of ['', 'junk', '=', 'é', given.slice(0, -4), ...beside]) {
          const result = await ask(provider, withHeader(sent, header, junk))
          t.equal(result.kind, 'refused', JSON.stringify(junk))
        }
        const twice = { ...sent, headers: { ...sent.headers, [header]: [given, given] as never } }
        t.equal((await ask(provider, twice)).kind, 'refused', 'as a list')
      },
    )
  }

  if (!of.leavesBodyUnsigned) {
    await t.test('every byte of the body counts', async (t) => {
      const at = sent.body.indexOf('SIGNED')
      t.not(at, -1, 'the example says where it is signed')
      for (const bit of [0x01, 0x20]) {
        const body = Buffer.from(sent.body)
        body[at] = (body[at] ?? 0) ^ bit
        t.equal((await ask(provider, { ...sent, body })).kind, 'refused')
      }
      const cut = { ...sent, body: sent.body.subarray(0, -1) }
      t.equal((await ask(provider, cut)).kind, 'refused')
    })
  }

  await t.test('while a secret is being changed, both are good', async (t) => {
    const both = of.make([first.secret, second.secret])
    for (const party of of.parties) {
      t.equal((await ask(both, party.sign(of.body, NOW))).kind, 'verified')
    }
    const other = of.make([second.secret])
    t.equal((await ask(other, sent)).kind, 'refused', 'and afterwards only one')
  })

  await t.test('each tenant has secrets of its own, and an unknown one has none', async (t) => {
    const secrets = new Map([
      ['acme', first.secret],
      ['globex', second.secret],
    ])
    const shared = of.make(async (tenantId: string) => secrets.get(tenantId) as string)
    t.equal((await ask(shared, sent, { tenantId: 'acme' })).kind, 'verified')
    t.equal((await ask(shared, sent, { tenantId: 'globex' })).kind, 'refused')
    t.equal((await ask(shared, sent, { tenantId: 'nobody' })).kind, 'refused')
  })

  if (of.windowMs !== null) {
    const { windowMs } = of
    await t.test('the time of signing counts on both sides, to the millisecond', async (t) => {
      // Providers that sign seconds are asked at a full one.
      for (const [at, kind] of [
        [NOW + windowMs, { kind: 'verified' }],
        [NOW + windowMs + 1, { kind: 'refused', reason: 'too_old' }],
        [NOW - windowMs, { kind: 'verified' }],
        [NOW - windowMs - 1, { kind: 'refused', reason: 'from_future' }],
      ] as const) {
        t.match(await ask(provider, sent, { at }), kind, `${at - NOW} ms later`)
      }
      const strict = of.make(first.secret, 1_000)
      t.match(await ask(strict, sent, { at: NOW + 1_001 }), { reason: 'too_old' })
      t.match(await ask(strict, second.sign(of.body, NOW), { at: 0 }), { reason: 'no_match' })
    })
    for (const tolerance of [0, -1, 300, Number.NaN, Number.POSITIVE_INFINITY, 'soon', null]) {
      t.throws(() => of.make(first.secret, tolerance as number), {
        code: 'IDEMPOTENCY_OPTION_INVALID',
        message: /option "tolerance" of [\w-]+ must be a duration of at least 1000 ms/,
      })
    }
  } else {
    await t.test('an event can be as old as it likes', async (t) => {
      t.equal((await ask(provider, sent, { at: NOW + 40 * 365 * 86_400_000 })).kind, 'verified')
    })
  }

  await t.test('a secret that is missing or empty is refused where it is written', async (t) => {
    for (const secret of [
      undefined,
      null,
      '',
      [],
      [''],
      [first.secret, ''],
      7,
      {},
      new Uint8Array(),
    ]) {
      t.throws(() => of.make(secret as Secrets), { code: 'IDEMPOTENCY_OPTION_INVALID' })
    }
    const late = of.make(() => '')
    await t.rejects(ask(late, sent), { code: 'IDEMPOTENCY_OPTION_INVALID' })
  })

  await t.test('no secret is kept with an event, nor told by an error', async (t) => {
    for (const name of provider.keptHeaders) {
      t.equal(name, name.toLowerCase())
      t.notMatch(sent.headers[name] ?? '', first.secret, `${name} is no secret`)
    }
    t.notOk(
      provider.keptHeaders.some((name) =>
        /gitlab-token|verif-hash|authorization|cookie/.test(name),
      ),
    )
    for (const wrong of ['tell-nobody ', 'whsec_tell-nobody', `${first.secret}\n`]) {
      try {
        of.make([first.secret, wrong])
      } catch (error) {
        const { message, stack = '', cause } = error as Error
        t.notMatch(message + stack, wrong.trim())
        t.equal(cause, undefined)
      }
    }
  })

  await t.test('what was signed and cannot be read is told apart from what was not', async (t) => {
    for (const junk of ['{"SIGNED":', '\u0000SIGNED', 'SIGNED']) {
      const result = await ask(provider, first.sign(junk, NOW))
      t.equal(result.kind, of.readsBody ? 'refused' : 'unreadable', junk)
    }
  })

  await t.test(
    'the kept headers and bytes are enough to verify a stored event again',
    async (t) => {
      const result = await ask(provider, sent)
      if (result.kind !== 'verified' || of.leavesBodyUnsigned || provider.items !== undefined)
        return
      const kept = provider.keptHeaders.flatMap((name) => {
        const value = sent.headers[name]
        return value === undefined ? [] : [[name, value] as const]
      })
      const stored = { ...sent, headers: Object.fromEntries(kept), body: result.events[0]?.rawBody }
      t.match(await ask(provider, stored as Sent), {
        kind: 'verified',
        events: [named(of.event, provider)],
      })
    },
  )

  if (of.batch !== undefined) {
    const { body, events } = of.batch
    await t.test('each item of a batch is an event', async (t) => {
      const result = await ask(provider, first.sign(body, NOW))
      t.match(result, { kind: 'verified', events: events.map((one) => named(one, provider)) })
      if (result.kind !== 'verified') return
      t.equal(result.events.length, events.length)
      for (const { payload, rawBody } of result.events) {
        t.same(JSON.parse(rawBody.toString()), payload)
      }
    })
  }

  for (const { body, answer } of of.handshakes ?? []) {
    await t.test('a question whether anybody is here is answered, if it is signed', async (t) => {
      const both = of.make([second.secret, first.secret])
      const expected = { kind: 'handshake', answer: answer(first) }
      t.same(await ask(both, first.sign(body, NOW)), expected)
      t.match(await ask(of.make(second.secret), first.sign(body, NOW)), { kind: 'refused' })
    })
  }
}
