// What is stored is what the first client got: of several payloads that are sent, and byte for byte in
// its head.
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteHandlerMethod } from 'fastify'
import t, { type Test, test } from 'tap'
import {
  begin,
  buildApp,
  collectEvents,
  exchangeBytes,
  latch,
  listen,
  newKey,
  openSocket,
  postText,
  recordOf,
  send,
  WatchedPool,
} from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'
import { until } from '../fixtures/until.js'

const database = await anyDatabase(t)

const ROUTES = { 'a protected route': {}, 'an atomic route': { atomic: true } } as const

type Config = (typeof ROUTES)[keyof typeof ROUTES]

function oneRoute(
  t: Test,
  config: Config,
  handler: RouteHandlerMethod,
  more: (app: FastifyInstance) => unknown = () => {},
) {
  return buildApp(t, database, {
    async routes(app) {
      await more(app)
      app.post('/things', { config: { idempotency: config } }, handler)
    },
  })
}

/** Handlers that answer twice: the first time with 201, `first` and two headers. */
const TWICE: Record<
  string,
  (
    second: (reply: Parameters<RouteHandlerMethod>[1]) => void,
    before?: (reply: Parameters<RouteHandlerMethod>[1]) => void,
  ) => RouteHandlerMethod
> = {
  'at once':
    (second, before = first) =>
    (_request, reply) => {
      before(reply)
      second(reply)
    },
  'in an async handler':
    (second, before = first) =>
    async (_request, reply) => {
      before(reply)
      await null
      second(reply)
      return reply
    },
  later:
    (second, before = first) =>
    (_request, reply) => {
      before(reply)
      setImmediate(() => second(reply))
    },
}

function first(reply: Parameters<RouteHandlerMethod>[1]): void {
  reply.code(201).header('location', '/first').header('set-cookie', 'a=first').send('first')
}

const FAILED: Record<string, (reply: Parameters<RouteHandlerMethod>[1]) => void> = {
  'a failure': (reply) =>
    void reply.code(503).header('location', '/first').header('set-cookie', 'a=first').send('first'),
  'an error': (reply) => {
    reply.header('location', '/first').header('set-cookie', 'a=first')
    reply.send(Object.assign(new Error('first'), { statusCode: 503 }))
  },
}

const SECOND: Record<string, (reply: Parameters<RouteHandlerMethod>[1]) => void> = {
  text: (reply) =>
    void reply
      .code(202)
      .type('text/html')
      .headers({
        location: '/second',
        link: '</second>',
        'x-second': 'yes',
        'set-cookie': 'b=second',
      })
      .send('second'),
  'a stream': (reply) => void reply.code(200).send(Readable.from(['second'])),
  'an error': (reply) => void reply.send(Object.assign(new Error('second'), { statusCode: 400 })),
  'an error of ours': (reply) => void reply.code(503).send(new Error('second')),
}

