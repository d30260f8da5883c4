// The names under which the inbox stores events: the provider's, or its own where the provider gives none.
import { createHash } from 'node:crypto'
import { isStorableText } from '../core/text.js'

/** The width on MySQL of the columns that name an event and its endpoint. */
export const LONGEST_NAME = 191

const BYTES = 'bytes:'
const DELIVERY = 'delivery:'
const UNREADABLE = 'unreadable:'
const UNREADABLE_ITEM = 'unreadable-item:'
const OWN = [BYTES, DELIVERY, UNREADABLE, UNREADABLE_ITEM]

/**
 * A name from a payload as a column can hold it. The inbox stores an unusual one as its hash, and also one
 * that looks like a name of its own.
 */
export function storableName(name: string): string {
  if (isStorableText(name, LONGEST_NAME) && !isOwn(name)) return name
  // Of its code units: as UTF-8, all lone surrogates are the same character.
  return `sha256:${sha256(Buffer.from(name, 'utf16le'))}`
}

/** A name as a person writes it, who may have read one of the inbox's own in a log. */
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

/**
 * Names one delivery, by a name of its bytes or by its row: another delivery of the event may have another
 * name. The inbox does not run it beside that one.
 */
export function nameOfDelivery(name: string): string {
  return DELIVERY + (name.startsWith(BYTES) ? name.slice(BYTES.length) : name)
}

export function isOfDelivery(eventId: string | null): boolean {
  return eventId?.startsWith(DELIVERY) === true
}

/** Names bytes that cannot be read, so that their other deliveries are duplicates. */
export function nameOfUnreadable(rawBody: Uint8Array, isItem: boolean): string {
  return (isItem ? UNREADABLE_ITEM : UNREADABLE) + sha256(rawBody)
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
