import fc from 'fast-check'
import t from 'tap'
import {
  type Fingerprint,
  fingerprint,
  obstacleIn,
  ofRequest,
  ofValue,
  type RequestParts,
} from '../../src/core/fingerprint.js'

/** Of what can be compared as a whole. */
function exact(fingerprint: Fingerprint): string {
  if (fingerprint.kind !== 'exact') throw new TypeError(fingerprint.kind)
  return fingerprint.value
}

const fingerprintOf = (parts: RequestParts) => exact(fingerprint(ofRequest(parts)))
const fingerprintOfValue = (value: unknown) => exact(fingerprint(ofValue(value)))

const operation = (over: Partial<RequestParts> = {}): RequestParts => ({
  method: 'POST',
  route: '/payments/:id',
  params: { id: '1' },
  query: {},
  body: { amount: 1, to: { name: 'x', iban: 'y' } },
  ...over,
})
const base = fingerprintOf(operation())

t.test('is 43 characters that never change', async (t) => {
  t.equal(base, fingerprintOf(operation()))
  t.match(base, /^[\w-]{43}$/)
  // Pinned: a release that changes this makes every stored key a mismatch.
  t.equal(base, 'htJICsuvyirVsH8izMmtYTy0FLIWW9t0LMgHm7GWiaI')
})

t.test('does not depend on the order of keys', async (t) => {
  t.equal(fingerprintOf(operation({ body: { to: { iban: 'y', name: 'x' }, amount: 1 } })), base)
  t.equal(
    fingerprintOf(operation({ query: { a: '1', b: '2' } })),
    fingerprintOf(operation({ query: { b: '2', a: '1' } })),
  )
})

t.test('differs with everything that names the operation', async (t) => {
  const others = [
    operation({ method: 'PATCH' }),
    operation({ route: '/payments' }),
    operation({ params: { id: '2' } }),
    operation({ query: { a: '1' } }),
    operation({ body: { amount: 2, to: { name: 'x', iban: 'y' } } }),
    operation({ body: [1, 2] }),
    operation({ body: [2, 1] }),
    operation({ body: undefined }),
    operation({ body: '' }),
    operation({ body: {} }),
    operation({ body: '{}' }),
    operation({ body: Buffer.from('{}') }),
    operation({ body: 'none' }),
    operation({ body: 0 }),
    operation({ body: false }),
  ]
  t.equal(new Set([base, ...others.map(fingerprintOf)]).size, others.length + 1)
})

t.test('is equal for two JSON bodies exactly when they hold the same data', async () => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.jsonValue(), (a, b) => {
      const same = fingerprintOf(operation({ body: a })) === fingerprintOf(operation({ body: b }))
      return same === (canonical(a) === canonical(b))
    }),
  )
})

t.test('survives white space and another order, as a client may send them', async () => {
  fc.assert(
    fc.property(fc.dictionary(fc.string(), fc.jsonValue()), (value) => {
      const entries = Object.entries(value)
      const text = JSON.stringify(value)
      const other = `{ ${entries
        .reverse()
        .map(([k, v]) => `${JSON.stringify(k)} :\n${JSON.stringify(v, null, 2)}`)
        .join(' , ')} }`
      return (
        fingerprintOf(operation({ body: JSON.parse(text) })) ===
        fingerprintOf(operation({ body: JSON.parse(other) }))
      )
    }),
  )
})

t.test("takes an application's own value in place of all that", async (t) => {
  t.equal(fingerprintOfValue(['a', 1]), fingerprintOfValue(['a', 1]))
  t.not(fingerprintOfValue(['a', 1]), fingerprintOfValue(['a', 2]))
  t.not(fingerprintOfValue(undefined), fingerprintOfValue(null))
})

t.test('a body that is not compared is told from one that is not there', async (t) => {
  const { body: _, ...withoutBody } = operation()
  t.not(fingerprintOf(withoutBody), fingerprintOf(operation({ body: undefined })))
  t.not(fingerprintOf(operation({ body: null })), fingerprintOf(operation({ body: undefined })))
})

t.test('is of another kind for what cannot be compared as a whole', async (t) => {
  class Decimal {}
  const partial = fingerprint(ofRequest(operation({ body: { price: new Decimal() } })))
  t.match(partial, { kind: 'partial', value: /^[\w-]{43}$/, opaque: 'an instance of Decimal' })
  t.equal(obstacleIn(partial as never), 'an instance of Decimal')
  let body: unknown = 1
  for (let level = 0; level < 100; level += 1) body = [body, body]
  const repetitive = fingerprint(ofRequest(operation({ body })))
  t.strictSame(repetitive, { kind: 'repetitive' })
  t.match(obstacleIn(repetitive as never), /repetitions/)
})

t.test(
  'numbers that JSON.parse makes one number of are one number, as they are for the handler',
  async (t) => {
    for (const [one, other] of [
      ['9007199254740992', '9007199254740993'],
      ['0.1', '0.10000000000000001'],
      ['1e999', '2e999'],
      ['1', '1.0'],
    ] as const) {
      const body = (number: string) => JSON.parse(`{"amount":${number}}`)
      t.equal(
        fingerprintOf(operation({ body: body(one) })),
        fingerprintOf(operation({ body: body(other) })),
      )
    }
    t.not(
      fingerprintOf(operation({ body: JSON.parse('[1e999]') })),
      fingerprintOf(operation({ body: [null] })),
    )
  },
)

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join()}]`
  if (Object.is(value, -0)) return '-0'
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${entries.map(([k, v]) => `${JSON.stringify(k)}:${canonical(v)}`).join()}}`
}
