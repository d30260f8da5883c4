import t from 'tap'
import { Steps, type StepsContext } from '../../src/claims/steps.js'
import type { StepResults } from '../../src/core/record.js'
import type { PrismaClientLike } from '../../src/store/client.js'
import { latch } from '../fixtures/app.js'

/** What stands in the row that the results are written to. */
interface Row {
  steps: StepResults
  isHeld: boolean
  isFinal: boolean
}

/** A client whose transactions commit what `write` was told in them, or nothing. */
class FakeClient {
  committed: string[] = []
  failures: string[] = []
  options: unknown[] = []

  async $transaction(fn: (tx: unknown) => Promise<unknown>, options: unknown): Promise<unknown> {
    this.options.push(options)
    const written: string[] = []
    const value = await fn({ write: (text: string) => written.push(text) })
    const failure = this.failures.shift()
    if (failure !== undefined) throw Object.assign(new Error('rolled back'), { code: failure })
    this.committed.push(...written)
    return value
  }
}

function keep(row: Row, results: StepResults, isFinal: boolean): boolean {
  if (!row.isHeld) return false
  row.steps = results
  row.isFinal ||= isFinal
  return true
}

function stepsOf(row: Row, client = new FakeClient()): { steps: Steps; client: FakeClient } {
  const prisma = client as unknown as PrismaClientLike
  const steps = new Steps({
    prisma,
    operationId: 'operation',
    earlier: row.steps,
    keep: async (results) => keep(row, results, false),
    prepare: async (isFinal) => async (_, results) => keep(row, results, isFinal),
  })
  return { steps, client }
}

/** The steps of a first attempt whose results are stored by `keep`. */
const stepsKeptBy = (keep: StepsContext['keep'], operationId = 'operation'): Steps =>
  new Steps({
    prisma: new FakeClient() as unknown as PrismaClientLike,
    ...{ operationId, earlier: {}, keep },
    prepare: async () => (_, results) => keep(results),
  })

/** The names of what is stored, outside of any part. */
const namesIn = ({ steps }: Row) =>
  Object.keys(steps)
    .map((path) => (JSON.parse(path) as string[]).join())
    .sort()

const fresh = (): Row => ({ steps: {}, isHeld: true, isFinal: false })

t.test('a step runs once over all attempts, and later ones get its result', async (t) => {
  const row = fresh()
  let runs = 0
  const charge = () => {
    runs += 1
    return { id: 'ch_1', at: new Date(7), cents: 12n, token: Buffer.from('a') }
  }
  const first = await stepsOf(row).steps.step('charge', charge)
  const second = await stepsOf(row).steps.step('charge', charge)
  t.strictSame(second, first)
  t.strictSame(second, { id: 'ch_1', at: new Date(7), cents: 12n, token: Buffer.from('a') })
  t.equal(second.token.toString('hex'), '61')
  t.equal(runs, 1)
})

t.test('a step that returns nothing is done all the same', async (t) => {
  const row = fresh()
  let runs = 0
  const mail = () => {
    runs += 1
  }
  await stepsOf(row).steps.step('mail', mail)
  t.equal(await stepsOf(row).steps.step('mail', mail), undefined)
  t.equal(runs, 1)
})

t.test(
  'a step that fails is not stored, its error is the caller’s, and it may be tried again',
  async (t) => {
    const row = fresh()
    const { steps } = stepsOf(row)
    const error = new Error('declined')
    await t.rejects(
      steps.step('charge', () => {
        throw error
      }),
      error,
    )
    t.strictSame(row.steps, {})
    t.equal(await steps.step('charge', () => 'accepted'), 'accepted')
  },
)

t.test('steps side by side are all kept', async (t) => {
  const row = fresh()
  const { steps } = stepsOf(row)
  const names = Array.from({ length: 20 }, (_, n) => `step ${n}`)
  await Promise.all(names.map((name, n) => steps.step(name, () => n)))
  t.strictSame(namesIn(row), names.sort())
})

