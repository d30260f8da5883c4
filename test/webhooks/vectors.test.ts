import { readFile } from 'node:fs/promises'
import t from 'tap'
import type { Provider } from '../../src/webhooks/provider.js'
import {
  adyen,
  github,
  sendgrid,
  slack,
  standardWebhooks,
  stripe,
  svix,
  twilio,
} from '../../src/webhooks/providers/index.js'
import { verify } from '../../src/webhooks/verify.js'

/** An example that the provider, or its library, has published. */
interface Vector {
  provider: string
  secret: string
  id?: string
  timestamp?: number
  url?: string
  body: string
  signature: string | null
  valid: boolean
}

const file = new URL('../fixtures/webhook-vectors.json', import.meta.url)
const vectors: Vector[] = JSON.parse(await readFile(file, 'utf8'))

type Reading = [provider: (secret: string) => Provider, headers: (v: Vector) => Headers]
type Headers = Record<string, string>

const standard = (prefix: string) => (v: Vector) => ({
  [`${prefix}-id`]: String(v.id),
  [`${prefix}-timestamp`]: String(v.timestamp),
  [`${prefix}-signature`]: String(v.signature),
})

const readings: Record<string, Reading[]> = {
  'standard-webhooks': [
    [(secret) => standardWebhooks({ secret }), standard('webhook')],
    [(secret) => svix({ secret }), standard('svix')],
  ],
  stripe: [[(secret) => stripe({ secret }), (v) => ({ 'Stripe-Signature': String(v.signature) })]],
  github: [
    [(secret) => github({ secret }), (v) => ({ 'X-Hub-Signature-256': String(v.signature) })],
  ],
  slack: [
    [
      (secret) => slack({ secret }),
      (v) => ({
        'Content-Type': 'application/x-www-form-urlencoded',
        'X-Slack-Request-Timestamp': String(v.timestamp),
        'X-Slack-Signature': String(v.signature),
      }),
    ],
  ],
  twilio: [
    [
      (authToken) => twilio({ authToken, url: 'https://mycompany.com/myapp.php' }),
      (v) => ({
        'Content-Type': 'application/x-www-form-urlencoded; charset=utf-8',
        'X-Twilio-Signature': String(v.signature),
      }),
    ],
  ],
  sendgrid: [
    [
      (publicKey) => sendgrid({ publicKey }),
      (v) => ({
        'X-Twilio-Email-Event-Webhook-Signature': String(v.signature),
        'X-Twilio-Email-Event-Webhook-Timestamp': String(v.timestamp),
      }),
    ],
  ],
  adyen: [[(hmacKey) => adyen({ hmacKey }), () => ({})]],
}

for (const vector of vectors) {
  const title = vector.valid ? 'is found genuine' : 'is refused'
  t.test(`the published example of ${vector.provider} ${title}`, async (t) => {
    const found = readings[vector.provider] ?? []
    t.not(found.length, 0, 'somebody reads it')
    for (const [make, headersOf] of found) {
      const at = (vector.timestamp ?? 0) * 1_000
      const { url = '/' } = vector
      const ask = async (body: string) => {
        const headers = headersOf(vector)
        const provider = make(vector.secret)
        const result = await verify(provider, headers, body, { at, url })
        const asOfFetch = new globalThis.Headers(headers)
        t.strictSame(await verify(provider, asOfFetch, body, { at, url }), result)
        return result
      }
      const result = await ask(vector.body)
      // GitHub's example is genuine, and no JSON.
      t.equal(result.kind === 'verified' || result.kind === 'unreadable', vector.valid)
      // In the middle: what is signed of an item of Adyen lies there, and not at its end.
      const middle = vector.body.indexOf('1130') > 0 ? vector.body.indexOf('1130') : 1
      const changed = `${vector.body.slice(0, middle)}7${vector.body.slice(middle + 1)}`
      t.equal((await ask(changed)).kind, 'refused', 'not with another byte')
    }
  })
}
