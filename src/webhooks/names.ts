// The names under which the inbox stores events: the provider's, or its own where the provider gives none.
import { createHash } from 'node:crypto'
import { isStorableText } from '../core/text.js'

/** The width on MySQL of the columns that name an event and its endpoint. */
export const LONGEST_NAME = 191

const BYTES = 'bytes:'
const UNREADABLE = 'unreadable:'
const UNREADABLE_ITEM = 'unreadable-item:'
const HASH = 'sha256:'
const OWN = [BYTES, UNREADABLE, UNREADABLE_ITEM, HASH]

/**
 * A name from a payload as a column can hold it. The inbox stores an unusual one as its hash, and also one
 * that looks like a name of its own.
 */
export function storableName(name: string): string {
  if (isStorableText(name, LONGEST_NAME) && !isOwn(name)) return name
  // Of its code units: as UTF-8, all lone surrogates are the same character.
  return `${HASH}${sha256(Buffer.from(name, 'utf16le'))}`
}

/** A name as a person writes it who has read one of the inbox's own in a log. */
export function writtenName(name: string): string {
  return isOwn(name) && isStorableText(name, LONGEST_NAME) ? name : storableName(name)
}

/**
 * Names an event after its bytes. Its type is part of it, because a header can say it; so is the time at
 * which it was signed, because the same bytes that are signed at two times may be two events.
 */
export function nameOfBytes(
  rawBody: Uint8Array,
  type: string | null,
  signedAtMs: number | undefined,
): string {
  return BYTES + sha256(JSON.stringify([sha256(rawBody), type, signedAtMs ?? null]))
}

/** What is known of an event that cannot be read, and that its name may need once it can. */
export interface UnreadableName {
  readonly isItem: boolean
  /** When it was signed, where a time was. */
  readonly signedAtMs: number | undefined
  /** How many equal items of its batch came before it. */
  readonly repetition: number
}

/** Names what cannot be read, so that its other deliveries are duplicates: by `what`, a hash of it or the row. */
export function nameOfUnreadable(
  what: string,
  { isItem, signedAtMs, repetition }: UnreadableName,
): string {
  const prefix = isItem ? UNREADABLE_ITEM : UNREADABLE
  return `${prefix}${signedAtMs ?? ''}:${repetition}:${what}`
}

/** Reads such a name. */
export function unreadableNameOf(eventId: string | null): UnreadableName {
  const [, time = '', repetition] = eventId?.split(':') ?? []
  const signedAtMs = time === '' ? undefined : Number(time)
  return { isItem: unreadableIn(eventId) === 'item', signedAtMs, repetition: Number(repetition) }
}

/** Names one of several events that have no names of their own, by what they came from: always the same. */
export function nameOfRead(source: string, index: number): string {
  return BYTES + sha256(JSON.stringify([source, index]))
}

/** What an event holds that could not be read when it came: a whole request, or one item of a batch. */
export function unreadableIn(eventId: string | null): 'request' | 'item' | undefined {
  if (eventId?.startsWith(UNREADABLE)) return 'request'
  return eventId?.startsWith(UNREADABLE_ITEM) ? 'item' : undefined
}

export function sha256(value: string | Uint8Array): string {
  return createHash('sha256').update(value).digest('base64url')
}

function isOwn(name: string): boolean {
  return OWN.some((prefix) => name.startsWith(prefix))
}
