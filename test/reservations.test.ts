import t from 'tap'
import { createReservations, type ReserveOptions } from '../src/reservations.js'
import type { ModelDelegate, PrismaClientLike } from '../src/store/client.js'
import { databaseClock } from '../src/store/clock.js'
import { reservationsContract, seeing } from './contracts/reservations.js'
import { anyDatabase } from './fixtures/database.js'
import { mariadbDatabase } from './fixtures/mariadb.js'
import { postgresDatabase } from './fixtures/postgres.js'
import { missing } from './fixtures/services.js'
import { WAYS } from './fixtures/ways.js'

const noPostgres = await missing('postgres')
const noMariadb = await missing('mariadb')

for (const { name, skip, open } of WAYS) {
  // Reservations have no statements of their own.
  if (!name.endsWith('Prisma alone')) continue
  t.test(name.replace(', Prisma alone', ''), { skip }, async (t) => {
    await reservationsContract(t, await open(t))
  })
}

const report = () => {}
const on = (prisma: PrismaClientLike, provider: 'postgresql' | 'mysql' = 'postgresql') =>
  createReservations({ prisma, provider, clock: databaseClock(prisma, provider) })

t.test(
  'one slot is one statement to confirm and to cancel, and two to reserve',
  { skip: noPostgres },
  async (t) => {
    const { prisma, pool } = await postgresDatabase(t, { max: 1 })
    const reservations = on(prisma)
    const reserve = (slots: string | string[], holder: string) =>
      reservations.reserve('acme', report, { resource: 'hall', slots, holder })
    await reserve('first', 'ann')
    const connection = await pool.connect()
    const statements: string[] = []
    const { query } = connection
    t.teardown(() => {
      connection.query = query
    })
    connection.query = ((config: { text: string }, ...rest: never[]) => {
      statements.push(config.text)
      return Reflect.apply(query, connection, [config, ...rest])
    }) as typeof query
    connection.release()
    const spent = async (asked: () => Promise<{ kind: string }>, kind: string) => {
      statements.length = 0
      t.match(await asked(), { kind })
      return statements.length
    }
    t.equal(await spent(() => reserve('second', 'ann'), 'reserved'), 2)
    t.equal(await spent(() => reserve('second', 'ann'), 'reserved'), 1, 'a retry is a look')
    t.equal(await spent(() => reserve('second', 'bob'), 'taken'), 1, 'so is a slot that is taken')
    await prisma.slotReservation.updateMany({ data: { heldUntil: new Date(0) } })
    t.equal(
      await spent(() => reserve('second', 'bob'), 'reserved'),
      3,
      'one that ran out: the time',
    )
    t.equal(await spent(() => reserve(['a', 'b', 'c'], 'bob'), 'reserved'), 5, 'a transaction')

    const confirm = (slots: string, holder = 'bob') =>
      reservations.confirm('acme', report, { resource: 'hall', slots, holder })
    const cancel = (slots: string) =>
      reservations.cancel('acme', report, { resource: 'hall', slots, holder: 'bob' })
    t.equal(await spent(() => confirm('a'), 'confirmed'), 1)
    t.equal(await spent(() => confirm('a'), 'confirmed'), 2, 'a retry, and a look why')
    t.equal(await spent(() => confirm('a', 'ann'), 'missing'), 2)
    t.equal(await spent(() => cancel('a'), 'cancelled'), 1)
    t.equal(await spent(() => cancel('a'), 'cancelled'), 1)

    const begun = await prisma.$transaction(async (tx) => {
      const own = { resource: 'hall', slots: 'own', holder: 'bob', tx }
      const { length } = statements
      await reservations.reserve('acme', report, own)
      await reservations.confirm('acme', report, own)
      await reservations.cancel('acme', report, own)
      return statements.length - length
    })
    t.equal(begun, 4, 'the same in the transaction of the caller')
  },
)

t.test(
  '200 who ask for one slot at once open no connection beyond the pool',
  { skip: noPostgres },
  async (t) => {
    const { prisma, pool } = await postgresDatabase(t, { max: 5 })
    let opened = 0
    pool.on('connect', () => {
      opened += 1
    })
    const reservations = on(prisma)
    for (const slots of ['evening', ['evening', 'night']]) {
      const results = await Promise.all(
        Array.from({ length: 200 }, (_, n) =>
          reservations.reserve('acme', report, { resource: `${slots}`, slots, holder: `${n}` }),
        ),
      )
      t.equal(results.filter(({ kind }) => kind === 'reserved').length, 1)
    }
    t.ok(opened <= 5, `${opened} connections`)
  },
)

