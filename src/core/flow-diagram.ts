import type { FlowGraph } from './flow-graph.js'

/** Words that a state diagram keeps for itself: Mermaid 11.17 does not take these for states. */
const RESERVED = [
  ...['as', 'class', 'classdef', 'click', 'default', 'direction', 'end', 'href', 'note', 'scale'],
  ...['state', 'statediagram', 'style', 'title'],
  // What it calls the two ends of the picture.
  ...['root_start', 'root_end'],
]

/** A flow as Mermaid draws it: a `stateDiagram-v2`. */
export function flowDiagram(
  { statuses, initial, terminal, next }: FlowGraph,
  name: string | undefined,
): string {
  // Names with a space or a dash are told beside the picture, and then all are: no two can meet.
  const arePlain = statuses.every((status) => /^[a-z]\w*$/i.test(status) && !isReserved(status))
  const idOf = (status: string) => (arePlain ? status : `s${statuses.indexOf(status)}`)
  const lines = [
    ...(arePlain ? [] : statuses.map((status) => `state ${text(status)} as ${idOf(status)}`)),
    ...initial.map((status) => `[*] --> ${idOf(status)}`),
    ...statuses.flatMap((from) =>
      (next.get(from) ?? []).map((to) => `${idOf(from)} --> ${idOf(to)}`),
    ),
    ...terminal.map((status) => `${idOf(status)} --> [*]`),
  ]
  const title = name === undefined ? '' : `---\ntitle: ${JSON.stringify(name)}\n---\n`
  return `${title}stateDiagram-v2\n${lines.map((line) => `  ${line}\n`).join('')}`
}

function isReserved(status: string): boolean {
  return RESERVED.includes(status.toLowerCase())
}

/**
 * Mermaid has no escapes but those of HTML, with a `#`. It looks for `<<fork>>`, `[[choice]]` and
 * `%%{…}%%` within a label, too, so what is no letter, digit or plain punctuation is escaped.
 */
function text(status: string): string {
  return `"${status.replace(/[^\p{L}\p{N} _.,-]/gu, (odd) => `#${odd.codePointAt(0)};`)}"`
}
