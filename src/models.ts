import { ModelsMissing, ModelsRenamed } from './errors.js'
import { type ModelName, missingFromClient, renamedInClient } from './store/client.js'

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
