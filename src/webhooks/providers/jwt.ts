import { errors, type JWK, type JWTPayload, type JWTVerifyOptions, jwtVerify } from 'jose'
import { CertificateUnreachable, headerOf, type Incoming, type Refusal } from '../signature.js'
import { type Fetch, fetchedByName, fetchText } from './fetched.js'

/** Finds a public key by its id; `undefined` when there is none. @throws CertificateUnreachable */
export type KeyById = (keyId: string) => Promise<JWK | undefined>

/** What is required of a token. */
export type TokenTerms = Pick<JWTVerifyOptions, 'audience' | 'issuer' | 'requiredClaims'> & {
  readonly algorithm: 'RS256' | 'ES256'
  readonly keyById: KeyById
}

/** How far the clocks of an issuer and this process may differ. */
const CLOCKS_DIFFER_S = 60

/**
 * The claims of a token that is signed and valid at that time, or why it is refused.
 *
 * @throws CertificateUnreachable when the key cannot be fetched now.
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
        // Restricts what an unverified header can put into a request for the key.
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

/** When a token was issued: `verifyToken` requires that claim. */
export const issuedAtMs = ({ iat = Number.NaN }: JWTPayload): number => iat * 1_000

/** How long a key is trusted after its issuer has stopped publishing it, at most. */
const KEYS_KEPT_FOR_MS = 3_600_000

/** The keys that an issuer publishes at a fixed address, as a JSON Web Key Set (RFC 7517). */
export function publishedKeys(fetch: Fetch, address: string): KeyById {
  const keys = fetchedByName({
    what: 'key',
    keptForMs: KEYS_KEPT_FOR_MS,
    load: async () => {
      const { ok, text } = await fetchText(fetch, address, 'key')
      const set = ok ? keySetOf(text) : undefined
      if (set !== undefined) return set
      // The address is fixed, so a missing key set does not mean that the token is forged.
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
