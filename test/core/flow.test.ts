import fc from 'fast-check'
import t from 'tap'
import { createFlow, type Flow, type Move } from '../../src/core/flow.js'
import type { FlowDefinition } from '../../src/core/flow-graph.js'
import { flowProblem } from '../../src/core/flow-problem.js'
import { randomFlow } from '../fixtures/flows.js'

const payment = createFlow({
  name: 'payment',
  levels: { pending: 0, authorized: 1, succeeded: 2, failed: 2, refunded: 3 },
  terminal: ['failed', 'refunded'],
})
const subscription = createFlow({
  transitions: {
    trial: ['active', 'cancelled'],
    active: ['paused', 'cancelled'],
    paused: ['active', 'cancelled'],
  },
  terminal: ['cancelled'],
})

const told = (move: Move) => (move.kind === 'blocked' ? move.why : move.kind)

t.test('levels lead to every higher one, and out of no terminal status', async (t) => {
  t.strictSame(payment.statuses, ['pending', 'authorized', 'succeeded', 'failed', 'refunded'])
  t.strictSame(payment.initial, ['pending'])
  t.strictSame(payment.sources('pending'), [])
  t.strictSame(payment.sources('succeeded'), ['pending', 'authorized'])
  t.strictSame(payment.sources('failed'), ['pending', 'authorized'])
  t.strictSame(payment.sources('refunded'), ['pending', 'authorized', 'succeeded'])
})

t.test('transitions lead to what they name, and nowhere else', async (t) => {
  t.strictSame(subscription.statuses, ['trial', 'active', 'cancelled', 'paused'])
  t.strictSame(subscription.sources('active'), ['trial', 'paused'])
  t.strictSame(subscription.sources('paused'), ['active'])
  t.strictSame(subscription.sources('trial'), [])
  t.strictSame(subscription.sources('cancelled'), ['trial', 'active', 'paused'])
})

t.test('of a flow with both, a status that has transitions goes by them alone', async (t) => {
  const order = createFlow({
    levels: { placed: 0, paid: 1, shipped: 2, delivered: 3 },
    transitions: { paid: ['shipped', 'disputed'], disputed: ['paid', 'lost'] },
    terminal: ['delivered', 'lost'],
  })
  t.strictSame(order.sources('disputed'), ['paid'])
  t.strictSame(order.sources('delivered'), ['placed', 'shipped'])
  t.strictSame(order.sources('paid'), ['placed', 'disputed'])
})

t.test(
  'what does not advance is unchanged, or blocked for the first reason that applies',
  async (t) => {
    for (const [flow, from, to, isOlder, expected] of [
      [payment, 'pending', 'succeeded', false, 'advance'],
      [payment, 'pending', 'pending', false, 'unchanged'],
      [payment, 'failed', 'failed', true, 'unchanged'],
      [payment, 'failed', 'refunded', true, 'terminal'],
      [payment, 'failed', 'pending', false, 'terminal'],
      [payment, 'pending', 'succeeded', true, 'older'],
      [payment, 'succeeded', 'pending', true, 'older'],
      [payment, 'succeeded', 'authorized', false, 'backward'],
      [payment, 'succeeded', 'failed', false, 'not allowed'],
      [payment, 'lost', 'succeeded', false, 'not allowed'],
      [payment, '', 'pending', false, 'not allowed'],
      [payment, '__proto__', 'succeeded', false, 'not allowed'],
      [subscription, 'trial', 'paused', false, 'not allowed'],
      [subscription, 'paused', 'trial', false, 'backward'],
      [subscription, 'paused', 'active', true, 'older'],
    ] as const satisfies [Flow, string, string, boolean, string][]) {
      t.equal(told(flow.decide(from, to, isOlder)), expected, `${from} → ${to}, older: ${isOlder}`)
    }
  },
)

