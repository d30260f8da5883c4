import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isThrown } from '../core/thrown.js'
import { InboxUnavailable, SignatureRefused, TenantUnknown, TooManyRefusals } from '../errors.js'
import { failureOf, reporter } from '../events.js'
import { createLimiter, type Limiter } from '../http/limiter.js'
import { problem, STORE_RETRY_S } from '../http/problem.js'
import { NoTenant, tenantOf } from '../http/tenant.js'
import { hasStatus } from '../sealed.js'
import { within } from '../within.js'
import { answerOutcome, send, worstOf } from './answer.js'
import { type Endpoint, keptOf } from './endpoint.js'
import type { Delivered, Delivery, Inbox } from './inbox.js'
import { returned } from './payload.js'
import { keysOf } from './secrets.js'
import {
  CertificateUnreachable,
  checkSignature,
  type Incoming,
  type Key,
  type Refusal,
} from './signature.js'
import { type Reading, type Verification, verifyIncoming } from './verify.js'

export interface RouteContext {
  readonly inbox: Inbox
  readonly docs: string
  /** Failed signatures of one address; `undefined` for no limit. */
  readonly failedSignatures: { readonly max: number; readonly timeWindowMs: number } | undefined
  readonly redis: object | undefined
  readonly redisPrefix: string
  /** How long the endpoint's `tenant` may take, as everything that is waited for. */
  readonly storeTimeoutMs: number
}

/** So many events of one batch run side by side; and so many are stored, where a worker runs them later. */
const SIDE_BY_SIDE = 10
const STORED_AT_ONCE = 500

const KEYS_UNREACHABLE =
  'the host from which the keys or certificates of this provider are fetched cannot be reached'

const TENANT = Symbol('fastify-idempotency.webhookTenant')

declare module 'fastify' {
  interface FastifyRequest {
    [TENANT]?: string
  }
}

