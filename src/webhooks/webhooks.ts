import type { FastifyInstance, FastifyRequest } from 'fastify'
import { check, isBoolean, isColumnText } from '../checks.js'
import { isStorableText } from '../core/text.js'
import { EventMissing, OptionInvalid } from '../errors.js'
import type { PluginSettings } from '../options.js'
import { sealed } from '../sealed.js'
import { readWebhookOptions } from './check-options.js'
import type { Endpoint, WebhookHandler } from './endpoint.js'
import type { Delivered, Inbox, Replayed } from './inbox.js'
import {
  type EventToIngest,
  ingestedEvent,
  isEventId,
  isTenantName,
  readEventToIngest,
} from './ingest.js'
import { LONGEST_NAME, storableName, writtenName } from './names.js'
import type { WebhookOptions } from './options.js'
import {
  bindRecordedEvents,
  type EventToRecord,
  type RecordedEvent,
  recordEvent,
} from './record-event.js'
import { addWebhookRoute } from './route.js'

/** Webhooks outside a request: part of `app.idempotency`. */
export interface WebhookEvents {
  /**
   * Feeds an event through the inbox as if it had been delivered, without a signature: what was
   * there already is a duplicate, and what is new is run as the endpoint runs its events.
   *
   * @throws IDEMPOTENCY_EVENT_MISSING when there is no such endpoint; IDEMPOTENCY_OPTION_INVALID for
   * what cannot be an event; IDEMPOTENCY_DATABASE_FAILED when the database does not answer: then it is to
   * be ingested again.
   */
  ingest(event: EventToIngest): Promise<Delivered>
  /**
   * Runs a stored event again, now, with all its attempts before it: one that is dead, ignored, or
   * waits for its next attempt; one that was processed only with `force`, and then its steps are
   * run again, too. Named by the inbox's id, or by the provider's, and then with the tenant's unless the
   * plugin has `tenant: false`.
   *
   * An event of an endpoint that this process does not have is left alone (`unserved`), unless
   * `queue` says that others have it: then it waits for them.
   */
  replay(
    event: string | { tenantId?: string; provider: string; eventId: string },
    options?: { force?: boolean; queue?: boolean },
  ): Promise<Replayed>
  /** Begins to run events that wait, in a process that does not listen. A listening one does. */
  work(): void
}

/** What the parts of the inbox need of the plugin. */
export interface WebhooksContext {
  readonly settings: PluginSettings
  readonly redis: object | undefined
  /** Made when it is needed: an application without webhooks may lack their table. */
  readonly inbox: () => Inbox
  /** Whose request it is. */
  readonly tenantOf: (request: FastifyRequest) => Promise<string>
}

const REPLAY_CHECKS = { force: isBoolean, queue: isBoolean }

const NAME_CHECKS = {
  tenantId: isTenantName,
  provider: isColumnText('stripe', LONGEST_NAME),
  eventId: (value: unknown) =>
    value !== null && isEventId(value) === undefined
      ? undefined
      : 'must be what the provider calls the event; an event without a name is replayed by the id of its row',
}

/** The names that an event can have in the table: an id of a provider's can look like one of the inbox's own. */
function readEventName(
  event: Parameters<WebhookEvents['replay']>[0],
  hasTenants: boolean,
): readonly (string | { tenantId: string; provider: string; eventId: string })[] {
  if (isStorableText(event)) return [event]
  if (typeof event !== 'object') {
    throw new OptionInvalid(
      'replay needs the id of an event, or { tenantId, provider, eventId }: what the provider calls it',
    )
  }
  check(' of replay', NAME_CHECKS, event, ['provider', 'eventId'])
  const { tenantId = '', provider, eventId } = event
  if (event.tenantId === undefined && hasTenants) {
    throw new OptionInvalid(
      'replay needs a "tenantId" beside "provider" and "eventId": two tenants may have an event of the same name',
    )
  }
  const ids = new Set([storableName(eventId), writtenName(eventId)])
  return [...ids].map((eventId) => ({ tenantId, provider, eventId }))
}

/** `recordEvent` of a request. */
type RecordEvent = (request: FastifyRequest, event: EventToRecord) => Promise<RecordedEvent>