for (const [route, config] of Object.entries(ROUTES)) {
  for (const [moment, handlerOf] of Object.entries(TWICE)) {
    for (const [kind, second] of Object.entries(SECOND)) {
      test(`${route}: the first of two responses counts, the second is ${kind}, ${moment}`, async (t) => {
        const app = await oneRoute(t, config, handlerOf(second))
        const key = newKey()
        const answer = await send(app, '/things', { key })
        const retry = await send(app, '/things', { key })
        t.equal(answer.statusCode, 201)
        t.equal(answer.body, 'first')
        t.equal(answer.headers.location, '/first')
        t.equal(answer.headers['set-cookie'], 'a=first')
        for (const name of ['link', 'x-second']) t.notOk(name in answer.headers, name)
        t.equal(retry.headers['idempotent-replayed'], 'true')
        t.equal(retry.statusCode, 201)
        t.equal(retry.body, 'first')
        t.equal(retry.headers['content-type'], answer.headers['content-type'])
        t.equal(retry.headers.location, '/first')
      })
    }
  }

  const failures = Object.entries(FAILED).flatMap(([firstKind, fail]) =>
    Object.entries(SECOND).map(([kind, second]) => ({ firstKind, fail, kind, second })),
  )
  for (const { firstKind, fail, kind, second } of failures) {
    for (const [moment, handlerOf] of Object.entries(TWICE)) {
      test(`${route}: the first of two responses counts, and is ${firstKind}, the second is ${kind}, ${moment}`, async (t) => {
        let runs = 0
        const twice = handlerOf(second, fail)
        const app = await oneRoute(t, config, function (request, reply) {
          runs += 1
          return runs === 1 ? twice.call(this, request, reply) : { run: runs }
        })
        const key = newKey()
        const answer = await send(app, '/things', { key })
        t.equal(answer.statusCode, 503)
        t.match(answer.body, 'first')
        t.equal(answer.headers.location, '/first')
        t.equal(answer.headers['set-cookie'], 'a=first')
        for (const name of ['link', 'x-second']) t.notOk(name in answer.headers, name)
        // What the handler did was undone, or is done again.
        t.same((await send(app, '/things', { key })).json(), { run: 2 })
      })
    }
  }

  for (const [moment, handlerOf] of Object.entries(TWICE)) {
    test(`${route}: the first of two errors is what every retry gets, ${moment}`, async (t) => {
      const refusal = (message: string, statusCode: number) =>
        Object.assign(new Error(message), { statusCode })
      const twice = handlerOf(
        (reply) => void reply.code(422).send(refusal('second', 422)),
        (reply) => void reply.send(refusal('first', 409)),
      )
      const app = await oneRoute(t, config, twice)
      const key = newKey()
      const answer = await send(app, '/things', { key })
      t.match([answer.statusCode, answer.body], [409, /first/])
      const retry = await send(app, '/things', { key })
      t.same([retry.statusCode, retry.body], [409, answer.body].slice(0, 2))
    })
  }

  test(`${route}: a status with a fraction is cut off, as Node does`, async (t) => {
    let runs = 0
    const app = await oneRoute(t, config, (_request, reply) =>
      reply.code(201.5).send({ run: ++runs }),
    )
    const key = newKey()
    for (const replayed of [undefined, 'true']) {
      const answer = await send(app, '/things', { key })
      t.same([answer.statusCode, answer.json()], [201, { run: 1 }])
      t.equal(answer.headers['idempotent-replayed'], replayed)
    }
  })

  for (const [kind, second] of Object.entries(SECOND)) {
    test(`${route}: ${kind} while later hooks work on an error is ignored`, async (t) => {
      const inHook = latch()
      const sent = latch()
      const app = await oneRoute(
        t,
        config,
        async (_request, reply) => {
          reply.send(Object.assign(new Error('first'), { statusCode: 409 }))
          await inHook.opened
          second(reply)
          sent.open()
          return reply
        },
        (app) =>
          app.addHook('onSend', async (_request, _reply, payload) => {
            inHook.open()
            await sent.opened
            return payload
          }),
      )
      const key = newKey()
      for (let turn = 0; turn < 2; turn += 1) {
        const answer = await send(app, '/things', { key })
        t.equal(answer.statusCode, 409)
        t.match(answer.body, 'first')
        t.notOk('link' in answer.headers)
      }
    })
  }

  test(`${route}: a second response while later hooks work on the first one is ignored`, async (t) => {
    const inHook = latch()
    const sent = latch()
    const app = await oneRoute(
      t,
      config,
      async (_request, reply) => {
        first(reply)
        await inHook.opened
        SECOND.text?.(reply)
        sent.open()
        return reply
      },
      (app) =>
        app.addHook('onSend', async (_request, reply, payload) => {
          reply.header('x-hook', 'of the first')
          inHook.open()
          await sent.opened
          return payload
        }),
    )
    const key = newKey()
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 201)
    t.equal(answer.body, 'first')
    t.equal(answer.headers.location, '/first')
    t.notOk('link' in answer.headers)
    t.equal(answer.headers['x-hook'], 'of the first')
    t.equal((await send(app, '/things', { key })).body, 'first')
  })

  test(`${route}: the error of a later hook takes the place of the response, whose retry gets that`, async (t) => {
    let fails = true
    const app = await oneRoute(
      t,
      config,
      (_request, reply) => first(reply),
      (app) =>
        app.addHook('onSend', async (_request, _reply, payload) => {
          if (fails && payload === 'first') throw new Error('of a later hook')
          return payload
        }),
    )
    const key = newKey()
    t.equal((await send(app, '/things', { key })).statusCode, 500)
    fails = false
    const retry = await send(app, '/things', { key })
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.equal(retry.body, 'first')
  })

  test(`${route}: a later hook that fails for the response of an error is answered, too`, async (t) => {
    let errors = 0
    const app = await oneRoute(
      t,
      config,
      () => {
        throw Object.assign(new Error('no funds'), { statusCode: 402 })
      },
      (app) => {
        app.setErrorHandler((error: Error & { statusCode?: number }, _request, reply) =>
          reply.code(error.statusCode ?? 500).send({ error: error.message }),
        )
        app.addHook('onSend', async () => {
          errors += 1
          throw new Error(`of a later hook, ${errors}`)
        })
      },
    )
    const answer = await send(app, '/things', { key: newKey() })
    t.ok(answer.statusCode >= 400)
  })

  test(`${route}: a replay has the bytes of the first response’s head, whatever Node makes of them`, async (t) => {
    const handlers: Record<string, RouteHandlerMethod> = {
      text: (_request, reply) =>
        reply
          .headers({ location: '/ü', link: ['</é>', '</a>'] as never, 'x-other': 'ß' })
          .send('x'),
      JSON: (_request, reply) => reply.header('location', '/ü').send({ a: 'ü' }),
      bytes: (_request, reply) => reply.header('location', '/ü').send(Buffer.from('x')),
      'an empty text': (_request, reply) => reply.header('location', '/ü').send(''),
      'a redirect': (_request, reply) => reply.redirect('/ü', 303),
      '204': (_request, reply) => reply.code(204).header('location', '/ü').send('x'),
      '304': (_request, reply) => reply.code(304).header('location', '/ü').send('x'),
      ...('atomic' in config
        ? {}
        : {
            'a stream': (_request, reply) =>
              reply.header('location', '/ü').send(Readable.from(['x', 'y'])),
          }),
    }
    const linesOf = (head: string) =>
      head
        .split('\r\n')
        .filter((line) => /^(location|link|x-other|content-type):/i.test(line))
        .sort()
    for (const [name, handler] of Object.entries(handlers)) {
      const app = await buildApp(t, database, {
        plugin: { headers: ['x-other'] },
        routes: (app) => app.post('/things', { config: { idempotency: config } }, handler),
      })
      const bare = await buildApp(t, database, {
        routes: (app) => app.post('/things', { config: { idempotency: false } }, handler),
      })
      const text = postText('/things', [`idempotency-key: ${newKey()}`])
      const unprotected = await exchangeBytes(t, await listen(bare), text)
      const port = await listen(app)
      const answer = await exchangeBytes(t, port, text)
      const retry = await exchangeBytes(t, port, text)
      t.match(retry.head, /idempotent-replayed: true/, name)
      t.match(linesOf(retry.head).join(), 'location')
      t.strictSame(linesOf(retry.head), linesOf(answer.head), name)
      t.strictSame(
        linesOf(answer.head),
        linesOf(unprotected.head),
        `${name}: as without the plugin`,
      )
    }
  })
}

