import type {
  FastifyInstance,
  FastifyReply,
  FastifyRequest,
  onSendHookHandler,
  RouteOptions,
} from 'fastify'
import { type Check, check } from '../checks.js'
import { InboxUnavailable, OptionInvalid } from '../errors.js'
import { failureOf, reporter } from '../events.js'
import { sealIn } from '../sealed.js'
import { readWebhookOptions } from './check-options.js'
import { bytesOf, type Endpoint } from './endpoint.js'
import type { WebhookEvent } from './event.js'
import type { Delivered, Inbox } from './inbox.js'
import { isEventId } from './ingest.js'
import { storableName } from './names.js'
import { parseJson } from './payload.js'
import { type DeliveryOutcome, isProviderName, type Provider } from './provider.js'
import { type Ending, RecordedEvents } from './recorded-events.js'
import type { VerifiedEvent } from './verify.js'

/** An event that came to a route of the application's own. */
export interface EventToRecord {
  /** Who sent it: part of the unique key. */
  provider: string
  /** What the sender calls it; `null` when it has no name, and then it is never a duplicate. */
  eventId: string | null
  type?: string | null | undefined
  /** Kept with the event: bytes, text, or what becomes JSON. */
  payload?: unknown
}

/** What `recordEvent` found. */
export type RecordedEvent =
  /** It is this request's to process. How the request is answered says how that went. */
  | { readonly duplicate: false; readonly event: WebhookEvent }
  | { readonly duplicate: true; readonly event: KnownEvent }

/** What a request can do with webhook events: part of `request.idempotency`. */
export interface RequestEvents {
  /**
   * Records a webhook event that a route of your own has received, and tells whether it is a
   * duplicate: one atomic write decides. The route's answer is left as it is, and says how the
   * event ended: below 400 it is processed, otherwise the next delivery is no duplicate. A stream is
   * processed once it has ended. After a crash the next delivery is no duplicate either, once the
   * lease (30 s) has run out.
   *
   * @throws IDEMPOTENCY_INBOX_UNAVAILABLE (503) when the store does not answer,
   * IDEMPOTENCY_TENANT_UNKNOWN (403) for a request of no tenant, what `tenant` throws, and
   * IDEMPOTENCY_OPTION_INVALID for wrong arguments and for a reply that was sent before.
   */
  recordEvent(event: EventToRecord): Promise<RecordedEvent>
}

/** An event that another request has recorded. */
export interface KnownEvent {
  readonly id: string
  readonly provider: string
  readonly eventId: string | null
  readonly deliveries: number
  /** `processing`: by another request, which may yet fail. With any other status, nothing is left to do. */
  readonly status: 'processing' | 'processed' | 'ignored' | 'dead'
}

/** Named here, because an addition to Fastify's module sees Fastify's names and not these. */
type Reply = FastifyReply

const RECORDED = Symbol('fastify-idempotency.recorded')
const REPLY = Symbol('fastify-idempotency.reply')

declare module 'fastify' {
  interface FastifyRequest {
    [RECORDED]: RecordedEvents | null
    [REPLY]: Reply | null
  }
}

/** The route answered with a status that says it failed. */
class RequestFailed extends Error {
  override readonly name = 'RequestFailed'
}

/** Lets every route record events; how a route answers says how its events ended. */
export function bindRecordedEvents(app: FastifyInstance): void {
  app.decorateRequest(RECORDED, null)
  app.decorateRequest(REPLY, null)

  app.addHook('onRequest', (request, reply, done) => {
    request[REPLY] = reply
    done()
  })
  const onSend: onSendHookHandler = (request, _reply, payload, done) => {
    const recorded = request[RECORDED]
    if (recorded === null) done(null, payload)
    else recorded.onSend(payload, done)
  }
  // What leaves says how the events ended.
  app.addHook('onRoute', (route) => runLast(route, onSend))
  app.addHook('onError', (request, _reply, error, done) => {
    request[RECORDED]?.onError(error)
    done()
  })
}

/**
 * The hooks of a route run after all others. Other plugins add theirs when the route is added, too, by
 * setting the list, by pushing onto it or by wrapping it: this one is added once they have.
 */
function runLast(route: RouteOptions, last: onSendHookHandler): void {
  process.nextTick(() => {
    route.onSend = [route.onSend ?? [], last].flat()
  })
}

