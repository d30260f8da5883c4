/** The width of every text column that is part of a key. */
const MAX_LENGTH = 255

/**
 * Whether every database stores this text as it is: not empty, no NUL (PostgreSQL refuses it), no
 * lone surrogate (all of them become U+FFFD on their way, so two names would become one), and not
 * longer than its column. Checked at every entrance of tenants, keys and names.
 */
export function isStorableText(value: unknown, maxLength = MAX_LENGTH): value is string {
  return typeof value === 'string' && value !== '' && value.length <= maxLength && isStorable(value)
}

/** The same for text of any length, the empty text included. */
export function isStorable(text: string): boolean {
  return text.isWellFormed() && !text.includes('\0')
}