t.test(
  'a connection that is cut between two statements leaves all as it was',
  { skip: noPostgres },
  async (t) => {
    const { prisma, pool } = await postgresDatabase(t)
    const wanted = { resource: 'hall', slots: ['a', 'b', 'c'] }
    const reserve = (reservations: ReturnType<typeof on>) =>
      reservations.reserve('acme', report, { ...wanted, holder: 'bob' })
    await on(prisma).reserve('acme', report, { ...wanted, slots: 'c', holder: 'ann', hold: 1 })
    const before = await prisma.slotReservation.findMany()
    // Its rows are inserted then, and the one that ran out is not taken over yet.
    const cutAfterInsert = {
      slotReservation: prisma.slotReservation,
      $queryRawUnsafe: (query: string) => prisma.$queryRawUnsafe(query),
      $transaction: (fn: (tx: unknown) => Promise<unknown>) =>
        prisma.$transaction(async (tx) => {
          const { slotReservation } = tx
          const [{ pid }] = await tx.$queryRawUnsafe<[{ pid: number }]>(
            'SELECT pg_backend_pid() AS pid',
          )
          return fn({
            slotReservation: {
              updateMany: (args: never) => slotReservation.updateMany(args),
              async createMany(args: never) {
                const created = await slotReservation.createMany(args)
                t.equal(created.count, 2)
                await pool.query('SELECT pg_terminate_backend($1)', [pid])
                return created
              },
            },
          })
        }),
    }
    await t.rejects(reserve(on(cutAfterInsert as unknown as PrismaClientLike)))
    t.strictSame(await prisma.slotReservation.findMany(), before)
    t.match(await reserve(on(prisma)), { kind: 'reserved', isNew: true }, 'asked again')
  },
)

for (const isolation of ['repeatable read', 'serializable'] as const) {
  t.test(`at ${isolation}, everybody is answered`, { skip: noPostgres }, async (t) => {
    const { prisma } = await postgresDatabase(t, { isolation })
    const reservations = on(prisma)
    const held = new Map<string, string>()
    await Promise.all(
      Array.from({ length: 60 }, async (_, n) => {
        const slots = [`${n % 7}`, `${(n + 1) % 7}`, `${n % 5}`]
        const wanted = { resource: 'hall', slots, holder: `${n}` }
        const result = await reservations.reserve('acme', report, wanted)
        if (result.kind === 'taken') return
        for (const slot of result.slots) {
          t.notOk(held.has(slot), slot)
          held.set(slot, `${n}`)
        }
        t.match(await reservations.confirm('acme', report, wanted), { kind: 'confirmed' })
      }),
    )
    const rows = await prisma.slotReservation.findMany({})
    t.strictSame(new Map(rows.map(({ slot, holder }) => [slot, holder])), held)
  })
}

t.test(
  'on MariaDB, a transaction that does not see the row hears that it is taken',
  { skip: noMariadb },
  async (t) => {
    const { prisma } = await mariadbDatabase(t)
    const reservations = on(prisma, 'mysql')
    const wanted = { resource: 'hall', slots: ['a', 'b'] }
    await prisma.$transaction(async (tx) => {
      // From here on it reads what there is now: MySQL's usual isolation.
      await tx.slotReservation.count()
      await reservations.reserve('acme', report, { ...wanted, holder: 'ann' })
      const result = await reservations.reserve('acme', report, { ...wanted, holder: 'bob', tx })
      t.strictSame(result, { kind: 'taken', slots: ['a', 'b'] })
    })
    t.match(await prisma.slotReservation.findMany(), [{ holder: 'ann' }, { holder: 'ann' }])
  },
)

t.test(
  'names that MySQL takes for the same by their case are refused, not mixed up',
  { skip: noMariadb },
  async (t) => {
    const { prisma } = await mariadbDatabase(t)
    await prisma.$executeRawUnsafe(
      'ALTER TABLE slot_reservation MODIFY slot VARCHAR(255) COLLATE utf8mb4_unicode_ci NOT NULL',
    )
    const reservations = on(prisma, 'mysql')
    const wanted = { resource: 'hall', holder: 'ann' }
    await reservations.reserve('acme', report, { ...wanted, slots: 'Evening' })
    const other = { ...wanted, slots: 'EVENING' }
    const refused = { message: /binary collation/ }
    await t.rejects(reservations.reserve('acme', report, other), refused)
    // One slot is written without a look; there the check at start refuses the column.
    const several = { ...wanted, slots: ['EVENING', 'night'] }
    await t.rejects(reservations.confirm('acme', report, several), refused)
    await t.rejects(reservations.cancel('acme', report, several), refused)
    await t.rejects(
      reservations.availability('acme', { resource: 'hall', slots: 'EVENING' }),
      refused,
    )
    t.match(await prisma.slotReservation.findMany({}), [{ slot: 'Evening' }])
  },
)