/** Binds the inbox to an application; returns what the plugin offers of it. */
export function bindWebhooks(
  app: FastifyInstance,
  { settings, redis, inbox, tenantOf }: WebhooksContext,
): WebhookEvents & {
  recordEvent: RecordEvent
} {
  const { docs, failedSignatures, redisPrefix, storeTimeoutMs } = settings

  app.decorate(
    'webhook',
    function (
      this: FastifyInstance,
      url: string,
      options: WebhookOptions,
      handler: WebhookHandler,
    ): void {
      if (typeof url !== 'string' || !url.startsWith('/')) {
        throw new OptionInvalid("app.webhook needs a URL first, such as '/webhooks/stripe'")
      }
      const endpointSettings = readWebhookOptions(url, options)
      if (typeof handler !== 'function') {
        throw new OptionInvalid(
          `webhook ${url} needs a handler as its third argument: async (event) => { … }`,
        )
      }
      const { tenant = settings.tenant === false ? false : undefined } = options
      if (tenant === undefined) {
        throw new OptionInvalid(
          `option "tenant" of webhook ${url} is needed: a provider does not log in. Say whose events arrive there, such as tenant: 'acme' or tenant: (request) => request.params.tenant`,
        )
      }
      const name = options.name ?? `${this.prefix}${url}`
      if (!isStorableText(name, LONGEST_NAME)) {
        throw new OptionInvalid(
          `option "name" of webhook ${url.slice(0, 100)} is needed: its URL is no text of at most ${LONGEST_NAME} characters, under which its events could be stored`,
        )
      }
      if (inbox().has(name)) {
        throw new OptionInvalid(
          `two webhooks are called ${name}: give one of them another option "name"`,
        )
      }
      const fixedTenant = tenant === false ? '' : typeof tenant === 'string' ? tenant : undefined
      const twin = inbox().twinOf(options.provider, fixedTenant)
      if (twin !== undefined) {
        throw new OptionInvalid(
          `webhooks ${twin} and ${name} share the provider name ${options.provider.name}: what one has received would be a duplicate for the other. Give one of them a name of its own, such as provider: { ...${options.provider.name}({ … }), name: '${options.provider.name}-2' }`,
        )
      }
      const endpoint: Endpoint = {
        name,
        provider: options.provider,
        fixedTenant,
        isServed: true,
        handler,
        // Before the body is read, what is left of a request is parameters, headers and its address.
        tenant: typeof tenant === 'string' ? () => tenant : (tenant as Endpoint['tenant']),
        settings: endpointSettings,
      }
      inbox().add(endpoint)
      addWebhookRoute(this, url, endpoint, {
        inbox: inbox(),
        docs,
        failedSignatures,
        redis,
        redisPrefix,
        storeTimeoutMs,
      })
    },
  )
  bindRecordedEvents(app)

  return {
    recordEvent(request, event) {
      const recording = tenantOf(request).then((tenantId) =>
        recordEvent(inbox(), request, tenantId, event),
      )
      // What is not awaited must not end the process when it fails.
      recording.catch(() => {})
      return recording
    },
    async ingest(event) {
      const given = readEventToIngest(event)
      const endpoint = inbox().endpoint(given.endpoint)
      if (endpoint === undefined) {
        const names = inbox().endpointNames.join(', ') || 'none'
        throw new EventMissing(`webhook endpoint ${given.endpoint}; there are ${names}`)
      }
      const tenantId = given.tenantId ?? endpoint.fixedTenant
      if (tenantId === undefined) {
        throw new OptionInvalid(
          `ingest needs a "tenantId": requests say whose events ${given.endpoint} gets, and this is none`,
        )
      }
      const { event: ingested, headers } = ingestedEvent(endpoint, given)
      const delivery = { tenantId, headers, from: 'elsewhere', log: app.log } as const
      return inbox().deliver(endpoint, ingested, delivery)
    },
    async replay(event, options = {}) {
      check(' of replay', REPLAY_CHECKS, options)
      const { force = false, queue = false } = options
      const names = readEventName(event, settings.tenant !== false)
      return sealed('replay()', async () => {
        let replayed: Replayed = { kind: 'missing' }
        for (const name of names) {
          if (replayed.kind === 'missing') replayed = await inbox().replay(name, { force, queue })
        }
        return replayed
      })
    },
    work: () => inbox().work(),
  }
}
