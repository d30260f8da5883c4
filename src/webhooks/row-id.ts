import { randomBytes } from 'node:crypto'

/**
 * A name for a new row: a UUID of version 7. It begins with the time, so that rows that are added
 * one after the other stand side by side in the index, and one page of it is written in place of many.
 */
export function newRowId(): string {
  const random = randomBytes(10)
  random[0] = ((random[0] as number) & 0x0f) | 0x70
  random[2] = ((random[2] as number) & 0x3f) | 0x80
  const hex = Date.now().toString(16).padStart(12, '0') + random.toString('hex')
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    hex.slice(12, 16),
    hex.slice(16, 20),
    hex.slice(20),
  ].join('-')
}