t.test('an estimate of the time that runs ahead lets nobody in', async (t) => {
  const { prisma } = await anyDatabase(t)
  const right = databaseClock(prisma, 'postgresql')
  const clock = {
    ...right,
    estimate: async () => new Date((await right.ask()).getTime() + 3_600_000),
  }
  const reservations = createReservations({ prisma, provider: 'postgresql', clock })
  const wanted = { resource: 'hall', slots: 'a' }
  await on(prisma).reserve('acme', report, { ...wanted, holder: 'ann' })
  const second = await reservations.reserve('acme', report, { ...wanted, holder: 'bob' })
  t.match(second, { kind: 'taken' })
})

t.test('an error of the database that is no duplicate is not taken for one', async (t) => {
  const { prisma } = await anyDatabase(t)
  const failure = Object.assign(new Error('the disk is full'), { code: 'P2010' })
  for (const provider of ['postgresql', 'mysql'] as const) {
    const client = seeing(prisma as PrismaClientLike)
    Object.assign(client.slotReservation as ModelDelegate, {
      createMany: () => Promise.reject(failure),
    })
    const clock = databaseClock(prisma, 'postgresql')
    const reservations = createReservations({ prisma: client, provider, clock })
    const wanted = { resource: 'hall', slots: 'a', holder: 'ann' }
    await t.rejects(reservations.reserve('acme', report, wanted), failure)
  }
})

t.test('wrong options are refused, with what to write instead', async (t) => {
  const { prisma } = await anyDatabase(t)
  const reservations = on(prisma)
  const right = { resource: 'hall', slots: ['a'], holder: 'ann' }
  const long = 's'.repeat(256)
  for (const [wrong, told] of [
    [{ resource: '' }, /"resource" of reserve must be text of 1 to 255/],
    [{ resource: undefined }, /"resource"/],
    [{ resource: 7 }, /"resource"/],
    [{ holder: long }, /"holder"/],
    [{ holder: 'a\0b' }, /"holder" .* without NUL/],
    [{ holder: '\ud800' }, /"holder" .* lone surrogates/],
    [{ slots: [] }, /"slots" .* a list of 1 to 1000 texts such as/],
    [{ slots: '' }, /"slots"/],
    [{ slots: ['a', long] }, /"slots"/],
    [{ slots: Array.from({ length: 1_001 }, (_, n) => `${n}`) }, /"slots"/],
    [{ slots: [new Date()] }, /"slots"/],
    [{ hold: '15 minutes' }, /"hold" .* such as '15m'/],
    [{ hold: 0 }, /"hold"/],
    [{ hold: '3651d' }, /"hold" .* at most 3650 days/],
    [{ ttl: '15m' }, /"ttl" of reserve is not known; the options are .*hold/],
    [{ tx: prisma }, /"tx" .* leave it out where no transaction is open/],
    [{ tx: null }, /"tx"/],
    [{ tx: {} }, /"tx"/],
  ] as const) {
    const options = { ...right, ...wrong } as unknown as ReserveOptions
    const refused = { code: 'IDEMPOTENCY_OPTION_INVALID', message: told }
    await t.rejects(reservations.reserve('acme', report, options), refused)
  }
  const refused = { code: 'IDEMPOTENCY_OPTION_INVALID' }
  const held = { ...right, hold: '1m' }
  await t.rejects(reservations.confirm('acme', report, held), refused)
  await t.rejects(reservations.cancel('acme', report, held), refused)
  await t.rejects(reservations.availability('acme', right as never), refused)
  await t.rejects(reservations.availability('acme', {} as never), refused)
  t.equal(await prisma.slotReservation.count(), 0)
  const { slotReservation: _without, ...lacking } = seeing(prisma as PrismaClientLike)
  t.throws(() => on(lacking as PrismaClientLike), /lacks model SlotReservation/)
})
