import { randomUUID } from 'node:crypto'
import type { RunningApi } from './start.js'

/** What to do with the API that has just started, ready to copy. */
export function welcome({ url, description }: RunningApi): string {
  // A new one at each start: a database that stays would replay what an earlier start has stored.
  const key = randomUUID()
  const pay = (amount: number) => `\
  curl -i ${url}/payments \\
    -H 'Authorization: Bearer acme-demo-token' \\
    -H 'Idempotency-Key: ${key}' \\
    -H 'Content-Type: application/json' \\
    -d '{ "amount": ${amount}, "currency": "EUR" }'`

  return `
Payments API on ${url} (${description})

Pay. Run it twice: the second answer is the first one, with Idempotent-Replayed: true

${pay(4900)}

The same key for something else is refused

${pay(9900)}

One payment was stored

  curl ${url}/payments -H 'Authorization: Bearer acme-demo-token'

Fifty at once, from another terminal

  DEMO_URL=${url} npm run demo

Ctrl+C stops it.
`
}
