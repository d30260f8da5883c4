// Requests as the providers publish them, in test/fixtures/providers/: what they are named after.
import { readFile } from 'node:fs/promises'
import t from 'tap'
import { withExamples } from '../../../scripts/providers-table.js'
import type { Provider } from '../../../src/webhooks/provider.js'
import * as providers from '../../../src/webhooks/providers/index.js'
import type { Scheme } from '../../../src/webhooks/signature.js'
import { verify } from '../../../src/webhooks/verify.js'
import { type Example, givenId, readProviderExamples } from '../../fixtures/provider-examples.js'
import { cases } from './cases.js'

/** Providers of which no real request is published. */
const UNPUBLISHED: Readonly<Record<string, string>> = {
  bitbucket: 'its documentation describes the payloads field by field',
  calendly: 'its documentation is not readable without a browser',
  polar: 'its documentation describes the payloads by their schema only',
  vercel: 'its documentation describes the payloads by their fields only',
  woocommerce: 'its documentation has no whole delivery with its headers',
}

const KEY = Buffer.from('any')
/** Accepts everything: most examples are published without a signature, or with one that was cut. */
const OPEN: Scheme = {
  algorithm: { kind: 'equality' },
  toKey: () => KEY,
  read: () => ({ content: [], signatures: [KEY] }),
}

const { basicAuth: _basic, hmac: _hmac, sharedSecret: _shared, ...named } = providers
const factories = named as Readonly<Record<string, (options: object) => Provider>>

/** By the provider's name: what makes it, and one of it. */
const known = new Map(
  Object.entries(factories).map(([exported, factory]) => {
    const found = cases.find(({ name }) => name.split(/[ ,]/)[0] === exported)
    if (found === undefined) throw new Error(`cases.ts has no case for ${exported}`)
    const provider = found.make(found.parties[0].secret)
    return [provider.name, { factory, provider }] as const
  }),
)

const examples = readProviderExamples()

const bodyOf = ({ body }: Example) => (typeof body === 'string' ? body : JSON.stringify(body))

t.test('every provider has examples, or a reason why there are none', async (t) => {
  const written = [...examples.values()].map(({ provider }) => provider)
  t.strictSame([...written, ...Object.keys(UNPUBLISHED)].sort(), [...known.keys()].sort())
  for (const [file, { provider }] of examples) t.equal(file, `${provider}.json`)
})

for (const { provider: name, examples: published } of examples.values()) {
  t.test(`${name} names its events as its published requests need it`, async (t) => {
    const found = known.get(name)
    if (found === undefined) return t.fail('the library has no such provider')
    const { factory, provider } = found
    const open = { ...provider, scheme: OPEN }
    for (const example of published) {
      await t.test(example.title, async (t) => {
        const { source, checked, headers = {}, events, signed } = example
        t.match(source, /^https:\/\//)
        t.match(checked, /^\d{4}-\d\d-\d\d$/)
        const result = await verify(open, headers, bodyOf(example))
        if (result.kind !== 'verified') return t.fail(result.kind)
        t.strictSame(result.unreadable, [])
        t.strictSame(
          result.events.map(({ eventId, type, object }) => ({
            eventId: givenId(eventId),
            type,
            object,
          })),
          events,
        )
        if (signed === undefined) return
        const { options, ...rest } = signed
        const genuine = await verify(factory(options), headers, bodyOf(example), rest)
        t.equal(genuine.kind, 'verified', 'the published signature is genuine')
      })
    }
    t.test('two events have two ids', async (t) => {
      const named = new Map<string, string>()
      for (const example of published) {
        for (const { eventId } of example.events) {
          if (eventId === null) continue
          // The same request can be an example more than once, signed in different ways.
          t.equal(named.get(eventId) ?? bodyOf(example), bodyOf(example), eventId)
          named.set(eventId, bodyOf(example))
        }
        const ids = example.events.flatMap(({ eventId }) => eventId ?? [])
        t.strictSame(ids, [...new Set(ids)])
      }
    })
  })
}

t.test('docs/providers.md has the table that npm run docs:providers writes', async (t) => {
  const document = await readFile(new URL('../../../docs/providers.md', import.meta.url), 'utf8')
  t.equal(withExamples(document, examples.values()), document)
})
