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
  LeaseLost,
  NotReplayable,
  StoreUnavailable,
  TenantFailed,
  TenantUnknown,
  TooManyKeys,
  Uncertain,
} from '../errors.js'
import { failureOf, type OmittedReason, type Report, reporter } from '../events.js'
import type { PluginSettings, RouteSettings } from '../options.js'
import { type Captured, captureHead, capturePayload, type Head, tee } from './capture.js'
import type { Limiter } from './limiter.js'
import { problem } from './problem.js'
import { NoTenant, tenantOf } from './tenant.js'

/** When to come back while another attempt runs: it is usually about to end. */
const BUSY_RETRY_S = 1
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
  key: string | undefined
  claim: Claim | undefined
  /** Whether Fastify's own timeout has answered for a handler that still runs. */
  hasTimedOut = false

  readonly #route: ProtectedRoute
  readonly #request: FastifyRequest
  readonly #reply: FastifyReply
  readonly #fingerprinted: Fingerprinted
  #report: Report
  /** Whether a response is on its way through the hooks. */
  #isSending = false
  #sends = 0
  #replayed: StoredResponse | undefined
  #handled: Promise<unknown> = Promise.resolve()

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
      this.#request.log.error({ err: error }, 'The tenant of a request could not be found out')
      return this.#answer(new TenantFailed())
    }
    this.key = parsed.key
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
      return bypassed ? this.#runHandler() : this.#answer(new StoreUnavailable(), STORE_RETRY_S)
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
    const { raw, sent } = this.#reply
    if (raw.destroyed || sent) {
      // Nobody waits for an answer any more, and nothing has begun: so nothing does.
      await claim.release('the client left, or was answered, before it ran', this.#storeTimeoutMs)
      return this.#reply
    }
    this.claim = claim
    raw.once('close', () => void this.#onClose())
    return this.#runHandler()
  }

  /** Runs the handler as Fastify would, and knows when it has ended. */
  async #runHandler(): Promise<unknown> {
    const request = this.#request
    const reply = this.#reply
    const { handler } = this.#route
    // A handler that returns nothing answers later. One whose promise has ended may have answered,
    // and `send` is not over when it returns: the response is being stored. Were Fastify told that
    // the handler has ended, it would send what it returned, or nothing, in between.
    let result: unknown
    try {
      result = handler.call(request.server, request, reply)
      if (result === undefined) {
        // It calls back, and nobody can tell when it is done without an answer; maxRun ends it.
        this.#handled = new Promise(() => {})
        return reply
      }
      const handled = Promise.resolve(result)
      handled.catch(() => {})
      this.#handled = handled
      const value = await result
      return this.#isSending ? reply : value
    } catch (error) {
      if (!this.#isSending) throw error
      request.log.error({ err: error }, 'The handler failed after it had sent its response')
      return reply
    }
  }

  /**
   * The `onSend` hook. Calls back with what goes out, unless something else was sent while it was
   * being stored, as Fastify does when `handlerTimeout` ends just then: two answers are one too many.
   */
  onSend(payload: unknown, done: (error: Error | null, payload?: unknown) => void): void {
    this.#sends += 1
    const turn = this.#sends
    const reply = this.#reply
    this.#store(payload).then(
      (sent) => {
        if (turn !== this.#sends) return
        try {
          done(null, sent)
        } catch (error) {
          // What hooks after this one added cannot be sent. Nobody else would catch it here.
          if (reply.raw.headersSent) reply.raw.destroy()
          else reply.send(error)
        }
      },
      (error) => {
        if (turn === this.#sends) done(error)
      },
    )
  }

  /** What goes out is what is stored, or the other way round. */
  async #store(payload: unknown): Promise<unknown> {
    const { claim } = this
    const reply = this.#reply
    const { settings } = this.#route
    if (this.#replayed !== undefined) {
      // Fastify calls bytes an octet stream where the first response had no type.
      if (this.#replayed.headers['content-type'] === undefined) reply.removeHeader('content-type')
      return payload
    }
    if (claim === undefined || this.#isSending) return payload
    this.#isSending = true
    let captured: Captured
    let head: Head
    let isAnswer: boolean
    try {
      captured = capturePayload(reply, payload)
      head = captureHead(reply, settings.headers)
      isAnswer = settings.keepStatus(head.statusCode)
    } catch (error) {
      // It cannot be sent, so it is an error like one that the handler throws.
      await claim.release('its response could not be sent', this.#storeTimeoutMs)
      throw error
    }
    if (!isAnswer) {
      const release = () => claim.release(`status ${head.statusCode}`, this.#storeTimeoutMs)
      if (this.hasTimedOut) {
        // Fastify's timeout answers while the handler goes on: nobody else may run until it is
        // done, and if it succeeds after all, nobody needs to.
        void this.#handled.then(() => this.#complete(claim, head, null, 'timed out'), release)
      } else await release()
      return captured.kind === 'bytes' ? captured.payload : captured.source
    }
    if (captured.kind === 'bytes') {
      const isStored = await this.#complete(claim, head, captured.body)
      return isStored ? captured.payload : this.#takeBack()
    }
    const { source } = captured
    claim.signal.addEventListener('abort', () => source.destroy(claim.signal.reason))
    return tee(
      source,
      settings.maxBodyBytes,
      async ({ body }) => {
        if (!(await this.#complete(claim, head, body))) throw claim.signal.reason
      },
      () => claim.release('the stream of its response failed', this.#storeTimeoutMs),
    )
  }

  /** Stores the response; `false` when it must not go out, because another attempt took over. */
  async #complete(
    claim: Claim,
    head: Head,
    body: Uint8Array | null,
    whyOmitted: OmittedReason = 'too large',
  ): Promise<boolean> {
    const isKept = body !== null && body.byteLength <= this.#route.settings.maxBodyBytes
    if (!isKept) {
      this.#report({ kind: 'response_omitted', attempt: claim.fence, reason: whyOmitted })
    }
    const response = { ...head, body: isKept ? body : null }
    return (await claim.complete(response, this.#storeTimeoutMs)) !== 'lost'
  }

  /** Replaces a response that is not the operation's answer. */
  #takeBack(): Buffer {
    const reply = this.#reply
    for (const name of [
      'set-cookie',
      'content-encoding',
      'etag',
      ...this.#route.settings.headers,
    ]) {
      reply.removeHeader(name)
    }
    return problem(reply, this.#docs, new LeaseLost(), BUSY_RETRY_S)
  }

  #replay(response: StoredResponse, waitedMs: number): FastifyReply {
    if (response.body === null) {
      this.#report({ kind: 'not_replayable' })
      return this.#answer(new NotReplayable())
    }
    this.#report({ kind: 'replayed', statusCode: response.statusCode, waitedMs })
    this.#replayed = response
    const { body } = response
    return this.#reply
      .code(response.statusCode)
      .headers(response.headers as Record<string, string | string[]>)
      .header('idempotent-replayed', 'true')
      .send(
        body.byteLength === 0
          ? undefined
          : Buffer.from(body.buffer, body.byteOffset, body.byteLength),
      )
  }

  /**
   * The connection is closed. A response that went through the hooks has been dealt with, and a
   * handler whose client left goes on and will answer. What remains was written past Fastify
   * (`hijack`, `reply.raw`): the plugin cannot know its bytes, only whether they were all written.
   */
  async #onClose(): Promise<void> {
    const { claim } = this
    const reply = this.#reply
    if (claim === undefined || claim.isSettled || this.#isSending || !reply.sent) return
    if (!reply.raw.writableFinished) {
      return claim.abandon('the connection closed while the response was written past the hooks')
    }
    const { statusCode } = reply.raw
    if (!this.#route.settings.keepStatus(statusCode)) {
      return claim.release(`status ${statusCode}`, this.#storeTimeoutMs)
    }
    this.#report({
      kind: 'response_omitted',
      attempt: claim.fence,
      reason: 'written past the hooks',
    })
    await claim.complete({ statusCode, headers: {}, body: null }, this.#storeTimeoutMs)
  }

  #answer(error: FastifyError, retryAfterS?: number): FastifyReply {
    return this.#reply.send(problem(this.#reply, this.#docs, error, retryAfterS))
  }

  get #docs(): string {
    return this.#route.protection.settings.docs
  }

  get #storeTimeoutMs(): number {
    return this.#route.protection.settings.storeTimeoutMs
  }
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

/** Whether an error says itself what to answer, as those of authentication do. */
function hasStatus(error: unknown): boolean {
  const status: unknown = Reflect.get(Object(error), 'statusCode')
  return typeof status === 'number' && status >= 400
}
