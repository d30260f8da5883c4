// What a client can send to make the fingerprint slow.
import { createHash } from 'node:crypto'
import t from 'tap'
import { fingerprint, ofRequest } from '../../src/core/fingerprint.js'
import { processorMs } from '../fixtures/turn-meter.js'

const MIB = 1024 * 1024

/** As much of it as there is place for in 1 MiB of JSON. */
const filled = (part: string, start = '[', end = '1]') =>
  start + part.repeat(Math.floor((MIB - 4) / Buffer.byteLength(part))) + end

const nested = (open: string, close: string, core = '1') => {
  const depth = Math.floor((MIB - core.length) / (open.length + close.length))
  return open.repeat(depth) + core + close.repeat(depth)
}

/** An object of as many keys as fit, in no order. */
const keyed = (length: number) => {
  const count = Math.floor(MIB / (length + 5))
  const keys = new Set<string>()
  for (let n = 1; keys.size < count; n += 1) {
    keys.add(((n * 2_654_435_761) % 2 ** 32).toString(36).padStart(length, 'x').slice(-length))
  }
  return `{${[...keys].map((key) => `"${key}":1`).join()}}`
}

const payment = (n: number) => ({
  id: `pay_${String(n).padStart(12, 'x')}`,
  amount: n * 7,
  currency: 'EUR',
  note: 'an invoice of last month',
  to: { iban: `DE${n}` },
})

const plain = JSON.stringify(Array.from({ length: 9_100 }, (_, n) => payment(n)))

const hostile: Record<string, string> = {
  'arrays in arrays': nested('[', ']'),
  'arrays in arrays that go on': nested('[', ',1]'),
  'objects in objects': nested('{"a":', '}'),
  'objects in objects that go on': nested('{"a":', ',"b":1}'),
  numbers: filled('1,'),
  fractions: filled('0.1,'),
  'empty arrays': filled('[],'),
  'empty objects': filled('{},'),
  'empty texts': filled('"",'),
  'short texts': filled('"é",'),
  'long texts': filled(`"${'x'.repeat(49)}",`),
  'lone surrogates': filled('\\ud800', '"', '"'),
  'one text': filled('€'.repeat(1_000), '"', '"'),
  'small objects': filled('{"b":1,"a":1},'),
  'objects with keys in reverse order': filled(
    `{${[...'zyxwvutsrqponmlkjihgfedcba'].map((key) => `"${key}":1`).join()}},`,
  ),
  'an object of short keys': keyed(5),
  'an object of long keys': keyed(1_000),
  'an object of numbers for keys': `{${Array.from({ length: 95_000 }, (_, n) => `"${(n * 7_919_003) % 999_983}":1`).join()}}`,
}

const parts = { method: 'POST', route: '/payments', params: {}, query: {} }

/** Processor time of the thread that other requests wait for; what other processes take is not in it. */
function costOf(task: () => unknown): number {
  const before = processorMs()
  task()
  return processorMs() - before
}

/** The other rounds compiled or collected garbage; and some systems count in steps of 4 ms. */
function lesserHalf(costs: readonly number[]): number {
  const least = costs.toSorted((a, b) => a - b).slice(0, costs.length / 2)
  return least.reduce((sum, cost) => sum + cost, 0)
}

/**
 * A large object whose keys are numbers costs 2.2 to 3.1 times what it costs to parse it, as measured here.
 * Work that is not linear in the size costs tens of times as much.
 */
const MOST = 5

t.test('no body of a size costs much more than any other, or than to parse it', async (t) => {
  t.equal(Math.round(plain.length / MIB), 1)
  for (const [name, text] of Object.entries(hostile)) {
    t.equal(Math.round(Buffer.byteLength(text) / MIB), 1, name)
    // As for a request, and side by side.
    const costs = { plain: [] as number[], parse: [] as number[], hostile: [] as number[] }
    for (let round = 0; round < 10; round += 1) {
      const plainBody: unknown = JSON.parse(plain)
      let body: unknown
      costs.plain.push(costOf(() => fingerprint(ofRequest({ ...parts, body: plainBody }))))
      costs.parse.push(
        costOf(() => {
          body = JSON.parse(text)
        }),
      )
      costs.hostile.push(costOf(() => fingerprint(ofRequest({ ...parts, body }))))
    }
    const cost = {
      plain: lesserHalf(costs.plain),
      parse: lesserHalf(costs.parse),
      hostile: lesserHalf(costs.hostile),
    }
    const most = MOST * Math.max(cost.plain, cost.parse)
    t.ok(cost.hostile <= most, `${name}: ${JSON.stringify(cost)}`)
  }
})

t.test('a file costs what it costs to hash its bytes', async (t) => {
  const file = Buffer.alloc(16 * MIB, 'x')
  // As @fastify/multipart has it, and as a text that a parser made of it.
  const bodies = {
    'a buffer': { file, name: 'invoice.pdf' },
    'a view of its bytes': { file: new Uint8Array(file.buffer, file.byteOffset, MIB * 16) },
    'a text': { file: file.toString('latin1') },
  }
  for (const [name, body] of Object.entries(bodies)) {
    const costs = { hash: [] as number[], file: [] as number[] }
    for (let round = 0; round < 6; round += 1) {
      costs.hash.push(costOf(() => createHash('sha256').update(file).digest()))
      costs.file.push(costOf(() => fingerprint(ofRequest({ ...parts, body }))))
    }
    const cost = { hash: lesserHalf(costs.hash), file: lesserHalf(costs.file) }
    t.ok(cost.file <= 3 * cost.hash, `${name}: ${JSON.stringify(cost)}`)
  }
  const before = process.memoryUsage()
  fingerprint(ofRequest({ ...parts, body: bodies['a buffer'] }))
  const after = process.memoryUsage()
  const grownBy = after.heapUsed - before.heapUsed + after.arrayBuffers - before.arrayBuffers
  t.ok(grownBy < 2 * MIB, `${grownBy} bytes of memory`)
})
