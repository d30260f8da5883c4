import { errors, type JWK, type JWTPayload, type JWTVerifyOptions, jwtVerify } from 'jose'
import { CertificateUnreachable, headerOf, type Incoming, type Refusal } from '../signature.js'
import { type Fetch, fetchedByName, fetchText } from './fetched.js'

/** Finds a public key by its id; nothing when there is none. @throws CertificateUnreachable */
export type KeyById = (keyId: string) => Promise<JWK | undefined>

/** What a token must say, besides being signed with a key of the issuer's. */
export type TokenTerms = Pick<JWTVerifyOptions, 'audience' | 'issuer' | 'requiredClaims'> & {
  readonly algorithm: 'RS256' | 'ES256'
  readonly keyById: KeyById
}

/** Clocks differ; an issuer and this process may by so much. */
const CLOCKS_DIFFER_S = 60

/**
 * The claims of a token that is signed and valid at that time, or why it is none.
 *
 * @throws CertificateUnreachable when the key cannot be had now.
 */
export async function verifyToken(
  token: string,
  { algorithm, keyById, requiredClaims = [], ...claims }: TokenTerms,
  nowMs: number,
): Promise<Refusal | JWTPayload> {
  try {
    const { payload } = await jwtVerify(
      token,
      async ({ kid }) => {
        // Of other text, as many keys could be asked for as somebody makes up.
        const isName = typeof kid === 'string' && /^[\w-]{1,128}$/.test(kid)
        const key = isName && (await keyById(kid))
        if (!key) throw new errors.JWKSNoMatchingKey()
        return key
      },
      {
        ...claims,
        algorithms: [algorithm],
        requiredClaims: ['iat', ...requiredClaims],
        clockTolerance: CLOCKS_DIFFER_S,
        currentDate: new Date(nowMs),
      },
    )
    return payload
  } catch (error) {
    if (error instanceof errors.JOSEError) return refusalOf(error)
    throw error
  }
}

function refusalOf(error: errors.JOSEError): Refusal {
  if (error instanceof errors.JWTExpired) return 'too_old'
  if (error instanceof errors.JWTClaimValidationFailed && error.claim === 'nbf') {
    return 'from_future'
  }
  return MALFORMED.has(error.code) ? 'malformed' : 'no_match'
}

const MALFORMED: ReadonlySet<string> = new Set([
  errors.JWSInvalid.code,
  errors.JWTInvalid.code,
  errors.JOSENotSupported.code,
])

/** The token of `authorization: Bearer …`. */
export function bearerOf(incoming: Incoming): string | Refusal {
  const header = headerOf(incoming, 'authorization')
  if (header === undefined) return 'missing_header'
  return /^bearer +([\w.-]+)$/i.exec(header)?.[1] ?? 'malformed'
}

/** When a token was issued, which `verifyToken` has seen is a number. */
export const issuedAtMs = ({ iat = Number.NaN }: JWTPayload): number => iat * 1_000

/** Keys that are published no longer are not believed any longer. */
const KEYS_KEPT_FOR_MS = 3_600_000

/** The keys that an issuer publishes at an address of its own, as a JSON Web Key Set (RFC 7517). */
export function publishedKeys(fetch: Fetch, address: string): KeyById {
  const keys = fetchedByName({
    what: 'key',
    keptForMs: KEYS_KEPT_FOR_MS,
    load: async () => {
      const { ok, text } = await fetchText(fetch, address, 'key')
      const set = ok ? keySetOf(text) : undefined
      if (set !== undefined) return set
      // The address is the issuer's: that nothing is there says nothing of the request.
      throw new CertificateUnreachable('the keys are not where they are published')
    },
  })
  return async (keyId) => (await keys(address, (set) => set.has(keyId)))?.get(keyId)
}

function keySetOf(text: string): ReadonlyMap<unknown, JWK> | undefined {
  try {
    const { keys } = JSON.parse(text) as { keys: JWK[] }
    return new Map(keys.map((key) => [key.kid, key]))
  } catch {
    return undefined
  }
}
