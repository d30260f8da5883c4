import { setImmediate as nextTurn } from 'node:timers/promises'
import type { FastifyInstance, FastifyRequest, RouteOptions as FastifyRoute } from 'fastify'
import { readRouteOptions } from '../check-options.js'
import {
  fingerprint,
  fingerprintInTurns,
  obstacleIn,
  ofRequest,
  ofValue,
} from '../core/fingerprint.js'
import { OptionInvalid, RouteMissed } from '../errors.js'
import { reporter } from '../events.js'
import type { PluginOptions, PluginSettings } from '../options.js'
import { type Received, type ReceivedKey, receivedKey } from './asked.js'
import { Exchange, type ProtectedRoute, type Protection, type Stage } from './exchange.js'
import { asProblem, noteThrown, THROWN_ERROR } from './thrown-problem.js'

const EXCHANGE = Symbol('fastify-idempotency.exchange')
const ROUTE = Symbol('fastify-idempotency.route')

declare module 'fastify' {
  interface FastifyRequest {
    /** `null` until its key was read; `undefined` when nothing protects it. */
    [EXCHANGE]: Exchange | null | undefined
  }
  interface FastifyContextConfig {
    [ROUTE]?: ProtectedRoute
  }
}

/** The exchange of a request that its route protects, once its key was read. */
export function exchangeOf(request: FastifyRequest): Exchange | undefined {
  return request[EXCHANGE] ?? undefined
}

/** What the steps of a request run under now. */
export function stageOf(request: FastifyRequest): Stage {
  const exchange = request[EXCHANGE]
  if (exchange === undefined) return 'unprotected'
  if (exchange !== null) return exchange.stage
  const route = request.routeOptions.config[ROUTE]
  if (route === undefined || !isProtected(route, request, receivedKey(request)))
    return 'unprotected'
  return route.settings.atomic === undefined ? 'unclaimed' : 'atomic'
}

/** Whether a route protects a request with this key. */
function isProtected(
  { methods, settings }: ProtectedRoute,
  { method }: FastifyRequest,
  key: ReceivedKey,
): boolean {
  if (!methods.includes(method)) return false
  return key.kind !== 'unkeyed' || settings.required || settings.atomic !== undefined
}

/** Methods that are protected without being asked for: their repetition is not harmless. */
const UNSAFE_TO_REPEAT = ['POST', 'PATCH']
const SAFE = ['GET', 'HEAD', 'OPTIONS', 'TRACE']

/** Binds the protection to every route that is added from now on. Nothing is resolved per request. */
export function bindHooks(
  app: FastifyInstance,
  options: PluginOptions,
  protection: Protection,
): void {
  app.decorateRequest(EXCHANGE, null)
  app.decorateRequest(THROWN_ERROR, null)

  /** What protected routes were configured with. */
  const configs = new WeakSet<object>()
  app.addHook('onRoute', (route) => {
    const own = route.config?.idempotency
    refuseMisplaced(route)
    if (own === false || (own === undefined && !protection.settings.isGlobal)) return
    const methods = [route.method].flat()
    const protectedMethods = methods.filter((method) =>
      own === undefined ? UNSAFE_TO_REPEAT.includes(method) : !SAFE.includes(method),
    )
    const name = `${methods.join(',')} ${route.url}`
    if (protectedMethods.length === 0) {
      // Fastify adds a HEAD route beside a GET, which may be one with a POST, with the same config.
      if (own === undefined || configs.has(Object(route.config))) return
      throw new OptionInvalid(
        `route ${name} has config.idempotency, but ${methods.join(' and ')} can be repeated as it is; remove it`,
      )
    }
    const settings =
      own === undefined || own === true
        ? protection.settings.route
        : readRouteOptions(options, ` of route ${name}`, own)
    if (settings.atomic && protection.atomic === undefined) {
      throw new OptionInvalid(`option "atomic" of route ${name} needs PostgreSQL; leave it out`)
    }
    if (route.config !== undefined) configs.add(route.config)
    const { handler } = route
    route.config = {
      ...route.config,
      [ROUTE]: {
        protection,
        settings,
        name,
        identity: identityOf(route, name),
        methods: protectedMethods,
        handler,
      },
    }
    // In the handler's place and not in a hook before it: whatever other hooks answer on the way,
    // such as a refusal by authentication, never becomes the stored response.
    route.handler = function (request, reply) {
      const exchange = exchangeOf(request)
      return exchange === undefined ? handler.call(this, request, reply) : exchange.handle()
    }
  })

  // The body as the client sent it: validation may coerce it, other hooks and the handler may
  // change it. Registered first, this hook runs first.
  app.addHook('preValidation', (request, reply, done) => {
    // No route protects these, and reads are most of what an application answers.
    if (SAFE.includes(request.method)) return done()
    const route = request.routeOptions.config[ROUTE]
    if (route === undefined) {
      return done(isMissed(request, protection.settings) ? new RouteMissed() : undefined)
    }
    const key = receivedKey(request)
    if (!isProtected(route, request, key)) {
      // For good: a header that a later hook adds is none that the client sent.
      request[EXCHANGE] = undefined
      return done()
    }
    const protect = (received: Received) => {
      const exchange = new Exchange(route, request, reply, received)
      request[EXCHANGE] = exchange
      exchange.beforeSend.run(done)
    }
    // Nothing is compared of a request that is refused because of its key, or needs none.
    if (key.kind !== 'key') return protect(key)
    // A hook that comes later may read the body, as @fastify/multipart does.
    if (hasUnparsedBody(request)) {
      return protect({ ...key, kind: 'unread', fingerprint: () => comparisonOf(route, request) })
    }
    comparisonOf(route, request).then(
      (value) =>
        protect(
          value === undefined
            ? { kind: 'unusable' }
            : { ...key, kind: 'keyed', fingerprint: value },
        ),
      done,
    )
  })

  // First among the hooks of its kind when registered first, so that the bytes are kept before
  // others compress them.
  app.addHook('onSend', (request, reply, payload, done) => {
    const exchange = exchangeOf(request)
    const outgoing = asProblem(request, reply, payload, protection.settings.docs)
    if (exchange === undefined) done(null, outgoing)
    else exchange.onSend(outgoing, done)
  })

  app.addHook('onError', (request, _reply, error, done) => {
    noteThrown(request, error)
    request[EXCHANGE]?.onError(error)
    done()
  })
}

