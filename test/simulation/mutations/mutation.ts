/** A text that stands exactly once in its file, and what takes its place. */
export type Edit = readonly [find: string, replace: string, file?: string]

/** A guard that is taken away. */
export interface Mutation {
  /** What does not hold any more. */
  readonly name: string
  /** Where the edits are that name no other file. */
  readonly file: string
  readonly edits: readonly Edit[]
  /** A schedule that shows it; or why none can. */
  readonly shownBy: number | string
  /** Hardly any schedule shows it: when the code has changed, another one is not looked for. */
  readonly isRare?: true
}
