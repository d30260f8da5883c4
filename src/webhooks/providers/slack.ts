import { at, parseForm, parseJson } from '../payload.js'
import type { Answer, Provider } from '../provider.js'
import { type Incoming, isForm } from '../signature.js'
import { hmac } from './hmac.js'
import { readOptions, TOLERANT, type TolerantOptions } from './options.js'

/** Slack shows the body to the user of a command, and reads that of an interaction. */
const SILENT: Answer = { status: 200, body: '' }

/**
 * Slack: events, and the forms of slash commands and interactivity. Basic Information → App
 * Credentials → Signing Secret. Window: 5 minutes. Commands and interactions have no id: Slack
 * sends them once. They are answered with an empty body, or by `event.respond()`.
 */
export function slack(options: TolerantOptions): Provider {
  const { secret, tolerance } = readOptions('slack', TOLERANT, options)
  return {
    ...hmac({
      name: 'slack',
      secret,
      header: 'x-slack-signature',
      prefix: 'v0=',
      timestampHeader: 'x-slack-request-timestamp',
      signed: ({ timestamp, body }) => ['v0:', timestamp, ':', body],
      ...(tolerance !== undefined && { tolerance }),
      eventId: (payload) => at(payload, 'event_id'),
      type: (payload) => at(payload, 'event.type') ?? at(payload, 'type') ?? at(payload, 'command'),
      object: channelOf,
      keptHeaders: ['content-type', 'x-slack-retry-num', 'x-slack-retry-reason'],
      answers: {
        ...{ processed: SILENT, duplicate: SILENT, accepted: SILENT, ignored: SILENT },
        // It will not be processed, however often it comes.
        dead: { status: 200, headers: { 'x-slack-no-retry': '1' }, body: '' },
      },
    }),
    parse,
    // Commands and interactions are repeated by people, if at all.
    redelivers: (payload) => at(payload, 'event_id') !== undefined,
    handshake: (payload) => {
      if (at(payload, 'ssl_check') === '1') return { status: 200 }
      const challenge = at(payload, 'challenge')
      const isAsked = at(payload, 'type') === 'url_verification' && typeof challenge === 'string'
      return isAsked ? { status: 200, body: { challenge } } : undefined
    },
  }
}

/** Events, commands and interactions name their channel in different places. */
const CHANNELS = [
  ...['event.channel.id', 'event.channel', 'event.item.channel'],
  ...['channel_id', 'channel.id', 'container.channel_id'],
]

function channelOf(payload: unknown): unknown {
  return CHANNELS.map((path) => at(payload, path)).find((channel) => typeof channel === 'string')
}

function parse(incoming: Incoming): unknown {
  if (!isForm(incoming)) return parseJson(incoming.body)
  const form = parseForm(incoming.body)
  // Interactivity is a form with one field, which is JSON.
  return typeof form.payload === 'string' ? JSON.parse(form.payload) : form
}
