import { type FlowDefinition, type FlowGraph, flowGraph, reachableFrom } from './flow-graph.js'
import { isStorableText } from './text.js'

/** Room for a status in `StatusChange`, on MySQL. */
const LONGEST_STATUS = 191

/** Every status is compared with every other one, more than once. */
export const MOST_STATUSES = 200

const TOO_MANY = `has more than ${MOST_STATUSES} statuses: leave out what is no status, or make several flows of it`

/** What is wrong with a flow whose parts have the right types, and what to write instead. */
export function flowProblem(definition: FlowDefinition): string | undefined {
  const { levels = {}, transitions = {} } = definition
  const lists = Object.values(transitions)
  const named = lists.reduce((sum, list) => sum + list.length, Object.keys(levels).length)
  // Each names one of at most so many, at most once; counted before anything is compared.
  if (named > MOST_STATUSES * (MOST_STATUSES + 1)) return TOO_MANY
  const graph = flowGraph(definition)
  return (
    problemWithNames(graph) ??
    problemWithLists(graph, definition.transitions ?? {}) ??
    problemWithWays(graph)
  )
}

function problemWithNames({ statuses }: FlowGraph): string | undefined {
  if (statuses.length === 0) {
    return "has no statuses: give it levels such as { pending: 0, paid: 1 }, or transitions such as { pending: ['paid'] }"
  }
  if (statuses.length > MOST_STATUSES) return TOO_MANY
  const odd = statuses.find((status): boolean => !isStorableText(status, LONGEST_STATUS))
  if (odd === undefined) return undefined
  return `has the status ${quoted(odd)}, which no column can hold: a status has 1 to ${LONGEST_STATUS} characters, no NUL and no lone surrogate`
}

function problemWithLists(
  { statuses, initial, terminal }: FlowGraph,
  transitions: NonNullable<FlowDefinition['transitions']>,
): string | undefined {
  const lists = { terminal, initial, ...prefixed(transitions) }
  for (const [where, list] of Object.entries(lists)) {
    const unknown = list.find((status) => !statuses.includes(status))
    if (unknown !== undefined) {
      return `names ${quoted(unknown)} in ${where}, and in neither levels nor transitions: add it there, or write the name that is there`
    }
    const repeated = list.find((status, place) => list.indexOf(status) !== place)
    if (repeated !== undefined) return `names ${quoted(repeated)} twice in ${where}: leave out one`
  }
  if (initial.length === 0) return 'has no status in initial: name what an entity begins as'
  const itself = Object.keys(transitions).find((from) => transitions[from]?.includes(from))
  if (itself === undefined) return undefined
  return `leads from ${quoted(itself)} to itself: leave that out, the same status is always 'unchanged'`
}

function problemWithWays(graph: FlowGraph): string | undefined {
  const { statuses, initial, terminal, next } = graph
  for (const status of statuses) {
    const [to] = next.get(status) ?? []
    const isTerminal = terminal.includes(status)
    if (isTerminal && to !== undefined) {
      return `leads from ${quoted(status)} to ${quoted(to)}, and ${quoted(status)} is terminal: leave out the transition, or do not name it in terminal`
    }
    if (!isTerminal && to === undefined) {
      return `leads nowhere from ${quoted(status)}: name it in terminal, or say in transitions what comes after it`
    }
  }
  const reached = reachableFrom(graph, initial)
  const stranded = statuses.find((status) => !reached.has(status))
  if (stranded === undefined) return undefined
  return `never leads to ${quoted(stranded)}: name it in initial, or in the transitions of what comes before it`
}

function prefixed(transitions: NonNullable<FlowDefinition['transitions']>) {
  const named = Object.entries(transitions).map(
    ([from, to]) => [`transitions.${from}`, to] as const,
  )
  return Object.fromEntries(named)
}

function quoted(status: string): string {
  return `'${status.length > 40 ? `${status.slice(0, 40)}…` : status}'`
}
