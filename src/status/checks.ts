import type { Check } from '../checks.js'
import { isStorableText } from '../core/text.js'

// What flows and advance() check their options with.

/** Room for a status, a reason and an actor in `StatusChange`, on MySQL. */
export const LONGEST_TEXT = 191

export const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
export const isText = (value: unknown): value is string =>
  isStorableText(value, LONGEST_TEXT) && value.trim() !== ''
export const isTextList = (value: unknown): value is string[] =>
  Array.isArray(value) && value.every((item) => typeof item === 'string')
export const takes =
  (isRight: (value: unknown) => boolean, what: string): Check =>
  (value) =>
    isRight(value) ? undefined : `must be ${what}`
