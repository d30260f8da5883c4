import type { FastifyInstance, FastifyRequest, RouteOptions as FastifyRoute } from 'fastify'
import { readRouteOptions } from '../check-options.js'
import { comparable, fingerprintOf, fingerprintOfValue } from '../core/fingerprint.js'
import { OptionInvalid, RouteMissed } from '../errors.js'
import { reporter } from '../events.js'
import type { PluginOptions, PluginSettings } from '../options.js'
import type { Fingerprinted } from './asked.js'
import { Exchange, type ProtectedRoute, type Protection } from './exchange.js'
import { asProblem, noteThrown, THROWN_ERROR } from './thrown-problem.js'

const EXCHANGE = Symbol('fastify-idempotency.exchange')
const ROUTE = Symbol('fastify-idempotency.route')

declare module 'fastify' {
  interface FastifyRequest {
    [EXCHANGE]: Exchange | null
  }
  interface FastifyContextConfig {
    [ROUTE]?: ProtectedRoute
  }
}

/** The exchange of a request to a protected route, if it is one. */
export function exchangeOf(request: FastifyRequest): Exchange | null {
  return request[EXCHANGE]
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

  app.addHook('onRoute', (route) => {
    const own = route.config?.idempotency
    if (own === false || (own === undefined && !protection.settings.isGlobal)) return
    const methods = [route.method].flat()
    const protectedMethods = methods.filter((method) =>
      own === undefined ? UNSAFE_TO_REPEAT.includes(method) : !SAFE.includes(method),
    )
    const name = `${methods.join(',')} ${route.url}`
    if (protectedMethods.length === 0) {
      // Fastify adds a HEAD route beside a GET, with the same config.
      if (own === undefined || route.method === 'HEAD') return
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
    const { handler } = route
    route.config = {
      ...route.config,
      [ROUTE]: {
        protection,
        settings,
        name,
        identity: identityOf(route),
        methods: protectedMethods,
        handler,
      },
    }
    // In the handler's place and not in a hook before it: whatever other hooks answer on the way,
    // such as a refusal by authentication, never becomes the stored response.
    route.handler = function (request, reply) {
      return request[EXCHANGE] === null
        ? handler.call(this, request, reply)
        : request[EXCHANGE].handle()
    }
  })

  // The body as the client sent it: validation may coerce it, other hooks and the handler may
  // change it. Registered first, this hook runs first.
  app.addHook('preValidation', (request, reply, done) => {
    // No route protects these, and reads are most of what an application answers.
    if (SAFE.includes(request.method)) return done()
    const hasKey = request.headers['idempotency-key'] !== undefined
    const route = request.routeOptions.config[ROUTE]
    if (route === undefined) {
      return done(isMissed(request, protection.settings) ? new RouteMissed() : undefined)
    }
    if (!route.methods.includes(request.method)) return done()
    const { required, atomic } = route.settings
    const isCompared = hasKey || required
    if (!isCompared && atomic === undefined) return done()
    const asked: Promise<Fingerprinted> = isCompared ? fingerprint(route, request) : NOT_COMPARED
    asked.then((fingerprinted) => {
      request[EXCHANGE] = new Exchange(route, request, reply, fingerprinted)
      done()
    }, done)
  })

  // First among the hooks of its kind when registered first, so that the bytes are kept before
  // others compress them.
  app.addHook('onSend', (request, reply, payload, done) => {
    const exchange = request[EXCHANGE]
    const outgoing = asProblem(request, reply, payload, protection.settings.docs)
    if (exchange === null) done(null, outgoing)
    else exchange.onSend(outgoing, done)
  })

  app.addHook('onError', (request, _reply, error, done) => {
    noteThrown(request, error)
    request[EXCHANGE]?.onError(error)
    done()
  })
}

/** An atomic route runs in a transaction without a key, too; nothing is compared with another then. */
const NOT_COMPARED = Promise.resolve({ kind: 'not compared' } as const)

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

async function fingerprint(route: ProtectedRoute, request: FastifyRequest): Promise<Fingerprinted> {
  const { settings, name, identity } = route
  try {
    const { method, params, query } = request
    if (settings.fingerprint !== undefined) {
      const own = await settings.fingerprint(request)
      if (own === undefined) throw new TypeError('the fingerprint function returned nothing')
      return { kind: 'fingerprint', value: fingerprintOfValue([method, identity, own]) }
    }
    const body = comparable(request.body)
    if (!isUnread(request) && body.kind === 'comparable') {
      const value = fingerprintOf({ method, route: identity, params, query, body: body.value })
      return { kind: 'fingerprint', value }
    }
    if (!warned.has(route)) {
      warned.add(route)
      reporter(request.log, name, undefined)({ kind: 'body_not_compared' })
    }
    const value = fingerprintOf({ method, route: identity, params, query, body: undefined })
    return { kind: 'fingerprint', value }
  } catch (error) {
    if (error instanceof RangeError) return { kind: 'unusable' }
    throw error
  }
}

/** Routes whose bodies cannot be compared, and for which that was said. */
const warned = new WeakSet<ProtectedRoute>()

/** Routes of one pattern can differ by host or version. */
function identityOf({ url, constraints = {} }: FastifyRoute): string {
  const parts = Object.entries(constraints).map(([name, value]) => `${name}=${value}`)
  return [url, ...parts.sort()].join(' ')
}

/** Whether there is a body that Fastify has not parsed: an upload that the handler will stream. */
function isUnread({ body, headers }: FastifyRequest): boolean {
  if (typeof Reflect.get(Object(body), 'pipe') === 'function') return true
  const isSent = headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0
  return isSent && (body === undefined || body === null) && headers['content-type'] !== undefined
}