t.test('a step may be begun while the result of another one is being written', async (t) => {
  const row = fresh()
  const writing = latch()
  const go = latch()
  const steps = stepsKeptBy(async (results) => {
    writing.open()
    await go.opened
    row.steps = results
    return true
  })
  const charge = steps.step('charge', () => 'charged')
  await writing.opened
  const mail = steps.step('mail', () => 'mailed')
  go.open()
  t.strictSame(await Promise.all([charge, mail]), ['charged', 'mailed'])
  t.strictSame(namesIn(row), ['charge', 'mail'])
})

t.test('every step needs a name of its own', async (t) => {
  const { steps } = stepsOf(fresh())
  await steps.step('charge', () => 1)
  const refused = { code: 'IDEMPOTENCY_STEP_NAME_USED', message: /"charge"/ }
  await t.rejects(
    steps.step('charge', () => 2),
    refused,
  )
  await t.rejects(
    steps.transaction(async () => 2, { name: 'charge' }),
    refused,
  )
})

t.test('a name that cannot be stored as it is, is refused before anything runs', async (t) => {
  const { steps } = stepsOf(fresh())
  const refused = { code: 'IDEMPOTENCY_STEP_NAME_INVALID' }
  const unusable = ['', 'a\0b', '\ud800', 'a\udfffb', 'x'.repeat(256), 7, undefined, {}, ['a']]
  for (const name of unusable as string[]) {
    await t.rejects(
      steps.step(name, () => t.fail('it ran')),
      refused,
    )
    await t.rejects(
      steps.part(name, () => t.fail('it ran')),
      refused,
    )
    t.throws(() => steps.keyFor(name), refused)
    // Without a name it has its own.
    if (name === undefined) continue
    await t.rejects(
      steps.transaction(async () => t.fail('it ran'), { name }),
      refused,
    )
  }
})

t.test(
  'a step or transaction without a function is refused, and its name stays free',
  async (t) => {
    const { steps, client } = stepsOf(fresh())
    const invalid = { code: 'IDEMPOTENCY_OPTION_INVALID' }
    await t.rejects(steps.step('charge', undefined as never), invalid)
    await t.rejects(steps.transaction(undefined as never, { name: 'charge' }), invalid)
    for (const options of ['Serializable', null])
      await t.rejects(
        steps.transaction(async () => 1, options as never),
        invalid,
      )
    t.strictSame(client.options, [])
    t.equal(await steps.step('charge', () => 1), 1)
    t.equal(await steps.transaction(async () => 2), 2)
  },
)

t.test('no name of a step leads to the result of another one', async (t) => {
  const row = fresh()
  const { steps } = stepsOf(row)
  const keys: string[] = []
  const done = (result: string) => () => {
    keys.push(steps.keyFor(result))
    return result
  }
  await steps.part('a', () => steps.step('b', () => keys.push(steps.keyFor('key')) && 'b of a'))
  for (const name of ['a › b', '["a","b"]', 'a","b', 'a,b', 'a\nb']) {
    t.equal(await steps.step(name, () => keys.push(steps.keyFor(`${name} › key`)) && name), name)
  }
  const again = stepsOf(row).steps
  t.equal(await again.part('a', done('done again')), 'b of a')
  t.equal(await again.step('a › b', done('done again')), 'a › b')
  t.equal(await again.step('b', done('b')), 'b', 'the one within the part is another one')
  t.equal(new Set(keys).size, keys.length, 'and each has a key of its own')
})