/** Records an event as a delivery whose handler is the rest of the request. */
export async function recordEvent(
  inbox: Inbox,
  request: FastifyRequest,
  tenantId: string,
  given: EventToRecord,
): Promise<RecordedEvent> {
  const { provider, eventId, type = null } = checked(given)
  const reply = request[REPLY]
  if (reply === null) {
    throw new OptionInvalid(
      'recordEvent was called by an onRequest hook that was added before the plugin: register fastify-idempotency before it, or call recordEvent in the handler',
    )
  }
  if (reply.raw.writableEnded) throw tooLate(request, 'nothing was recorded')
  let open: (event: WebhookEvent) => void = () => {}
  let end: (isProcessed: boolean) => void = () => {}
  const opened = new Promise<WebhookEvent>((resolve) => {
    open = resolve
  })
  const ended = new Promise<boolean>((resolve) => {
    end = resolve
  })
  const endpoint = endpointOf(request, provider, async (event) => {
    open(event)
    if (!(await ended)) throw new RequestFailed('the route did not answer with success')
  })
  const rawBody = bytesOf('recordEvent', given.payload)
  const event: VerifiedEvent = {
    ...(eventId === null
      ? { eventId, namedBy: 'nothing' }
      : { eventId: storableName(eventId), namedBy: 'provider' }),
    ...{ type, object: null, payload: given.payload, rawBody },
    ...{ isItem: false, isRedelivered: true },
  }
  const delivery = { tenantId, headers: {}, from: 'elsewhere', log: request.log } as const
  const delivering = inbox.deliver(endpoint, event, delivery)
  let first: WebhookEvent | Delivered
  try {
    first = await Promise.race([opened, delivering])
  } catch (error) {
    const failure = failureOf(error)
    reporter(request.log, nameOf(request), undefined)({ kind: 'inbox_unavailable', failure })
    throw sealIn((options) => new InboxUnavailable(options), error)
  }
  if ('outcome' in first) {
    const { id, deliveries, outcome } = first
    const status = STATUSES[outcome] ?? 'processing'
    return { duplicate: true, event: { id, provider, eventId, deliveries, status } }
  }
  const ending: Ending = (isProcessed) => {
    end(isProcessed)
    return delivering
  }
  request[RECORDED] ??= new RecordedEvents(request, reply)
  if (reply.raw.writableEnded || !request[RECORDED].add(ending)) {
    void ending(false).catch(() => {})
    throw tooLate(request, 'the next delivery is no duplicate')
  }
  return { duplicate: false, event: first }
}

/** What has become of an event that another request has recorded. */
const STATUSES: Partial<Record<DeliveryOutcome, KnownEvent['status']>> = {
  duplicate: 'processed',
  ignored: 'ignored',
  dead: 'dead',
}

/** Logged here: the rejection of a call that is not awaited is lost. */
function tooLate({ log }: FastifyRequest, consequence: string): Error {
  const error = new OptionInvalid(
    `the reply was sent before recordEvent could record the event, and ${consequence}: write await request.idempotency.recordEvent(…), and answer after it`,
  )
  log.error({ err: error }, error.message)
  return error
}

/** An endpoint that no worker serves: its handler is a request, and cannot be run again by others. */
function endpointOf(request: FastifyRequest, name: string, handler: Endpoint['handler']): Endpoint {
  const provider: Provider = {
    name,
    secret: [],
    scheme: { algorithm: { kind: 'equality' }, read: () => 'missing_header' },
    keptHeaders: [],
    parse: ({ body }) => parseOrKeep(body),
    eventId: () => null,
    type: () => null,
  }
  const settings = readWebhookOptions(nameOf(request), { provider })
  return {
    name: storableName(nameOf(request)),
    provider,
    handler,
    tenant: false,
    fixedTenant: undefined,
    isServed: false,
    // Whoever delivers it again may try again.
    settings: { ...settings, retry: { ...settings.retry, attempts: Number.MAX_SAFE_INTEGER } },
  }
}

function nameOf({ method, routeOptions }: FastifyRequest): string {
  return `${method} ${routeOptions.url ?? ''}`
}

const CHECKS: Record<keyof EventToRecord, Check> = {
  provider: (value) =>
    isProviderName(value)
      ? undefined
      : "must be 1 to 64 letters, digits, - and _, such as 'stripe'",
  eventId: isEventId,
  type: (value) =>
    value === null || typeof value === 'string' ? undefined : 'must be text, or be left out',
  payload: () => undefined,
}

function checked(given: EventToRecord): EventToRecord {
  check(' of recordEvent', CHECKS, given, ['provider', 'eventId'])
  return given
}

/** A later delivery brings its own payload; the stored one is for people. */
function parseOrKeep(body: Buffer): unknown {
  try {
    return parseJson(body)
  } catch {
    return body
  }
}