test('a second response while the first one is being stored reaches nobody', async (t) => {
  const pool = new WatchedPool(database)
  const storing = latch()
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) =>
      app.post('/things', async (_request, reply) => {
        first(reply)
        await storing.opened
        SECOND.text?.(reply)
        go.open()
        return reply
      }),
  })
  pool.before = async (name) => {
    if (name !== 'fi_finish') return
    storing.open()
    await go.opened
  }
  const key = newKey()
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 201)
  t.equal(answer.body, 'first')
  t.equal(answer.headers.location, '/first')
})

test('handlerTimeout while the response is being stored: 503, and a retry gets the response', async (t) => {
  const pool = new WatchedPool(database)
  const go = latch()
  const app = await buildApp(t, database, {
    plugin: { pool },
    routes: (app) =>
      app.post('/things', { handlerTimeout: 300 }, (_request, reply) => first(reply)),
  })
  pool.before = (name) => (name === 'fi_finish' ? go.opened : undefined)
  const events = collectEvents(t)
  const key = newKey()
  const answer = await send(app, '/things', { key })
  t.equal(answer.statusCode, 503)
  t.equal(answer.json().code, 'FST_ERR_HANDLER_TIMEOUT')
  go.open()
  await events.first('completed')
  t.equal((await recordOf(database, key))?.statusCode, 201)
})

