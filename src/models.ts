import { CollationInvalid, ModelsMissing, ModelsRenamed } from './errors.js'
import {
  type ModelName,
  missingFromClient,
  type PrismaClientLike,
  type Provider,
  renamedInClient,
} from './store/client.js'
import { findInexactColumns } from './store/collation.js'

/**
 * Makes sure that the application's client has a model, once the application uses what needs it.
 *
 * @throws ModelsMissing
 */
export function demandModel(prisma: object, model: ModelName): void {
  const missing = missingFromClient(prisma, [model])
  if (missing.length > 0) throw new ModelsMissing(missing.join(', '))
}

/**
 * Makes sure that the tables and columns have the names that statements of the library's own use.
 *
 * @throws ModelsRenamed
 */
export function demandNames(prisma: object, models: readonly ModelName[]): void {
  const renamed = models.flatMap((model) => renamedInClient(prisma, model))
  if (renamed.length > 0) throw new ModelsRenamed(renamed.join(', '))
}

/**
 * Returns what makes sure, once, that the database tells all names apart. When the database does not
 * answer, the next call asks again.
 *
 * @throws CollationInvalid; what the database throws.
 */
export function exactNamesDemand(
  prisma: PrismaClientLike,
  provider: Provider,
): () => Promise<void> {
  let checked: Promise<void> | undefined
  async function check(): Promise<void> {
    if (provider !== 'mysql') return
    let statements: string[]
    try {
      statements = await findInexactColumns(prisma)
    } catch (error) {
      checked = undefined
      throw error
    }
    if (statements.length > 0) throw new CollationInvalid(statements.join(' '))
  }
  return () => {
    checked ??= check()
    return checked
  }
}
