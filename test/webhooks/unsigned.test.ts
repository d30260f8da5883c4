// Validation requests that are not signed: they are answered, and nothing of them is stored.
import t, { test } from 'tap'
import {
  azureEventGrid,
  basicAuth,
  microsoftGraph,
  woocommerce,
} from '../../src/webhooks/providers/index.js'
import { collectEvents } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { inboxApp } from '../fixtures/webhooks.js'

const database = await anyDatabase(t)

test('a question that is not signed is answered without an event', async (t) => {
  const events = collectEvents(t)
  const app = await inboxApp(t, database, () => t.fail('it is no event'), {
    url: '/webhooks/graph',
    webhook: { provider: microsoftGraph({ clientState: 's' }) },
  })
  const asked = await app.inject({
    method: 'POST',
    url: '/webhooks/graph?validationToken=a%20%3cb%3e',
    headers: { 'content-type': 'text/plain; charset=utf-8' },
  })
  t.equal(asked.statusCode, 200)
  t.equal(asked.body, 'a <b>')
  t.match(asked.headers['content-type'], /^text\/plain/)
  t.match(events.all, [{ kind: 'webhook_handshake', provider: 'microsoft-graph' }])
})

test('a ping is answered, and a forged event beside it is not', async (t) => {
  const app = await inboxApp(t, database, () => t.fail('it is no event'), {
    url: '/webhooks/woocommerce',
    webhook: { provider: woocommerce({ secret: 's' }) },
  })
  const headers = { 'content-type': 'application/x-www-form-urlencoded' }
  const request = { method: 'POST', url: '/webhooks/woocommerce', headers } as const
  t.equal((await app.inject({ ...request, payload: 'webhook_id=7' })).statusCode, 200)
  t.equal((await app.inject({ ...request, payload: 'id=7' })).statusCode, 401)
})

test('Event Grid asks by OPTIONS whether it may deliver CloudEvents', async (t) => {
  const app = await inboxApp(t, database, () => t.fail('it is no event'), {
    url: '/webhooks/grid',
    webhook: { provider: azureEventGrid({ key: 's', header: 'x-key' }) },
  })
  const ask = (origin: string) =>
    app.inject({
      ...{ method: 'OPTIONS', url: '/webhooks/grid' },
      headers: { 'webhook-request-origin': origin },
    })
  const allowed = await ask('eventgrid.azure.net')
  t.equal(allowed.statusCode, 200)
  t.equal(allowed.headers['webhook-allowed-origin'], 'eventgrid.azure.net')
  t.equal((await ask('example.com')).statusCode, 401)
})

test('a sender that authenticates with a password is told to', async (t) => {
  const provider = basicAuth({ name: 'erp', secret: 'user:password', eventId: () => null })
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/erp',
    webhook: { provider },
  })
  const refused = await app.inject({ method: 'POST', url: '/webhooks/erp', payload: '{}' })
  t.equal(refused.statusCode, 401)
  t.match(refused.headers['www-authenticate'], /^Basic realm="/)
})