t.test('what cannot be stored is refused at once, and says where it stands', async (t) => {
  class Money {}
  const says = (message: RegExp) => ({ code: 'IDEMPOTENCY_STEP_NOT_STORABLE', message })
  const { steps, client } = stepsOf(fresh())
  const refused = { code: 'IDEMPOTENCY_STEP_NOT_STORABLE' }
  await t.rejects(
    steps.step('a', () => () => {}),
    says(/The result of step "a" cannot be stored for a later attempt: it is a function\./),
  )
  await t.rejects(
    steps.step('b', () => ({ price: new Money() })),
    says(/: `\.price` is an instance of Money\./),
  )
  await t.rejects(
    steps.transaction(async (tx) => {
      Reflect.get(tx, 'write').call(tx, 'effect')
      return new Money()
    }),
    says(/The result of transaction "transaction" cannot be .*: it is an instance of Money\./),
  )
  await t.rejects(
    steps.step('d', () => new Map([['canary', { 'a canary': [Symbol('canary')] }]])),
    says(/: `\.get\(…\)\[…\]\[0\]` is a symbol\./),
  )
  await t.rejects(
    steps.step('e', () => ({ [Symbol('canary')]: 1 })),
    says(/: it has symbols as keys\./),
  )
  class Request {}
  await t.rejects(
    steps.step('f', () => [Object.assign(new Request(), { [Symbol('canary')]: 1 })]),
    says(/: `\[0\]` is an instance of Request\./),
  )
  const withoutPrototype = Object.assign(Object.create(null), { [Symbol('canary')]: 1 })
  await t.rejects(
    steps.step('g', () => withoutPrototype),
    says(/: it has symbols as keys\./),
  )
  const hidden = Object.defineProperty({}, 'price', {
    enumerable: true,
    get() {
      throw new Error('canary of the value')
    },
  })
  const error = await steps.step('c', () => hidden).catch((error) => error)
  t.match(error, refused)
  t.notMatch(error.message, /canary/)
  await t.rejects(
    steps.step('d', () => JSON.parse('{ "__proto__": 1 }')),
    refused,
  )
  t.strictSame(client.committed, [], 'the effects are undone with it')
})

t.test('an attempt that was taken over keeps nothing and commits nothing', async (t) => {
  const row = { ...fresh(), isHeld: false }
  const { steps, client } = stepsOf(row)
  const lost = { code: 'IDEMPOTENCY_LEASE_LOST' }
  await t.rejects(
    steps.step('charge', () => 1),
    lost,
  )
  await t.rejects(
    steps.transaction(async (tx) => Reflect.get(tx, 'write').call(tx, 'effect')),
    lost,
  )
  t.strictSame(client.committed, [])
})

/** Steps that are told in turn whether their attempt holds its lease; after the last answer it does. */
const stepsWhoseLeaseIs = (answers: (boolean | Promise<boolean>)[]): Steps =>
  new Steps({
    prisma: new FakeClient() as unknown as PrismaClientLike,
    ...{ operationId: 'operation', earlier: {} },
    keep: async () => true,
    prepare: async () => async () => true,
    isHeld: () => answers.shift() ?? true,
  })

t.test('nothing is begun while another attempt may have the operation', async (t) => {
  const answers: (boolean | Promise<boolean>)[] = [false, Promise.resolve(false)]
  const steps = stepsWhoseLeaseIs(answers)
  const lost = { code: 'IDEMPOTENCY_LEASE_LOST' }
  await t.rejects(
    steps.step('charge', () => t.fail('it is not run')),
    lost,
  )
  await t.rejects(
    steps.transaction(async () => t.fail('it is not run')),
    lost,
  )
  answers.push(Promise.resolve(true), Promise.resolve(true))
  t.equal(await steps.step('charge', () => 'charged'), 'charged', 'it is held again')
  const mailed = steps.step('mail', () => t.fail('the handler ended while it was asked'))
  steps.close()
  await t.rejects(mailed, { code: 'IDEMPOTENCY_STEP_TOO_LATE' })
})

t.test('a step is refused beside a transaction that waits to begin', async (t) => {
  const go = latch()
  const steps = stepsWhoseLeaseIs([go.opened.then(() => true)])
  const transaction = steps.transaction(async () => 'committed')
  await t.rejects(
    steps.step('charge', () => 1),
    { code: 'IDEMPOTENCY_TRANSACTION_OPEN' },
  )
  go.open()
  t.equal(await transaction, 'committed')
})

t.test('a transaction that the database rolled back is run again, not for ever', async (t) => {
  const row = fresh()
  const client = new FakeClient()
  client.failures.push('P2034', '40P01')
  const { steps } = stepsOf(row, client)
  let runs = 0
  await steps.transaction(
    async (tx) => {
      runs += 1
      Reflect.get(tx, 'write').call(tx, `effect ${runs}`)
    },
    { isolationLevel: 'Serializable', timeout: 9_000 },
  )
  t.strictSame(client.committed, ['effect 3'])
  t.strictSame(client.options[0], { isolationLevel: 'Serializable', timeout: 9_000 })

  client.failures.push(...new Array<string>(20).fill('40001'))
  runs = 0
  const again = stepsOf(fresh(), client).steps
  await t.rejects(
    again.transaction(async () => {
      runs += 1
    }),
    { code: 'IDEMPOTENCY_DATABASE_FAILED', cause: { code: '40001' } },
  )
  t.equal(runs, 10)
})

