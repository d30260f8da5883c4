/** Which status an entity may have next, as it is written down. */
export interface FlowDefinition {
  /** Named in errors, and the title of the picture. */
  readonly name?: string
  /** Forward is to any status of a higher level. */
  readonly levels?: Readonly<Record<string, number>>
  /** A status that is named here goes to these and to no others, whatever the levels say. */
  readonly transitions?: Readonly<Record<string, readonly string[]>>
  /** What an entity begins as. Default: the status that is named first. */
  readonly initial?: string | readonly string[]
  /** What it ends as: no level leads out of these. */
  readonly terminal?: readonly string[]
}

/** The same with every way spelled out. */
export interface FlowGraph {
  /** In the order in which they were named. */
  readonly statuses: readonly string[]
  readonly initial: readonly string[]
  readonly terminal: readonly string[]
  /** Where each status leads at once. */
  readonly next: ReadonlyMap<string, readonly string[]>
}

export function flowGraph(definition: FlowDefinition): FlowGraph {
  const { levels = {}, transitions = {}, terminal = [] } = definition
  const ways = new Map(Object.entries(transitions))
  const named = [...Object.keys(levels), ...[...ways].flatMap(([from, to]) => [from, ...to])]
  const statuses = [...new Set(named)]
  const { initial = statuses.slice(0, 1) } = definition

  const levelOf = new Map(Object.entries(levels))
  const higherThan = (from: string): string[] => {
    const level = levelOf.get(from)
    if (level === undefined || terminal.includes(from)) return []
    return statuses.filter((to) => (levelOf.get(to) ?? level) > level)
  }
  return {
    statuses,
    initial: typeof initial === 'string' ? [initial] : initial,
    terminal,
    next: new Map(statuses.map((from) => [from, ways.get(from) ?? higherThan(from)])),
  }
}

/** Every status that can be had after one of these, and these. */
export function reachableFrom({ next }: FlowGraph, from: readonly string[]): Set<string> {
  const reached = new Set(from)
  // What is added on the way is walked through, too.
  for (const status of reached) for (const to of next.get(status) ?? []) reached.add(to)
  return reached
}
