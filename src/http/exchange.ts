import { Readable } from 'node:stream'
import type { FastifyError, FastifyReply, FastifyRequest, RouteHandlerMethod } from 'fastify'
import type { Claim } from '../claims/claim.js'
import type { Claims, Outcome } from '../claims/claims.js'
import { parseKey } from '../core/key.js'
import type { StoredResponse } from '../core/record.js'
import {
  BodyUnusable,
  InProgress,
  KeyMalformed,
  KeyMissing,
  KeyReused,
  NotReplayable,
  StoreUnavailable,
  TenantFailed,
  TenantUnknown,
  TooManyKeys,
  Uncertain,
} from '../errors.js'
import { failureOf, type Report, reporter } from '../events.js'
import type { PluginSettings, RouteSettings } from '../options.js'
import type { Limiter } from './limiter.js'
import { BUSY_RETRY_S, problem } from './problem.js'
import { Recording, type SendOn } from './recording.js'
import { hasStatus, NoTenant, tenantOf } from './tenant.js'

/** When to come back while the store does not answer. */
const STORE_RETRY_S = 5

/** What all protected routes share. */
export interface Protection {
  readonly settings: PluginSettings
  readonly claims: Claims
  readonly limiter: Limiter | undefined
}

/** A protected route, resolved once when it was added. */
export interface ProtectedRoute {
  readonly protection: Protection
  readonly settings: RouteSettings
  /** For people: `POST /payments`. */
  readonly name: string
  /** What tells it from all other routes: its pattern, and its constraints if it has any. */
  readonly identity: string
  readonly methods: readonly string[]
  readonly handler: RouteHandlerMethod
}

/** What is known of a body before validation: its fingerprint, or that it has none. */
export type Fingerprinted = { kind: 'fingerprint'; value: string } | { kind: 'unusable' }

/** One request to a protected route, from its header to its stored response. */
export class Exchange {
  tenantId = ''

  readonly #route: ProtectedRoute
  readonly #request: FastifyRequest
  readonly #reply: FastifyReply
  readonly #fingerprinted: Fingerprinted
  #report: Report
  #recording: Recording | undefined
  #replayed: StoredResponse | undefined

  constructor(
    route: ProtectedRoute,
    request: FastifyRequest,
    reply: FastifyReply,
    fingerprinted: Fingerprinted,
  ) {
    this.#route = route
    this.#request = request
    this.#reply = reply
    this.#fingerprinted = fingerprinted
    this.#report = reporter(request.log, route.name, undefined)
  }

  /** The claim under which the handler runs, if it runs. */
  get claim(): Claim | undefined {
    return this.#recording?.claim
  }

  /** Takes the handler's place: runs it, or answers without it. */
  async handle(): Promise<unknown> {
    const { protection } = this.#route
    const header = headerOf(this.#request)
    if (header === undefined) {
      this.#report({ kind: 'key_rejected', reason: 'it is missing' })
      return this.#answer(new KeyMissing())
    }
    const parsed = parseKey(header)
    if (parsed.kind === 'malformed') {
      this.#report({ kind: 'key_rejected', reason: parsed.reason })
      return this.#answer(new KeyMalformed(parsed.reason))
    }
    if (this.#fingerprinted.kind === 'unusable') return this.#answer(new BodyUnusable())
    try {
      this.tenantId = await tenantOf(this.#request, protection.settings.tenant)
    } catch (error) {
      if (error instanceof NoTenant) return this.#answer(new TenantUnknown())
      if (hasStatus(error)) throw error
      this.#request.log.error(
        { failure: failureOf(error) },
        'The tenant of a request could not be found out',
      )
      return this.#answer(new TenantFailed())
    }
    this.#report = reporter(this.#request.log, this.#route.name, {
      tenantId: this.tenantId,
      key: parsed.key,
    })
    return this.#begin(parsed.key, this.#fingerprinted.value)
  }

