import type { ModelDelegate, PrismaClientLike, TransactionClient } from './client.js'
import { sayAgain } from './say-again.js'

/** Runs a function in the transaction of a delegate, with the delegate and client of that. */
export type Transact<Delegate> = <T>(
  fn: (delegate: Delegate, client: TransactionClient) => Promise<T>,
) => Promise<T>

/** What Prisma calls the model of a delegate: `Payment`. */
export function modelNameOf(delegate: object): string | undefined {
  const name: unknown = Reflect.get(delegate, '$name')
  return typeof name === 'string' && name !== '' ? name : undefined
}

/**
 * How to write together with a delegate. One of a transaction (`tx.payment`) is used as it is: a
 * transaction of our own would wait for the locks of the caller's, and be committed without it. For
 * another one, a transaction is begun by its client, which is `prisma`, or the one that it was made
 * by. Undefined when that cannot be had: a delegate knows the client that its own was extended from
 * (`$extends`), and not its own, and what the extension is for must not be left out.
 */
export function transactionOf<Delegate extends Partial<ModelDelegate>>(
  prisma: PrismaClientLike,
  delegate: Delegate,
): Transact<Delegate> | undefined {
  const parent: unknown = Reflect.get(delegate, '$parent')
  const name = modelNameOf(delegate)
  if (typeof parent !== 'object' || parent === null || name === undefined) return undefined
  if (isTransaction(parent)) return (fn) => fn(delegate, parent as TransactionClient)

  const property = name.charAt(0).toLowerCase() + name.slice(1)
  const root = [prisma, parent as PrismaClientLike].find(
    (client) => Reflect.get(client, property) === delegate,
  )
  return root && ((fn) => sayAgain(() => root.$transaction((tx) => fn(tx[property], tx))))
}

/** Prisma leaves `$connect` and its like out of the client of a transaction. */
function isTransaction(client: object): boolean {
  return Reflect.get(client, '$connect') === undefined
}
