/** A top-level block of a Prisma schema: `kind name { … }`. */
export interface Block {
  readonly kind: string
  readonly name: string
  /** Where the block starts and ends in the text, both braces included. */
  readonly start: number
  readonly end: number
  /** What is between the braces, line by line, without comments. */
  readonly lines: readonly string[]
}

export type SchemaReading =
  | { readonly kind: 'read'; readonly blocks: readonly Block[] }
  /** Whatever is appended to such a text would become part of what is open. */
  | { readonly kind: 'unclosed'; readonly what: string; readonly line: number }

// A string ends with its line, closed or not, as Prisma's grammar has it. The alternatives are
// tried from left to right at each place, so that "//" in a string is no comment and a quote in a
// comment opens no string.
const COMMENT_OR_STRING = /\/\/[^\n\r]*|\/\*[\s\S]*?(?:\*\/|$)|"(?:\\.|[^"\\\n\r])*\\?"?/g

/**
 * Finds the top-level blocks. This is no check of the schema: lines that Prisma would refuse are
 * passed over, and only what decides where a block starts and ends is understood.
 */
export function readBlocks(text: string): SchemaReading {
  const openComment = [...text.matchAll(COMMENT_OR_STRING)].find(isOpenComment)
  if (openComment) return unclosed(text, 'a comment', openComment.index)

  const code = text.replace(COMMENT_OR_STRING, (part) => (part[0] === '"' ? part : blank(part)))
  const shape = code.replace(COMMENT_OR_STRING, blank)
  const blocks: Block[] = []
  let depth = 0
  let openedAt = 0
  for (const brace of shape.matchAll(/[{}]/g)) {
    if (brace[0] === '{') {
      if (depth++ === 0) openedAt = brace.index
    } else if (depth > 0 && --depth === 0) {
      const block = blockAround(code, shape, openedAt, brace.index)
      if (block) blocks.push(block)
    }
  }
  if (depth > 0) return unclosed(text, 'a block', openedAt)
  return { kind: 'read', blocks }
}

function blockAround(code: string, shape: string, open: number, close: number): Block | undefined {
  const lineStart = shape.lastIndexOf('\n', open) + 1
  const header = /([\w-]+)[ \t]+([\w-]+)[ \t]*$/.exec(shape.slice(lineStart, open))
  if (!header?.[1] || !header[2]) return undefined
  return {
    kind: header[1],
    name: header[2],
    start: lineStart + header.index,
    end: close + 1,
    lines: code.slice(open + 1, close).split(/\r\n|\n|\r/),
  }
}

function isOpenComment([part]: RegExpMatchArray): boolean {
  return part.startsWith('/*') && !(part.length >= 4 && part.endsWith('*/'))
}

/** The same length and the same lines, so that places in one text are places in the other. */
function blank(part: string): string {
  return part.replace(/[^\n\r]/g, ' ')
}

function unclosed(text: string, what: string, at: number): SchemaReading {
  return { kind: 'unclosed', what, line: text.slice(0, at).split('\n').length }
}
