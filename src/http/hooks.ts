import type { FastifyInstance, FastifyRequest, RouteOptions as FastifyRoute } from 'fastify'
import { fingerprintOf, fingerprintOfValue } from '../core/fingerprint.js'
import { OptionInvalid } from '../errors.js'
import { reporter } from '../events.js'
import { type PluginOptions, type RouteSettings, readRouteOptions } from '../options.js'
import { Exchange, type Fingerprinted, type Protection } from './exchange.js'

const EXCHANGE = Symbol('fastify-idempotency.exchange')

declare module 'fastify' {
  interface FastifyRequest {
    [EXCHANGE]: Exchange | null
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

  app.addHook('onRoute', (route) => {
    const own = route.config?.idempotency
    if (own === false || (own === undefined && !protection.settings.isGlobal)) return
    const methods = [route.method].flat()
    const name = `${methods.join(',')} ${route.url}`
    const protectedMethods = methods.filter((method) =>
      own === undefined ? UNSAFE_TO_REPEAT.includes(method) : !SAFE.includes(method),
    )
    if (protectedMethods.length === 0) {
      if (own === undefined) return
      throw new OptionInvalid(
        `route ${name} has config.idempotency, but ${methods.join(' and ')} can be repeated as it is; remove it`,
      )
    }
    const settings =
      own === undefined || own === true
        ? protection.settings.route
        : readRouteOptions(options, name, own)
    protectRoute(route, protection, settings, name, protectedMethods)
  })

  // First among the hooks of its kind when registered first, so that the bytes are kept before
  // others compress them.
  app.addHook('onSend', (request, _reply, payload, done) => {
    const exchange = request[EXCHANGE]
    if (exchange === null) done(null, payload)
    else exchange.onSend(payload, done)
  })

  app.addHook('onError', (request, _reply, error, done) => {
    const exchange = request[EXCHANGE]
    if (exchange !== null && error.code === 'FST_ERR_HANDLER_TIMEOUT') exchange.hasTimedOut = true
    done()
  })
}

function protectRoute(
  route: FastifyRoute,
  protection: Protection,
  settings: RouteSettings,
  name: string,
  methods: readonly string[],
): void {
  const protectedRoute = { protection, settings, name, handler: route.handler }
  const isProtected = ({ method, headers }: FastifyRequest) =>
    methods.includes(method) && (settings.required || headers['idempotency-key'] !== undefined)

  // The body as the client sent it: validation may coerce it, and a handler may change it.
  const fingerprint = async (request: FastifyRequest): Promise<Fingerprinted> => {
    try {
      if (settings.fingerprint !== undefined) {
        return {
          kind: 'fingerprint',
          value: fingerprintOfValue(await settings.fingerprint(request)),
        }
      }
      const { method, params, query } = request
      const body = isUnread(request) ? undefined : request.body
      const value = fingerprintOf({ method, route: route.url, params, query, body })
      return { kind: 'fingerprint', value }
    } catch (error) {
      if (error instanceof RangeError) return { kind: 'unusable' }
      throw error
    }
  }

  let hasWarned = false
  route.preValidation = [
    async (request, reply) => {
      if (!isProtected(request)) return
      if (!hasWarned && settings.fingerprint === undefined && isUnread(request)) {
        hasWarned = true
        reporter(request.log, name, undefined)({ kind: 'body_not_compared' })
      }
      const fingerprinted = await fingerprint(request)
      request[EXCHANGE] = new Exchange(protectedRoute, request, reply, fingerprinted)
    },
    ...[route.preValidation ?? []].flat(),
  ]

  // In the handler's place and not in a hook before it: whatever other hooks answer on the way,
  // such as a refusal by authentication, never becomes the stored response.
  const { handler } = route
  route.handler = function (request, reply) {
    return request[EXCHANGE] === null
      ? handler.call(this, request, reply)
      : request[EXCHANGE].handle()
  }
}

/** Whether there is a body that Fastify has not parsed: an upload that the handler will stream. */
function isUnread({ body, headers }: FastifyRequest): boolean {
  if (typeof Reflect.get(Object(body), 'pipe') === 'function') return true
  const isSent = headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0
  return isSent && (body === undefined || body === null) && headers['content-type'] !== undefined
}
