import { toMs } from '../../checks.js'
import { OptionInvalid } from '../../errors.js'
import { at } from '../payload.js'
import { defineProvider, type Provider } from '../provider.js'
import type { Secrets } from '../secrets.js'
import { headerOf, type Incoming, type Read, type Scheme } from '../signature.js'
import { isSecret, readOptions, TOLERANT, type TolerantOptions } from './options.js'
import { keyOf, readSigned, STANDARD_HEADERS, STANDARD_SECRET } from './standard-webhooks.js'

export interface GitlabOptions extends Pick<TolerantOptions, 'tolerance'> {
  /** The webhook's secret token. It is sent along, and nothing is signed. */
  secret?: Secrets
  /** The webhook's signing token, `whsec_…`: the safer one, where GitLab has it. */
  signingToken?: Secrets
}

/**
 * GitLab. Settings → Webhooks: the signing token, or the secret token of older versions, which
 * comes in a header with every request and is never kept. Window: 5 minutes with a signing token,
 * none without. `redelivers` is `false`: an answer that is an error is shown, not repeated.
 */
export function gitlab(options: GitlabOptions): Provider {
  const {
    secret,
    signingToken,
    tolerance = '5m',
  } = readOptions('gitlab', { ...TOLERANT, signingToken: isSecret }, options)
  if ((secret === undefined) === (signingToken === undefined)) {
    throw new OptionInvalid(
      'gitlab needs option "secret" or option "signingToken", and not both. Is an environment variable not set?',
    )
  }
  const isSigned = signingToken !== undefined
  return defineProvider({
    name: 'gitlab',
    secret: (isSigned ? signingToken : secret) as Secrets,
    secretOption: isSigned ? 'signingToken' : 'secret',
    scheme: isSigned
      ? {
          algorithm: { kind: 'hmac', hash: 'sha256' },
          toKey: keyOf,
          secretForm: STANDARD_SECRET,
          toleranceMs: toMs(tolerance),
          // Under this name only: it is where the id is read.
          read: (incoming) => readSigned(incoming, 'webhook'),
        }
      : TOKEN,
    keptHeaders: [...STANDARD_HEADERS.slice(0, 3), 'idempotency-key', 'x-gitlab-event'],
    secretHeaders: ['x-gitlab-token'],
    // Not X-Gitlab-Event-UUID, which events that cause each other share, nor X-Gitlab-Webhook-UUID.
    eventId: (_payload, header) => header('webhook-id') ?? header('idempotency-key'),
    type: (payload, header) => at(payload, 'object_kind') ?? header('x-gitlab-event'),
    object: (payload) => at(payload, 'object_attributes.id'),
    redelivers: false,
  })
}

const TOKEN: Scheme = { algorithm: { kind: 'equality' }, read: readToken }

function readToken(incoming: Incoming): Read {
  const token = headerOf(incoming, 'x-gitlab-token')
  if (token === undefined) return 'missing_header'
  return { content: [], signatures: [Buffer.from(token)] }
}