t.test('any other error of the database ends a transaction at once', async (t) => {
  for (const [failure, code] of [
    ['P1017', 'IDEMPOTENCY_DATABASE_FAILED'],
    // A constraint that is looked at when it commits.
    ['P2002', 'IDEMPOTENCY_DATA_REFUSED'],
  ] as const) {
    const client = new FakeClient()
    client.failures.push(failure)
    let runs = 0
    await t.rejects(
      stepsOf(fresh(), client).steps.transaction(async () => {
        runs += 1
      }),
      { code, cause: { code: failure } },
    )
    t.equal(runs, 1)
  }
})

t.test('nothing else is begun while a transaction is open', async (t) => {
  const { steps } = stepsOf(fresh())
  const open = { code: 'IDEMPOTENCY_TRANSACTION_OPEN' }
  const began = latch()
  const go = latch()
  const outer = steps.transaction(async () => {
    await t.rejects(
      steps.transaction(async () => 1, { name: 'nested' }),
      open,
    )
    await t.rejects(
      steps.step('nested step', () => 1),
      open,
    )
    began.open()
    await go.opened
    return 1
  })
  await began.opened
  await t.rejects(
    steps.transaction(async () => 1, { name: 'beside' }),
    open,
  )
  go.open()
  t.equal(await outer, 1)
  t.equal(await steps.transaction(async () => 2, { name: 'after' }), 2)
})

t.test('a transaction that could wait for a step is refused, and the step is kept', async (t) => {
  const row = fresh()
  const { steps, client } = stepsOf(row)
  const open = { code: 'IDEMPOTENCY_TRANSACTION_OPEN' }
  const go = latch()
  const step = steps.step('slow', () => go.opened.then(() => 'slow'))
  await t.rejects(
    steps.transaction(() => step),
    open,
    'it would wait for the step, and the step for its commit',
  )
  await t.rejects(
    steps.transaction(async () => go.open()),
    open,
    'the step waits for the transaction',
  )
  go.open()
  t.equal(await step, 'slow')
  t.strictSame([namesIn(row), client.options], [['slow'], []], 'no transaction was begun')
  t.equal(await steps.transaction(() => step), 'slow', 'now it is over')
})

t.test('a transaction within a part waits for nothing but what is within it', async (t) => {
  const row = fresh()
  const { steps } = stepsOf(row)
  const open = { code: 'IDEMPOTENCY_TRANSACTION_OPEN' }
  const go = latch()
  const mail = steps.step('mail', () => go.opened)
  const book = () => steps.transaction(async () => 'booked')
  await t.rejects(steps.part('pay', book), open, 'a step outside is in flight')
  go.open()
  await mail
  const part = steps.part('pay', async () => {
    const booked = await book()
    const charge = steps.step('charge', () => 'charged')
    await t.rejects(
      steps.transaction(() => charge, { name: 'second' }),
      open,
      'a step inside is in flight',
    )
    return [booked, await charge]
  })
  await t.rejects(
    steps.transaction(() => part),
    open,
    'the part is in flight',
  )
  t.strictSame(await part, ['booked', 'charged'])
})

t.test('one part at a time: not two side by side, nor one within another', async (t) => {
  const { steps } = stepsOf(fresh())
  const open = { code: 'IDEMPOTENCY_RUN_OPEN' }
  const first = steps.part('first', async () => {
    await t.rejects(
      steps.part('inner', () => t.fail('it ran')),
      open,
    )
    return 1
  })
  await t.rejects(
    steps.part('second', () => t.fail('it ran')),
    open,
  )
  t.equal(await first, 1)
  t.equal(await steps.part('second', () => 2), 2)
})

