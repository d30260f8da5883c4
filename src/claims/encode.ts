import { DevalueError, stringify } from 'devalue'
import { classNameOf } from '../core/canonical.js'
import { StepNotStorable } from '../errors.js'

/**
 * A result as it is stored: at once an error, and not when a later attempt wants it back. `what` names it
 * for people: `result of step "charge"`.
 *
 * @throws StepNotStorable
 */
export function encode(what: string, value: unknown): string {
  try {
    return stringify(value)
  } catch (error) {
    throw new StepNotStorable(what, reasonOf(error))
  }
}

/** Without anything of the value but names of properties: an error of its getters may quote it. */
function reasonOf(error: unknown): string {
  if (error instanceof RangeError) return 'it is nested too deeply'
  if (!(error instanceof DevalueError)) return 'reading it failed'
  const path = withoutData(error.path)
  return `${path === '' ? 'it' : `\`${path}\``} ${obstacleOf(error.value)}`
}

function obstacleOf(value: unknown): string {
  if (typeof value !== 'object' || value === null) return `is a ${typeof value}`
  const name = Object.getPrototypeOf(value) === null ? 'Object' : classNameOf(value)
  if (name !== 'Object') return `is an instance of ${name}`
  if (Object.getOwnPropertySymbols(value).length > 0) return 'has symbols as keys'
  return Object.hasOwn(value, '__proto__') ? 'has a key __proto__' : 'has a prototype of its own'
}

const LONGEST_PATH = 100

/** Keys that are no identifiers, and all keys of maps, may be data. */
function withoutData(path: string): string {
  const names = path.replace(/"(?:[^"\\]|\\.)*"/g, '…').replace(/\.get\([^)]*\)/g, '.get(…)')
  return names.length > LONGEST_PATH ? `…${names.slice(-LONGEST_PATH)}` : names
}
