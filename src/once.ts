import { OptionInvalid } from './errors.js'
import { isUniqueViolation } from './store/client.js'

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
 * @throws what `create` throws: also its P2002, when `find` finds nothing, because then it was
 * another constraint. OptionInvalid where Prisma (before 7.5) or its adapter has no savepoints.
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
  if (typeof create !== 'function' || typeof find !== 'function') {
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
    // Another constraint was hit, or what was in the way has gone again: the caller decides.
    if (value === null || value === undefined) throw error
    return { duplicate: true, value }
  }
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