test('a fetch Response of another implementation is one', async (t) => {
  class OtherResponse {
    readonly [Symbol.toStringTag] = 'Response'
    readonly status = 201
    readonly headers = new Headers({ location: '/things/1' })
    readonly bodyUsed = false
    readonly body = new Blob(['made']).stream()
  }
  const app = await oneRoute(t, {}, () => new OtherResponse())
  const key = newKey()
  for (const isReplay of [false, true]) {
    const answer = await send(app, '/things', { key })
    t.equal(answer.statusCode, 201)
    t.equal(answer.body, 'made')
    t.equal(answer.headers.location, '/things/1')
    t.equal(answer.headers['idempotent-replayed'], isReplay ? 'true' : undefined)
  }
})

for (const [route, config] of Object.entries(ROUTES)) {
  test(`${route}: a key that is granted while later hooks work on the answer of a timeout is given back`, async (t) => {
    const events = collectEvents(t)
    const inHook = latch()
    const granted = latch()
    let runs = 0
    const app = await buildApp(t, database, {
      plugin: {
        // Called before anything is claimed.
        tenant: () => inHook.opened.then(() => 'acme'),
      },
      routes(app) {
        app.addHook('onSend', async (_request, _reply, payload) => {
          inHook.open()
          await granted.opened
          return payload
        })
        const options = { handlerTimeout: 50, config: { idempotency: config } }
        app.post('/things', options, () => ({ run: ++runs }))
      },
    })
    const answering = begin(app, '/things', { key: newKey() })
    await events.first('atomic' in config ? 'rolled_back' : 'released')
    granted.open()
    t.equal((await answering).statusCode, 503)
    t.equal(runs, 0)
  })
}

/** Heads that Node refuses to send. */
const UNSENDABLE: Record<string, (reply: FastifyReply) => unknown> = {
  'NUL in a kept header': (reply) => reply.header('location', '/a\0b'),
  'a lone surrogate in a kept header': (reply) => reply.header('location', '/\ud800'),
  'a line break in a header that is not kept': (reply) => reply.header('x-note', 'a\nb'),
  'NUL in one of several headers': (reply) => reply.header('link', ['</a>', '</b\0>']),
  'a name that no header has': (reply) => reply.header('x note', 'a'),
}