t.test('a definition that contradicts itself is refused with what to write instead', async (t) => {
  const levels = { pending: 0, paid: 1 }
  const terminal = ['paid']
  for (const [definition, problem] of [
    [{}, /no statuses: give it levels such as/],
    [{ levels: {} }, /no statuses/],
    [{ levels: { ...levels, '': 1 }, terminal }, /1 to 191 characters/],
    [{ levels: { ...levels, ['x'.repeat(192)]: 1 }, terminal }, /1 to 191 characters/],
    [{ levels: { ...levels, 'a\0': 1 }, terminal }, /no NUL/],
    [{ levels, terminal: ['payed'] }, /'payed' in terminal, and in neither levels nor transitions/],
    [{ levels, terminal, initial: 'new' }, /'new' in initial/],
    [{ levels, terminal, initial: [] }, /no status in initial/],
    [{ levels, terminal: ['paid', 'paid'] }, /'paid' twice in terminal/],
    [{ levels, terminal, initial: ['paid', 'paid'] }, /'paid' twice in initial/],
    [{ transitions: { a: ['b', 'b'] }, terminal: ['b'] }, /'b' twice in transitions.a/],
    [{ transitions: { a: ['a', 'b'] }, terminal: ['b'] }, /from 'a' to itself.*'unchanged'/],
    [{ transitions: { a: ['b'], b: ['a'] }, terminal: ['b'] }, /'b' is terminal: leave out/],
    [{ levels }, /nowhere from 'paid': name it in terminal/],
    [{ transitions: { a: ['b', 'c'] }, terminal: ['b'] }, /nowhere from 'c'/],
    [{ transitions: { a: ['b'], b: [] } }, /nowhere from 'b'/],
    [
      { transitions: { a: ['b'], c: ['b'] }, terminal: ['b'] },
      /never leads to 'c': name it in initial/,
    ],
    [{ levels: { b: 1, a: 0 }, terminal: ['b'] }, /never leads to 'a'/],
  ] as const satisfies [FlowDefinition, RegExp][]) {
    t.match(flowProblem(definition), problem, JSON.stringify(definition).slice(0, 100))
  }
})

t.test('a definition without contradictions is taken', async (t) => {
  const terminal = ['paid']
  for (const definition of [
    { levels: { pending: 0, paid: 1 }, terminal },
    { levels: { failed: -1, pending: 0.5, paid: 1 }, terminal, initial: ['failed', 'pending'] },
    { transitions: { active: ['paused'], paused: ['active'] } },
    { transitions: { pending: ['paid'], paid: [] }, terminal },
    { levels: { only: 0 }, terminal: ['only'] },
    { levels: { constructor: 0, ['__proto__']: 1, toString: 2 }, terminal: ['toString'] },
  ] satisfies FlowDefinition[]) {
    t.equal(flowProblem(definition), undefined, JSON.stringify(definition))
  }
})

t.test('a flow is drawn with every way, and with its ends', async (t) => {
  t.equal(
    createFlow({
      name: 'payment',
      levels: { pending: 0, authorized: 1, succeeded: 2, failed: 2 },
      terminal: ['succeeded', 'failed'],
    }).toMermaid(),
    `---
title: "payment"
---
stateDiagram-v2
  [*] --> pending
  pending --> authorized
  pending --> succeeded
  pending --> failed
  authorized --> succeeded
  authorized --> failed
  succeeded --> [*]
  failed --> [*]
`,
  )
  t.equal(
    createFlow({ transitions: { 'in "review"': ['end'] }, terminal: ['end'] }).toMermaid(),
    `stateDiagram-v2
  state "in #34;review#34;" as s0
  state "end" as s1
  [*] --> s0
  s0 --> s1
  s1 --> [*]
`,
    'names that Mermaid would not read stand beside the picture',
  )
})

// The part of Mermaid's grammar that a picture uses: an alias with a quoted label, and an arrow between
// two identifiers. `<<fork>>`, `[[choice]]`, `%%{…}%%` and their like mean something within a label, too.
const LABEL = /^ {2}state "((?:[\p{L}\p{N} _.,-]|#\d+;)*)" as (s\d+)$/u
const ARROW = /^ {2}(\[\*\]|[A-Za-z]\w*) --> (\[\*\]|[A-Za-z]\w*)$/
const KEYWORDS = /^(as|end|note|state|class|classDef|click|default|direction|root_(start|end))$/i

