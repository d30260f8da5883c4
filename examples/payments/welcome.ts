import { randomUUID } from 'node:crypto'
import { DEMO_SECRETS } from './environment.js'
import type { RunningApi } from './start.js'

/** What to do with the API that has just started, ready to copy. */
export function welcome({ url, description }: RunningApi): string {
  // A new one at each start: a database that stays would replay what an earlier start has stored.
  const key = randomUUID()
  const id = randomUUID()
  const pay = (amount: number) => `\
  curl -i ${url}/payments \\
    -H 'Authorization: Bearer acme-demo-token' \\
    -H 'Idempotency-Key: ${key}' \\
    -H 'Content-Type: application/json' \\
    -d '{ "id": "${id}", "amount": ${amount}, "currency": "EUR" }'`
  // Told by the shell, because what is printed here may end in a log.
  const secret = `"\${STRIPE_WEBHOOK_SECRET:-${DEMO_SECRETS.stripe}}"`
  const event = JSON.stringify({
    id: `evt_${randomUUID()}`,
    type: 'payment_intent.succeeded',
    data: { object: { metadata: { payment: id } } },
  })

  return `
Payments API on ${url}
(${description})

Pay. Run it twice: the second answer is the first one, with Idempotent-Replayed: true

${pay(4900)}

The same key for something else is refused

${pay(9900)}

One payment was stored

  curl ${url}/payments -H 'Authorization: Bearer acme-demo-token'

Stripe says that it has arrived. Run it twice: the second time, the event is a duplicate

  time=$(date +%s); event='${event}'
  curl -i ${url}/webhooks/stripe \\
    -H 'Content-Type: application/json' \\
    -H "Stripe-Signature: t=$time,v1=$(printf %s "$time.$event" \\
      | openssl dgst -sha256 -hmac ${secret} -r | cut -c -64)" \\
    -d "$event"

Fifty of each at once, from another terminal

  DEMO_URL=${url} npm run demo

Ctrl+C stops it.
`
}