for (const [what, spoil] of Object.entries(UNSENDABLE)) {
  for (const status of [200, 409]) {
    test(`a response with ${what}, and an error handler that answers ${status}: every retry gets that`, async (t) => {
      let runs = 0
      const app = await oneRoute(
        t,
        {},
        (_request, reply) => {
          runs += 1
          spoil(reply)
          reply.code(201).send('made')
        },
        (app) =>
          app.setErrorHandler((_error, _request, reply) => {
            for (const name of Object.keys(reply.getHeaders())) reply.removeHeader(name)
            reply.code(status).send(`mended ${runs}`)
          }),
      )
      const key = newKey()
      for (const replayed of [undefined, 'true']) {
        const answer = await send(app, '/things', { key })
        t.strictSame([answer.statusCode, answer.body], [status, 'mended 1'])
        t.equal(answer.headers['idempotent-replayed'], replayed)
      }
    })
  }

  test(`a response with ${what}, and an error handler that mends nothing: the key is freed`, async (t) => {
    let runs = 0
    const app = await oneRoute(
      t,
      {},
      (_request, reply) => {
        runs += 1
        if (runs === 1) spoil(reply)
        reply.code(201).send('made')
      },
      (app) => app.setErrorHandler((_error, _request, reply) => reply.code(200).send('again')),
    )
    const key = newKey()
    await send(app, '/things', { key })
    const retry = await until(
      () => send(app, '/things', { key }),
      ({ statusCode }) => statusCode !== 409,
    )
    t.strictSame([retry.statusCode, retry.body, runs], [201, 'made', 2])
  })
}

for (const [name, config] of Object.entries(ROUTES)) {
  for (const [what, spoil] of Object.entries(UNSENDABLE)) {
    test(`${name} keeps no response with ${what}: it is a failure of its handler`, async (t) => {
      let runs = 0
      let isMended = false
      const handler: RouteHandlerMethod = async (request, reply) => {
        reply.code(201).header('location', '/things/7')
        if (isMended || request.headers['x-spoilt'] === undefined) return 'made'
        runs += 1
        spoil(reply)
        return 'made'
      }
      const app = await oneRoute(t, config, handler, (app) => {
        app.post('/bare', { config: { idempotency: false } }, handler)
      })
      const events = collectEvents(t)
      const spoilt = { 'x-spoilt': 'yes' }
      const bare = await send(app, '/bare', { headers: spoilt })
      t.equal(bare.statusCode, 500)
      const key = newKey()
      for (const run of [2, 3]) {
        // Of the others, some travel in the same statements.
        const keys = Array.from({ length: 20 }, newKey)
        const others = keys.map((key) => begin(app, '/things', { key }))
        const { statusCode, body } = await send(app, '/things', { key, headers: spoilt })
        t.strictSame({ statusCode, body }, { statusCode: 500, body: bare.body })
        t.equal(runs, run)
        for (const { statusCode } of await Promise.all(others)) t.equal(statusCode, 201)
        for (const key of keys) t.equal((await recordOf(database, key))?.status, 'completed')
      }
      t.match(
        events.all.filter(({ kind }) => kind === 'released' || kind === 'rolled_back'),
        [{ why: 'its response could not be sent' }, { why: 'its response could not be sent' }],
      )
      isMended = true
      for (const isReplay of [false, true]) {
        const { statusCode, headers } = await send(app, '/things', { key, headers: spoilt })
        t.equal(statusCode, 201)
        t.equal(headers['idempotent-replayed'], isReplay ? 'true' : undefined)
      }
    })
  }
}

const BY_HOOK = 'of the hook'

function sendByHook(reply: FastifyReply): FastifyReply {
  return reply.code(202).type('text/plain').header('location', '/hook').send(BY_HOOK)
}

type IsWanted = (request: FastifyRequest, payload: unknown) => unknown

const turn = () => new Promise((resolve) => setImmediate(resolve))

