import createError from '@fastify/error'
import type { FastifyInstance } from 'fastify'

declare module 'fastify' {
  interface FastifyRequest {
    /** Who is asking, as its token says. */
    tenant: string
  }
}

/** Stands in for a real check, such as that of a signed token. */
const TENANTS = new Map([
  ['acme-demo-token', 'acme'],
  ['globex-demo-token', 'globex'],
])

const Unauthorized = createError(
  'UNAUTHORIZED',
  `Send one of the demo tokens: authorization: Bearer ${[...TENANTS.keys()].join(' | ')}`,
  401,
)

/** Lets in known tenants only, before anything else happens to a request. */
export function authenticate(app: FastifyInstance): void {
  app.decorateRequest('tenant', '')
  app.addHook('onRequest', async (request, reply) => {
    const token = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? '')?.[1]
    const tenant = token && TENANTS.get(token)
    if (!tenant) {
      reply.header('www-authenticate', 'Bearer')
      throw new Unauthorized()
    }
    request.tenant = tenant
  })
}
