import { type Check, isBoolean, isFunction } from '../../checks.js'
import { at } from '../payload.js'
import { isAnswers, isKeptHeaders, isName, isRedelivers, type Provider } from '../provider.js'
import type { HmacOptions } from './hmac.js'
import { isSecret } from './options.js'

/** The options of a custom sender, except for how it authenticates. */
export type EventOptions = Pick<
  HmacOptions,
  | 'name'
  | 'secret'
  | 'secretOption'
  | 'eventId'
  | 'mergesUnnamed'
  | 'type'
  | 'object'
  | 'keptHeaders'
  | 'items'
  | 'handshake'
  | 'redelivers'
  | 'answers'
>

export const isFilledText: Check = (value) =>
  typeof value === 'string' && value !== '' ? undefined : 'must be text of at least one character'

export const EVENT_CHECKS: Record<keyof EventOptions, Check> = {
  name: isName,
  secret: isSecret,
  secretOption: isFilledText,
  eventId: (value) =>
    typeof value === 'function'
      ? undefined
      : 'must be a function such as (payload) => payload.eventId',
  mergesUnnamed: isBoolean,
  type: isFunction,
  object: isFunction,
  keptHeaders: isKeptHeaders,
  items: isFunction,
  handshake: isFunction,
  redelivers: isRedelivers,
  answers: isAnswers,
}

/** The parts of a provider that follow from these options. */
export function eventParts(options: EventOptions): Omit<Provider, 'scheme'> {
  const { name, secret, secretOption, object, items, handshake, answers, redelivers } = options
  const { mergesUnnamed } = options
  return {
    name,
    secret,
    ...(secretOption && { secretOption }),
    keptHeaders: (options.keptHeaders ?? []).map((header) => header.toLowerCase()),
    eventId: options.eventId,
    type: options.type ?? ((payload) => at(payload, 'type')),
    ...(mergesUnnamed !== undefined && { mergesUnnamed }),
    ...(object && { object }),
    ...(items && { items }),
    ...(handshake && { handshake }),
    ...(answers && { answers }),
    ...(redelivers !== undefined && { redelivers }),
  }
}

/** The name for error messages: the sender's, or the function's while the sender's is invalid. */
export function titleOf(factory: string, options: unknown): string {
  const { name } = Object(options)
  return isName(name) === undefined ? name : factory
}