/** `onSend` hooks that send a response of their own where `isWanted` says so. */
const SENDING_HOOKS: Record<string, (app: FastifyInstance, isWanted: IsWanted) => unknown> = {
  'returns what send() returned': (app, isWanted) =>
    app.addHook('onSend', async (request, reply, payload) =>
      isWanted(request, payload) ? sendByHook(reply) : payload,
    ),
  'returns nothing': (app, isWanted) =>
    app.addHook('onSend', async (request, reply, payload) => {
      if (!isWanted(request, payload)) return payload
      sendByHook(reply)
      return undefined
    }),
  'takes its time and returns the reply': (app, isWanted) =>
    app.addHook('onSend', async (request, reply, payload) => {
      await turn()
      if (!isWanted(request, payload)) return payload
      sendByHook(reply)
      return reply
    }),
  'does not call back': (app, isWanted) =>
    app.addHook('onSend', (request, reply, payload, done) => {
      if (isWanted(request, payload)) sendByHook(reply)
      else done(null, payload)
    }),
  'takes its time and does not call back': (app, isWanted) =>
    app.addHook('onSend', (request, reply, payload, done) => {
      setImmediate(() => {
        if (isWanted(request, payload)) sendByHook(reply)
        else done(null, payload)
      })
    }),
}

const PLACES = { before: 'in front of the plugin', after: 'behind the plugin' } as const

/** One route, and one sending hook; behind it, one that takes its time. */
function sendingApp(
  t: Test,
  config: Config,
  {
    place = 'after',
    add,
    isWanted,
    handler,
    more = () => {},
  }: {
    place?: keyof typeof PLACES
    add: (app: FastifyInstance, isWanted: IsWanted) => unknown
    isWanted: IsWanted
    handler: RouteHandlerMethod
    more?: (app: FastifyInstance) => unknown
  },
) {
  const addHook = (app: FastifyInstance) =>
    add(app, (request, payload) => payload !== BY_HOOK && isWanted(request, payload))
  return buildApp(t, database, {
    ...(place === 'before' && { before: addHook }),
    async routes(app) {
      if (place === 'after') addHook(app)
      await more(app)
      app.post('/things', { config: { idempotency: config } }, handler)
      app.post('/unprotected', { config: { idempotency: false } }, handler)
    },
  })
}

function addSlowHook(app: FastifyInstance): void {
  app.addHook('onSend', async (_request, reply, payload) => {
    await turn()
    reply.header('x-slow', 'yes')
    return payload
  })
}

