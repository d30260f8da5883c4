// Validation requests that are not signed: they are answered, and nothing of them is stored.
import { once } from 'node:events'
import { type IncomingMessage, request } from 'node:http'
import t, { test } from 'tap'
import {
  azureEventGrid,
  basicAuth,
  microsoftGraph,
  woocommerce,
} from '../../src/webhooks/providers/index.js'
import { collectEvents, listen } from '../fixtures/app.js'
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

test('a secret in a header is looked at before the body is read', async (t) => {
  const provider = basicAuth({ name: 'erp', secret: 'user:password', eventId: () => null })
  const events = collectEvents(t)
  const app = await inboxApp(t, database, () => {}, {
    url: '/webhooks/erp',
    webhook: { provider },
  })
  const port = await listen(app)
  const begin = (headers: Record<string, string>) => {
    const sent = request({
      ...{ host: '127.0.0.1', port, path: '/webhooks/erp', method: 'POST' },
      headers: { 'content-length': '1000000', ...headers },
    })
    sent.flushHeaders()
    // It is destroyed in the end.
    sent.on('error', () => {})
    t.teardown(() => sent.destroy())
    return sent
  }
  for (const headers of [{}, { authorization: 'Basic eDp5' }]) {
    const [answer] = (await once(begin(headers), 'response')) as [IncomingMessage]
    t.equal(answer.statusCode, 401)
  }
  t.match(events.kinds(), ['webhook_refused', 'webhook_refused'])
  const authorization = `Basic ${Buffer.from('user:password').toString('base64')}`
  const genuine = begin({ authorization })
  genuine.end(JSON.stringify('x'.repeat(999_998)))
  const [answer] = (await once(genuine, 'response')) as [IncomingMessage]
  t.equal(answer.statusCode, 200)
})
