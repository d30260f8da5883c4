import { flowDiagram } from './flow-diagram.js'
import { type FlowDefinition, flowGraph, reachableFrom } from './flow-graph.js'

/** Why a status is not entered. The first of these that applies is told, in this order. */
export type BlockedReason =
  /** The entity has ended. */
  | 'terminal'
  /** What gave the entity its status happened later. */
  | 'older'
  /** The entity has passed that status: it leads to where the entity is. */
  | 'backward'
  /** The flow has no way there from where the entity is, or does not know that status. */
  | 'not allowed'

export type Move =
  | { readonly kind: 'advance' }
  | { readonly kind: 'unchanged' }
  | { readonly kind: 'blocked'; readonly why: BlockedReason }

/** The allowed order of an entity's statuses. */
export interface Flow<Status extends string = string> {
  readonly name: string | undefined
  readonly statuses: readonly Status[]
  /** What an entity begins as. */
  readonly initial: readonly Status[]
  /** What it ends as. */
  readonly terminal: readonly Status[]
  /** The statuses from which `to` may be entered. */
  sources(to: Status): readonly Status[]
  /**
   * What is to be done when an entity that has the status `from`, which may be none of the flow, is
   * to get the status `to`. `isOlder`: that happened before what gave it `from`; default `false`.
   */
  decide(from: string, to: Status, isOlder?: boolean): Move
  /** A `stateDiagram-v2`, to be drawn by Mermaid. */
  toMermaid(): string
}

/**
 * Makes a flow of a definition without contradictions.
 *
 *   from the same status         unchanged
 *   from a terminal one          blocked, terminal
 *   something older              blocked, older
 *   from one that leads there    advance
 *   to one that has led there    blocked, backward
 *   anything else                blocked, not allowed
 */
export function createFlow(definition: FlowDefinition): Flow {
  const graph = flowGraph(definition)
  const { statuses, initial, terminal, next } = graph
  const after = new Map(statuses.map((status) => [status, reachableFrom(graph, [status])]))
  return {
    name: definition.name,
    statuses,
    initial,
    terminal,
    sources: (to) => statuses.filter((from) => next.get(from)?.includes(to)),
    decide(from, to, isOlder = false) {
      if (from === to) return { kind: 'unchanged' }
      if (terminal.includes(from)) return { kind: 'blocked', why: 'terminal' }
      if (isOlder) return { kind: 'blocked', why: 'older' }
      if (next.get(from)?.includes(to)) return { kind: 'advance' }
      return { kind: 'blocked', why: after.get(to)?.has(from) ? 'backward' : 'not allowed' }
    },
    toMermaid: () => flowDiagram(graph, definition.name),
  }
}
