import { boundedCall, limitedTransaction, type StatementBounds } from './bounded-client.js'
import {
  type ModelDelegate,
  type PrismaClientLike,
  primaryOf,
  type TransactionClient,
} from './client.js'
import { sayAgain } from './say-again.js'

/** Runs a function in the transaction of a delegate, with the delegate and client of that. */
export type Transact<Delegate> = <T>(
  fn: (delegate: Delegate, client: TransactionClient) => Promise<T>,
) => Promise<T>

/** How the model of a delegate is read and written. */
export interface Entities<Delegate> {
  /** To read from: the same delegate in a transaction, that of the primary otherwise. */
  readonly reader: Pick<Delegate & ModelDelegate, 'findMany'>
  readonly transact: Transact<Delegate>
}

/** The model of a delegate. */
export interface EntityModel<Delegate> {
  /** What Prisma calls the model: `Payment`. */
  readonly name: string
  /**
   * Runs a call that reads and writes it. Outside of a transaction of the caller's, it rejects with
   * `StoreTimeout` when the call takes longer than the bounds say, and nothing is committed after that.
   */
  use<T>(bounds: StatementBounds, call: (entities: Entities<Delegate>) => Promise<T>): Promise<T>
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
export function entityModelOf<Delegate extends Partial<ModelDelegate>>(
  prisma: PrismaClientLike,
  delegate: Delegate,
): EntityModel<Delegate> | undefined {
  const parent: unknown = Reflect.get(delegate, '$parent')
  const name = modelNameOf(delegate)
  if (typeof parent !== 'object' || parent === null || name === undefined) return undefined
  if (isTransaction(parent)) {
    const transact: Transact<Delegate> = (fn) => fn(delegate, parent as TransactionClient)
    return { name, use: (_, call) => call({ reader: delegate as ModelDelegate, transact }) }
  }
  const property = name.charAt(0).toLowerCase() + name.slice(1)
  const root = [prisma, parent as PrismaClientLike].find(
    (client) => Reflect.get(client, property) === delegate,
  )
  if (root === undefined) return undefined
  return {
    name,
    use: (bounds, call) =>
      boundedCall(bounds, (bounds) => {
        const primary = Reflect.get(primaryOf(root), property) as ModelDelegate
        const transaction = limitedTransaction(root, bounds)
        return call({
          reader: {
            findMany: (args) => sayAgain(() => bounds.limit(() => primary.findMany(args))),
          },
          transact: (fn) => sayAgain(() => transaction((tx) => fn(tx[property], tx))),
        })
      }),
  }
}

/** Prisma leaves `$connect` and its like out of the client of a transaction. */
function isTransaction(client: object): boolean {
  return Reflect.get(client, '$connect') === undefined
}
