// Questions by GET, which nobody signs: a wrong token is a refusal like any other.
import t, { test } from 'tap'
import { meta } from '../../src/webhooks/providers/index.js'
import { collectEvents } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { inboxApp } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

test('wrong tokens are reported, and limited like wrong signatures', async (t) => {
  const events = collectEvents(t)
  const app = await inboxApp(t, database, () => {}, {
    plugin: { failedSignatures: { max: 3, timeWindow: '1m' } },
    url: '/webhooks/meta',
    webhook: { provider: meta({ secret: 's', verifyToken: 'meatyhamhock' }) },
  })
  const greet = (token: string) =>
    app.inject(`/webhooks/meta?hub.mode=subscribe&hub.challenge=115820&hub.verify_token=${token}`)
  t.equal((await greet('meatyhamhock')).body, '115820')
  t.strictSame(events.kinds(), [])
  const wrong = await greet('guess')
  t.equal(wrong.statusCode, 401)
  t.match(wrong.json(), { code: 'IDEMPOTENCY_SIGNATURE_REFUSED', reason: 'no_match' })
  t.match(events.all, [{ kind: 'webhook_refused', provider: 'meta', reason: 'no_match' }])
  const post = { method: 'POST', url: '/webhooks/meta', payload: '{}' } as const
  t.equal((await app.inject(post)).statusCode, 401, 'both are counted together')
  t.equal((await app.inject('/webhooks/meta')).statusCode, 401)
  const limited = await greet('another')
  t.equal(limited.statusCode, 429)
  t.ok(Number(limited.headers['retry-after']) >= 1)
  t.strictSame(events.kinds(), Array(4).fill('webhook_refused'))
  t.equal((await greet('meatyhamhock')).statusCode, 200, 'the right one always passes')
})
