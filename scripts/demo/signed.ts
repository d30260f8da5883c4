// Webhooks as their providers send them.
import { createHmac, randomUUID } from 'node:crypto'
import type { WebhookSecrets } from '../../examples/payments/webhooks.js'

/** One request of a provider. */
export interface Delivery {
  path: string
  headers: Record<string, string>
  body: string
}

/** What a forger, or a clock that is wrong, does differently. */
interface Otherwise {
  secret?: string
  /** In seconds from now. */
  signedIn?: number
}

export function deliveries(secrets: WebhookSecrets) {
  return {
    stripe(
      {
        id,
        payment,
        type = 'payment_intent.succeeded',
        created = nowInSeconds(),
      }: { id: string; payment: string; type?: string; created?: number },
      { secret = secrets.stripe, signedIn = 0 }: Otherwise = {},
    ): Delivery {
      const object = { id: `pi_${randomUUID()}`, amount: 4900, metadata: { payment } }
      const body = JSON.stringify({ id, type, created, data: { object } })
      const time = nowInSeconds() + signedIn
      const signature = hexHmac(secret, `${time}.${body}`)
      return delivery('/webhooks/stripe', body, { 'stripe-signature': `t=${time},v1=${signature}` })
    },

    github({ id }: { id: string }): Delivery {
      const repository = { full_name: 'acme/shop' }
      const body = JSON.stringify({ ref: 'refs/heads/main', after: randomUUID(), repository })
      return delivery('/webhooks/github', body, {
        'x-github-event': 'push',
        'x-github-delivery': id,
        'x-hub-signature-256': `sha256=${hexHmac(secrets.github, body)}`,
      })
    },

    bank(transfers: readonly { id: string; payment: string }[]): Delivery {
      const body = JSON.stringify({ transfers })
      const time = nowInSeconds()
      return delivery('/webhooks/bank', body, {
        'bank-timestamp': String(time),
        'bank-signature': hexHmac(secrets.bank, `${time}.${body}`),
      })
    },
  }
}

/** Changed on its way, after it was signed. */
export function withOneByteChanged(sent: Delivery): Delivery {
  const middle = Math.trunc(sent.body.length / 2)
  const changed = sent.body[middle] === 'a' ? 'b' : 'a'
  return { ...sent, body: sent.body.slice(0, middle) + changed + sent.body.slice(middle + 1) }
}

export function withoutSignature({ path, body }: Delivery): Delivery {
  return delivery(path, body, {})
}

function delivery(path: string, body: string, headers: Record<string, string>): Delivery {
  return { path, body, headers: { 'content-type': 'application/json', ...headers } }
}

function hexHmac(secret: string, content: string): string {
  return createHmac('sha256', secret).update(content).digest('hex')
}

function nowInSeconds(): number {
  return Math.trunc(Date.now() / 1_000)
}