/** The arrows of a picture, between the names of statuses. */
function arrowsOf(picture: string): string[][] {
  const [head, ...lines] = picture.trimEnd().split('\n')
  if (head !== 'stateDiagram-v2') throw new Error(`no picture: ${head}`)
  const labels = new Map<string, string>()
  const arrows: string[][] = []
  for (const line of lines) {
    const [, label, id] = LABEL.exec(line) ?? []
    if (label !== undefined && id !== undefined) {
      labels.set(
        id,
        label.replace(/#(\d+);/g, (_, code) => String.fromCodePoint(Number(code))),
      )
      continue
    }
    const [, from, to] = ARROW.exec(line) ?? []
    if (from === undefined || to === undefined) throw new Error(`no line of a picture: ${line}`)
    if (KEYWORDS.test(from) || KEYWORDS.test(to)) throw new Error(`a keyword: ${line}`)
    arrows.push([labels.get(from) ?? from, labels.get(to) ?? to])
  }
  return arrows
}

t.test('every flow is drawn with the names that it has, whatever they are', async (t) => {
  const odd = [
    ...[
      '<<fork>>',
      'a <<choice>>',
      '[[join]]',
      '%%{init: {}}%%',
      '%% note',
      'root_start',
      'root_end',
    ],
    ...[
      'end',
      'note',
      'State',
      'a:b',
      'a --> b',
      '[*]',
      '"',
      '#35;',
      'a;b',
      '{',
      '}',
      '\r',
      'a\nb',
    ],
    ...[
      '\u2028',
      '\u0085',
      '<b>',
      '&amp;',
      '日本',
      '𝒳',
      '\\',
      '`',
      ' ',
      '__proto__',
      'constructor',
    ],
  ]
  for (const status of odd) {
    const flow = createFlow({ transitions: Object.fromEntries([[status, ['done']]]) })
    const arrows = [
      ['[*]', status],
      [status, 'done'],
    ]
    t.strictSame(arrowsOf(flow.toMermaid()), arrows, encodeURIComponent(status))
  }
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.string({ unit: 'grapheme', minLength: 1 }), { minLength: 2 }),
      (names) => {
        const levels = Object.fromEntries(names.map((name, level) => [name, level]))
        const expected = new Set(Object.keys(levels))
        const drawn = new Set(arrowsOf(createFlow({ levels }).toMermaid()).flat())
        drawn.delete('[*]')
        t.strictSame(drawn, expected)
      },
    ),
    { numRuns: 50 },
  )
})

/** All orders of a list. */
function permutations<T>(list: readonly T[]): T[][] {
  if (list.length === 0) return [[]]
  return list.flatMap((item, place) =>
    permutations(list.toSpliced(place, 1)).map((rest) => [item, ...rest]),
  )
}

interface Event {
  to: string
  at?: number
}

/** What becomes of an entity when events arrive in this order. */
function after(flow: Flow, first: string, events: readonly Event[]): string {
  let status = first
  let appliedAt = Number.NEGATIVE_INFINITY
  for (const { to, at } of events) {
    const { kind } = flow.decide(status, to, at !== undefined && at < appliedAt)
    if (kind === 'blocked') continue
    status = to
    appliedAt = Math.max(appliedAt, at ?? appliedAt)
  }
  return status
}

t.test("all orders of a payment's events, with duplicates, end in the same status", async (t) => {
  const events = ['pending', 'authorized', 'succeeded', 'refunded', 'authorized', 'succeeded']
  const orders = permutations(events.map((to) => ({ to })))
  t.equal(orders.length, 720)
  t.strictSame([...new Set(orders.map((order) => after(payment, 'pending', order)))], ['refunded'])
})

t.test(
  'told when they happened, events of a flow that goes round end in the last one',
  async (t) => {
    const events = [
      { to: 'active', at: 1 },
      { to: 'paused', at: 2 },
      { to: 'active', at: 3 },
      { to: 'paused', at: 4 },
      { to: 'active', at: 5 },
      { to: 'paused', at: 2 },
    ]
    const ends = new Set(permutations(events).map((order) => after(subscription, 'active', order)))
    t.strictSame([...ends], ['active'])
  },
)

t.test('no random flow goes backward, or out of a terminal status', async () => {
  fc.assert(
    fc.property(randomFlow, fc.infiniteStream(fc.nat()), (definition, chance) => {
      const flow = createFlow(definition)
      let status = flow.initial[0] as string
      for (let step = 0; step < 30; step += 1) {
        const to = flow.statuses[(chance.next().value ?? 0) % flow.statuses.length] as string
        const move = flow.decide(status, to)
        const isSource = flow.sources(to).includes(status)
        if (isSource !== (move.kind === 'advance')) return false
        if ((move.kind === 'unchanged') !== (status === to)) return false
        if (move.kind !== 'advance') continue
        if (flow.terminal.includes(status)) return false
        const [level, next] = [definition.levels?.[status], definition.levels?.[to]]
        const hasTransitions = Object.hasOwn(definition.transitions ?? {}, status)
        if (!hasTransitions && !(Number(next) > Number(level))) return false
        if (hasTransitions && !definition.transitions?.[status]?.includes(to)) return false
        status = to
      }
      return true
    }),
  )
})

t.test('every order of distinct levels ends at the highest that was told', async () => {
  const statuses = ['a', 'b', 'c', 'd', 'e', 'f']
  const flow = createFlow({
    levels: Object.fromEntries(statuses.map((status, level) => [status, level])),
    terminal: ['f'],
  })
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...statuses), { minLength: 1 }), (events) => {
      const highest = [...events, 'a'].sort().at(-1)
      return (
        after(
          flow,
          'a',
          events.map((to) => ({ to })),
        ) === highest
      )
    }),
  )
})
