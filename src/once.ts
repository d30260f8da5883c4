import { OptionInvalid } from './errors.js'
import { isUniqueViolation, type PrismaClientLike, providerOf } from './store/client.js'
import { HiddenDuplicate } from './store/say-again.js'

/** What was created, or what stood in its place already. */
export type Once<Value, Found> =
  | { readonly duplicate: false; readonly value: Value }
  | { readonly duplicate: true; readonly value: NonNullable<Found> }

/**
 * Creates what a unique constraint of the application allows once, and finds it when it is there:
 *
 * ```ts
 * const { duplicate, value } = await once(() => prisma.booking.create({ data }), {
 *   find: () => prisma.booking.findUnique({ where: { venueId_date } }),
 * })
 * ```
 *
 * With `tx`, `create` gets a transaction within it (a savepoint) and must use that one, so that a
 * duplicate does not abort the caller's; `find` gets `tx`. A process that dies meanwhile has created
 * it or not: the same call again finds out.
 *
 * A `tx` at REPEATABLE READ or SERIALIZABLE reads from a snapshot, and may not see the duplicate. Then the
 * transaction is to be repeated, and its next snapshot shows it: P2034 is thrown, as Prisma does for a
 * conflict. `transaction()` and atomic routes repeat by themselves.
 *
 * @throws what `create` throws: also its P2002, when `find` finds nothing, because then it was another
 * constraint. With `tx`, where that cannot be known, it is the `cause` of a {@link HiddenDuplicate}
 * (P2034): at REPEATABLE READ and above, and on MySQL and MariaDB. OptionInvalid where Prisma (before 7.5) or its adapter has no savepoints.
 */
export function once<Value, Found>(
  create: () => PromiseLike<Value>,
  options: { find: () => PromiseLike<Found>; tx?: undefined },
): Promise<Once<Value, Found>>
export function once<Value, Found, Tx extends object>(
  create: (nested: Tx) => PromiseLike<Value>,
  options: { find: (tx: Tx) => PromiseLike<Found>; tx: Tx },
): Promise<Once<Value, Found>>
export async function once<Value, Found>(
  create: (nested: object | undefined) => PromiseLike<Value>,
  options: { find: (tx: object | undefined) => PromiseLike<Found>; tx?: object | undefined },
): Promise<Once<Value, Found>> {
  const { find, tx } = Object(options)
  if (typeof create !== 'function' || typeof find !== 'function' || Array.isArray(options)) {
    throw new OptionInvalid(
      'once needs two functions: once(() => prisma.booking.create(…), { find: () => prisma.booking.findUnique(…) })',
    )
  }
  try {
    const value = tx === undefined ? await create(undefined) : await nested(tx, create)
    return { duplicate: false, value }
  } catch (error) {
    if (!isUniqueViolation(error)) throw error
    const value = await find(tx)
    if (value !== null && value !== undefined) return { duplicate: true, value }
    if (tx !== undefined && (await mayHide(tx))) {
      throw new HiddenDuplicate(
        'once: a unique constraint was hit by a row that this transaction does not see: repeat the transaction',
        { cause: error },
      )
    }
    // Another constraint was hit, or what was in the way has gone again: the caller decides.
    throw error
  }
}

/** Whether the transaction may read from a snapshot that is older than what its constraints know. */
async function mayHide(tx: object): Promise<boolean> {
  const provider = providerOf(tx)
  // A transaction that was begun at another level than the session's tells that to nobody.
  if (provider !== 'postgresql') return provider === 'mysql'
  const [row] = await (tx as PrismaClientLike).$queryRawUnsafe<{ level: string }[]>(
    "SELECT current_setting('transaction_isolation') AS level",
  )
  return row?.level !== 'read committed' && row?.level !== 'read uncommitted'
}

/** Runs it in a transaction within this one, which can fail without aborting it. */
async function nested<Value>(
  tx: object,
  create: (nested: object) => PromiseLike<Value>,
): Promise<Value> {
  const transact: unknown = Reflect.get(Object(tx), '$transaction')
  const isClient = typeof Reflect.get(Object(tx), '$connect') === 'function'
  if (typeof transact !== 'function' || isClient) throw new OptionInvalid(NO_SAVEPOINTS)
  let hasBegun = false
  try {
    return await transact.call(tx, async (inner: object) => {
      hasBegun = true
      return create(inner)
    })
  } catch (error) {
    // Prisma's own check, before anything is sent: the transaction is as it was.
    const isRefused =
      !hasBegun && /not supported/.test(String(Reflect.get(Object(error), 'message')))
    if (isRefused) throw new OptionInvalid(NO_SAVEPOINTS)
    throw error
  }
}

const NO_SAVEPOINTS =
  'once with { tx } needs the client of an open transaction that has savepoints: Prisma 7.5 or newer, and an adapter that has them. Where there are none, call once before the transaction, or use createMany({ skipDuplicates: true }) within it and look at its count'