t.test(
  'a transaction that is undone gives its value, commits nothing, and may be run again',
  async (t) => {
    const row = fresh()
    const { steps, client } = stepsOf(row)
    const look = (isThere: boolean) =>
      steps.transaction(
        async (tx) => {
          Reflect.get(tx, 'write').call(tx, 'effect')
          if (!isThere) steps.undo()
          return isThere
        },
        { final: true },
      )
    t.equal(await look(false), false)
    t.strictSame([row.steps, client.committed, steps.isFinal], [{}, [], false])
    const later = stepsOf(row, client).steps
    t.equal(await later.transaction(async () => 'there'), 'there')
    later.undo()
    t.strictSame(namesIn(row), ['transaction'], 'outside of one there is nothing to undo')
  },
)

t.test('only a final transaction says that nothing comes after it', async (t) => {
  const row = fresh()
  const { steps } = stepsOf(row)
  await steps.transaction(async () => 1)
  t.equal(steps.isFinal || row.isFinal, false)
  await steps.transaction(async () => 1, { name: 'last', final: true })
  t.equal(steps.isFinal && row.isFinal, true)
})

t.test('keys for others are the same in every attempt, and differ by operation and name', (t) => {
  const key = stepsOf(fresh()).steps.keyFor('charge')
  t.equal(stepsOf(fresh()).steps.keyFor('charge'), key)
  t.not(stepsOf(fresh()).steps.keyFor('refund'), key)
  const other = stepsKeptBy(async () => true, 'another')
  t.not(other.keyFor('charge'), key)
  t.match(key, /^[\w-]{43}$/)
  t.end()
})

t.test(
  'a commit that nobody answered is not run again, nor forgotten, by this attempt',
  async (t) => {
    const row = fresh()
    const client = new FakeClient()
    client.failures.push('ECONNRESET')
    const { steps } = stepsOf(row, client)
    let runs = 0
    const book = async () => {
      runs += 1
      return 'booked'
    }
    const lost = { code: 'IDEMPOTENCY_DATABASE_FAILED', cause: { code: 'ECONNRESET' } }
    await t.rejects(steps.transaction(book, { name: 'book' }), lost)
    await t.rejects(steps.transaction(book, { name: 'book' }), lost)
    await t.rejects(
      steps.step('mail', () => 1),
      lost,
    )
    t.equal(runs, 1)
    t.strictSame(namesIn(row), ['book'])
    // The next attempt knows.
    t.equal(await stepsOf(row).steps.transaction(book, { name: 'book' }), 'booked')
    t.equal(runs, 1)
  },
)

t.test(
  'a step beside one whose storing nobody answered does not write over what that may have stored',
  async (t) => {
    const row = fresh()
    const go = latch()
    const steps = stepsKeptBy(async (results) => {
      row.steps = results
      throw Object.assign(new Error('no answer'), { code: 'ECONNRESET' })
    })
    const mail = steps.step('mail', () => go.opened)
    const charge = steps.step('charge', () => 'charged')
    const lost = { code: 'IDEMPOTENCY_DATABASE_FAILED', cause: { code: 'ECONNRESET' } }
    await t.rejects(charge, lost)
    go.open()
    await t.rejects(mail, lost)
    t.strictSame(namesIn(row), ['charge'])
  },
)

t.test(
  'after a step whose storing nobody answered, nothing is written: it may still be stored',
  async (t) => {
    const row = fresh()
    const failures = ['40001', 'ECONNRESET']
    const steps = stepsKeptBy(async (results) => {
      const code = failures.shift()
      if (code !== undefined) throw Object.assign(new Error('no answer'), { code })
      row.steps = results
      return true
    })
    let runs = 0
    const charge = () => {
      runs += 1
    }
    await t.rejects(steps.step('charge', charge), { cause: { code: '40001' } })
    const lost = { code: 'IDEMPOTENCY_DATABASE_FAILED', cause: { code: 'ECONNRESET' } }
    await t.rejects(steps.step('charge', charge), lost, 'what was rolled back is tried again')
    await t.rejects(steps.step('charge', charge), lost)
    await t.rejects(
      steps.transaction(async () => 'booked'),
      lost,
    )
    t.equal(runs, 2)
    t.strictSame(row.steps, {})
  },
)

t.test('a transaction that fails before its commit may be tried again', async (t) => {
  const { steps } = stepsOf(fresh())
  const declined = new Error('declined')
  await t.rejects(
    steps.transaction(async () => {
      throw declined
    }),
    declined,
  )
  t.equal(await steps.transaction(async () => 'accepted'), 'accepted')
})