for (const [route, config] of Object.entries(ROUTES)) {
  for (const [hook, add] of Object.entries(SENDING_HOOKS)) {
    for (const [place, where] of Object.entries(PLACES) as ['before' | 'after', string][]) {
      const name = `${route}, a hook ${where} sends a response and ${hook}`

      test(`${name}: the client and its retry get that`, async (t) => {
        let runs = 0
        const app = await sendingApp(t, config, {
          place,
          add,
          isWanted: () => true,
          handler: async (_request, reply) => {
            runs += 1
            return reply.code(201).header('location', '/handler').send({ run: runs })
          },
        })
        const key = newKey()
        const bare = await send(app, '/unprotected')
        const answer = await send(app, '/things', { key })
        const retry = await send(app, '/things', { key })
        for (const { statusCode, body, headers } of [bare, answer, retry]) {
          t.equal(statusCode, 202)
          t.equal(body, BY_HOOK)
          t.equal(headers.location, '/hook')
          t.equal(headers['content-type'], bare.headers['content-type'])
        }
        t.equal(retry.headers['idempotent-replayed'], 'true')
        t.equal(runs, 2, 'once without protection, once with it')
        const stored = place === 'before' ? 202 : 201
        t.match(await recordOf(database, key), { status: 'completed', statusCode: stored })
        await app.close()
      })

      for (const when of ['for the first request', 'for a replay'] as const) {
        test(`${name}, but only ${when}`, async (t) => {
          const app = await sendingApp(t, config, {
            place,
            add,
            isWanted: ({ headers }) => headers['x-hook'],
            handler: () => 'of the handler',
            // The first chain of hooks may get to the plugin while the second one is still here.
            ...(place === 'before' && { more: addSlowHook }),
          })
          const key = newKey()
          const wanted = { key, headers: { 'x-hook': 'yes' } }
          const isFirst = when === 'for the first request'
          const first = await send(app, '/things', isFirst ? wanted : { key })
          const replay = await send(app, '/things', isFirst ? { key } : wanted)
          t.equal(replay.headers['idempotent-replayed'], 'true')
          // In front of the plugin, what it sent is what is stored; behind it, it decides each time.
          const isSent = { first: isFirst, replay: place === 'before' ? isFirst : !isFirst }
          for (const [which, answer] of Object.entries({ first, replay })) {
            const byHook = isSent[which as keyof typeof isSent]
            t.equal(answer.body, byHook ? BY_HOOK : 'of the handler', which)
            t.equal(answer.statusCode, byHook ? 202 : 200)
            t.equal(answer.headers.location, byHook ? '/hook' : undefined)
          }
        })
      }
    }

    for (const [place, statusCode] of [
      ['before', 402],
      ['after', 402],
      ['after', 500],
    ] as const) {
      test(`${route}, a hook ${PLACES[place]} sends a response for an error of ${statusCode} and ${hook}`, async (t) => {
        let runs = 0
        const app = await sendingApp(t, config, {
          place,
          add,
          isWanted: () => true,
          handler: () => {
            runs += 1
            throw new Error('no funds')
          },
          more(app) {
            if (place === 'before') addSlowHook(app)
            app.setErrorHandler((_error, _request, reply) =>
              reply.code(statusCode).send({ error: 'no funds' }),
            )
          },
        })
        const key = newKey()
        t.equal((await send(app, '/things', { key })).body, BY_HOOK)
        t.equal((await send(app, '/things', { key })).body, BY_HOOK)
        // What an atomic handler throws undoes all of it, and is not stored.
        t.equal(runs, statusCode === 402 && route === 'a protected route' ? 1 : 2)
        await app.close()
      })
    }

    test(`${route}, a later hook sends a response and ${hook}: the client has left`, async (t) => {
      const events = collectEvents(t)
      const began = latch()
      const left = latch()
      const app = await sendingApp(t, config, {
        add,
        isWanted: () => true,
        handler: async (request) => {
          request.raw.socket.once('close', () => left.open())
          began.open()
          await left.opened
          return 'of the handler'
        },
      })
      const port = await listen(app)
      const key = newKey()
      const socket = await openSocket(t, port, postText('/things', [`idempotency-key: ${key}`]))
      await began.opened
      socket.destroy()
      await events.first('completed')
      t.equal((await send(app, '/things', { key })).body, BY_HOOK)
      await app.close()
    })

    test(`${route}, a later hook sends a response in place of a refusal and ${hook}`, async (t) => {
      const app = await sendingApp(t, config, {
        add,
        isWanted: (_request, payload) => String(payload).includes('IDEMPOTENCY_KEY_REUSED'),
        handler: () => 'of the handler',
      })
      const key = newKey()
      await send(app, '/things', { key })
      t.equal((await send(app, '/things', { key, payload: [] })).body, BY_HOOK)
      t.equal((await send(app, '/things', { key })).body, 'of the handler')
    })
  }

  test(`${route}: what the handler sends while hooks work on the response of a later one is ignored`, async (t) => {
    const inHook = latch()
    const sent = latch()
    const app = await sendingApp(t, config, {
      add: SENDING_HOOKS['returns what send() returned'] as never,
      isWanted: () => true,
      handler: async (_request, reply) => {
        first(reply)
        await inHook.opened
        SECOND.text?.(reply)
        sent.open()
        return reply
      },
      more: (app) =>
        app.addHook('onSend', async (_request, _reply, payload) => {
          inHook.open()
          await sent.opened
          return payload
        }),
    })
    const answer = await send(app, '/things', { key: newKey() })
    t.equal(answer.statusCode, 202)
    t.equal(answer.body, BY_HOOK)
    t.equal(answer.headers.location, '/hook')
  })
}