/** Adds the route of an endpoint, in a context of its own: the application keeps its parsers. */
export function addWebhookRoute(
  app: FastifyInstance,
  url: string,
  endpoint: Endpoint,
  { inbox, docs, failedSignatures, redis, redisPrefix, storeTimeoutMs }: RouteContext,
): void {
  const { provider, settings } = endpoint
  app.register(async (scope) => {
    scope.decorateRequest(TENANT)
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => {
      done(null, body)
    })
    const limiter =
      failedSignatures &&
      (await createLimiter(scope, {
        ...failedSignatures,
        redis,
        prefix: redisPrefix,
        keyOf: (request) => `signature:${endpoint.name}:${request.ip}`,
      }))

    scope.route({
      // Event Grid asks by OPTIONS whether it may deliver.
      method: provider.unsigned === undefined ? 'POST' : ['POST', 'OPTIONS'],
      url,
      bodyLimit: settings.bodyLimit,
      config: { idempotency: false },
      onRequest: [findTenant, (request, reply) => refuseEarly(request, reply, limiter)],
      onError: async (request, _reply, { code }) => {
        if (code !== 'FST_ERR_CTP_BODY_TOO_LARGE') return
        const { bodyLimit } = settings
        const report = reporter(request.log, endpoint.name, undefined)
        report({ kind: 'webhook_too_large', provider: provider.name, bodyLimit })
      },
      handler: (request, reply) => receive(request, reply, limiter),
    })
    const { greeting } = provider
    if (greeting === undefined) return
    scope.get(url, {
      config: { idempotency: false },
      onRequest: findTenant,
      handler: async (request, reply) => {
        const query = new URLSearchParams(request.originalUrl.replace(/^[^?]*/, ''))
        try {
          const greeted = Promise.resolve(greeting(query, request[TENANT] ?? ''))
          const answer = await within(greeted, storeTimeoutMs)
          return answer === undefined
            ? await refuse(request, reply, 'no_match', limiter)
            : send(reply, answer)
        } catch (error) {
          return notVerified(request, reply, error)
        }
      },
    })
  })

  // Before there is a body, which therefore cannot say whose event it is.
  async function findTenant(
    request: FastifyRequest,
    reply: FastifyReply,
  ): Promise<FastifyReply | undefined> {
    try {
      request[TENANT] = await tenantOf(request, endpoint.tenant, storeTimeoutMs)
    } catch (error) {
      if (isThrown(error, NoTenant)) return reply.send(problem(reply, docs, new TenantUnknown()))
      if (hasStatus(error)) throw error
      return notVerified(request, reply, error)
    }
    return undefined
  }

  // What proves nothing by its body need not be read: bodies of strangers take memory.
  async function refuseEarly(
    request: FastifyRequest,
    reply: FastifyReply,
    limiter: Limiter | undefined,
  ): Promise<FastifyReply | undefined> {
    if (provider.scheme.isWithoutBody !== true) return undefined
    const incoming = incomingOf(request, Buffer.alloc(0))
    try {
      if (provider.unsigned?.(incoming) !== undefined) return undefined
      const checked = await checkSignature(provider.scheme, keysFor(request), incoming, now())
      return typeof checked === 'string' ? refuse(request, reply, checked, limiter) : undefined
    } catch (error) {
      return notVerified(request, reply, error)
    }
  }

  function incomingOf({ method, originalUrl, headers }: FastifyRequest, body: Buffer): Incoming {
    return { method, url: originalUrl, headers, body }
  }

  function keysFor(request: FastifyRequest): () => Promise<readonly Key[]> {
    return () => keysOf(provider, request[TENANT] ?? '', storeTimeoutMs)
  }

  function now(): number {
    return returned('clock', settings.clock()) as number
  }

  // Ours to mend, and not the provider's fault: it should deliver again.
  function notVerified(request: FastifyRequest, reply: FastifyReply, error: unknown): FastifyReply {
    const report = reporter(request.log, endpoint.name, undefined)
    const failure = failureOf(error)
    // Its code is that of a network, and not of the database.
    const isOfNetwork = isThrown(error, CertificateUnreachable) && error.cause !== undefined
    const hint = isOfNetwork ? KEYS_UNREACHABLE : failure.hint
    const { name } = provider
    report({ kind: 'webhook_not_verified', provider: name, failure: { ...failure, hint } })
    return reply.send(problem(reply, docs, new InboxUnavailable(), STORE_RETRY_S))
  }

  async function receive(
    request: FastifyRequest,
    reply: FastifyReply,
    limiter: Limiter | undefined,
  ): Promise<FastifyReply> {
    const tenantId = request[TENANT] ?? ''
    const report = reporter(request.log, endpoint.name, undefined)
    const body = Buffer.isBuffer(request.body) ? request.body : Buffer.alloc(0)
    const incoming = incomingOf(request, body)
    let verification: Verification
    try {
      verification = await verifyIncoming(provider, keysFor(request), incoming, now())
    } catch (error) {
      return notVerified(request, reply, error)
    }
    if (verification.kind === 'refused') {
      return refuse(request, reply, verification.reason, limiter)
    }
    if (verification.kind === 'handshake') {
      report({ kind: 'webhook_handshake', provider: provider.name })
      return send(reply, verification.answer)
    }
    try {
      const headers = keptOf(endpoint, incoming)
      const all = await deliverAll(verification, { tenantId, headers, log: request.log })
      if (all.length === 0) report({ kind: 'webhook_without_events', provider: provider.name })
      const answer = all[0]?.answer
      if (answer !== undefined) return send(reply, answer)
      const worst = worstOf(all.map(({ outcome }) => outcome))
      return answerOutcome(reply, endpoint, worst, isRedelivered(verification))
    } catch (error) {
      report({ kind: 'inbox_unavailable', failure: failureOf(error) })
      return reply.send(problem(reply, docs, new InboxUnavailable(), STORE_RETRY_S))
    }
  }

  async function refuse(
    request: FastifyRequest,
    reply: FastifyReply,
    reason: Refusal,
    limiter: Limiter | undefined,
  ): Promise<FastifyReply> {
    const report = reporter(request.log, endpoint.name, undefined)
    report({ kind: 'webhook_refused', provider: provider.name, reason })
    const retryAfterS = await limiter?.(request, report)
    if (retryAfterS !== undefined) {
      return reply.send(problem(reply, docs, new TooManyRefusals(), retryAfterS))
    }
    if (provider.challenge !== undefined) reply.header('www-authenticate', provider.challenge)
    return reply.send(problem(reply, docs, new SignatureRefused(), undefined, { reason }))
  }

  /** One that comes again brings the others with it. */
  function isRedelivered(reading: Reading): boolean {
    if (reading.kind === 'unreadable') return true
    return reading.events.some((event) => event.isRedelivered)
  }

  async function deliverAll(
    reading: Reading,
    request: Omit<Delivery, 'from'>,
  ): Promise<Delivered[]> {
    const isRead = reading.kind === 'verified'
    const events = isRead ? reading.events : []
    const unreadable = isRead ? reading.unreadable : [reading]
    // Of a batch, no item speaks for the others.
    const isAlone = events.length + unreadable.length === 1
    const delivery = { ...request, from: isAlone ? 'request' : 'batch' } as const
    const all: Delivered[] = []
    for (const one of unreadable) all.push(await inbox.keepUnreadable(endpoint, one, delivery))
    // Those of one lane would find it taken.
    const runAtOnce = settings.isSerialized ? 1 : SIDE_BY_SIDE
    const sideBySide = settings.mode === 'deferred' ? STORED_AT_ONCE : runAtOnce
    for (let start = 0; start < events.length; start += sideBySide) {
      const some = events.slice(start, start + sideBySide)
      // The same event twice is one and its duplicate, which would find it running.
      const latest = new Map<string | null, Promise<Delivered>>()
      const delivered = some.map((event) => {
        const deliver = () => inbox.deliver(endpoint, event, delivery)
        const before = event.eventId === null ? undefined : latest.get(event.eventId)
        const one = before === undefined ? deliver() : before.then(deliver)
        latest.set(event.eventId, one)
        return one
      })
      all.push(...(await Promise.all(delivered)))
    }
    return all
  }
}