/** @throws OptionInvalid for options that Fastify would ignore, and the route run unprotected. */
function refuseMisplaced(route: FastifyRoute): void {
  if (!Object.hasOwn(route, 'idempotency')) return
  throw new OptionInvalid(
    `route ${[route.method].flat().join(',')} ${route.url} has "idempotency" beside "config", where nothing reads it; write config: { idempotency: { … } }`,
  )
}

/** Whether a route should be protected, but was there before the plugin: nothing may run on it. */
function isMissed(
  { is404, method, headers, routeOptions }: FastifyRequest,
  { isGlobal, route }: PluginSettings,
): boolean {
  const own = routeOptions.config.idempotency
  if (is404 || own === false) return false
  if (own !== undefined) return true
  const isWanted = headers['idempotency-key'] !== undefined || route.required
  return isGlobal && isWanted && UNSAFE_TO_REPEAT.includes(method)
}

/** What must stay the same in a retry; `undefined` when that cannot be found out in reasonable time. */
async function comparisonOf(
  route: ProtectedRoute,
  request: FastifyRequest,
): Promise<string | undefined> {
  const { settings, name, identity } = route
  const { method, params, query, body } = request
  if (settings.fingerprint !== undefined) {
    const own = await settings.fingerprint(request)
    if (own === undefined) {
      throw new OptionInvalid(
        `the fingerprint function of ${name} returned nothing: return what must stay the same in a retry, such as (request) => request.params`,
      )
    }
    const taken = await fingerprintInTurns(ofValue([method, identity, own]), nextTurn)
    if (taken.kind === 'exact') return taken.value
    throw new OptionInvalid(
      `the fingerprint function of ${name} returned ${obstacleIn(taken)}, alone or within other values, which cannot be compared: return text, numbers, or plain objects and lists of them`,
    )
  }
  const isUnparsed = hasUnparsedBody(request)
  const parts = { method, route: identity, params, query, ...(!isUnparsed && { body }) }
  let taken = await fingerprintInTurns(ofRequest(parts), nextTurn)
  if (taken.kind === 'partial' && fingerprint(ofValue(query)).kind === 'partial') {
    // The application's parser made something of the query that cannot be compared; its text can.
    taken = await fingerprintInTurns(ofRequest({ ...parts, query: request.url }), nextTurn)
  }
  if (taken.kind === 'repetitive') return undefined
  if (isUnparsed) warn(route, request, 'a body that was not parsed')
  else if (taken.kind === 'partial') warn(route, request, taken.opaque)
  return taken.value
}

/** Routes whose requests are not compared, or not as a whole, and of which the log says so. */
const warned = new WeakSet<ProtectedRoute>()

function warn(route: ProtectedRoute, request: FastifyRequest, what: string): void {
  if (warned.has(route)) return
  warned.add(route)
  reporter(request.log, route.name, undefined)({ kind: 'body_not_compared', what })
}

/**
 * Routes of one pattern can differ by host, by version, or by a constraint of the application's own.
 *
 * @throws OptionInvalid for a constraint that cannot be compared with that of another route.
 */
function identityOf({ url, constraints = {} }: FastifyRoute, name: string): string {
  const values = Object.entries(constraints).map(([constraint, value]) => {
    const taken = fingerprint(ofValue(value))
    if (taken.kind === 'exact') return `${constraint} ${taken.value}`
    throw new OptionInvalid(
      `constraint "${constraint}" of route ${name} is or holds ${obstacleIn(taken)}, which cannot be told from that of another route: use text, numbers or plain objects of them, or leave the route out with config: { idempotency: false }`,
    )
  })
  return JSON.stringify([url, ...values.sort()])
}

/** Whether there is a body that Fastify has not parsed: an upload that the handler will stream. */
function hasUnparsedBody({ body, headers }: FastifyRequest): boolean {
  if (typeof Reflect.get(Object(body), 'pipe') === 'function') return true
  const isSent = headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0
  const type = headers['content-type']
  if (!isSent || type === undefined) return false
  return body === undefined || (body === null && !JSON_TYPE.test(type))
}

/** A body of such a type can be the `null` that was sent. */
const JSON_TYPE = /^\s*application\/([\w.-]+\+)?json\b/i
