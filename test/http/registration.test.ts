// What is found out when the plugin is registered, and not by the first request.
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test, test } from 'tap'
import idempotency, { defineFlow, type PluginOptions } from '../../src/index.js'
import { buildApp, newKey, recordOf, send } from '../fixtures/app.js'
import { anyDatabase } from '../fixtures/database.js'

const database = await anyDatabase(t)
const { prisma } = database

const options: PluginOptions = {
  prisma,
  ...(database.kind === 'postgres' && { pool: database.pool }),
  tenant: false,
}

function newApp(t: Test): FastifyInstance {
  const app = Fastify()
  t.teardown(() => app.close())
  return app
}

test('a second registration in one scope, or in one within it, says what to do instead', async (t) => {
  const twice = newApp(t)
  await twice.register(idempotency, options)
  const nested = newApp(t)
  await nested.register(idempotency, options)
  nested.register(async (scope) => scope.register(idempotency, options))
  for (const starting of [twice.register(idempotency, options), nested.ready()]) {
    await t.rejects(Promise.resolve(starting), {
      code: 'IDEMPOTENCY_ALREADY_REGISTERED',
      message:
        /is registered in this scope, or in one around it, already.*register it once.*config: \{ idempotency: \{ … \} \}.*app\.register\(async \(scope\) => \{ await scope\.register\(idempotency, …\) \}\)/,
    })
  }
})

test('two scopes side by side have a registration each, with options of their own', async (t) => {
  const app = newApp(t)
  const seen: string[] = []
  for (const tenant of ['shop', 'bank']) {
    app.register(
      async (scope) => {
        await scope.register(idempotency, { ...options, tenant: () => tenant, required: true })
        scope.post('/things', (request) => {
          seen.push(tenant)
          return { tenant, key: request.idempotency.key }
        })
      },
      { prefix: `/${tenant}` },
    )
  }
  app.post('/things', (request) => ({ isProtected: 'idempotency' in request }))
  await app.ready()
  const key = newKey()
  for (const tenant of ['shop', 'bank', 'shop', 'bank']) {
    const answer = await send(app, `/${tenant}/things`, { key })
    t.strictSame(answer.json(), { tenant, key })
  }
  t.strictSame(seen, ['shop', 'bank'], 'each ran once')
  for (const tenant of ['shop', 'bank']) t.ok(await recordOf(database, key, tenant))
  t.equal((await send(app, '/shop/things')).statusCode, 400)
  t.strictSame((await send(app, '/things')).json(), { isProtected: false })
})

/** The client, with names in the database as another `@@map` or `@map` gives them. */
function renamed(
  model: string,
  change: (model: { dbName: string | null; fields: object[] }) => void,
) {
  const models = structuredClone(
    Reflect.get(Reflect.get(prisma, '_runtimeDataModel') as object, 'models'),
  ) as Record<string, { dbName: string | null; fields: { name: string; dbName?: string }[] }>
  change(models[model] as (typeof models)[string])
  return new Proxy(prisma, {
    get: (target, name) =>
      name === '_runtimeDataModel' ? { models } : Reflect.get(target, name, target),
  })
}

const RENAMED: readonly [string, ReturnType<typeof renamed>, RegExp][] = [
  [
    'a table',
    renamed('IdempotencyRecord', (model) => {
      model.dbName = 'keys'
    }),
    /the Prisma schema maps model IdempotencyRecord to "keys" in place of "idempotency_record"\. /,
  ],
  [
    'a table without @@map',
    renamed('WebhookEvent', (model) => {
      model.dbName = null
    }),
    /maps model WebhookEvent to "WebhookEvent" in place of "webhook_event"\. /,
  ],
  [
    'columns',
    renamed('IdempotencyRecord', ({ fields }) => {
      for (const field of fields as { name: string; dbName?: string }[]) {
        if (field.name === 'key') field.dbName = 'idempotency_key'
        if (field.name === 'tenantId') delete field.dbName
      }
    }),
    /maps field IdempotencyRecord\.tenantId to "tenantId" in place of "tenant_id", field IdempotencyRecord\.key to "idempotency_key" in place of "key"\. /,
  ],
]

for (const [what, client, says] of RENAMED) {
  test(`on PostgreSQL, ${what} under another name is found at registration`, async (t) => {
    await t.rejects(
      Promise.resolve(newApp(t).register(idempotency, { ...options, prisma: client })),
      {
        code: 'IDEMPOTENCY_MODELS_RENAMED',
        message: new RegExp(`${says.source}.*@@map.*npx fastify-idempotency init`),
      },
    )
  })
}

test('where Prisma’s own calls are used, names are the application’s', async (t) => {
  const [[, client]] = RENAMED as [(typeof RENAMED)[number]]
  const onMysql = new Proxy(client, {
    get: (target, name) =>
      name === '_activeProvider' ? 'mysql' : Reflect.get(target, name, target),
  })
  await t.resolves(
    buildApp(t, database, { plugin: { prisma: onMysql, pool: undefined }, routes: () => {} }),
  )
})

test('a client that does not tell its names, such as a wrapper, is taken as it is', async (t) => {
  const silent = new Proxy(prisma, {
    get: (target, name) =>
      name === '_runtimeDataModel' ? undefined : Reflect.get(target, name, target),
  })
  await t.resolves(buildApp(t, database, { plugin: { prisma: silent }, routes: () => {} }))
})

test("models of the application's own under names of the library's: their parts are left out", async (t) => {
  const untouched = (call: string) => () => t.fail(`${call} of a model of the application's`)
  const own = (...fields: string[]) => ({
    fields: Object.fromEntries(fields.map((name) => [name, {}])),
    findMany: untouched('findMany'),
    deleteMany: untouched('deleteMany'),
  })
  const models: Record<string, object> = {
    webhookEvent: own('id', 'provider', 'eventId', 'type', 'status', 'payload', 'receivedAt'),
    namedLock: own('id', 'name'),
    slotReservation: own('id', 'resource', 'from', 'to'),
    statusChange: own('id', 'from', 'to', 'createdAt'),
  }
  const client = renamed('WebhookEvent', (model) => {
    model.dbName = null
  })
  const clashing = new Proxy(client, {
    get: (target, name) => models[String(name)] ?? Reflect.get(target, name, target),
  })
  const app = await buildApp(t, database, {
    plugin: { prisma: clashing },
    routes: (app) => {
      app.post('/things', () => ({ done: true }))
    },
  })
  t.equal((await send(app, '/things', { key: newKey() })).statusCode, 200)
  t.type(await app.idempotency.prune(), 'number')
  const lacks = (model: string) => ({
    code: 'IDEMPOTENCY_MODELS_MISSING',
    message: new RegExp(`lacks model ${model} \\(another model has that name\\)\\. Run `),
  })
  const of = app.idempotency
  await t.rejects(of.ingest({ endpoint: '/hooks', payload: {} }), lacks('WebhookEvent'))
  await t.rejects(
    of.lock('a', {}, async () => {}),
    lacks('NamedLock'),
  )
  await t.rejects(of.availability({ resource: 'a' }), lacks('SlotReservation'))
  const flow = defineFlow({ levels: { open: 0, closed: 1 }, terminal: ['closed'] })
  const advanced = of.advance(prisma.payment, { where: { id: 'a' }, flow, to: 'closed' })
  await t.rejects(advanced, lacks('StatusChange'))
})
