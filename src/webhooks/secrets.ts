import { OptionInvalid } from '../errors.js'
import { within } from '../within.js'
import type { Key, Scheme } from './signature.js'

/** What a provider and this side share: text, or bytes. */
export type Secret = string | Uint8Array

/**
 * One secret, several while one is being changed, or a function that finds those of a tenant, or
 * nothing for a tenant that has none. `undefined` can be written, as in `process.env.SECRET`, and is
 * refused at start like an empty text.
 */
export type Secrets =
  | Secret
  | undefined
  | readonly (Secret | undefined)[]
  | ((tenantId: string) => FoundSecrets | Promise<FoundSecrets>)

type SomeSecrets = Exclude<Secrets, (...args: never[]) => unknown>
type FoundSecrets = Secret | readonly Secret[] | null | undefined

/** Whose secrets: a provider, or whatever else of it is compared with something secret. */
export interface SecretOwner {
  readonly name: string
  readonly secret: Secrets
  readonly secretOption?: string
  readonly scheme: Pick<Scheme, 'algorithm' | 'toKey' | 'secretForm'>
}

/** Lookups that have not ended, by owner and tenant. */
const asked = new WeakMap<SecretOwner, Map<string, Promise<readonly Key[]>>>()

/**
 * The keys of a tenant, from fixed secrets or from the application's function. Calls that overlap share one
 * call of the function: requests cost no more than one at a time.
 *
 * @throws StoreTimeout when a function takes longer than `withinMs`. The next call asks it again.
 */
export async function keysOf(
  owner: SecretOwner,
  tenantId: string,
  withinMs = Number.POSITIVE_INFINITY,
): Promise<readonly Key[]> {
  const { secret } = owner
  if (typeof secret !== 'function') return preparedKeys(owner, secret)
  const known = asked.get(owner) ?? new Map<string, Promise<readonly Key[]>>()
  asked.set(owner, known)
  let lookup = known.get(tenantId)
  if (lookup === undefined) {
    const looking = lookUp(owner, secret, tenantId)
    lookup = withinMs === Number.POSITIVE_INFINITY ? looking : within(looking, withinMs)
    known.set(tenantId, lookup)
    const forget = () => void known.delete(tenantId)
    lookup.then(forget, forget)
  }
  return lookup
}

async function lookUp(
  owner: SecretOwner,
  secret: (tenantId: string) => unknown,
  tenantId: string,
): Promise<readonly Key[]> {
  const found = await secret(tenantId)
  // An unknown tenant has no secret, and no signature matches none.
  if (found === undefined || found === null) return []
  return toKeys(owner, found as Secret)
}

/** Refuses secrets that cannot be used, as early as they are known. @throws OptionInvalid */
export function checkSecrets(owner: SecretOwner): void {
  if (typeof owner.secret !== 'function') preparedKeys(owner, owner.secret)
}

const prepared = new WeakMap<SecretOwner, readonly Key[]>()

function preparedKeys(owner: SecretOwner, secrets: SomeSecrets): readonly Key[] {
  const known = prepared.get(owner)
  if (known !== undefined) return known
  const keys = toKeys(owner, secrets)
  prepared.set(owner, keys)
  return keys
}

/** Turns secrets into keys. @throws OptionInvalid for one that is empty or no key. */
function toKeys(
  { name, scheme, secretOption = 'secret' }: SecretOwner,
  secrets: SomeSecrets,
): Key[] {
  const option = `option "${secretOption}" of ${name}`
  const form = scheme.secretForm ?? `in the form that ${name} gives it`
  const list = Array.isArray(secrets) ? (secrets as readonly Secret[]) : [secrets as Secret]
  if (list.length === 0) {
    throw new OptionInvalid(`${option} is an empty list; write one or several of them`)
  }
  return list.map((secret) => {
    const isText = typeof secret === 'string'
    if ((!isText && !(secret instanceof Uint8Array)) || secret.length === 0) {
      throw new OptionInvalid(
        `${option} is missing or empty; anybody could sign with that. Is an environment variable not set?`,
      )
    }
    if (!isText) {
      if (scheme.algorithm.kind !== 'public-key') return secret
      throw new OptionInvalid(`${option} must be text, ${form}`)
    }
    if (scheme.toKey === undefined) return Buffer.from(secret)
    let key: Key
    try {
      key = scheme.toKey(secret)
    } catch {
      // Without the cause: its message may quote the secret.
      throw new OptionInvalid(`${option} must be ${form}`)
    }
    if (key instanceof Uint8Array && key.byteLength === 0) {
      throw new OptionInvalid(`${option} holds an empty key`)
    }
    return key
  })
}
