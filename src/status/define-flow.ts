import { type Check, check } from '../checks.js'
import { createFlow, type Flow } from '../core/flow.js'
import type { FlowDefinition } from '../core/flow-graph.js'
import { flowProblem } from '../core/flow-problem.js'
import { OptionInvalid } from '../errors.js'
import { isObject, isText, isTextList, LONGEST_TEXT, takes } from './checks.js'

/** What `defineFlow` takes: levels, transitions, or both. */
export interface FlowOptions<Level extends string, From extends string, To extends string> {
  /** Named in errors, and the title of the picture. Default: none. */
  name?: string
  /** Numbers: forward is to any status of a higher one. */
  levels?: Readonly<Record<Level, number>>
  /** A status that is named here goes to these and to no others, whatever the levels say. */
  transitions?: Readonly<Record<From, readonly To[]>>
  /** What an entity begins as. Default: the status that is named first. */
  initial?: NoInfer<Level | From | To> | readonly NoInfer<Level | From | To>[]
  /** What it ends as: no level leads out of these. Default: none, it goes round for ever. */
  terminal?: readonly NoInfer<Level | From | To>[]
}

/**
 * The allowed order of an entity's statuses, for `advance`.
 *
 * @throws OptionInvalid when it contradicts itself: a name that is not known or given twice, a status
 * that cannot be reached, a terminal one with a transition, one without a way out that is not terminal.
 */
export function defineFlow<
  const Level extends string = never,
  const From extends string = never,
  const To extends string = never,
>(options: FlowOptions<Level, From, To>): Flow<Level | From | To> {
  check(' of defineFlow', FLOW_CHECKS, options)
  const problem = flowProblem(options as FlowDefinition)
  if (problem !== undefined) {
    const name = options.name === undefined ? '' : ` ${JSON.stringify(options.name)}`
    throw new OptionInvalid(`the flow${name} ${problem}`)
  }
  return createFlow(options as FlowDefinition) as Flow<Level | From | To>
}

const FLOW_CHECKS: Record<string, Check> = {
  name: takes(isText, `text of 1 to ${LONGEST_TEXT} characters`),
  levels: takes(
    (value) => isObject(value) && Object.values(value).every(Number.isFinite),
    'numbers by status, such as { pending: 0, paid: 1 }',
  ),
  transitions: takes(
    (value) => isObject(value) && Object.values(value).every(isTextList),
    "lists by status, such as { pending: ['paid'] }",
  ),
  initial: takes((value) => typeof value === 'string' || isTextList(value), 'a status, or a list'),
  terminal: takes(isTextList, "a list of statuses, such as ['paid']"),
}
