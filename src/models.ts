import { ModelsMissing } from './errors.js'
import { type ModelName, missingFromClient } from './store/client.js'

/**
 * Makes sure that the application's client has a model, once the application uses what needs it.
 *
 * @throws ModelsMissing
 */
export function demandModel(prisma: object, model: ModelName): void {
  const missing = missingFromClient(prisma, [model])
  if (missing.length > 0) throw new ModelsMissing(missing.join(', '))
}
