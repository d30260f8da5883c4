import t from 'tap'
import { Steps } from '../../src/claims/steps.js'
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

function stepsOf(row: Row, client = new FakeClient()): { steps: Steps; client: FakeClient } {
  const prisma = client as unknown as PrismaClientLike
  const steps = new Steps(prisma, 'operation', row.steps, async (isFinal) => async (_, results) => {
    if (!row.isHeld) return false
    row.steps = results
    row.isFinal ||= isFinal
    return true
  })
  return { steps, client }
}

const fresh = (): Row => ({ steps: {}, isHeld: true, isFinal: false })

t.test('a step runs once over all attempts, and later ones get its result', async (t) => {
  const row = fresh()
  let runs = 0
  const charge = () => {
    runs += 1
    return { id: 'ch_1', at: new Date(7), cents: 12n }
  }
  const first = await stepsOf(row).steps.step('charge', charge)
  const second = await stepsOf(row).steps.step('charge', charge)
  t.strictSame(second, first)
  t.strictSame(second, { id: 'ch_1', at: new Date(7), cents: 12n })
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
  t.strictSame(Object.keys(row.steps).sort(), names.sort())
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
  await t.rejects(
    steps.step('', () => 2),
    { code: 'IDEMPOTENCY_STEP_NAME_USED' },
  )
})

t.test('what cannot be stored is refused at once, and says where it stands', async (t) => {
  class Money {}
  const { steps, client } = stepsOf(fresh())
  const refused = { code: 'IDEMPOTENCY_STEP_NOT_STORABLE' }
  await t.rejects(
    steps.step('a', () => () => {}),
    refused,
  )
  await t.rejects(
    steps.step('b', () => ({ price: new Money() })),
    refused,
  )
  await t.rejects(
    steps.transaction(async (tx) => {
      Reflect.get(tx, 'write').call(tx, 'effect')
      return new Money()
    }),
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
    { code: '40001' },
  )
  t.equal(runs, 10)
})

t.test('any other error of a transaction is the caller’s at once', async (t) => {
  const client = new FakeClient()
  client.failures.push('P2002')
  let runs = 0
  await t.rejects(
    stepsOf(fresh(), client).steps.transaction(async () => {
      runs += 1
    }),
    { code: 'P2002' },
  )
  t.equal(runs, 1)
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

t.test('a step that ends during a transaction is kept beside it', async (t) => {
  const row = fresh()
  const { steps } = stepsOf(row)
  const go = latch()
  const step = steps.step('slow', () => go.opened.then(() => 'slow'))
  await steps.transaction(async () => {
    go.open()
    return 'quick'
  })
  t.equal(await step, 'slow')
  t.strictSame(Object.keys(row.steps).sort(), ['slow', 'transaction'])
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
    t.strictSame(Object.keys(row.steps), ['transaction'], 'outside of one there is nothing to undo')
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
  const prisma = {} as PrismaClientLike
  const other = new Steps(prisma, 'another', {}, async () => async () => true)
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
    const lost = { code: 'ECONNRESET' }
    await t.rejects(steps.transaction(book, { name: 'book' }), lost)
    await t.rejects(steps.transaction(book, { name: 'book' }), lost)
    await t.rejects(
      steps.step('mail', () => 1),
      lost,
    )
    t.equal(runs, 1)
    t.strictSame(Object.keys(row.steps), ['book'])
    // The next attempt knows.
    t.equal(await stepsOf(row).steps.transaction(book, { name: 'book' }), 'booked')
    t.equal(runs, 1)
  },
)

t.test(
  'a step beside a commit that nobody answered does not write over what that may have stored',
  async (t) => {
    const row = fresh()
    const client = new FakeClient()
    client.failures.push('ECONNRESET')
    const { steps } = stepsOf(row, client)
    const go = latch()
    const mail = steps.step('mail', () => go.opened)
    const booking = steps.transaction(
      async () => {
        go.open()
        return 'booked'
      },
      { name: 'book' },
    )
    const lost = { code: 'ECONNRESET' }
    await Promise.all([t.rejects(booking, lost), t.rejects(mail, lost)])
    t.strictSame(Object.keys(row.steps), ['book'])
  },
)

t.test(
  'after a step whose storing nobody answered, nothing is written: it may still be stored',
  async (t) => {
    const row = fresh()
    const failures = ['40001', 'ECONNRESET']
    const client = new FakeClient() as unknown as PrismaClientLike
    const steps = new Steps(client, 'operation', {}, async () => async (_, results) => {
      const code = failures.shift()
      if (code !== undefined) throw Object.assign(new Error('no answer'), { code })
      row.steps = results
      return true
    })
    let runs = 0
    const charge = () => {
      runs += 1
    }
    await t.rejects(steps.step('charge', charge), { code: '40001' })
    const lost = { code: 'ECONNRESET' }
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
