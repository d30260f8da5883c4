import {
  type ModelDelegate,
  type PrismaClientLike,
  primaryOf,
  type TransactionClient,
} from './client.js'
import { sayAgain, sayingAgainEach } from './say-again.js'

/** Runs a function in the transaction of a delegate, with the delegate and client of that. */
export type Transact<Delegate> = <T>(
  fn: (delegate: Delegate, client: TransactionClient) => Promise<T>,
) => Promise<T>

/** The model of a delegate, as it is read and written. */
export interface Entities<Delegate> {
  /** What Prisma calls the model: `Payment`. */
  readonly name: string
  /** To read from: the same delegate in a transaction, that of the primary otherwise. */
  readonly reader: Delegate
  readonly transact: Transact<Delegate>
}

/** What Prisma calls the model of a delegate: `Payment`. */
export function modelNameOf(delegate: object): string | undefined {
  const name: unknown = Reflect.get(delegate, '$name')
  return typeof name === 'string' && name !== '' ? name : undefined
}

/**
 * How to read, and write together with, a delegate. One of a transaction (`tx.payment`) is used as it is: a
 * transaction of our own would wait for the locks of the caller's, and be committed without it. For
 * another one, a transaction is begun by its client, which is `prisma`, or the one that it was made
 * by. Undefined when that cannot be had: a delegate knows the client that its own was extended from
 * (`$extends`), and not its own, and what the extension is for must not be left out.
 */
export function entitiesOf<Delegate extends Partial<ModelDelegate>>(
  prisma: PrismaClientLike,
  delegate: Delegate,
): Entities<Delegate> | undefined {
  const parent: unknown = Reflect.get(delegate, '$parent')
  const name = modelNameOf(delegate)
  if (typeof parent !== 'object' || parent === null || name === undefined) return undefined
  if (isTransaction(parent)) {
    const transact: Transact<Delegate> = (fn) => fn(delegate, parent as TransactionClient)
    return { name, reader: delegate, transact }
  }
  const property = name.charAt(0).toLowerCase() + name.slice(1)
  const root = [prisma, parent as PrismaClientLike].find(
    (client) => Reflect.get(client, property) === delegate,
  )
  return (
    root && {
      name,
      reader: sayingAgainEach(Reflect.get(primaryOf(root), property)) as Delegate,
      transact: (fn) => sayAgain(() => root.$transaction((tx) => fn(tx[property], tx))),
    }
  )
}

/** Prisma leaves `$connect` and its like out of the client of a transaction. */
function isTransaction(client: object): boolean {
  return Reflect.get(client, '$connect') === undefined
}
