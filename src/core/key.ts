/** The longest key that is accepted, in characters: as wide as the column that `init` writes. */
export const MAX_KEY_LENGTH = 255

/** Quotes around a key, each character of which is escaped: no header that is longer is one. */
const MAX_HEADER_LENGTH = 2 * MAX_KEY_LENGTH + 2

export type ParsedKey = { kind: 'key'; key: string } | { kind: 'malformed'; reason: string }

const TOO_LONG = `it has more than ${MAX_KEY_LENGTH} characters`

// RFC 8941, 3.3.3: printable ASCII, in which only the quote and the backslash are escaped.
const QUOTED = /^"((?:[ !#-[\]-~]|\\["\\])*)"$/
// What clients send that do not know structured fields. No comma: Node joins a header that was
// sent twice with one, and two keys must never become a third.
const RAW = /^[!#-+\--[\]-~]+$/

/**
 * Reads an Idempotency-Key: a structured-field String (`"abc"`), or a raw token (`abc`), which
 * names the same key. The time is linear in the header's length, which the client chooses.
 */
export function parseKey(header: string | readonly string[]): ParsedKey {
  if (typeof header !== 'string') return malformed('it was sent more than once')
  const value = withoutOuterSpace(header)
  if (value === '') return malformed('it is empty')
  // No regular expression below gets more than this many characters to read.
  if (value.length > MAX_HEADER_LENGTH) return malformed(TOO_LONG)
  const quoted = QUOTED.exec(value)
  if (quoted === null && !RAW.test(value)) return malformed(reasonFor(value))
  const key = quoted === null ? value : (quoted[1] as string).replace(/\\(["\\])/g, '$1')
  if (key === '') return malformed('it is empty')
  if (key.length > MAX_KEY_LENGTH) return malformed(TOO_LONG)
  return { kind: 'key', key }
}

/** Only what HTTP calls white space is removed: `trim()` removes more. */
function withoutOuterSpace(header: string): string {
  let start = 0
  let end = header.length
  while (start < end && isSpace(header.charCodeAt(start))) start += 1
  while (end > start && isSpace(header.charCodeAt(end - 1))) end -= 1
  return header.slice(start, end)
}

function isSpace(code: number): boolean {
  return code === 0x20 || code === 0x09
}

function malformed(reason: string): ParsedKey {
  return { kind: 'malformed', reason }
}

// The reason never repeats the value: an answer may end up in somebody's log.
function reasonFor(value: string): string {
  if (/[^\x20-\x7e]/.test(value)) return 'it contains characters other than printable ASCII'
  if (/^"(?:[^"\\]|\\.)*$/.test(value)) return 'its closing quote is missing'
  if (value.includes(',')) return 'it was sent more than once, or contains an unquoted comma'
  return 'it is neither a quoted string nor a token without spaces and quotes'
}
