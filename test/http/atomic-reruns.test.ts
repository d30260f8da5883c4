// A handler that a conflict runs again gets its request as it was, whatever it has changed.
import { inspect } from 'node:util'
import formbody from '@fastify/formbody'
import { test } from 'tap'
import { buildApp, newKey, send } from '../fixtures/app.js'
import { postgresDatabase } from '../fixtures/postgres.js'
import { missing } from '../fixtures/services.js'

const skip = await missing('postgres')

/** What an adapter throws for a conflict. */
const conflict = () => Object.assign(new Error('of the database'), { code: 'P2034' })

const config = { idempotency: { atomic: true } }

test('a handler that changes its request gets it as it was when a conflict runs it again', {
  skip,
}, async (t) => {
  const seen: string[] = []
  const app = await buildApp(t, await postgresDatabase(t), {
    async routes(app) {
      await app.register(formbody)
      const mapOf = (text: string) => {
        const amount = { text, at: new Date(0), bytes: Buffer.from('a'), octets: new Uint8Array(2) }
        return new Map([['amounts', new Set([amount])]])
      }
      app.addContentTypeParser('application/x-map', { parseAs: 'string' }, (_request, text, done) =>
        done(null, mapOf(String(text))),
      )
      app.post<{ Params: object; Querystring: object }>('/things/:id', { config }, (request) => {
        const { params, query, headers } = request
        const body = request.body as Record<string, unknown>
        const header = [headers['x-amount'], headers['x-more']]
        // Without the names of the constructors that made objects without a prototype.
        const text = inspect({ body, params, query, header }, { depth: 9 })
        seen.push(text.replace(/\w+ <.*?> /g, ''))
        if (body instanceof Map) {
          const [amount] = body.get('amounts')
          amount.bytes.fill(0)
          amount.octets.fill(1)
          Object.assign(amount, { text: 'changed', at: null })
          body.clear()
        } else if (typeof body === 'string') request.body = 'changed'
        else {
          ;(body.nested as { amounts: number[] } | undefined)?.amounts.push(50_000)
          body.amount = 50_000
          request.body = null
        }
        Object.assign(params as object, { id: 'changed', more: 'yes' })
        Object.assign(query as object, { q: 'changed' })
        headers['x-amount'] = '50000'
        headers['x-more'] = 'yes'
        if (seen.length < 3) throw conflict()
        return 'done'
      })
    },
  })
  const bodies = {
    JSON: ['application/json', '{"amount":5,"nested":{"amounts":[5,null]}}'],
    'a form': ['application/x-www-form-urlencoded', 'amount=5&amount=6'],
    'a map': ['application/x-map', '5'],
    text: ['text/plain', '5'],
  } as const
  for (const [name, [type, payload]] of Object.entries(bodies)) {
    for (const key of [newKey(), undefined]) {
      seen.length = 0
      const answer = await send(app, '/things/7?q=a', {
        payload,
        headers: { 'content-type': type, 'x-amount': '5' },
        ...(key !== undefined && { key }),
      })
      t.equal(answer.body, 'done', name)
      t.equal(seen.length, 3)
      t.match(seen[0], /id: '7'/)
      t.strictSame(seen, [seen[0], seen[0], seen[0]], name)
    }
  }
})

test('a handler whose body cannot be copied is not run again by a conflict', {
  skip,
}, async (t) => {
  class Order {
    amount = 5
  }
  const bodies: Record<string, (payload: unknown) => unknown> = {
    'an instance of a class': () => new Order(),
    'a function in it': () => ({ read: () => 5 }),
    'a stream': (payload) => payload,
    'what the handler reads itself': () => undefined,
    'a circle': () => {
      const circle: Record<string, unknown> = {}
      circle.self = circle
      return circle
    },
  }
  for (const [name, bodyOf] of Object.entries(bodies)) {
    let runs = 0
    const app = await buildApp(t, await postgresDatabase(t), {
      routes(app) {
        app.addContentTypeParser('application/x-own', (_request, payload, done) =>
          done(null, bodyOf(payload)),
        )
        const fingerprint = () => 'x'
        const own = { config: { idempotency: { atomic: true, fingerprint } } }
        app.post('/things', own, () => {
          runs += 1
          throw conflict()
        })
      },
    })
    const headers = { 'content-type': 'application/x-own' }
    const answer = await send(app, '/things', { key: newKey(), payload: 'x', headers })
    t.equal(answer.statusCode, 500, name)
    t.equal(answer.json().message, 'of the database')
    t.equal(runs, 1, name)
  }
})
