import t from 'tap'
import { defineFlow } from '../../src/status/define-flow.js'

t.test('a flow that contradicts itself is refused when it is defined', async (t) => {
  const refused = { code: 'IDEMPOTENCY_OPTION_INVALID' }
  t.throws(() => defineFlow({ name: 'order', levels: { placed: 0, paid: 1 } }), {
    ...refused,
    message: /the flow "order" leads nowhere from 'paid': name it in terminal/,
  })
  t.throws(() => defineFlow({ levels: { placed: 0 }, terminal: ['paid'] as never[] }), refused)
  for (const [options, message] of [
    [undefined, /options of defineFlow must be an object/],
    [{}, /the flow has no statuses/],
    [
      { level: {} },
      /option "level" of defineFlow is not known; did you mean "levels"\? The options are name/,
    ],
    [{ name: '' }, /option "name" of defineFlow must be text/],
    [{ levels: { a: '1' } }, /must be numbers by status/],
    [{ levels: { a: Number.NaN } }, /must be numbers by status/],
    [{ levels: ['a'] }, /must be numbers by status/],
    [{ transitions: { a: 'b' } }, /must be lists by status/],
    [{ transitions: { a: [1] } }, /must be lists by status/],
    [{ initial: 1 }, /must be a status, or a list/],
    [{ terminal: 'paid' }, /must be a list of statuses/],
  ] as const) {
    t.throws(() => defineFlow(options as object), { ...refused, message }, `${message}`)
  }
})

t.test('the names of a flow are known to the compiler', async (t) => {
  const flow = defineFlow({
    levels: { placed: 0, paid: 1 },
    transitions: { paid: ['disputed', 'lost'], disputed: ['paid', 'lost'] },
    terminal: ['lost'],
  })
  const sources: readonly ('placed' | 'paid' | 'disputed' | 'lost')[] = flow.sources('lost')
  t.strictSame(sources, ['paid', 'disputed'])
  // @ts-expect-error: no status of the flow
  t.strictSame(flow.sources('played'), [])
  // @ts-expect-error: nor is this one
  t.throws(() => defineFlow({ levels: { on: 0, off: 1 }, terminal: ['of'] }))
})