  async #begin(key: string, fingerprint: string): Promise<unknown> {
    const { settings, protection } = this.#route
    const { limiter } = protection
    const report = this.#report
    const { leaseMs, maxRunMs, retentionMs, onLeaseExpired, waitMs } = settings
    let retryAfterS = 1
    let outcome: Outcome
    try {
      outcome = await protection.claims.begin({
        tenantId: this.tenantId,
        key,
        fingerprint,
        leaseMs,
        maxRunMs,
        retentionMs,
        onLeaseExpired,
        waitMs,
        ...(waitMs > 0 && { signal: closeSignal(this.#reply) }),
        ...(limiter && {
          mayAdd: async () => {
            const seconds = await limiter(this.#request, report)
            retryAfterS = seconds ?? retryAfterS
            return seconds === undefined
          },
        }),
        report,
      })
    } catch (error) {
      const bypassed = settings.onStoreError === 'bypass'
      report({ kind: 'store_unavailable', bypassed, failure: failureOf(error) })
      if (!bypassed) return this.#answer(new StoreUnavailable(), STORE_RETRY_S)
      const { handler } = this.#route
      // One that returns nothing answers later: its reply is what ends then.
      return handler.call(this.#request.server, this.#request, this.#reply) ?? this.#reply
    }
    switch (outcome.kind) {
      case 'run':
        return this.#run(outcome.claim)
      case 'replay':
        return this.#replay(outcome.response, outcome.waitedMs)
      case 'busy':
        report({ kind: 'busy', waitedMs: outcome.waitedMs })
        return this.#answer(new InProgress(), BUSY_RETRY_S)
      case 'mismatch':
        report({ kind: 'mismatch' })
        return this.#answer(new KeyReused())
      case 'uncertain':
        report({ kind: 'uncertain' })
        return this.#answer(new Uncertain())
      case 'refused':
        report({ kind: 'too_many_keys' })
        return this.#answer(new TooManyKeys(), retryAfterS)
    }
  }

  async #run(claim: Claim): Promise<unknown> {
    const reply = this.#reply
    const { protection, settings, handler } = this.#route
    const { storeTimeoutMs, docs } = protection.settings
    if (reply.raw.destroyed || reply.sent) {
      // Nobody waits for an answer any more, and nothing has begun: so nothing does.
      await claim.release('the client left, or was answered, before it ran', storeTimeoutMs)
      return reply
    }
    const report = this.#report
    this.#recording = new Recording(claim, reply, { settings, storeTimeoutMs, docs, report })
    return this.#recording.run(handler)
  }

  /** The `onSend` hook: hands on what goes out. */
  onSend(payload: unknown, done: SendOn): void {
    if (this.#recording !== undefined) this.#recording.onSend(payload, done)
    else done(null, this.#replayed ? this.#asStored(this.#replayed, payload) : payload)
  }

  /** What hooks in front of this one made of a replay is undone: they had their turn already. */
  #asStored({ headers, body }: StoredResponse, payload: unknown): unknown {
    if (payload instanceof Readable) payload.on('error', () => {}).destroy()
    // Fastify calls bytes an octet stream where the first response had no type.
    for (const name of ['content-type', 'content-encoding']) {
      const value = headers[name]
      if (value === undefined) this.#reply.removeHeader(name)
      else this.#reply.header(name, value)
    }
    this.#reply.removeHeader('content-length')
    return bytesOf(body)
  }

  /** The `onError` hook: Fastify's `handlerTimeout` answers while the handler still runs. */
  onTimeout(): void {
    this.#recording?.onTimeout()
  }

  #replay(response: StoredResponse, waitedMs: number): FastifyReply {
    if (response.body === null) {
      this.#report({ kind: 'not_replayable' })
      return this.#answer(new NotReplayable())
    }
    this.#report({ kind: 'replayed', statusCode: response.statusCode, waitedMs })
    this.#replayed = response
    return this.#reply
      .code(response.statusCode)
      .headers(response.headers as Record<string, string | string[]>)
      .header('idempotent-replayed', 'true')
      .send(bytesOf(response.body))
  }

  #answer(error: FastifyError, retryAfterS?: number): FastifyReply {
    const { docs } = this.#route.protection.settings
    return this.#reply.send(problem(this.#reply, docs, error, retryAfterS))
  }
}

/** As Fastify sends it: nothing at all, or bytes. */
function bytesOf(body: Uint8Array | null): Buffer | undefined {
  return body === null || body.byteLength === 0
    ? undefined
    : Buffer.from(body.buffer, body.byteOffset, body.byteLength)
}

/**
 * The header as it was sent: Node joins two of them with a comma, and two halves of a quoted string
 * would become a key that nobody sent.
 */
function headerOf({ headers, raw }: FastifyRequest): string | string[] | undefined {
  const header = headers['idempotency-key']
  if (typeof header !== 'string' || !header.includes(',')) return header
  const distinct = raw.rawHeaders.filter(
    (name, n) => n % 2 === 0 && name.toLowerCase() === 'idempotency-key',
  )
  return distinct.length > 1 ? distinct : header
}

function closeSignal(reply: FastifyReply): AbortSignal {
  const closed = new AbortController()
  reply.raw.once('close', () => closed.abort())
  if (reply.raw.destroyed) closed.abort()
  return closed.signal
}
