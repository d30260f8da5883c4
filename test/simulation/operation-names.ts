import { downstreamKey } from '../../src/core/downstream-key.js'
import { stepPath } from '../../src/core/step-path.js'
import type { Row } from './model-rows.js'
import type { KeyPlan, Plan } from './plan.js'

export const handlerOf = ({ key }: Pick<KeyPlan, 'key'>) => `handler of ${key}`

/** What an operation is known by downstream: `keyFor('charge')`, where its handler says that. */
export function operationNameOf(operationId: string, key: Pick<KeyPlan, 'key' | 'kind'>): string {
  // What a handler does within a request is named after both.
  const scope = key.kind === 'recoverable request' ? [handlerOf(key)] : []
  return downstreamKey(operationId, stepPath(scope, 'charge'))
}

/** The same of the operation of a record. */
export function operationOfRow({ keys }: Plan): (row: Row) => string {
  const names = new Map<string, string>()
  return ({ key, operationId }) => {
    const known = names.get(operationId)
    if (known !== undefined) return known
    const plan = keys.find((one) => one.key === key) as KeyPlan
    const name = operationNameOf(operationId, plan)
    names.set(operationId, name)
    return name
  }
}
